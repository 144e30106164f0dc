"""Polar's webhook bodies as types: only the fields that fulfilment needs, and lenient about all others.

Fields and their meaning: Polar's webhook schemas, version 2026-10. Ids stay strings; times are UTC.
"""

import json
import re
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

Time = Annotated[datetime, Meta(tz=True)]
"""A time with a zone, as all of Polar's are; one without would fail much later, when it is compared with others."""


class MalformedEvent(Exception):
    """The body is not an event that we can read; the message says what is wrong with it."""


class Customer(Struct, frozen=True, kw_only=True):
    """Who pays. The fields are those of Polar's own customer object, so that it can be shown as Polar shows it."""

    id: str
    created_at: Time
    modified_at: Time | None = None
    metadata: dict[str, Any] = {}
    external_id: str | None = None
    email: str | None = None
    email_verified: bool = False
    type: str | None = "individual"
    name: str | None = None
    billing_name: str | None = None
    billing_address: dict[str, Any] | None = None
    tax_id: Any = None
    locale: str | None = None
    organization_id: str | None = None
    default_payment_method_id: str | None = None
    deleted_at: Time | None = None
    first_user_event_at: Time | None = None
    avatar_url: str | None = None


class Member(Struct, frozen=True, kw_only=True):
    """A person under a customer."""

    id: str
    created_at: Time
    modified_at: Time | None = None
    customer_id: str | None = None
    email: str | None = None
    name: str | None = None
    external_id: str | None = None
    role: str = "member"
    deleted: bool = False
    """Ours: set when `member.deleted` says so. Polar's object has no such field."""


class Subscription(Struct, frozen=True, kw_only=True):
    """What a customer pays for again and again. Inside a customer's state Polar leaves out the later fields."""

    id: str
    created_at: Time
    modified_at: Time | None = None
    metadata: dict[str, Any] = {}
    custom_field_data: dict[str, Any] = {}
    status: str
    amount: int = 0
    currency: str = "usd"
    recurring_interval: str | None = "month"
    current_period_start: Time | None = None
    current_period_end: Time | None = None
    trial_start: Time | None = None
    trial_end: Time | None = None
    cancel_at_period_end: bool = False
    canceled_at: Time | None = None
    started_at: Time | None = None
    ends_at: Time | None = None
    product_id: str
    discount_id: str | None = None
    seats: int | None = None
    units: int | None = None
    meters: list[dict[str, Any]] = []
    customer_id: str | None = None
    ended_at: Time | None = None
    past_due_at: Time | None = None
    pause_at_period_end: bool = False


class Order(Struct, frozen=True, kw_only=True):
    """One payment."""

    id: str
    created_at: Time
    modified_at: Time | None = None
    status: str
    paid: bool = False
    billing_reason: str = "purchase"
    customer_id: str
    product_id: str | None = None
    subscription_id: str | None = None
    seats: int | None = None
    custom_field_data: dict[str, Any] = {}


class Refund(Struct, frozen=True, kw_only=True):
    """Money given back, and whether the benefits go with it."""

    id: str
    created_at: Time
    modified_at: Time | None = None
    status: str
    order_id: str
    subscription_id: str | None = None
    customer_id: str
    revoke_benefits: bool = False


class Seat(Struct, frozen=True, kw_only=True):
    """One slot of a seat-priced purchase. The row is reused for the next person."""

    id: str
    created_at: Time
    modified_at: Time | None = None
    status: str
    subscription_id: str | None = None
    order_id: str | None = None
    customer_id: str | None = None
    member_id: str | None = None
    email: str | None = None
    seat_metadata: dict[str, Any] | None = None


class PolarBenefit(Struct, frozen=True, kw_only=True):
    """A benefit as defined at Polar. Its `properties` are left out: a Discord benefit's hold a token."""

    id: str
    created_at: Time
    modified_at: Time | None = None
    type: str
    description: str = ""
    metadata: dict[str, Any] = {}
    is_deleted: bool = False


class GrantFailure(Struct, frozen=True, kw_only=True):
    """Why Polar could not grant."""

    message: str = ""
    type: str = ""


class PolarGrant(Struct, frozen=True, kw_only=True):
    """Polar's record of one benefit given to one customer or member for one purchase."""

    id: str
    created_at: Time
    modified_at: Time | None = None
    granted_at: Time | None = None
    is_granted: bool = False
    revoked_at: Time | None = None
    is_revoked: bool = False
    subscription_id: str | None = None
    order_id: str | None = None
    customer_id: str
    member_id: str | None = None
    benefit_id: str
    error: GrantFailure | None = None
    properties: dict[str, Any] = {}
    benefit: PolarBenefit


