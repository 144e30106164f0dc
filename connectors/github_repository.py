"""Access to GitHub repositories: by an invitation that the customer accepts, or by a role for who is there already."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar

import msgspec

from config.catalogue import BenefitConfig, Per
from config.settings import Settings
from connectors.base import (
    Account,
    ActionRequired,
    Holding,
    Presentation,
    Receipt,
    Recipient,
    Rejected,
    Tools,
    Unavailable,
)
from connectors.github.client import GitHub
from connectors.github.collaborators import Collaborators, Invitation
from connectors.github.connections import private_key
from connectors.github.given import AS_PERMISSION, RANKS, Before, Given, Role, resource, wanting
from connectors.github.places import Place, Places
from connectors.github.terms import Terms

_LOGIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,60})")
# An invitation that nobody accepts ends after seven days: https://github.com/mesh-iit/outside-collaborators/issues/68
# and https://docs.github.com/en/rest/collaborators/invitations (`expired`).
_INVITATION_LASTS = timedelta(days=7)


class GitHubRepository:
    """Invites customers to repositories, and takes them out again; bound to the account's number, never its name."""

    Config: ClassVar[type[BenefitConfig]] = Terms
    per: ClassVar[Per] = "customer"
    dynamic: ClassVar[bool] = False
    platform: ClassVar[str | None] = "github"
    looks_first: ClassVar[bool] = True

    def __init__(self, tools: Tools, pace: float = 1.0) -> None:
        self._github = GitHub(tools, pace)
        self._places = Places(self._github)
        self._people = Collaborators(self._github)
        self._now = tools.now

    @staticmethod
    def missing(config: Terms, settings: Settings) -> list[str]:  # noqa: ARG004 - as for all
        """Return what the settings lack: an App with its key, or a token."""
        has_key = bool(settings.github_private_key.get_secret_value())
        if settings.github_app_id and not has_key:
            return ["ALMONER_GITHUB_PRIVATE_KEY is missing: it belongs to the App of ALMONER_GITHUB_APP_ID"]
        if has_key and not settings.github_app_id:
            return ["ALMONER_GITHUB_APP_ID is missing: ALMONER_GITHUB_PRIVATE_KEY belongs to an App"]
        if not has_key and not settings.github_token.get_secret_value():
            return ["ALMONER_GITHUB_APP_ID and ALMONER_GITHUB_PRIVATE_KEY, or ALMONER_GITHUB_TOKEN, are missing"]
        if has_key:
            try:
                private_key(settings)
            except ValueError as error:
                return [str(error)]
        return []

    def resource(self, to: Recipient, config: Terms) -> str:
        """Name the repository and the account. Raises ActionRequired."""
        if config.repository is None:
            raise Rejected("each repository is a part of its own")
        account = to.accounts.get("github", "")
        if not account.isdecimal():
            raise ActionRequired(
                f"link your GitHub account, so that you can be invited to {config.repository}", who="customer"
            )
        return resource(config.repository, account)

    @staticmethod
    def scope(resource: str) -> str:
        """Each account in each repository stands alone."""
        return resource

    async def grant(self, to: Recipient, config: Terms, held: Receipt | None) -> Receipt:
        """Look first and have it written down; then, with that as `held`, invite or raise. Raises ConnectorError.

        So what was there before us stays known, even if we die in between.
        """
        name = self.resource(to, config)
        if held is None or held.intended:
            await self._github.check_room(await self._github.access(_repository(config)))
        if held is None or not held.data or held.resource != name:
            return await self._look(Given(Receipt(name, intended=True)), config)
        return await self._give(held, config)

    async def revoke(self, held: Receipt, *, last: bool = True) -> None:  # noqa: ARG002 - each stands alone
        """Cancel the invitation and take the access away, or put back what was there before us."""
        given = Given(held)
        if given.is_untouched:
            return
        place = await self._place(given)
        invitation = await self._people.invitation(place, given)
        own = given.before.direct if given.before and not given.takes_all else None
        if invitation and own:
            await self._people.change(place, given, invitation, AS_PERMISSION.get(own, own))
        elif invitation:
            # To remove a collaborator cancels no invitation to them:
            # https://docs.github.com/en/rest/collaborators/collaborators#remove-a-repository-collaborator
            await self._people.cancel(place, given, invitation)
        else:
            await self._put_back(place, given, own)

    async def holds(self, held: Receipt) -> Holding:
        """Read back what the account may do, from whatever source; without data, only what is its own."""
        given = Given(held)
        place = await self._place(given, recent=True)
        invitation, _, role = await self._people.seen(place, given)
        if invitation and not invitation.get("expired"):
            return Holding.PENDING
        if role is None:
            return Holding.GONE
        if not held.data:
            return Holding.HELD if given.account in await self._people.direct(place) else Holding.GONE
        return Holding.HELD if role.suffices(given.target) else Holding.GONE

    async def left(self, held: Receipt) -> bool:
        """Look whether anything is the account's own that was not so before us; a team's access is not ours."""
        given = Given(held)
        if given.is_untouched:
            return False
        place = await self._place(given, recent=True)
        invitation, _, role = await self._people.seen(place, given, invited=True)
        if invitation and not invitation.get("expired"):
            return not given.was(invitation["permissions"])
        own = (await self._people.direct(place)).get(given.account) if role else None
        return own is not None and not given.was(own)

    async def identify(self, name: str, config: Terms) -> Account:
        """Find the account of this login. Raises ConnectorError."""
        login = name.strip().removeprefix("@")
        nobody = ActionRequired(f"there is no GitHub user {login[:60]!r}; correct the name", who="customer")
        if not _LOGIN.fullmatch(login):
            raise nobody
        access = await self._github.access(config.names[0])
        answer = await self._github.ask(access, "GET", f"/users/{login}", f"the GitHub user {login}", fine=(404,))
        if answer.status == 404 or answer.body["type"] != "User":
            raise nobody
        return Account(str(answer.body["id"]), answer.body["login"])

    async def examine(self, config: Terms) -> list[str]:
        """Look at each repository, what we may do there, and whether it honours the permission."""
        problems = []
        for name in config.names:
            try:
                place = await self._places.examined(name)
            except ActionRequired as error:
                problems.append(str(error))
            else:
                problems += [f"{place.full_name}: {problem}" for problem in _problems(place, config.permission)]
        return problems

    async def survey(self, config: Terms) -> Mapping[str, Holding] | None:
        """Return everybody with access of their own, and every open invitation; nobody who comes through a team."""
        found: dict[str, Holding] = {}
        for name in config.names:
            place = await self._places.find(name)
            for one in await self._people.invitations(place):
                if one["invitee"] and not one.get("expired"):
                    found[resource(name, str(one["invitee"]["id"]))] = Holding.PENDING
            others = (one for one in await self._people.direct(place) if one != str(place.owner_id))
            found |= {resource(name, one): Holding.HELD for one in others}
        return found

    def offer(self, held: Receipt) -> dict[str, Any]:
        """Return where the repository is, and the invitation while one waits."""
        data = held.data
        return {
            "kind": "github_repository",
            "repository": data["repository"],
            "permission": data["permission"],
            "login": data["login"],
            "url": data["url"],
            "invitation_url": data.get("invitation_url"),
            "invitation_expires_at": data.get("invitation_expires_at"),
            "given_by_us": data["before"] is None,
        }

    @staticmethod
    def present(offer: dict[str, Any], grant_id: str, at: Presentation) -> dict[str, Any]:  # noqa: ARG004 - as for all
        """Add nothing."""
        return offer

    # Giving.

    async def _look(self, given: Given, config: Terms) -> Receipt:
        """See what the account has already, and change nothing."""
        place = await self._places.find(_repository(config), recent=True)
        login = await self._people.existing(place, given)
        data = {
            "repository": place.full_name,
            "repository_id": place.id,
            "installation_id": place.access.installation.id if place.access.installation else None,
            "url": place.url,
            "login": login,
            "before": msgspec.to_builtins(await self._before(place, given, login)),
        }
        return msgspec.structs.replace(given.receipt, data=_wanting(data, config, place))

    async def _before(self, place: Place, given: Given, login: str) -> Before | None:
        role = await self._people.role(place, given, login)
        if role:
            return Before(role, (await self._people.direct(place)).get(given.account))
        invitation = await self._people.invitation(place, given)
        if invitation is None or invitation.get("expired"):
            return None
        return Before(Role(invitation["permissions"], invitation["permissions"]), invitation["permissions"])

    async def _give(self, held: Receipt, config: Terms) -> Receipt:
        """Act, or bring up to date. Whoever has enough gets nothing."""
        place = await self._place(Given(held), recent=True)
        given = Given(msgspec.structs.replace(held, data=_wanting(held.data, config, place), waiting=None))
        if held.intended and given.before is None:
            return await self._invite(place, given)
        invitation, _, role = await self._people.seen(place, given, invited=held.intended)
        is_waiting = invitation is not None and not invitation.get("expired")
        if Given(held).is_untouched and not held.intended and not (role and role.suffices(given.target)):
            # We gave nothing, for what they had was enough: now it is not. What is there is looked at afresh.
            return await self._look(Given(Receipt(held.resource, intended=True)), config)
        if invitation and is_waiting and not _needs_another(held, given):
            return await self._waiting(place, given, invitation)
        if invitation:
            await self._people.cancel(place, given, invitation)
        if role:
            return await self._in_place(place, given, role, held.data["permission"])
        if not is_waiting:
            self._within_budget(given, config)
        return await self._invite(place, given)

    def _within_budget(self, given: Given, config: Terms) -> None:
        """Say what became of the last invitation, once they are used up. Raises ActionRequired."""
        if given.receipt.offers < config.invitations:
            return
        end = given.receipt.data.get("invitation_expires_at")
        has_ended = end is not None and datetime.fromisoformat(end) <= self._now()
        fate = "was not accepted within 7 days" if has_ended else "was declined or withdrawn"
        raise ActionRequired(
            f"the invitation of your GitHub account {given.login} to {given.name} {fate}, after {given.receipt.offers} "
            "in all; ask for another when you are ready to accept it",
            who="customer",
        )

    async def _invite(self, place: Place, given: Given) -> Receipt:
        """Add the account, and look that it was this account and this repository."""
        invitation, login = await self._people.put(place, given, given.target, invites=True)
        given.receipt.data["login"] = given.login = login
        if invitation is None:
            return await self._added(place, given, login)
        is_theirs = invitation["invitee"] is not None and str(invitation["invitee"]["id"]) == given.account
        if not is_theirs or invitation["repository"]["id"] != place.id:
            await self._people.cancel(place, given, invitation)
            what = "repository was renamed" if is_theirs else f"name {login} changed hands"
            raise Unavailable(f"{given.about}: the {what} as we invited; that was undone")
        return await self._waiting(place, given, invitation, sent=1)

    async def _added(self, place: Place, given: Given, login: str) -> Receipt:
        """Read back what an answer without a body did: it can mean a collaborator, or an invitation from before."""
        role = await self._people.role(place, given, login, undo=True)
        if role and role.suffices(given.target):
            return given.held()
        invitation = None if role else await self._people.invitation(place, given)
        if invitation is None:
            raise Unavailable(f"{given.about}: it was given, but is not there yet")
        return await self._waiting(place, given, invitation, sent=1)

    async def _waiting(self, place: Place, given: Given, invitation: Invitation, *, sent: int = 0) -> Receipt:
        """Return the receipt of an invitation, once it gives the wanted permission."""
        if not given.is_untouched:
            await self._people.change(place, given, invitation, given.target)
        end = datetime.fromisoformat(invitation["created_at"]) + _INVITATION_LASTS
        data = given.receipt.data | {
            "invitation_id": invitation["id"],
            "invitation_url": invitation["html_url"],
            "invitation_expires_at": end.isoformat(),
        }
        waiting = (
            f"Accept GitHub's invitation to {place.full_name} before {end.day} {end:%B %Y}, signed in there as "
            f"{given.login}: {invitation['html_url']}"
        )
        offers = given.receipt.offers + sent
        return msgspec.structs.replace(given.receipt, data=data, intended=False, waiting=waiting, offers=offers)

    async def _in_place(self, place: Place, given: Given, role: Role, earlier: str) -> Receipt:
        """Change the role of who is there, where it does not suffice, or where the benefit changed the one we gave."""
        is_changed = earlier != given.receipt.data["permission"] and role.permission == earlier
        if role.suffices(given.target) and not is_changed:
            return given.held()
        if given.before and not given.is_raised:
            await self._put_back(place, given, given.before.direct)
            return given.held()
        invitation, login = await self._people.put(place, given, given.target)
        if invitation:  # they left just now
            return await self._waiting(place, given, invitation, sent=1)
        return await self._added(place, given, login)

    # Taking back.

    async def let_go(self, held: Receipt, kept_for: Sequence[Receipt]) -> None:
        """Lower the role that we gave to what others need who keep the access: the highest of theirs."""
        given = Given(held)
        needed = max((Given(one).target for one in kept_for), key=lambda role: RANKS.get(role, 99), default="admin")
        if not given.takes_all or RANKS.get(given.target, 0) <= RANKS.get(needed, 99):
            return
        place = await self._place(given, recent=True)
        invitation, _, role = await self._people.seen(place, given, invited=True)
        if invitation and not invitation.get("expired"):
            await self._people.change(place, given, invitation, needed)
        elif role:
            own = (await self._people.direct(place)).get(given.account)
            if own and AS_PERMISSION.get(own, own) == given.target:
                await self._people.put(place, given, needed)

    async def _put_back(self, place: Place, given: Given, own: str | None) -> None:
        """Give the account's own earlier role back; who had none loses ours, and keeps the team's."""
        if own is None:
            await self._people.remove(place, given)
            return
        login = await self._people.login(place, given)
        if login and await self._people.role(place, given, login):  # else they left, and would be invited
            await self._people.put(place, given, AS_PERMISSION.get(own, own))

    async def _place(self, given: Given, *, recent: bool = False) -> Place:
        data = given.receipt.data
        return await self._places.find(
            given.name, number=data.get("repository_id"), installation=data.get("installation_id"), recent=recent
        )


