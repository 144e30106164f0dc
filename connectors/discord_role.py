"""A role in a Discord server, for the account of a customer. Who is not in the server yet is added, or waited for."""

import asyncio
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self
from weakref import WeakValueDictionary

from pydantic import BeforeValidator, Field, field_validator, model_validator

from config.catalogue import BenefitConfig, Per
from config.settings import Settings
from connectors.base import (
    Account,
    AccountToken,
    ActionRequired,
    Holding,
    Presentation,
    Receipt,
    Recipient,
    Rejected,
    Tools,
    Unavailable,
)

if TYPE_CHECKING:
    from connectors.discord.api import DiscordApi
    from connectors.discord.http import Places

_PLATFORM = "discord"
_ID = re.compile(r"[0-9]{17,20}")
# https://docs.discord.com/developers/resources/user#usernames-and-nicknames
_NAME = re.compile(r"@?([^@#:]{2,32}?)(?:#([0-9]{1,4}))?")
_PAGE = 1000
_EXPIRES_SOON = timedelta(minutes=1)
_LONGEST_SLEEP_SECONDS = 60.0


def _snowflake(value: object) -> object:
    if isinstance(value, int):
        raise ValueError(f'write it in quotes: "{value}"')  # noqa: TRY004 - pydantic makes a sentence of it
    if isinstance(value, str) and not _ID.fullmatch(value):
        raise ValueError(
            f"{value!r} is not an id; Discord's have 17 to 20 digits: turn on its Developer Mode, then copy the id"
        )
    return value


Snowflake = Annotated[str, BeforeValidator(_snowflake)]
"""https://docs.discord.com/developers/reference#snowflakes: larger than what every reader of numbers keeps exact."""


class Terms(BenefitConfig):
    """Roles in a Discord server."""

    guild: Snowflake = Field(description="the server's id, in quotes")
    role: Snowflake | None = Field(default=None, description="the role's id, in quotes")
    roles: tuple[Snowflake, ...] = Field(default=(), description="instead of role: several, each given by itself")
    on_revoke: Literal["remove_role", "kick"] = Field(
        default="remove_role", description="kick: out of the server, once nothing there is theirs any more"
    )
    join: bool = Field(
        default=True, strict=True, description="add the customer to the server, where they allowed it in linking"
    )

    @field_validator("roles")
    @classmethod
    def _distinct(cls, roles: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(roles)) != len(roles):
            raise ValueError("a role is named twice")
        return roles

    @model_validator(mode="after")
    def _given(self) -> Self:
        if (self.role is None) == (not self.roles):
            raise ValueError("give exactly one of role and roles")
        # https://docs.discord.com/developers/topics/permissions#role-object: @everyone has the id of its server.
        if self.guild in self.role_ids():
            raise ValueError("the id of the server stands for @everyone, which is no role to give")
        return self

    def role_ids(self) -> tuple[str, ...]:
        """Return the ids of the roles, one or several."""
        return self.roles if self.role is None else (self.role,)

    def parts(self) -> Mapping[str, BenefitConfig]:
        """Return each of several roles by its id."""
        if self.role is not None:
            return {"": self}
        return {role: self.model_copy(update={"role": role, "roles": ()}) for role in self.roles}


@dataclass(frozen=True)
class Place:
    """A role in a server, and whose it is."""

    guild: str
    account: str
    role: str

    def __str__(self) -> str:
        return f"the role {self.role} of the Discord server {self.guild} for the account {self.account}"

    @property
    def resource(self) -> str:
        """Return the name of it, as receipts have it."""
        return f"discord_role:{self.guild}:{self.account}:{self.role}"

    @classmethod
    def of(cls, resource: str) -> Self:
        """Return what a receipt is about."""
        return cls(*resource.split(":")[1:])


