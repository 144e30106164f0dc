"""What GitHub's answers look like, as far as its OpenAPI document asks for."""

from datetime import datetime
from typing import Any

_USER_LINKS = "followers following gists starred subscriptions organizations repos events received_events"
_REPOSITORY_LINKS = (
    "archive assignees blobs branches collaborators comments commits compare contents contributors deployments "
    "downloads events forks git_commits git_refs git_tags hooks issue_comment issue_events issues keys labels "
    "languages merges milestones notifications pulls releases stargazers statuses subscribers subscription tags "
    "teams trees"
)
_COUNTS = (
    "forks forks_count open_issues open_issues_count size stargazers_count watchers watchers_count network_count "
    "subscribers_count"
)


def text(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def simple_user(base: str, web: str, number: int, login: str, kind: str) -> dict[str, Any]:
    url = f"{base}/users/{login}"
    return {
        "id": number,
        "login": login,
        "node_id": f"U_{number}",
        "avatar_url": f"{web}/avatars/{number}",
        "gravatar_id": "",
        "url": url,
        "html_url": f"{web}/{login}",
        "type": kind,
        "site_admin": False,
        **{f"{name}_url": f"{url}/{name}" for name in _USER_LINKS.split()},
    }


def public_user(simple: dict[str, Any], created_at: datetime) -> dict[str, Any]:
    return simple | {
        "name": None,
        "company": None,
        "blog": None,
        "location": None,
        "email": None,
        "hireable": None,
        "bio": None,
        "followers": 0,
        "following": 0,
        "public_gists": 0,
        "public_repos": 0,
        "created_at": text(created_at),
        "updated_at": text(created_at),
    }


def minimal_repository(
    base: str, web: str, number: int, owner: dict[str, Any], name: str, *, private: bool
) -> dict[str, Any]:
    full_name = f"{owner['login']}/{name}"
    url = f"{base}/repos/{full_name}"
    return {
        "id": number,
        "node_id": f"R_{number}",
        "name": name,
        "full_name": full_name,
        "owner": owner,
        "private": private,
        "html_url": f"{web}/{full_name}",
        "description": None,
        "fork": False,
        "url": url,
        **{f"{link}_url": f"{url}/{link}" for link in _REPOSITORY_LINKS.split()},
    }


def full_repository(minimal: dict[str, Any], at: datetime, *, archived: bool, admin: bool) -> dict[str, Any]:
    web = minimal["html_url"]
    return minimal | {
        "clone_url": f"{web}.git",
        "git_url": f"{web}.git",
        "ssh_url": f"{web}.git",
        "svn_url": web,
        "mirror_url": None,
        "default_branch": "main",
        "has_issues": True,
        "has_projects": True,
        "has_wiki": False,
        "has_pages": False,
        "has_discussions": False,
        "homepage": None,
        "language": None,
        "archived": archived,
        "disabled": False,
        "license": None,
        "pushed_at": text(at),
        "created_at": text(at),
        "updated_at": text(at),
        "permissions": {"admin": admin, "maintain": admin, "push": admin, "triage": admin, "pull": True},
        **dict.fromkeys(_COUNTS.split(), 0),
    }


def permissions_of(base_role: str) -> dict[str, bool]:
    order = ["read", "triage", "write", "maintain", "admin"]
    rank = order.index(base_role) if base_role in order else -1
    names = ("pull", "triage", "push", "maintain", "admin")
    return {name: rank >= number for number, name in enumerate(names)}