def _repository(config: Terms) -> str:
    """Return the one repository of a part."""
    return config.names[0]


def _wanting(data: dict[str, Any], config: Terms, place: Place) -> dict[str, Any]:
    return wanting(data, config.permission, removes_members=config.remove_members, is_personal=place.is_personal)


def _needs_another(held: Receipt, given: Given) -> bool:
    """Whether a waiting invitation cannot be changed to what is wanted: roles of the organization are not taken there.

    https://docs.github.com/en/rest/collaborators/invitations#update-a-repository-invitation
    """
    return given.target not in RANKS and held.data["honoured"] != given.target


def _problems(place: Place, permission: str) -> list[str]:
    found = []
    installation = place.access.installation
    if installation and installation.permissions.get("administration") != "write":
        found.append(
            "the GitHub App may not manage collaborators; give it `Administration: Read and write` and accept it"
        )
    if not installation and not place.we_administer:
        found.append("the token's owner does not administer it; let them, or take another's token")
    if place.is_archived:
        found.append("the repository is archived, nobody can be added; unarchive it")
    if place.is_personal and permission != "push":
        found.append(
            'it belongs to a person: whoever is added may write; move it, or say so with `permission = "push"`'
        )
    if not place.is_private and permission == "pull":
        found.append("the repository is public, everybody can read it")
    return found