class DiscordRole:
    """Gives roles and takes them back; `discord_api` makes the calls and says what a refusal means."""

    Config: ClassVar[type[BenefitConfig]] = Terms
    per: ClassVar[Per] = "customer"
    dynamic: ClassVar[bool] = False
    platform: ClassVar[str | None] = _PLATFORM
    looks_first: ClassVar[bool] = False

    def __init__(self, tools: Tools, pace: float = 1.0) -> None:
        """Take the tools. `pace` stretches our own windows of time, for measuring against a faster Discord."""
        self._settings = tools.settings
        self._limits = tools.limits
        self._tokens = tools.tokens
        self._now = tools.now
        self._pace = pace
        self._renewing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._apis: dict[asyncio.AbstractEventLoop, asyncio.Task[DiscordApi]] = {}
        self._places: dict[asyncio.AbstractEventLoop, Places] = {}
        """Where we have let go of who never joined: there is nothing to wait for, until it is given again."""

    @staticmethod
    def missing(config: Terms, settings: Settings) -> list[str]:  # noqa: ARG004 - as for all
        """Return what the settings lack for this benefit."""
        if settings.discord_bot_token.get_secret_value():
            return []
        return ["ALMONER_DISCORD_BOT_TOKEN is missing: the token of the bot that gives roles"]

    def resource(self, to: Recipient, config: Terms) -> str:
        """Return the role, the server and the account; by the account's id, for names change. Raises ActionRequired."""
        return self._place(to, config).resource

    @staticmethod
    def scope(resource: str) -> str:
        """Return the person in the server: who is kicked loses every role there."""
        return resource.rpartition(":")[0]

    async def grant(self, to: Recipient, config: Terms, held: Receipt | None) -> Receipt:
        """Give the role; where the account is not in the server, add it, or have the customer join first.

        Raises ActionRequired, Unavailable, Rejected.
        """
        place = self._place(to, config)
        api = await self._api()
        reason = f"Almoner: benefit {config.benefit} granted"
        name = held.data.get("username") if held else None
        in_guild = await api.give_role(place, reason)
        if not in_guild and config.join:
            in_guild, joined_as = await self._join(api, place, reason)
            name = joined_as or name
        data = {
            "benefit": config.benefit,
            "guild": place.guild,
            "role": place.role,
            "account": place.account,
            # Whoever names an account in a field may name somebody else's: nobody is thrown out for that.
            "on_revoke": "remove_role" if to.sources.get(_PLATFORM) == "field" else config.on_revoke,
            "in_guild": in_guild,
        }
        waiting = None if in_guild else _waiting(place)
        return Receipt(place.resource, data | ({"username": name} if name else {}), waiting=waiting)

    async def revoke(self, held: Receipt, *, last: bool = True) -> None:
        """Remove the role, or with the last one the person, as the receipt says. Raises ConnectorError.

        Who was never there with our role is not kicked. What we died before noting is a role at most.
        """
        place = Place.of(held.resource)
        api = await self._api()
        benefit = held.data.get("benefit")
        reason = f"Almoner: benefit {benefit} revoked" if benefit else "Almoner: revoked"
        was_given = held.data.get("in_guild") is True
        if last and was_given and held.data.get("on_revoke") == "kick":
            await api.kick(place, reason)
        else:
            await api.take_role(place, reason)

    async def let_go(self, held: Receipt, kept_for: Sequence[Receipt]) -> None:
        """Do nothing: a role is the same for everybody."""

    async def holds(self, held: Receipt) -> Holding:
        """Read the person back. Who has not joined yet is waited for."""
        place = Place.of(held.resource)
        member = await (await self._api()).find_member(place)
        if member is None:
            return Holding.PENDING if held.data.get("in_guild") is False else Holding.GONE
        return Holding.HELD if place.role in member.roles else Holding.GONE

    async def left(self, held: Receipt) -> bool:
        """Look whether the person still has the role. Nothing was given to who has not joined."""
        place = Place.of(held.resource)
        member = await (await self._api()).find_member(place)
        return member is not None and place.role in member.roles

    async def identify(self, name: str, config: Terms) -> Account:
        """Find a member by their user name, which is unique since 2023. Raises ActionRequired, Unavailable."""
        told = _NAME.fullmatch(name.strip())
        wanted = (told[1].strip().lower(), told[2] or "0") if told else None
        found = await (await self._api()).search(config.guild, wanted[0], _PAGE) if wanted else []
        for one in found:
            if (one.name.lower(), one.discriminator) == wanted and not one.is_bot:
                return Account(one.id, one.name)
        raise ActionRequired(
            f"nobody in the Discord server {config.guild} has the user name {name.strip()[:40]!r}; "
            "join the server first, or link your Discord account",
            who="customer",
        )

    async def examine(self, config: Terms) -> list[str]:
        """Look whether the bot can give these roles. Raises Unavailable while that cannot be told."""
        try:
            standing = await (await self._api()).standing(config.guild)
        except (ActionRequired, Rejected) as error:
            return [str(error)]
        kicks = config.on_revoke == "kick"
        found = [one for role in config.role_ids() for one in standing.lacks(role, kicks=kicks, joins=config.join)]
        return list(dict.fromkeys(found))

    async def survey(self, config: Terms) -> Mapping[str, Holding]:
        """List everybody in the server who has one of the roles. Raises ActionRequired, Unavailable."""
        found: dict[str, Holding] = {}
        last = "0"
        while True:
            members = await self._page(config.guild, last)
            for one in members:
                for role in one.roles.intersection(config.role_ids()):
                    found[Place(config.guild, one.id, role).resource] = Holding.HELD
            if len(members) < _PAGE:
                return found
            last = max((one.id for one in members), key=int)

    def offer(self, held: Receipt) -> dict[str, Any]:
        """Return the role and where it is."""
        offer: dict[str, Any] = {"kind": "discord_role", "url": f"https://discord.com/channels/{held.data['guild']}"}
        return offer | {key: held.data[key] for key in ("guild", "role", "username", "in_guild") if key in held.data}

    @staticmethod
    def present(offer: dict[str, Any], grant_id: str, at: Presentation) -> dict[str, Any]:  # noqa: ARG004 - as for all
        """Add nothing."""
        return offer

    async def close(self) -> None:
        """Close the connections that were opened in the running event loop."""
        opening = self._apis.pop(asyncio.get_running_loop(), None)
        if opening is not None:
            (opened,) = await asyncio.gather(opening, return_exceptions=True)
            if not isinstance(opened, BaseException):
                await opened.close()

    def _place(self, to: Recipient, config: Terms) -> Place:
        account = to.accounts.get(_PLATFORM)
        if account is None:
            raise ActionRequired(
                f"link your Discord account: the role in the server {config.guild} is given to it", who="customer"
            )
        return Place(config.guild, account, config.role_ids()[0])

    async def _join(self, api: "DiscordApi", place: Place, reason: str) -> tuple[bool, str | None]:
        """Add the account with the token that the customer gave: whether it is in now, and its user name.

        One at a time for each account: a token can be renewed once, and two roles may want it.
        """
        async with self._renewing.setdefault(place.account, asyncio.Lock()):
            return await self._join_alone(api, place, reason)

    async def _join_alone(self, api: "DiscordApi", place: Place, reason: str) -> tuple[bool, str | None]:
        refused: AccountToken | None = None
        tried: set[str] = set()
        # Another worker may have had the token renewed meanwhile: Discord then takes the older one no more.
        while (token := await self._tokens.find(_PLATFORM, place.account)) and token.access_token not in tried:
            tried.add(token.access_token)
            refused = token
            try:
                if token.expires_at and token.expires_at <= self._now() + _EXPIRES_SOON:
                    token = await api.refreshed(token, self._now())
                    tried.add(token.access_token)
                    refused = token
                    await self._tokens.keep(_PLATFORM, place.account, token)
                name = await api.add_member(place, token.access_token, reason)
            except _discord_api().TokenRefused:
                continue
            # 204 means that they were in already, and that nothing was given: they came in between.
            return (True, name) if name else (await api.give_role(place, reason), None)
        if refused is None:
            return False, None
        await self._tokens.forget(_PLATFORM, place.account, refused)
        raise ActionRequired(
            f"Discord does not let the account {place.account} be added to the server {place.guild} any more; "
            "link your Discord account again",
            who="customer",
        )

    async def _page(self, guild: str, after: str) -> list[Any]:
        """Return the next members. Whoever looks through a whole server has time to wait for its turn."""
        while True:
            try:
                return await (await self._api()).members(guild, after, _PAGE)
            except Unavailable as error:
                if error.retry_after is None or error.retry_after > _LONGEST_SLEEP_SECONDS:
                    raise
                await asyncio.sleep(error.retry_after)

    async def _api(self) -> "DiscordApi":
        """Return the API, with connections of the running event loop; logged in once. Raises ConnectorError."""
        loop = asyncio.get_running_loop()
        opening = self._apis.get(loop)
        if opening is None or (opening.done() and (opening.cancelled() or opening.exception())):
            discord_api = _discord_api()
            token = self._settings.discord_bot_token.get_secret_value()
            self._apis = {one: task for one, task in self._apis.items() if not one.is_closed()}
            self._places = {one: places for one, places in self._places.items() if one in self._apis}
            places = self._places.setdefault(loop, discord_api.Places(self._limits, token, self._pace))
            opening = loop.create_task(discord_api.DiscordApi.opened(self._settings, places, self._now))
            self._apis[loop] = opening
        # Shielded: whoever gives up waiting must not take it from the others.
        return await asyncio.shield(opening)


def _discord_api() -> ModuleType:
    """Return the module that makes the calls; the first time takes a second."""
    with warnings.catch_warnings():
        # discord.py imports `audioop` for voices, of which Python 3.11 and 3.12 say that it will be removed.
        warnings.simplefilter("ignore", DeprecationWarning)
        from connectors.discord import api
    return api


def _waiting(place: Place) -> str:
    return (
        f"Join the Discord server {place.guild} with your account {place.account}, or link your Discord account again "
        "to be added to it; your role follows by itself."
    )
