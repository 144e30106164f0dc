"""What every connector is: four calls, three ways to fail, and a receipt that is enough to take everything back."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from msgspec import Struct

from config.catalogue import BenefitConfig, Per
from config.settings import Settings


class Recipient(Struct, frozen=True):
    """A customer, or a member under one, as a platform may know them."""

    customer_id: str
    external_id: str | None = None
    email: str | None = None
    name: str | None = None
    member_id: str | None = None
    purchase: str | None = None
    """The subscription or order, for benefits that are given once per purchase."""
    organization_id: str | None = None
    accounts: Mapping[str, str] = {}
    """Numeric account ids by platform: `github`, `discord`."""
    sources: Mapping[str, str] = {}
    """Who told us of them, by platform: `linked` by the customer, `set` by the app, `polar`, or a `field`."""
    names: Mapping[str, str] = {}
    """Names by platform of accounts whose id is not known yet; `identify` finds it, once."""


class Account(Struct, frozen=True):
    """An account at a platform: its numeric id, which never changes, and what it is called now."""

    id: str
    name: str | None = None


class Receipt(Struct, frozen=True):
    """What was really given, to which immutable id; all that revoking needs."""

    resource: str
    data: dict[str, Any] = {}
    connector: str = ""
    """By which connector it was given; set for every connector, by whoever called it."""
    intended: bool = False
    """Written before the first attempt, without data: something may have been given, if we died before we knew.
    `revoke` must cope with it, from the resource alone; `grant` sees it only with data: then it is what `grant`
    itself returned, to have written down what it saw before it acts. It is called again at once."""
    waiting: str | None = None
    """While `holds` says pending: what the customer must do, in a sentence to them."""
    offers: int = 0
    """How often the customer was asked to accept and did not; 0 again when a person asks for another try."""


class Holding(StrEnum):
    """What a platform says when asked whether something given is still there."""

    HELD = "held"
    PENDING = "pending"
    """Given, but the customer must still accept (an invitation)."""
    GONE = "gone"


class ConnectorError(Exception):
    """Why a connector could not do it, named for what happens next.

    ConnectorError
     +-- Unavailable      later: by itself
     +-- ActionRequired   when the customer or the merchant has acted
     +-- Rejected         never: a person must look
    """


class Unavailable(ConnectorError):
    """Try again later. With `retry_after` (seconds) the platform asked us to wait: no attempt is used up."""

    def __init__(self, reason: str, *, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class ActionRequired(ConnectorError):
    """Somebody must act first: `who`, and in the message what."""

    def __init__(self, reason: str, *, who: Literal["customer", "merchant"]) -> None:
        super().__init__(reason)
        self.who = who


class Rejected(ConnectorError):
    """It will never work as it is; a person must look."""


class Passes(Protocol):
    """Our own door for benefits that we serve ourselves: a pass is open or closed, and what is closed is not served."""

    async def open(self, resource: str) -> None:
        """Open the pass; already open is success."""

    async def close(self, resource: str) -> None:
        """Close the pass; already closed or never opened is success."""

    async def is_open(self, resource: str) -> bool:
        """Whether the pass is open now."""


class Rate(Struct, frozen=True):
    """A limit of a platform: at most `limit` calls of this name in any `seconds`, by all workers together."""

    name: str
    limit: int
    seconds: float


class Limits(Protocol):
    """The platforms' limits, counted for all workers together."""

    async def take(self, *rates: Rate) -> None:
        """Take a place under every one of these limits, or under none; two where a limit is named twice.

        Raises Unavailable, with `retry_after`, where one of them is used up or parked. A short wait is slept through.
        """

    async def check(self, *rates: Rate) -> None:
        """Take nothing, but raise as `take` would: for what is only worth doing if a place will be there."""

    async def park(self, name: str, seconds: float, reason: str) -> None:
        """Have all who take places of this name wait so long: the platform refused, or said that it would."""

    async def learn(self, rate: Rate) -> None:
        """Remember what the platform says its limit is; from now on it counts, whatever takers bring."""


class AccountToken(Struct, frozen=True):
    """What a customer allowed us at a platform. Secret."""

    access_token: str
    refresh_token: str | None = None
    expires_at: datetime | None = None

    def __repr__(self) -> str:
        """Say nothing of it: it would stand in every traceback."""
        return "AccountToken([hidden])"


class AccountTokens(Protocol):
    """The customers' tokens, encrypted at rest; only of accounts that somebody has linked."""

    async def find(self, platform: str, account_id: str) -> AccountToken | None:
        """Return the token of an account, or None."""

    async def keep(self, platform: str, account_id: str, token: AccountToken) -> None:
        """Keep the token that came in its place."""

    async def forget(self, platform: str, account_id: str, refused: AccountToken) -> None:
        """Delete this token: the platform takes it no more, and the customer must link the account again.

        Another that came in its place meanwhile stays.
        """


class LicenseKey(Struct, frozen=True, kw_only=True):
    """A license key as issued. `expires_at` and limits may be None: no end, no limit."""

    id: str
    resource: str
    benefit: str
    customer_id: str
    member_id: str | None = None
    purchase: str | None = None
    key: str | None
    """The whole key; None where a revived key is not kept whole."""
    display_key: str
    """The key as it may be shown to everybody: masked."""
    storage: Literal["plain", "hash"] = "plain"
    """`hash`: only a digest is kept, and the whole key, encrypted, until it was shown once."""
    given: bool = True
    """Whether the benefit gives it now; whatever the status, one that is not given works nowhere."""
    status: Literal["granted", "revoked", "disabled"] = "granted"
    """The merchant's own word, which only they change."""
    limit_activations: int | None = None
    limit_usage: int | None = None
    expires_at: datetime | None = None

    def __repr__(self) -> str:
        """Say which key it is, but not the key: it would stand in every traceback."""
        return f"LicenseKey(id={self.id!r}, resource={self.resource!r}, given={self.given}, status={self.status!r})"


