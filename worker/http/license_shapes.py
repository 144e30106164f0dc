"""License keys and activations as Polar shows them, in each of its API versions.

Between versions: 2026-10 has `member_id` and `member`; 2027-01 has the purchase too, where a key is validated or
activated (polar.md 1.1, and the classes of polar-sdk 1.0.2).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct

from handlers.events import Customer, Member, Order, Subscription
from handlers.state import Fact
from worker.benefit_ids import id_in_keys
from worker.http.context import Context
from worker.http.polar_api import Version, iso
from worker.licensing import Activation, Key
from worker.store import customers


class _People(Struct):
    """The part of a customer's facts that a license key shows."""

    customer: Fact[Customer] | None = None
    customer_hint: Fact[Customer] | None = None
    members: dict[str, Fact[Member]] = {}


class _Purchases(Struct):
    subscriptions: dict[str, Fact[Subscription]] = {}
    orders: dict[str, Fact[Order]] = {}


_people = msgspec.json.Decoder(_People).decode
_purchases = msgspec.json.Decoder(_Purchases).decode


def organization_of(context: Context, facts: bytes | None) -> str:
    """Return the organization that a customer is of: as set, or as Polar says of the customer; empty if unknown."""
    if context.settings.polar_organization_id or not facts:
        return context.settings.polar_organization_id
    customer = _customer(_people(facts))
    return (customer.organization_id if customer else None) or ""


async def shown(
    context: Context, keys: Sequence[Key], version: Version, *, may_read: bool = True
) -> list[dict[str, Any]]:
    """Return keys as lists show them; whole, where they are kept whole and the caller `may_read` them."""
    ids = {key.customer_id for key in keys}
    facts = await context.database.read(partial(customers.facts, ids=ids)) if ids else {}
    return [
        key_shown(context, key, facts.get(key.customer_id), version, whole=None if may_read else key.display_key)
        for key in keys
    ]


def key_shown(
    context: Context, key: Key, facts: bytes | None, version: Version, *, whole: str | None = None,
    with_purchase: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Return one key. `facts` are its customer's, encoded; `whole` is the key itself, where the caller has it."""
    people = _people(facts) if facts else _People()
    customer = _customer(people) or Customer(id=key.customer_id, created_at=key.created_at)
    organization = context.settings.polar_organization_id or customer.organization_id or ""
    document: dict[str, Any] = {
        "id": key.id,
        "created_at": iso(key.created_at),
        "modified_at": iso(key.modified_at),
        "organization_id": organization,
        "customer_id": key.customer_id,
        "customer": msgspec.structs.asdict(customer) | {"organization_id": organization},
        "benefit_id": benefit_id(context, key),
        "key": whole or key.key or key.display_key,
        "display_key": key.display_key,
        "status": key.standing,
        "limit_activations": key.limit_activations,
        "usage": key.usage,
        "limit_usage": key.limit_usage,
        "validations": key.validations,
        "last_validated_at": iso(key.last_validated_at),
        "expires_at": iso(key.expires_at),
    }
    if version != "2026-04":
        member = people.members.get(key.member_id or "")
        document |= {"member_id": key.member_id, "member": _member(member.data) if member else None}
    if version == "2027-01" and with_purchase:
        document |= _purchase(key.purchase, _purchases(facts) if facts else _Purchases())
    return document


def benefit_id(context: Context, key: Key) -> str:
    """Return the benefit's id at Polar, or ours."""
    is_own = key.source == "own"
    return id_in_keys(context.pipeline.catalogue.benefits.get(key.benefit), key.benefit) if is_own else key.benefit


def activation_shown(activation: Activation) -> dict[str, Any]:
    """Return an activation; its conditions are never shown."""
    return {
        "id": activation.id,
        "license_key_id": activation.license_key_id,
        "label": activation.label,
        "meta": activation.meta,
        "created_at": iso(activation.created_at),
        "modified_at": iso(activation.modified_at),
    }


def _customer(people: _People) -> Customer | None:
    known = people.customer or people.customer_hint
    return known.data if known else None


def _member(member: Member) -> dict[str, Any]:
    return {"id": member.id, "email": member.email or "", "external_id": member.external_id}


def _purchase(purchase: str | None, known: _Purchases) -> dict[str, Any]:
    subscription = known.subscriptions.get(purchase or "")
    order = known.orders.get(purchase or "")
    return {
        "subscription_id": subscription.data.id if subscription else None,
        "subscription": _subscription(subscription.data) if subscription else None,
        "order_id": order.data.id if order else None,
        "order": _order(order.data) if order else None,
    }


def _subscription(one: Subscription) -> dict[str, Any]:
    return {
        "id": one.id,
        "status": one.status,
        "current_period_start": iso(one.current_period_start),
        "current_period_end": iso(one.current_period_end),
        "cancel_at_period_end": one.cancel_at_period_end,
        "ends_at": iso(one.ends_at),
    }


def _order(one: Order) -> dict[str, Any]:
    return {"id": one.id, "created_at": iso(one.created_at), "status": one.status, "paid": one.paid}
