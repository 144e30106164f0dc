"""Discord's REST API: the calls that roles need, and what a refusal means.

Import it when it is first used: discord.py takes a second.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, NoReturn, Self

import msgspec
from aiohttp.payload import BytesPayload
from discord import HTTPException, LoginFailure
from discord.http import Route

from config.settings import Settings
from connectors.base import AccountToken, ActionRequired, ConnectorError
from connectors.discord.http import DiscordHttp, Places
from connectors.discord_role import Place
from connectors.http import error_for_status

# https://docs.discord.com/developers/topics/opcodes-and-status-codes#json-json-error-codes
_UNKNOWN_GUILD, _UNKNOWN_MEMBER, _UNKNOWN_ROLE, _UNKNOWN_USER = 10004, 10007, 10011, 10013
_MISSING_ACCESS, _MISSING_PERMISSIONS, _INVALID_TOKEN, _BANNED = 50001, 50013, 50025, 40007

# https://docs.discord.com/developers/topics/permissions#permissions-bitwise-permission-flags
_CREATE_INSTANT_INVITE, _KICK_MEMBERS, _ADMINISTRATOR, _MANAGE_ROLES = 1 << 0, 1 << 1, 1 << 3, 1 << 28

_MEANINGS: Mapping[int, tuple[Literal["customer", "merchant"], str]] = {
    _UNKNOWN_GUILD: ("merchant", "Discord knows no such server; add the bot to it, or correct its id"),
    _UNKNOWN_MEMBER: ("customer", "the account is not in the server; join it first"),
    _UNKNOWN_ROLE: ("merchant", "the role was deleted; make a new one, and write its id in the benefit"),
    _UNKNOWN_USER: ("customer", "there is no such Discord account any more; link another one"),
    30001: ("customer", "the account is in as many servers as Discord allows (100, with Nitro 200); leave one of them"),
    30019: ("merchant", "the server has as many members as Discord allows; make room, or ask Discord for more"),
    _BANNED: ("merchant", "the account is banned from the server; lift the ban, or take the benefit from them"),
    _MISSING_ACCESS: ("merchant", "the bot is not in the server, or has no access to it; add it to the server"),
    60003: ("merchant", "the server asks for two-factor authentication; the owner of the bot must turn it on"),
}
"""Who must act, and what to do."""

_BOT_REFUSED = (
    "Discord refuses the bot's token (401): it was reset, or is not whole; put the token that the Developer Portal "
    "shows into ALMONER_DISCORD_BOT_TOKEN"
)

Doing = Literal["give", "join", "take back", "kick", "read", "list"]


class TokenRefused(Exception):
    """Discord takes a customer's token no more."""


@dataclass(frozen=True)
class Member:
    """Somebody in a server."""

    id: str
    name: str
    discriminator: str
    is_bot: bool
    roles: frozenset[str]


@dataclass(frozen=True)
class Standing:
    """What the bot is in a server: all roles there, as Discord describes them, and the ids of its own."""

    guild: str
    roles: Mapping[str, Mapping[str, Any]]
    mine: frozenset[str]

    def may(self, permission: int) -> bool:
        """Whether one of its roles, or that of everybody, allows it."""
        granted = 0
        for role in self.mine | {self.guild}:
            granted |= int(self.roles.get(role, {}).get("permissions", 0))
        return bool(granted & (permission | _ADMINISTRATOR))

    def is_above(self, role: str) -> bool:
        """Whether a role is below the bot's highest one. Of equal positions the older role is the higher."""
        highest = max((self._rank(one) for one in self.mine if one in self.roles), default=(0, 0))
        return highest > self._rank(role)

    def lacks(self, role: str, *, kicks: bool = False, joins: bool = False) -> list[str]:
        """Say in sentences why the bot cannot give a role, kick, or add people. Pure."""
        where = f"of the Discord server {self.guild}"
        found = []
        if not self.may(_MANAGE_ROLES):
            found.append(f"the bot lacks the permission Manage Roles {where}; give it to one of the bot's roles")
        if kicks and not self.may(_KICK_MEMBERS):
            found.append(f"the bot lacks the permission Kick Members {where}; give it to one of the bot's roles")
        if joins and not self.may(_CREATE_INSTANT_INVITE):
            # https://docs.discord.com/developers/resources/guild#add-guild-member
            found.append(f"the bot lacks the permission Create Invite {where}, without which it can add nobody")
        if role not in self.roles:
            found.append(f"there is no role {role} {where}; it was deleted, or its id is wrong")
        elif self.roles[role]["managed"]:
            # https://docs.discord.com/developers/topics/permissions#role-object
            found.append(f"the role {role} {where} belongs to an integration or to boosters: nobody can give it")
        elif not self.is_above(role):
            found.append(f"the role {role} {where} is at or above the bot's highest; drag a role of the bot above it")
        return found

    def _rank(self, role: str) -> tuple[int, int]:
        return int(self.roles[role]["position"]), -int(role)


