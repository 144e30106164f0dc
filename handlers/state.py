"""CustomerState: all that we know of one customer, and the rules by which facts are merged into it.

Polar delivers in no promised order and more than once, so merging must not depend on order. Each object keeps its
newest fact, and the newest snapshot is kept beside them; nothing is ever subtracted. What holds *now* is derived by
the functions at the end. Taking a maximum is associative, commutative and idempotent, and so is the fold.

Newest means, in this order (`Stamp`): final facts (deleted) over all others, then Polar's `modified_at` (else
`created_at`), then the envelope's `timestamp`, then the event's place in the order in which Polar emits events of one
transaction (`VERBS`), then the bytes of the fact itself, so that even a tie has one winner.

A snapshot has one time, its envelope's. It decides over every fact whose envelope is not newer than it.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Struct

from handlers.events import (
    Customer,
    Event,
    GrantedBenefit,
    Member,
    Order,
    PolarGrant,
    Refund,
    Seat,
    Snapshot,
    Subscription,
)

T = TypeVar("T")

# The order in which Polar emits the events of one transaction (polar.md 1.6); an unknown verb ranks lowest.
VERBS = (
    "created", "assigned", "updated", "cycled", "migrated", "active", "uncanceled", "resumed", "paid", "claimed",
    "past_due", "paused", "canceled", "refunded", "revoked", "deleted",
)  # fmt: skip
_RANK = {verb: rank for rank, verb in enumerate(VERBS, start=1)}


class Stamp(Struct, frozen=True, array_like=True):
    """When, by Polar's clocks, a fact was true; compared field by field."""

    final: bool
    modified: datetime
    sent: datetime
    rank: int


class Fact(Struct, Generic[T], frozen=True):
    """What one delivery said of one object, and when."""

    stamp: Stamp
    delivery: str
    data: T


class ManualGrant(Struct, frozen=True, kw_only=True):
    """An operator's grant by hand: a fact that comes from a person instead of Polar."""

    id: str
    benefit: str
    member_id: str | None = None
    reason: str
    by: str
    ends_at: datetime | None = None


Source = Literal["linked", "set", "polar", "field"]
"""Who told us of an account, the most trusted first: the customer by OAuth, the merchant's app, Polar's own grants, a
field that the customer filled in."""
_TRUST: tuple[Source, ...] = ("linked", "set", "polar", "field")


class KnownAccount(Struct, frozen=True, kw_only=True):
    """An account of a person at a platform. Without an id, only its name is known yet."""

    platform: str
    member_id: str | None
    account_id: str | None
    name: str | None
    source: Source


class CustomerState(Struct, frozen=True, kw_only=True):
    """The facts of one customer, each the newest of its object."""

    id: str
    as_of: datetime | None = None
    """The newest envelope timestamp that was folded in."""
    customer: Fact[Customer] | None = None
    customer_hint: Fact[Customer] | None = None
    """As embedded in orders and subscriptions, where Polar leaves fields out; used until a full one is known."""
    snapshot: Fact[Snapshot] | None = None
    subscriptions: dict[str, Fact[Subscription]] = {}
    orders: dict[str, Fact[Order]] = {}
    refunds: dict[str, Fact[Refund]] = {}
    grants: dict[str, Fact[PolarGrant]] = {}
    seats: dict[str, Fact[Seat]] = {}
    members: dict[str, Fact[Member]] = {}
    manual: dict[str, ManualGrant] = {}
    accounts: tuple[KnownAccount, ...] = ()
    """Those that were linked, set, or found in fields; what Polar's grants say of accounts is among the facts."""


_encoder = msgspec.json.Encoder(order="deterministic")
_decoder = msgspec.json.Decoder(CustomerState)


def encode(state: CustomerState) -> bytes:
    """Write a state as JSON, the same bytes for the same facts. Grants by hand and accounts have their own tables."""
    if state.manual or state.accounts:
        state = msgspec.structs.replace(state, manual={}, accounts=())
    return _encoder.encode(state)


def decode(data: bytes) -> CustomerState:
    """Read what `encode` wrote."""
    return _decoder.decode(data)