class GrantedBenefit(Struct, frozen=True, kw_only=True):
    """A grant as a customer's state lists it: without member and purchase."""

    id: str
    created_at: Time
    modified_at: Time | None = None
    granted_at: Time | None = None
    benefit_id: str
    benefit_type: str
    benefit_metadata: dict[str, Any] = {}
    properties: dict[str, Any] = {}


class Snapshot(Struct, frozen=True, kw_only=True):
    """A customer's whole state at one moment, as `customer.state_changed` and Polar's state routes give it."""

    customer: Customer
    active_subscriptions: list[Subscription] = []
    granted_benefits: list[GrantedBenefit] = []
    active_meters: list[dict[str, Any]] = []


class Offering(Struct, frozen=True, kw_only=True):
    """A product or benefit as the organization offers it; the same for every customer."""

    id: str
    created_at: Time
    modified_at: Time | None = None


class Envelope(Struct, frozen=True, kw_only=True):
    """What stands around every event's data."""

    type: str
    timestamp: Time
    data: Raw
    api_version: str | None = None


class Event(Struct, frozen=True, kw_only=True):
    """The typed content of a delivery. `data` is read by the handler, with the type that it knows."""

    type: str
    timestamp: Time
    delivery: str
    data: Raw


class _Peek(Struct):
    type: str | UnsetType = UNSET
    timestamp: str | UnsetType = UNSET
    api_version: str | None = None
    data: Raw | UnsetType = UNSET


class Seen(Struct, frozen=True):
    """What a look at a body tells before it is worked on."""

    type: str
    timestamp: str
    api_version: str | None


_TYPE = re.compile(r"[A-Za-z0-9_.\-]{1,100}")
_envelope = msgspec.json.Decoder(Envelope)
_peek = msgspec.json.Decoder(_Peek)


class _SnapshotLists(Struct, frozen=True):
    active_subscriptions: list[Subscription] = []
    granted_benefits: list[GrantedBenefit] = []
    active_meters: list[dict[str, Any]] = []


_decoders: dict[type, msgspec.json.Decoder[Any]] = {}


def peek(body: bytes) -> Seen:
    """Read type, timestamp and version of a verified body, and nothing else: it is cheap.

    Raises MalformedEvent, with what to change at Polar, for JSON that is not an event.
    """
    try:
        seen = _peek.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _peek_leniently(body)
    if seen.type is UNSET or seen.data is UNSET or not _TYPE.fullmatch(seen.type):
        raise MalformedEvent(_NOT_AN_EVENT)
    timestamp = "" if seen.timestamp is UNSET else seen.timestamp
    return Seen(seen.type, timestamp, seen.api_version)


def _peek_leniently(body: bytes) -> Seen:
    """Look again at what the strict reader refuses (a lone surrogate, NaN, deep nesting, a timestamp that is none).

    It is authentic: if it is an event it must be kept, since ten refused events make Polar disable the endpoint.
    """
    try:
        document = json.loads(body)
    except RecursionError:
        start = _START.match(body)
        if start is None:
            raise MalformedEvent("The body is nested too deeply to be read") from None
        return Seen(start[1].decode(), "", None)
    except ValueError as error:
        raise MalformedEvent(f"The body is not JSON that can be read: {error}") from None
    name = document.get("type") if isinstance(document, dict) and "data" in document else None
    if not isinstance(name, str) or not _TYPE.fullmatch(name):
        raise MalformedEvent(_NOT_AN_EVENT)
    return Seen(name, "", None)


_START = re.compile(rb'\s*\{\s*"type"\s*:\s*"([A-Za-z0-9_.\-]{1,100})"')

_NOT_AN_EVENT = (
    "The body is not a Polar event: it has no `type` and `data`. "
    "In Polar, set the format of this webhook endpoint to Raw; Slack and Discord formats are for chat."
)


def parse(delivery: str, body: bytes) -> Event:
    """Read a stored body as an event. Raises MalformedEvent."""
    try:
        envelope = _envelope.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedEvent(f"the envelope cannot be read: {error}") from None
    return Event(type=envelope.type, timestamp=envelope.timestamp, delivery=delivery, data=envelope.data)


def read(event: Event, form: type[Any]) -> Any:  # noqa: ANN401 - an instance of `form`
    """Read an event's data as `form`. Raises MalformedEvent."""
    decoder = _decoders.get(form)
    if decoder is None:
        decoder = _decoders[form] = msgspec.json.Decoder(form)
    try:
        return decoder.decode(event.data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedEvent(f"the data of {event.type} cannot be read: {error}") from None


def read_snapshot(event: Event) -> Snapshot:
    """Read the data of `customer.state_changed`: a customer with three lists beside its own fields."""
    customer = read(event, Customer)
    lists: _SnapshotLists = read(event, _SnapshotLists)
    return Snapshot(
        customer=customer,
        active_subscriptions=lists.active_subscriptions,
        granted_benefits=lists.granted_benefits,
        active_meters=lists.active_meters,
    )
