"""A platform as GitHub and Discord are one: accounts, access that several benefits share, and members of before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from config.catalogue import BenefitConfig, ConnectorTerms, Per
from config.settings import Settings
from connectors.base import (
    Account,
    ActionRequired,
    ConnectorError,
    Holding,
    Receipt,
    Recipient,
    Serving,
)

NOBODY = ActionRequired("link your GitHub account", who="customer")


class ClubTerms(BenefitConfig):
    """A room, or several."""

    room: str = Field(default="", description="a room")
    rooms: tuple[str, ...] = Field(default=(), description="several rooms")
    kick: bool = Field(default=False, description="whether whoever leaves their last room leaves the house")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if bool(self.room) == bool(self.rooms):
            raise ValueError("give exactly one of room and rooms")
        return self

    def parts(self) -> Mapping[str, BenefitConfig]:
        return {one: self.model_copy(update={"room": one, "rooms": ()}) for one in self.rooms} or {"": self}


CLUB_TERMS = {"club": ConnectorTerms(ClubTerms, "customer", "github")}


@dataclass
class Club(Serving):
    """One house. `inside` has who is in which room, `guests` who is in the house at all."""

    Config: ClassVar[type[BenefitConfig]] = ClubTerms
    per: ClassVar[Per] = "customer"
    dynamic: ClassVar[bool] = False
    platform: ClassVar[str | None] = "github"
    looks_first: ClassVar[bool] = True

    inside: set[str] = field(default_factory=set)
    guests: set[str] = field(default_factory=set)
    names: dict[str, str] = field(default_factory=dict)
    invited: set[str] = field(default_factory=set)
    invites: bool = False
    """Whether people must accept before they are inside."""
    calls: list[tuple[str, str]] = field(default_factory=list)
    fails: list[ConnectorError] = field(default_factory=list)
    dies_after: list[BaseException] = field(default_factory=list)

    @staticmethod
    def missing(config: Any, settings: Settings) -> list[str]:
        return []

    def resource(self, to: Recipient, config: Any) -> str:
        if "github" not in to.accounts:
            raise NOBODY
        return f"club:house:{to.accounts['github']}:{config.room}"

    @staticmethod
    def scope(resource: str) -> str:
        return resource.rpartition(":")[0]

    async def grant(self, to: Recipient, config: Any, held: Receipt | None) -> Receipt:
        resource = self.resource(to, config)
        if held is None:
            self.calls.append(("look", resource))
            return Receipt(resource, {"before": resource in self.inside, "kick": config.kick}, intended=True)
        self._called("grant", resource)
        data = held.data | {"kick": config.kick}
        if self.invites and resource not in self.inside:
            if resource not in self.invited and held.offers >= 2:
                raise ActionRequired("you did not accept", who="customer")
            offers = held.offers + (resource not in self.invited)
            self.invited.add(resource)
            return Receipt(resource, data, waiting="Accept the invitation", offers=offers)
        self.inside.add(resource)
        self.guests.add(self.scope(resource))
        if self.dies_after:
            raise self.dies_after.pop()
        return Receipt(resource, data)

    async def revoke(self, held: Receipt, *, last: bool = True) -> None:
        self._called("kick" if held.data.get("kick") and last else "revoke", held.resource)
        self.invited.discard(held.resource)
        if held.data.get("before"):
            return
        self.inside.discard(held.resource)
        if held.data.get("kick") and last:
            self.guests.discard(self.scope(held.resource))

    async def let_go(self, held: Receipt, kept_for: Sequence[Receipt]) -> None:
        assert kept_for
        self._called("let go", held.resource)

    async def holds(self, held: Receipt) -> Holding:
        if held.resource in self.inside:
            return Holding.HELD
        return Holding.PENDING if held.resource in self.invited else Holding.GONE

    async def left(self, held: Receipt) -> bool:
        return not held.data.get("before") and held.resource in self.inside | self.invited

    async def identify(self, name: str, config: Any) -> Account:
        self._called("identify", name)
        if name not in self.names:
            raise ActionRequired(f"there is no {name}", who="customer")
        return Account(self.names[name], name)

    async def examine(self, config: Any) -> list[str]:
        return [] if config.room else ["there is no such room"]

    async def survey(self, config: Any) -> Mapping[str, Holding] | None:
        if self.fails:
            raise self.fails.pop(0)
        found = {one: Holding.HELD for one in self.inside if one.endswith(f":{config.room}")}
        return found | {one: Holding.PENDING for one in self.invited if one.endswith(f":{config.room}")}

    def offer(self, held: Receipt) -> dict[str, Any]:
        return {"kind": "room", "resource": held.resource}

    @staticmethod
    def present(offer: dict[str, Any], grant_id: str, at: Any) -> dict[str, Any]:
        return offer

    def _called(self, what: str, about: str) -> None:
        self.calls.append((what, about))
        if self.fails:
            raise self.fails.pop(0)