def fact(event: Event, data: Any, *, final: bool = False) -> Fact[Any]:  # noqa: ANN401 - any of Polar's objects
    """Stamp an object with the times at which Polar says it was so."""
    modified = data.modified_at or data.created_at
    rank = _RANK.get(event.type.rpartition(".")[2], 0)
    return Fact(Stamp(final, modified, event.timestamp, rank), event.delivery, data)


def newest(known: Fact[T] | None, said: Fact[T]) -> Fact[T]:
    """Return the fact that holds of two about one object."""
    if known is None:
        return said
    mine, theirs = _key(known.stamp), _key(said.stamp)
    if mine != theirs:
        return known if mine > theirs else said
    return max(known, said, key=_encoder.encode)


def _key(stamp: Stamp) -> tuple[bool, datetime, datetime, int]:
    return stamp.final, stamp.modified, stamp.sent, stamp.rank


def with_fact(state: CustomerState, event: Event, kind: str, said: Fact[Any]) -> CustomerState:
    """Merge a fact about one object of the given kind (`subscriptions`, `orders`, ...)."""
    known: dict[str, Fact[Any]] = getattr(state, kind)
    held = known.get(said.data.id)
    kept = newest(held, said)
    changes: dict[str, Any] = {"as_of": latest(state.as_of, event.timestamp)}
    if kept is not held:
        changes[kind] = {**known, said.data.id: kept}
    return msgspec.structs.replace(state, **changes)


def with_customer(state: CustomerState, event: Event, customer: Customer | None, *, full: bool) -> CustomerState:
    """Merge what an event says of the customer itself; `full` when it has every field."""
    if customer is None:
        return state
    said = fact(event, customer, final=customer.deleted_at is not None)
    field = "customer" if full else "customer_hint"
    return msgspec.structs.replace(
        state, as_of=latest(state.as_of, event.timestamp), **{field: newest(getattr(state, field), said)}
    )


def with_snapshot(state: CustomerState, event: Event, snapshot: Snapshot) -> CustomerState:
    """Merge a snapshot: the one with the newest envelope is kept."""
    said: Fact[Snapshot] = Fact(Stamp(False, event.timestamp, event.timestamp, 0), event.delivery, snapshot)  # noqa: FBT003
    return msgspec.structs.replace(
        with_customer(state, event, snapshot.customer, full=True), snapshot=newest(state.snapshot, said)
    )


def latest(known: datetime | None, said: datetime) -> datetime:
    """Return the later of two times, one of which may be unknown."""
    return said if known is None or said > known else known


# What holds now, derived from the facts.


def customer_of(state: CustomerState) -> Customer | None:
    """Return the customer as last described, or None while no event has described it."""
    known = state.customer or state.customer_hint
    return known.data if known else None


def is_deleted(state: CustomerState) -> bool:
    """Whether Polar has deleted the customer."""
    return any(known and known.data.deleted_at for known in (state.customer, state.customer_hint))


class GrantNow(Struct, frozen=True, kw_only=True):
    """One of Polar's grants as it stands: the fact, corrected by a newer snapshot."""

    id: str
    benefit_id: str
    benefit_type: str
    benefit_metadata: dict[str, Any]
    granted: bool
    taken_back: bool
    """Not granted any more; else, when not granted, it waits for somebody."""
    granted_at: datetime | None
    revoked_at: datetime | None
    """When it was taken back, where its own event said so."""
    created_at: datetime
    modified_at: datetime | None
    member_id: str | None
    subscription_id: str | None
    order_id: str | None
    properties: dict[str, Any]
    error: str | None
    person_known: bool
    """False for a grant known only from a snapshot, which names neither member nor purchase."""
    delivery: str


def grants_now(state: CustomerState) -> dict[str, GrantNow]:
    """Return Polar's grants by id as they stand now."""
    listed = {grant.id: grant for grant in state.snapshot.data.granted_benefits} if state.snapshot else {}
    now: dict[str, GrantNow] = {}
    for grant_id, known in state.grants.items():
        now[grant_id] = _corrected(known, listed.get(grant_id), state.snapshot)
    for grant_id, grant in listed.items():
        if grant_id not in now and state.snapshot:
            now[grant_id] = _only_listed(grant, state.snapshot.delivery)
    return now


