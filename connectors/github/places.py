"""Where repositories are: by the name and the number that they had, whatever they are called by now."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from connectors.base import ActionRequired
from connectors.github.client import Access, GitHub


@dataclass(frozen=True)
class Place:
    """A repository as it is called now."""

    id: int
    full_name: str
    url: str
    owner_id: int
    is_personal: bool
    is_private: bool
    is_archived: bool
    we_administer: bool
    """Whether the token's owner does; of an App only its permissions tell."""
    access: Access = field(repr=False, compare=False)


class Places:
    """Finds repositories."""

    def __init__(self, github: GitHub) -> None:
        self._github = github
        self._found: dict[str, tuple[float, Place]] = {}

    async def find(
        self, name: str, *, number: int | None = None, installation: int | None = None, recent: bool = False
    ) -> Place:
        """Find a repository by the name, and the number, that it had; `recent`: as it was a few seconds ago will do.

        Raises ActionRequired where it cannot be seen: that does not prove that it, and who is in it, are no more.
        """
        at, place = self._found.get(name.lower(), (0.0, None))
        if place and recent and at > self._github.recently and number in {None, place.id}:
            return place
        key = ("place", name.lower(), number, installation)
        place = await self._github.shared.ask(key, lambda: self._look(name, number, installation))
        self._found[name.lower()] = (monotonic(), place)
        return place

    async def examined(self, name: str) -> Place:
        """Find a repository, with what the App may do there now. Raises ConnectorError."""
        access = await self._github.access(name, fresh=True)
        if access.installation and access.installation.is_suspended:
            raise ActionRequired(
                f"the repository {name}: the GitHub App's installation is suspended; unsuspend it in the settings of "
                "the organization",
                who="merchant",
            )
        return await self.find(name)

    async def _look(self, name: str, number: int | None, installation: int | None) -> Place:
        github, about, access = self._github, f"the repository {name}", None
        try:
            access = await github.access(name)
            answer = await github.ask(access, "GET", f"/repos/{name}", about, fine=(404,))
            if answer.status == 404 and github.is_app:
                # What we remember of the installation may be past.
                access = await github.access(name, fresh=True)
                answer = await github.ask(access, "GET", f"/repos/{name}", about, fine=(404,))
            if answer.status == 200 and number in {None, answer.body["id"]}:
                return _place(answer.body, access)
        except ActionRequired:
            if number is None or (github.is_app and installation is None):
                raise
        if number is None:
            raise ActionRequired(
                f"{about} does not exist, or we may not see it; correct the name, or let the App or token see it",
                who="merchant",
            )
        return await self._look_by_number(name, number, installation, access)

    async def _look_by_number(self, name: str, number: int, installation: int | None, access: Access | None) -> Place:
        """Look where it is now: it was renamed, transferred or deleted, and its name may be another's by now.

        `GET /repositories/{id}` is where GitHub sends those who ask for a name that is past:
        https://docs.github.com/en/rest/using-the-rest-api/best-practices-for-using-the-rest-api#follow-redirects
        """
        about = f"the repository {name} (number {number})"
        if installation is not None and self._github.is_app:
            access = await self._github.by_installation(installation, about)
        access = access or self._github.by_token()
        answer = await self._github.ask(access, "GET", f"/repositories/{number}", about, fine=(404,))
        if answer.status == 200:
            return _place(answer.body, access)
        raise ActionRequired(
            f"{about} cannot be seen any more: it was deleted, or moved to where we may not see it; let the App or "
            "token see it, or see to it that nobody has access there, then `almoner grants abandon`",
            who="merchant",
        )


def _place(body: Mapping[str, Any], access: Access) -> Place:
    return Place(
        body["id"],
        body["full_name"],
        body["html_url"],
        body["owner"]["id"],
        is_personal=body["owner"]["type"] == "User",
        is_private=body["private"],
        is_archived=body["archived"],
        we_administer=bool(body.get("permissions", {}).get("admin")),
        access=access,
    )
