"""What Polar says of the license keys that it issued: by its events, and when it is asked. Pure."""

from datetime import datetime
from typing import Any, Literal

import msgspec
from msgspec import Struct

from handlers import state as facts
from handlers.events import Time
from handlers.state import CustomerState, GrantNow

_TYPE = "license_keys"
MASKED = "****"


class Told(Struct, frozen=True, kw_only=True):
    """A key as Polar's grants tell of it: whose it is and whether it is given, but not the key."""

    id: str
    benefit: str
    customer_id: str
    member_id: str | None
    purchase: str | None
    display_key: str
    given: bool
    created_at: datetime
    delivery: str | None
    """Of the grant's newest event, and when Polar changed the grant: if they are others, something may be new."""
    modified_at: datetime | None


class ReadActivation(Struct, frozen=True, kw_only=True):
    """A device that uses a key, as Polar shows it: without the conditions."""

    id: str
    label: str = ""
    meta: dict[str, Any] = {}
    created_at: Time
    modified_at: Time | None = None


class ReadKey(Struct, frozen=True, kw_only=True):
    """A key as Polar shows it to the merchant, whole. Secret."""

    id: str
    created_at: Time
    modified_at: Time | None = None
    customer_id: str
    member_id: str | None = None
    benefit_id: str
    key: str
    display_key: str
    status: Literal["granted", "revoked", "disabled"]
    limit_activations: int | None = None
    usage: int = 0
    limit_usage: int | None = None
    validations: int = 0
    last_validated_at: Time | None = None
    expires_at: Time | None = None
    activations: list[ReadActivation] = []

    def __repr__(self) -> str:
        """Say which key it is, but not the key: it would stand in every traceback."""
        return f"ReadKey(id={self.id!r}, status={self.status!r})"


def keys_of(state: CustomerState) -> dict[str, Told]:
    """Return the keys that a customer's grants name, by id. One that any grant gives is given."""
    gone = facts.is_deleted(state)
    told = [
        _told(grant, state, license_key_id, is_given=grant.granted and not gone)
        for grant in facts.grants_now(state).values()
        if grant.benefit_type == _TYPE and isinstance(license_key_id := grant.properties.get("license_key_id"), str)
    ]
    return {one.id: one for one in sorted(told, key=lambda one: one.given)}


def _told(grant: GrantNow, state: CustomerState, license_key_id: str, *, is_given: bool) -> Told:
    known = state.grants.get(grant.id)
    return Told(
        id=license_key_id,
        benefit=grant.benefit_id,
        customer_id=state.id,
        member_id=grant.member_id,
        purchase=grant.subscription_id or grant.order_id,
        display_key=str(grant.properties.get("display_key") or MASKED),
        given=is_given,
        created_at=grant.created_at,
        delivery=known.delivery if known else None,
        modified_at=grant.modified_at,
    )


def news(before: CustomerState, after: CustomerState) -> list[Told]:
    """Return the keys of which something was told that was not known before. One of no grant any more is not given."""
    is_same = after.grants is before.grants and after.snapshot is before.snapshot
    if is_same and facts.is_deleted(after) == facts.is_deleted(before):
        return []
    known, now = keys_of(before), keys_of(after)
    lost = [msgspec.structs.replace(one, given=False) for one in known.values() if one.id not in now and one.given]
    return lost + [one for one in now.values() if one != known.get(one.id)]