def _corrected(known: Fact[PolarGrant], listed: GrantedBenefit | None, snapshot: Fact[Snapshot] | None) -> GrantNow:
    grant = known.data
    overruled = snapshot is not None and snapshot.stamp.sent >= known.stamp.sent
    source: PolarGrant | GrantedBenefit = listed if overruled and listed else grant
    granted = grant.is_granted and not grant.is_revoked
    return GrantNow(
        id=grant.id,
        benefit_id=grant.benefit_id,
        benefit_type=grant.benefit.type,
        benefit_metadata=listed.benefit_metadata if overruled and listed else grant.benefit.metadata,
        granted=listed is not None if overruled else granted,
        taken_back=listed is None and (granted or grant.is_revoked) if overruled else grant.is_revoked,
        granted_at=source.granted_at,
        revoked_at=grant.revoked_at,
        created_at=source.created_at,
        modified_at=source.modified_at,
        member_id=grant.member_id,
        subscription_id=grant.subscription_id,
        order_id=grant.order_id,
        properties=source.properties,
        error=grant.error.message if grant.error and not (overruled and listed) else None,
        person_known=True,
        delivery=snapshot.delivery if overruled and snapshot else known.delivery,
    )


def _only_listed(grant: GrantedBenefit, delivery: str) -> GrantNow:
    return GrantNow(
        id=grant.id,
        benefit_id=grant.benefit_id,
        benefit_type=grant.benefit_type,
        benefit_metadata=grant.benefit_metadata,
        granted=True,
        taken_back=False,
        granted_at=grant.granted_at,
        revoked_at=None,
        created_at=grant.created_at,
        modified_at=grant.modified_at,
        member_id=None,
        subscription_id=None,
        order_id=None,
        properties=grant.properties,
        error=None,
        person_known=False,
        delivery=delivery,
    )


class SubscriptionNow(Struct, frozen=True, kw_only=True):
    """A subscription as it stands, and whether it is active or on trial by the newest word of Polar."""

    data: Subscription
    active: bool
    delivery: str


def subscriptions_now(state: CustomerState) -> dict[str, SubscriptionNow]:
    """Return the subscriptions by id as they stand now. A snapshot lists only active and trialing ones."""
    listed = {one.id: one for one in state.snapshot.data.active_subscriptions} if state.snapshot else {}
    now: dict[str, SubscriptionNow] = {}
    for one_id, known in state.subscriptions.items():
        if state.snapshot and state.snapshot.stamp.sent >= known.stamp.sent:
            data = _completed(listed[one_id], known.data) if one_id in listed else known.data
            now[one_id] = SubscriptionNow(data=data, active=one_id in listed, delivery=state.snapshot.delivery)
        else:
            now[one_id] = SubscriptionNow(data=known.data, active=is_active(known.data), delivery=known.delivery)
    for one_id, one in listed.items():
        if one_id not in now and state.snapshot:
            now[one_id] = SubscriptionNow(data=one, active=True, delivery=state.snapshot.delivery)
    return now


def _completed(listed: Subscription, known: Subscription) -> Subscription:
    """Take the snapshot's word, and what it leaves out from the last event; a pause is due only at that period's end.

    Older endpoints leave out the seats too.
    """
    return msgspec.structs.replace(
        listed,
        pause_at_period_end=known.pause_at_period_end and listed.current_period_end == known.current_period_end,
        customer_id=known.customer_id,
        seats=known.seats if listed.seats is None else listed.seats,
    )


def is_active(subscription: Subscription) -> bool:
    """Whether a subscription's status gives what was bought. Polar counts a trial as active."""
    return subscription.status in {"active", "trialing"}


def owner_of(state: CustomerState) -> str | None:
    """Return the id of the member who is the customer in person, where Polar has members."""
    owners = (one.data for one in state.members.values() if one.data.role == "owner" and not one.data.deleted)
    return min((one.id for one in owners), default=None)


