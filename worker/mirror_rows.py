"""The rows of Polar's objects: what is kept of each, as columns and as JSON. Pure.

What snapshots may overrule is written over an object always by the same fields, so that writing twice is as good as
writing the last alone.
"""

import re
from typing import Any

import msgspec

from handlers import state as facts
from handlers.events import Customer, PolarBenefit
from handlers.state import Fact, GrantNow, SubscriptionNow
from worker.store.objects import COLUMNS, Row

Document = dict[str, Any]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

# What a customer's state says of a subscription, and what follows from it.
_BY_SNAPSHOT = (
    "modified_at", "metadata", "custom_field_data", "amount", "currency", "recurring_interval", "current_period_start",
    "current_period_end", "trial_start", "trial_end", "cancel_at_period_end", "canceled_at", "started_at", "ends_at",
    "ended_at", "past_due_at", "pause_at_period_end", "product_id", "discount_id", "seats", "units",
)  # fmt: skip

_LONGEST_EMAIL = 320  # RFC 3696; more would not fit into PostgreSQL's index
_LARGEST = 2**63 - 1

_SECRETS = ("guild_token", "client_secret", "user_provided_key", "customer_ip_address", "ip_address")
_SECRET = re.compile(rb'"(' + "|".join(_SECRETS).encode() + rb')":"(?:[^"\\]|\\.)+"')
_SUSPICIOUS = tuple(word.encode() for word in (*_SECRETS, "\\u0000"))
_NUL = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")


def subscription_row(customer_id: str, data: Document, held: Fact[Any], now: SubscriptionNow) -> Row:
    """Return the row of a subscription, from what the newest delivery said and what holds now."""
    row = _row("subscription", held.data) | _of_purchase(customer_id, data)
    return _written(row, data, subscription_over(now))


def order_row(customer_id: str, data: Document, held: Fact[Any]) -> Row:
    """Return the row of an order."""
    row = _row("order", held.data) | _of_purchase(customer_id, data)
    row |= {name: _text(getattr(held.data, name)) for name in ("product_id", "subscription_id", "status")}
    return _written(row | {"amount": _number(data.get("net_amount"))}, data, {})


def grant_row(customer_id: str, data: Document, held: Fact[Any], now: GrantNow) -> Row:
    """Return the row of a grant of Polar's."""
    row = _row("benefit_grant", held.data) | {"customer_id": customer_id}
    row |= {name: _text(getattr(held.data, name)) for name in ("benefit_id", "member_id", "subscription_id")}
    row["organization_id"] = _text(_inside(data, "benefit", "organization_id"))
    # Only webhooks have them.
    shown = {name: value for name, value in data.items() if name != "previous_properties"}
    return _written(row, shown, grant_over(now))


def customer_row(customer_id: str, customer: Customer, *, gone: bool) -> Row:
    """Return the row of a customer, as the facts have them."""
    return _row("customer", customer) | {
        "id": customer_id,
        "deleted": gone,
        "customer_id": customer_id,
        "organization_id": _text(customer.organization_id),
        "external_id": _text(customer.external_id),
        "email": customer.email and (_text(customer.email.lower()) or "")[:_LONGEST_EMAIL],
        "name": _text(customer.name),
        "type": _text(customer.type),
        "body": text_of(msgspec.structs.asdict(customer) | {"id": customer_id}),
    }


def benefit_row(said: object) -> Row | None:
    """Return the row of a benefit; None for what is not a whole one, like those inside checkouts."""
    if not isinstance(said, dict) or "properties" not in said:
        return None
    try:
        benefit = msgspec.convert(said, PolarBenefit)
    except msgspec.ValidationError:
        return None
    return _row("benefit", benefit) | {
        "deleted": benefit.is_deleted,
        "organization_id": _text(said.get("organization_id")),
        "name": _text(benefit.description),
        "type": _text(benefit.type),
        "modified_at": benefit.modified_at or benefit.created_at,
        "body": text_of(said),
    }


def _row(kind: str, known: Any) -> Row:  # noqa: ANN401 - any of Polar's objects
    return dict.fromkeys(COLUMNS) | {
        "kind": kind, "id": known.id, "deleted": False, "created_at": known.created_at,
        "modified_at": known.modified_at,
    }  # fmt: skip


def _of_purchase(customer_id: str, data: Document) -> Row:
    return {
        "customer_id": customer_id,
        "organization_id": _text(_inside(data, "customer", "organization_id")),
        "name": _text(_inside(data, "product", "name")),
    }


# What snapshots may overrule: the fields of an object, and the columns that follow from them.


def subscription_over(now: SubscriptionNow) -> Document:
    """Return what holds of a subscription now, whoever said so."""
    over = {name: getattr(now.data, name) for name in _BY_SNAPSHOT}
    return over | {"status": _status(now)}


def _status(now: SubscriptionNow) -> str:
    """Return the status, which a snapshot may contradict: then all that is known is that it is active no more.

    It is what the subscription was going to be, or else unpaid: that gives nothing, and is not final.
    """
    if now.active or not facts.is_active(now.data):
        return now.data.status
    if now.data.pause_at_period_end:
        return "paused"
    return "canceled" if now.data.cancel_at_period_end or now.data.ends_at else "unpaid"


def grant_over(now: GrantNow) -> Document:
    """Return what holds of a grant now, whoever said so."""
    return {
        "modified_at": now.modified_at,
        "is_granted": now.granted,
        "granted_at": now.granted_at if now.granted else None,
        "is_revoked": now.taken_back,
        "revoked_at": now.revoked_at if now.taken_back else None,
        "properties": now.properties,
    }


def corrected(row: Row, over: Document) -> Row:
    """Return a row that is kept, with what holds now."""
    return _written(row, _decode(row["body"]), over)


def _written(row: Row, document: Document, over: Document) -> Row:
    """Return the row with its object, and what holds now written over it, there and in the columns."""
    columns = {name: _text(value) if isinstance(value, str) else value for name, value in over.items() if name in row}
    if row["kind"] == "subscription":
        columns["amount"] = _monthly(over)
    return row | columns | {"body": text_of(document | over)}


def _monthly(subscription: Document) -> int | None:
    """Return the amount for a month, in cents, by which subscriptions are sorted."""
    amount, interval = _number(subscription["amount"]), subscription["recurring_interval"]
    if amount is None or interval == "year":
        return amount and amount // 12
    return _number(amount * {"week": 4, "day": 30}.get(str(interval), 1))


# Values as both databases take them.


def text_of(document: Document) -> str:
    """Return an object as JSON text: secrets emptied, and NUL, which PostgreSQL cannot read out of JSON, replaced."""
    encoded = _encode(document)
    if any(word in encoded for word in _SUSPICIOUS):
        encoded = _NUL.sub(rb"\1\\ufffd", _SECRET.sub(rb'"\1":""', encoded))
    return encoded.decode()


def _text(value: object) -> str | None:
    return value.replace("\x00", "\ufffd") if isinstance(value, str) else None


def _number(value: object) -> int | None:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return value if is_number and abs(value) <= _LARGEST else None  # type: ignore[return-value,arg-type]


def _inside(data: Document, *path: str) -> object:
    value: object = data
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value
