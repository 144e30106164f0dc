"""Who is in a repository and who is invited: what GitHub is asked and told of one account there."""

from typing import Any
from urllib.parse import quote

from connectors.base import ActionRequired, Unavailable
from connectors.github.client import GitHub
from connectors.github.given import AS_ROLE, RANKS, Given, Role
from connectors.github.places import Place

Invitation = dict[str, Any]


class Collaborators:
    """Looks at accounts and changes what they may do. Their names are looked up each time, and used at once."""

    def __init__(self, github: GitHub) -> None:
        self._github = github

    async def login(self, place: Place, given: Given, *, taken: bool = False) -> str | None:
        """Return what the account is called at this moment; None where it was deleted."""
        about = f"the GitHub account {given.account}, for {given.name}"
        answer = await self._github.ask(place.access, "GET", f"/user/{given.account}", about, taken=taken, fine=(404,))
        return None if answer.status == 404 else quote(answer.body["login"], safe="")

    async def existing(self, place: Place, given: Given, *, taken: bool = False) -> str:
        """Return what the account is called at this moment. Raises ActionRequired where it was deleted."""
        login = await self.login(place, given, taken=taken)
        if login is None:
            raise ActionRequired(
                f"your GitHub account (number {given.account}) exists no more; link another", who="customer"
            )
        return login

    async def role(self, place: Place, given: Given, login: str, *, undo: bool = False) -> Role | None:
        """Return what the account may do there, from whatever source; None where it is nothing.

        `undo`: we have just added whoever has this name; if that is somebody else by now, they are taken out again.
        """
        path = f"/repos/{place.full_name}/collaborators/{login}"
        answer = await self._github.ask(place.access, "GET", f"{path}/permission", given.about, fine=(404,))
        if answer.status == 404:
            return None
        user = answer.body["user"]
        if user and str(user["id"]) != given.account:
            if undo:
                await self._github.ask(place.access, "DELETE", path, given.about, fine=(404,))
            raise Unavailable(f"{given.about}: the name {login} changed hands just now")
        if answer.body["permission"] == "none":
            return None
        if answer.body["role_name"] == "read" and not place.is_private:
            # Everybody may read what is public, and is told so here:
            # https://github.com/aws-ia/cloudformation-github-resource-providers/pull/14
            there = await self._github.ask(place.access, "GET", path, given.about, fine=(404,))
            if there.status == 404:
                return None
        return Role(answer.body["role_name"], answer.body["permission"])

    async def direct(self, place: Place) -> dict[str, str]:
        """Return the roles of all who have one of their own, by account.

        Owners of the organization and those with access through teams or its base permission are not listed:
        https://docs.github.com/en/rest/collaborators/collaborators#list-repository-collaborators
        """
        path, about = f"/repos/{place.full_name}/collaborators?affiliation=direct", f"who is in {place.full_name}"
        return {str(one["id"]): one["role_name"] for one in await self._github.pages(place.access, path, about)}

    async def invitations(self, place: Place) -> list[Invitation]:
        """Return all invitations that GitHub lists, those that have ended too."""
        path, about = f"/repos/{place.full_name}/invitations", f"the invitations to {place.full_name}"
        return await self._github.pages(place.access, path, about)

    async def invitation(self, place: Place, given: Given) -> Invitation | None:
        """Return the account's invitation, by the account's number: who sent it, and when, does not matter."""
        for one in await self.invitations(place):
            is_theirs = (
                str(one["invitee"]["id"]) == given.account if one["invitee"] else one["id"] == given.invitation_id
            )
            if is_theirs and one["repository"]["id"] == place.id:
                return one
        return None

    async def seen(
        self, place: Place, given: Given, *, invited: bool = False
    ) -> tuple[Invitation | None, str | None, Role | None]:
        """Return the account's invitation, or else its name and role; what is expected is asked first."""
        asks_first = invited or given.invitation_id is not None
        invitation = await self.invitation(place, given) if asks_first else None
        if invitation and not invitation.get("expired"):
            return invitation, None, None
        login = await self.login(place, given)
        role = await self.role(place, given, login) if login else None
        if not asks_first and not role and login:
            invitation = await self.invitation(place, given)
        return invitation, login, role

    async def put(
        self, place: Place, given: Given, permission: str, *, invites: bool = False
    ) -> tuple[Invitation | None, str]:
        """Add the account under the name that it has now; returns the invitation, or None, and that name.

        On a personal repository there is one permission, and to name one is refused:
        https://docs.github.com/en/rest/collaborators/collaborators#add-a-repository-collaborator
        https://github.com/OnToology/OnToology/issues/227
        """
        number = place.id if invites else None
        # Before the name is looked up: a refused place costs no request, and the name is as new as can be.
        await self._github.take(place.access, writes=True, invites=number, reads=1)
        login = await self.existing(place, given, taken=True)
        answer = await self._github.ask(
            place.access,
            "PUT",
            f"/repos/{place.full_name}/collaborators/{login}",
            f"{given.about}, now {login}",
            body={} if place.is_personal else {"permission": permission},
            taken=True,
            invites=number,
        )
        return (answer.body if answer.status == 201 else None), login

    async def change(self, place: Place, given: Given, invitation: Invitation, permission: str) -> None:
        """Have a waiting invitation give this permission, where it can be changed.

        Roles of the organization are not taken here, and personal repositories have one permission:
        https://docs.github.com/en/rest/collaborators/invitations#update-a-repository-invitation
        """
        role = AS_ROLE.get(permission, permission)
        if invitation["permissions"] == role or place.is_personal or permission not in RANKS:
            return
        path = f"/repos/{place.full_name}/invitations/{invitation['id']}"
        answer = await self._github.ask(
            place.access, "PATCH", path, given.about, body={"permissions": role}, fine=(404,)
        )
        if answer.status == 404:
            raise Unavailable(f"{given.about}: the invitation was answered just now")

    async def cancel(self, place: Place, given: Given, invitation: Invitation) -> None:
        """Delete an invitation; answered or deleted meanwhile is success."""
        path = f"/repos/{place.full_name}/invitations/{invitation['id']}"
        await self._github.ask(place.access, "DELETE", path, given.about, fine=(404,))

    async def remove(self, place: Place, given: Given) -> None:
        """Take away what the account has of its own. An invitation stays, and what comes through teams."""
        await self._github.take(place.access, writes=True, reads=1)
        login = await self.login(place, given, taken=True)
        if login is not None:
            path = f"/repos/{place.full_name}/collaborators/{login}"
            await self._github.ask(place.access, "DELETE", path, given.about, taken=True, fine=(404,))