_PLATFORM = {"github_repository": "github", "discord": "discord"}


def known_accounts(state: CustomerState, member_id: str | None) -> list[KnownAccount]:
    """Return what is known of a person's outside accounts, the most trusted first.

    `member_id` None means the customer in person: what is of no member, or of the owner.
    """
    owner = owner_of(state)
    persons = {None, owner} if member_id in {None, owner} else {member_id}
    found = [one for one in (*state.accounts, *_told_by_polar(state)) if one.member_id in persons]
    return sorted(found, key=lambda one: _TRUST.index(one.source))


def _told_by_polar(state: CustomerState) -> list[KnownAccount]:
    """Return the accounts that customers chose at Polar, the newest first."""
    found = []
    for known in reversed(_by_age(state.grants.values())):
        platform = _PLATFORM.get(known.data.benefit.type)
        account = known.data.properties.get("account_id")
        if platform and account:
            found.append(
                KnownAccount(
                    platform=platform, member_id=known.data.member_id, account_id=str(account), name=None,
                    source="polar",
                )
            )  # fmt: skip
    return found


def accounts_of(state: CustomerState, member_id: str | None) -> Mapping[str, str]:
    """Return a person's account ids by platform. A more trusted account whose id is not known yet is waited for."""
    best = _best(state, member_id)
    return {platform: one.account_id for platform, one in best.items() if one.account_id}


def sources_of(state: CustomerState, member_id: str | None) -> Mapping[str, str]:
    """Return, by platform, who told us of the accounts."""
    return {platform: one.source for platform, one in _best(state, member_id).items()}


def names_of(state: CustomerState, member_id: str | None) -> Mapping[str, str]:
    """Return, by platform, the names of accounts whose ids must still be found."""
    best = _best(state, member_id)
    return {platform: one.name for platform, one in best.items() if one.name and not one.account_id}


def _best(state: CustomerState, member_id: str | None) -> dict[str, KnownAccount]:
    best: dict[str, KnownAccount] = {}
    for one in known_accounts(state, member_id):
        best.setdefault(one.platform, one)
    return best


def told_in_fields(state: CustomerState, platform: str, fields: Iterable[str]) -> list[KnownAccount]:
    """Return the accounts that customers named in these fields: in their metadata, at a checkout, or with a seat.

    A number, or what looks like one of Discord's ids, is an id; any other text is a name.
    """
    names = tuple(fields)
    if not names:
        return []
    customer = customer_of(state)
    told: list[tuple[str | None, Mapping[str, Any]]] = [(None, customer.metadata if customer else {})]
    purchases: list[Order | Subscription] = [one.data for one in state.orders.values()]
    purchases += [one.data for one in state.subscriptions.values()]
    purchases.sort(key=lambda one: (one.created_at, one.id), reverse=True)
    told += [(None, one.custom_field_data) for one in purchases]
    told += [(one.data.member_id, one.data.seat_metadata or {}) for one in state.seats.values() if one.data.member_id]
    found: dict[str | None, KnownAccount] = {}
    for person, said in told:
        for value in (said[name] for name in names if said.get(name)):
            account = _named(platform, person, value)
            if account:
                found.setdefault(person, account)
    return list(found.values())


def _named(platform: str, person: str | None, value: object) -> KnownAccount | None:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    text = str(value).strip().rstrip("/").rpartition("/")[2].removeprefix("@")
    is_id = isinstance(value, int) or (platform == "discord" and _SNOWFLAKE.fullmatch(text) is not None)
    if not text or (is_id and not text.isdecimal()):
        return None
    return KnownAccount(
        platform=platform, member_id=person, account_id=text if is_id else None, name=None if is_id else text,
        source="field",
    )  # fmt: skip


_SNOWFLAKE = re.compile(r"[0-9]{17,20}")


def _by_age(facts: Iterable[Fact[PolarGrant]]) -> list[Fact[PolarGrant]]:
    return sorted(facts, key=lambda known: (_key(known.stamp), known.data.id))