class DiscordApi:
    """The calls that roles need. None sleeps or tries again; each raises ConnectorError, with what to do."""

    def __init__(self, settings: Settings, http: DiscordHttp, bot_id: str) -> None:
        self._settings = settings
        self._http = http
        self._bot_id = bot_id

    @classmethod
    async def opened(cls, settings: Settings, places: Places, now: Callable[[], datetime]) -> Self:
        """Log in, in the running event loop, where the connections stay."""
        http = DiscordHttp(settings, places, now)
        try:
            me = await http.static_login(settings.discord_bot_token.get_secret_value())
        except LoginFailure:
            await http.close()
            raise ActionRequired(_BOT_REFUSED, who="merchant") from None
        except HTTPException as error:
            await http.close()
            reason = f"Discord answered {error.status} to logging in; look at ALMONER_DISCORD_API_URL"
            raise error_for_status(error.status, reason) from None
        except BaseException:
            await http.close()
            raise
        return cls(settings, http, str(me["id"]))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def give_role(self, place: Place, reason: str) -> bool:
        """Give a role; having it already is success. False: the account is not in the server."""
        call = self._http.add_role(place.guild, place.account, place.role, reason=reason)
        return await self._unless({_UNKNOWN_MEMBER}, call, place, "give")

    async def take_role(self, place: Place, reason: str) -> None:
        """Remove a role. No such role, member or account any more is success."""
        call = self._http.remove_role(place.guild, place.account, place.role, reason=reason)
        await self._unless({_UNKNOWN_MEMBER, _UNKNOWN_ROLE, _UNKNOWN_USER}, call, place, "take back")

    async def kick(self, place: Place, reason: str) -> None:
        """Remove somebody from the server; not being there is success."""
        call = self._http.kick(place.account, place.guild, reason=reason)
        await self._unless({_UNKNOWN_MEMBER, _UNKNOWN_USER}, call, place, "kick")

    async def add_member(self, place: Place, access_token: str, reason: str) -> str | None:
        """Add an account to the server, with the role; returns its user name. Raises TokenRefused.

        None: it was in the server already, and the role was *not* given.
        https://docs.discord.com/developers/resources/guild#add-guild-member
        """
        route = Route(
            "PUT", "/guilds/{guild_id}/members/{user_id}", guild_id=place.guild, user_id=place.account
        )  # fmt: skip
        # As a payload, which shows nothing of itself: discord.py logs the bodies of requests.
        body = BytesPayload(
            msgspec.json.encode({"access_token": access_token, "roles": [place.role]}), content_type="application/json"
        )
        try:
            joined = await self._http.request(route, data=body, reason=reason)
        except HTTPException as error:
            # Expired, revoked, of another account, or of another application than the bot's:
            # https://github.com/discord/discord-api-docs/issues/5951
            if error.code == _INVALID_TOKEN:
                raise TokenRefused from None
            await self._refuse(error, place, "join")
        return str(joined["user"]["username"]) if joined else None

    async def find_member(self, place: Place) -> Member | None:
        """Return the member that the account is, or None."""
        try:
            return _member(await self._http.get_member(place.guild, place.account))
        except HTTPException as error:
            if error.code in {_UNKNOWN_MEMBER, _UNKNOWN_USER}:
                return None
            await self._refuse(error, place, "read")

    async def search(self, guild: str, name: str, most: int) -> list[Member]:
        """Return members whose user name or nickname begins with this."""
        route = Route("GET", "/guilds/{guild_id}/members/search", guild_id=guild)
        try:
            found = await self._http.request(route, params={"query": name, "limit": most})
        except HTTPException as error:
            await self._refuse(error, Place(guild, "", ""), "read")
        return [_member(one) for one in found]

    async def members(self, guild: str, after: str, most: int) -> list[Member]:
        """Return members with ids above `after`, by their ids."""
        try:
            found = await self._http.get_members(guild, most, after)
        except HTTPException as error:
            await self._refuse(error, Place(guild, "", ""), "list")
        return [_member(one) for one in found]

    async def standing(self, guild: str) -> Standing:
        """Return what the bot is in the server."""
        place = Place(guild, self._bot_id, "")
        try:
            roles = await self._http.get_roles(guild)
            mine = _member(await self._http.get_member(guild, self._bot_id))
        except HTTPException as error:
            if error.code == _UNKNOWN_MEMBER:
                raise ActionRequired(_sentence(place, _MEANINGS[_MISSING_ACCESS][1]), who="merchant") from None
            await self._refuse(error, place, "read")
        return Standing(guild, {str(role["id"]): role for role in roles}, mine.roles)

    async def refreshed(self, token: AccountToken, now: datetime) -> AccountToken:
        """Return the token that Discord gives for an expired one. Raises TokenRefused.

        The old ones end with it: https://docs.discord.com/developers/topics/oauth2#authorization-code-grant
        """
        if token.refresh_token is None:
            raise TokenRefused
        answer = await self._http.post_form(
            "/oauth2/token",
            {
                "grant_type": "refresh_token",
                "refresh_token": token.refresh_token,
                "client_id": self._settings.discord_client_id,
                "client_secret": self._settings.discord_client_secret.get_secret_value(),
            },
        )
        kind = answer.get("error")
        if kind in {"invalid_grant", "invalid_request"}:
            raise TokenRefused
        if kind or not isinstance(answer.get("access_token"), str):
            reason = "Discord does not renew customers' tokens; look at ALMONER_DISCORD_CLIENT_ID and _SECRET"
            raise ActionRequired(reason, who="merchant")
        return AccountToken(
            access_token=answer["access_token"],
            refresh_token=answer.get("refresh_token") or token.refresh_token,
            expires_at=now + timedelta(seconds=float(answer.get("expires_in", 0))),
        )

    async def _unless(self, codes: set[int], call: Awaitable[object], place: Place, doing: Doing) -> bool:
        """Whether a call succeeded; False for these codes."""
        try:
            await call
        except HTTPException as error:
            if error.code in codes:
                return False
            await self._refuse(error, place, doing)
        return True

    async def _refuse(self, error: HTTPException, place: Place, doing: Doing) -> NoReturn:
        """Raise what a refusal means: it is never success."""
        if error.status == 401:
            raise ActionRequired(_BOT_REFUSED, who="merchant") from None
        if error.code == _MISSING_PERMISSIONS:
            raise ActionRequired(_sentence(place, await self._why(place, doing)), who="merchant") from None
        if doing == "list" and error.status == 403:
            # https://docs.discord.com/developers/resources/guild#list-guild-members
            why = "Discord does not list its members; turn on the Server Members Intent (GUILD_MEMBERS) of the bot"
            raise ActionRequired(_sentence(place, f"{why}, and see that it is in the server"), who="merchant") from None
        if error.code in _MEANINGS:
            who, meaning = _MEANINGS[error.code]
            raise ActionRequired(_sentence(place, meaning), who=who) from None
        reason = f"Discord answered {error.status} ({error.code}: {error.text[:200]}) to {doing}"
        raise error_for_status(error.status, _sentence(place, reason)) from None

    async def _why(self, place: Place, doing: Doing) -> str:
        """Say which of the causes of 50013 it is: https://github.com/strelov1/freehire/pull/2604."""
        person = "the account owns the server, or has a role at or above the bot's highest"
        try:
            found = (await self.standing(place.guild)).lacks(place.role, kicks=doing == "kick", joins=doing == "join")
        except ConnectorError:
            found = []
        if doing == "kick":
            found = [one for one in found if "Kick Members" in one] or [f"{person}; remove them yourself"]
        return "; ".join(found) or "the bot may not; it needs Manage Roles, and a role above the one that it gives"


def _member(one: Mapping[str, Any]) -> Member:
    user = one["user"]
    return Member(
        id=str(user["id"]),
        name=str(user["username"]),
        discriminator=str(user["discriminator"]),
        is_bot=bool(user.get("bot", False)),
        roles=frozenset(map(str, one["roles"])),
    )


def _sentence(place: Place, meaning: str) -> str:
    return f"{place if place.role else f'the Discord server {place.guild}'}: {meaning}"