class LicenseKeys(Protocol):
    """Where license keys live: one for each resource, for ever."""

    async def issue(self, key: LicenseKey) -> LicenseKey:
        """Keep this key, or return the one that the resource already has, revived with these limits.

        A revived key keeps its id, its string and its expiry.
        """

    async def revoke(self, resource: str) -> None:
        """Take the resource's key back; none or already taken is success."""

    async def find(self, resource: str) -> LicenseKey | None:
        """The resource's key, or None."""


@dataclass(frozen=True)
class Tools:
    """What connectors are built with, and all that they may touch."""

    settings: Settings
    passes: Passes
    license_keys: LicenseKeys
    executor: Executor
    """For libraries that block; the event loop never does."""
    now: Callable[[], datetime]
    limits: Limits
    tokens: AccountTokens


class Presentation(Protocol):
    """What presenting an offer at the moment of the question may use."""

    @property
    def now(self) -> datetime:
        """The moment of the question."""

    @property
    def settings(self) -> Settings:
        """The settings, for secrets that sign."""

    def download_url(self, grant_id: str, name: str) -> str:
        """A signed, expiring address of one file of a grant."""


C = TypeVar("C", bound=BenefitConfig, contravariant=True)


class Connector(Protocol[C]):  # pragma: no cover - a description, not code
    """Gives one kind of benefit and takes it back. Every call may be repeated."""

    Config: ClassVar[type[BenefitConfig]]
    per: ClassVar[Per]
    """Whether a customer gets it once, or once per purchase, where the catalogue does not say."""
    dynamic: ClassVar[bool]
    """Whether `present` adds something at the moment of the question, like a signature."""

    @staticmethod
    def missing(config: Any, settings: Settings) -> list[str]:  # noqa: ANN401 - the connector's own Config
        """Say in sentences which settings a benefit of this config lacks; it is then refused at start."""

    platform: ClassVar[str | None]
    """Where a customer needs an account for it: `github`, `discord`; None where it is ours to serve."""
    looks_first: ClassVar[bool]
    """Whether the first `grant` only looks, and returns an intended receipt with what it saw."""

    def resource(self, to: Recipient, config: C) -> str:
        """Name what is shared and counted outside: equal strings are one thing. Raises ActionRequired."""

    @staticmethod
    def scope(resource: str) -> str:
        """Name what must not be worked on twice at a time: the resource, or the part before a `:` that it shares."""

    async def grant(self, to: Recipient, config: C, held: Receipt | None) -> Receipt:
        """Give it, or bring what is `held` up to date. Raises ConnectorError.

        `held` may also be what another grant of the same resource has: then it was we who gave it.
        """

    async def revoke(self, held: Receipt, *, last: bool = True) -> None:
        """Take back what the receipt says; already gone is success. Raises ConnectorError.

        `last`: nothing else in the resource's scope is wanted by anybody.
        """

    async def let_go(self, held: Receipt, kept_for: Sequence[Receipt]) -> None:
        """Bring down to what others still need what is theirs too, and stays. Raises ConnectorError."""

    async def holds(self, held: Receipt) -> Holding:
        """Read back what is really there. Raises ConnectorError."""

    async def left(self, held: Receipt) -> bool:
        """After taking back: whether anything of what we gave is still there. Raises ConnectorError.

        What they had before us is not ours to take, and does not count.
        """

    async def identify(self, name: str, config: C) -> Account:
        """Find the account that has this name now. Raises ConnectorError; ActionRequired where there is none."""

    async def examine(self, config: C) -> list[str]:
        """Look at the platform whether this benefit can be given there; say in sentences what is wrong.

        Raises Unavailable while it cannot be told.
        """

    async def survey(self, config: C) -> Mapping[str, Holding] | None:
        """Return every resource that anybody has where this benefit gives it, given by us or not.

        None where there is no such list, and each grant must be looked at. Raises ConnectorError.
        """

    def offer(self, held: Receipt) -> dict[str, Any]:
        """What the customer gets, for the cached answer: nothing secret, nothing that depends on the time."""

    @staticmethod
    def present(offer: dict[str, Any], grant_id: str, at: Presentation) -> dict[str, Any]:
        """Complete an offer at the moment of the question, where `dynamic`."""


class Serving(ABC):
    """What every connector says that serves its benefits itself: there is no platform that could know better."""

    platform: ClassVar[str | None] = None
    looks_first: ClassVar[bool] = False

    @staticmethod
    def scope(resource: str) -> str:
        """Each resource stands alone."""
        return resource

    async def let_go(self, held: Receipt, kept_for: Sequence[Receipt]) -> None:  # noqa: B027 - doing nothing is right for most
        """Do nothing: what others have is all that there is."""

    @abstractmethod
    async def holds(self, held: Receipt) -> Holding:
        """Read back what is really there."""

    async def left(self, held: Receipt) -> bool:
        """Whether it is still there: all that is there came from us."""
        return await self.holds(held) != Holding.GONE

    async def identify(self, name: str, config: Any) -> Account:  # noqa: ANN401, ARG002 - as for all
        """Find nobody: there are no accounts."""
        raise Rejected("this benefit needs no account")

    async def examine(self, config: Any) -> list[str]:  # noqa: ANN401, ARG002 - as for all
        """Find nothing wrong: what can be wrong is seen at start."""
        return []

    async def survey(self, config: Any) -> Mapping[str, Holding] | None:  # noqa: ANN401, ARG002 - as for all
        """Have no list; our own passes and keys are looked at one by one."""
        return None
