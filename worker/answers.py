"""The ready answers of one customer, made in the same transaction as the facts. Pure.

Two documents: Polar's own customer state (2026-10), kept fresh by every event; and a map from benefit to answer, both
for the catalogue's benefits and for those that Polar fulfils itself.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Raw, Struct

from config.catalogue import Catalogue
from connectors.base import Receipt
from handlers import state as facts
from handlers.events import GrantedBenefit, PolarBenefit, Subscription
from handlers.state import CustomerState, GrantNow
from worker.store.models import GrantStatus

Offer = Callable[[str, Receipt], dict[str, Any]]
"""Ask a connector, by name, what a receipt gives the customer."""

_encoder = msgspec.json.Encoder()
_decode_receipt = msgspec.json.Decoder(Receipt).decode

# What a customer's state says of a subscription; the rest of our fields are not Polar's there.
_STATE_SUBSCRIPTION = (
    "id", "created_at", "modified_at", "metadata", "custom_field_data", "status", "amount", "currency",
    "recurring_interval", "current_period_start", "current_period_end", "trial_start", "trial_end",
    "cancel_at_period_end", "canceled_at", "started_at", "ends_at", "product_id", "discount_id", "seats", "units",
    "meters",
)  # fmt: skip

# Which status speaks for a benefit that is granted more than once: the best news first, then the most urgent.
_LOUDEST = (
    GrantStatus.GRANTED, GrantStatus.PENDING, GrantStatus.GRANTING, GrantStatus.ACTION_REQUIRED, GrantStatus.FAILED,
    GrantStatus.REVOKING, GrantStatus.REVOKED,
)  # fmt: skip

_SECRET_PROPERTIES = ("guild_token", "user_provided_key")


class GrantAnswer(Struct, frozen=True, kw_only=True):
    """One grant of a benefit: for whom, whether it holds, why, and what they get."""

    id: str
    member_id: str | None
    member_external_id: str | None
    purchase: str | None
    part: str | None
    """Which of the benefit's parts, where it has several, like repositories."""
    entitled: bool
    status: str
    standing: str | None
    valid_until: datetime | None
    because: Raw
    gives: dict[str, Any] | None
    problem: dict[str, str | None] | None
    granted_at: datetime | None
    revoked_at: datetime | None


class Answer(Struct, frozen=True, kw_only=True):
    """May this customer use this benefit?"""

    benefit: str
    connector: str
    description: str
    entitled: bool
    status: str
    standing: str | None
    as_of: datetime | None
    valid_until: datetime | None
    because: Raw
    gives: dict[str, Any] | None
    problem: dict[str, str | None] | None
    grants: list[GrantAnswer]


class Edges(Struct, frozen=True):
    """What must be looked at when the document is read: when it changes with time, and what is completed then."""

    until: datetime | None
    dynamic: list[str]
    owner: str | None = None
    """The member who is the customer in person: grants without a member are theirs."""
    owner_external_id: str | None = None


EDGES = "$"
"""The key of `Edges` in the document; no benefit's key can be this."""


def polar_state(state: CustomerState, offered: Mapping[str, PolarBenefit]) -> bytes | None:
    """Return the customer's state in Polar's shape, or None for a customer that Polar would answer 404 for."""
    customer = facts.customer_of(state)
    if customer is None or facts.is_deleted(state):
        return None
    document = msgspec.structs.asdict(customer)
    document["active_subscriptions"] = [
        _state_subscription(one.data)
        for one in sorted(facts.subscriptions_now(state).values(), key=lambda one: (one.data.created_at, one.data.id))
        if one.active
    ]
    document["granted_benefits"] = [
        GrantedBenefit(
            id=grant.id,
            created_at=grant.created_at,
            modified_at=grant.modified_at,
            granted_at=grant.granted_at,
            benefit_id=grant.benefit_id,
            benefit_type=grant.benefit_type,
            benefit_metadata=_metadata(grant, offered),
            properties=_without_secrets(grant.properties),
        )
        for grant in sorted(facts.grants_now(state).values(), key=lambda grant: (grant.created_at, grant.id))
        if grant.granted
    ]
    document["active_meters"] = state.snapshot.data.active_meters if state.snapshot else []
    return _encoder.encode(document)


def _state_subscription(subscription: Subscription) -> dict[str, Any]:
    shown = {name: getattr(subscription, name) for name in _STATE_SUBSCRIPTION}
    meters = [{name: value for name, value in meter.items() if name != "meter"} for meter in subscription.meters]
    return shown | {"meters": meters}


def _metadata(grant: GrantNow, offered: Mapping[str, PolarBenefit]) -> dict[str, Any]:
    """Return the benefit's metadata as last edited: an edit sends no grant event and no state (polar.md 3.4)."""
    benefit = offered.get(grant.benefit_id)
    return benefit.metadata if benefit else grant.benefit_metadata


def _without_secrets(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in properties.items() if name not in _SECRET_PROPERTIES}


def entitlements(
    state: CustomerState,
    grants: Sequence[Mapping[str, Any]],
    catalogue: Catalogue,
    offered: Mapping[str, PolarBenefit],
    offer: Offer,
    dynamic: frozenset[str],
) -> bytes:
    """Return the map from benefit to answer. `dynamic` names the connectors that complete an answer when it is read."""
    answers: dict[str, Any] = {}
    ends: list[datetime] = []
    by_benefit: dict[str, list[Mapping[str, Any]]] = {}
    for grant in grants:
        by_benefit.setdefault(grant["benefit"], []).append(grant)
    for key, rows in by_benefit.items():
        known = catalogue.benefits.get(key)
        shown = [_grant(row, state, offer) for row in rows]
        description = known.description if known else key
        connector = known.connector if known else rows[0]["connector"]
        answers[key] = _answer(key, description, state.as_of, shown, connector)
        ends += [row["valid_until"] for row in rows if row["wanted"] and row["valid_until"]]
    answers |= _polar_answers(state, offered)
    completed = sorted(key for key, rows in by_benefit.items() if any(row["connector"] in dynamic for row in rows))
    owner = facts.owner_of(state)
    answers[EDGES] = Edges(min(ends, default=None), completed, owner, _external_id(state, owner))
    return _encoder.encode(answers)


def _grant(row: Mapping[str, Any], state: CustomerState, offer: Offer) -> GrantAnswer:
    member = state.members.get(row["member_id"] or "")
    is_there = row["wanted"] and row["receipt"] and row["status"] in {GrantStatus.GRANTED, GrantStatus.PENDING}
    return GrantAnswer(
        id=row["id"],
        member_id=row["member_id"],
        member_external_id=member.data.external_id if member else None,
        purchase=row["purchase"],
        part=row["part"] or None,
        entitled=row["wanted"],
        status=row["status"],
        standing=row["standing"] if row["wanted"] else None,
        valid_until=row["valid_until"] if row["wanted"] else None,
        because=Raw(row["because"].encode()),
        gives=offer(row["connector"], _decode_receipt(row["receipt"])) if is_there else None,
        problem={"who": row["who"], "message": row["reason"]} if row["reason"] else None,
        granted_at=row["granted_at"],
        revoked_at=row["revoked_at"],
    )


def _answer(
    benefit: str, description: str, as_of: datetime | None, grants: list[GrantAnswer], connector: str
) -> Answer:
    # What has several parts is only as far as the part that is furthest behind.
    loudness = {grant.id: _LOUDEST.index(GrantStatus(grant.status)) for grant in grants}
    behind: dict[tuple[str | None, str | None], int] = {}
    for grant in grants:
        person = grant.member_id, grant.purchase
        behind[person] = max(behind.get(person, 0), loudness[grant.id]) if grant.entitled else behind.get(person, 0)
    ranked = sorted(
        grants,
        key=lambda grant: (
            not grant.entitled, behind[grant.member_id, grant.purchase],
            -loudness[grant.id] if grant.entitled else loudness[grant.id], grant.id,
        ),
    )  # fmt: skip
    best = ranked[0]
    live = [grant for grant in ranked if grant.entitled]
    ends = [grant.valid_until for grant in live]
    return Answer(
        benefit=benefit,
        connector=connector,
        description=description,
        entitled=best.entitled,
        status=best.status,
        standing=best.standing,
        as_of=as_of,
        valid_until=None if not ends or None in ends else max(end for end in ends if end),
        because=best.because,
        gives=best.gives,
        problem=best.problem,
        grants=ranked,
    )


def _polar_answers(state: CustomerState, offered: Mapping[str, PolarBenefit]) -> dict[str, Any]:
    """Answer for the benefits that Polar fulfils itself, under their Polar ids."""
    by_benefit: dict[str, list[GrantNow]] = {}
    for grant in facts.grants_now(state).values():
        by_benefit.setdefault(grant.benefit_id, []).append(grant)
    gone = facts.is_deleted(state)
    return {key: _polar_answer(key, grants, state, offered, gone=gone) for key, grants in by_benefit.items()}


def _polar_answer(
    key: str, grants: list[GrantNow], state: CustomerState, offered: Mapping[str, PolarBenefit], *, gone: bool
) -> dict[str, Any]:
    ranked = sorted(grants, key=lambda grant: (not grant.granted, grant.id))
    best = ranked[0]
    known = offered.get(key)
    return {
        "benefit": key,
        "connector": f"polar:{best.benefit_type}",
        "description": known.description if known else key,
        "entitled": best.granted and not gone,
        "status": _polar_status(best, gone=gone),
        "standing": "active" if best.granted and not gone else None,
        "as_of": state.as_of,
        "valid_until": None,
        "because": [_polar_reason(grant) for grant in ranked if grant.granted and not gone],
        "gives": _polar_gives(best, state, offered) if best.granted and not gone else None,
        "problem": _polar_problem(best, gone=gone),
        "grants": [
            {
                "id": grant.id,
                "member_id": grant.member_id,
                "member_external_id": _external_id(state, grant.member_id),
                "purchase": grant.subscription_id or grant.order_id,
                "part": None,
                "entitled": grant.granted and not gone,
                "status": _polar_status(grant, gone=gone),
                "standing": "active" if grant.granted and not gone else None,
                "valid_until": None,
                "because": [_polar_reason(grant)] if grant.granted and not gone else [],
                "gives": _polar_gives(grant, state, offered) if grant.granted and not gone else None,
                "problem": _polar_problem(grant, gone=gone),
                "granted_at": grant.granted_at,
                "revoked_at": None,
            }
            for grant in ranked
        ],
    }


def _external_id(state: CustomerState, member_id: str | None) -> str | None:
    member = state.members.get(member_id or "")
    return member.data.external_id if member else None


def _polar_status(grant: GrantNow, *, gone: bool) -> str:
    if grant.granted and not gone:
        return GrantStatus.GRANTED
    return GrantStatus.ACTION_REQUIRED if grant.error and not gone else GrantStatus.REVOKED


def _polar_problem(grant: GrantNow, *, gone: bool) -> dict[str, str] | None:
    return {"who": "customer", "message": grant.error} if grant.error and not (grant.granted or gone) else None


def _polar_reason(grant: GrantNow) -> dict[str, Any]:
    return {
        "source": "polar_grant",
        "id": grant.id,
        "delivery": grant.delivery,
        "subscription_id": grant.subscription_id,
        "order_id": grant.order_id,
        "standing": "active",
    }


def _polar_gives(grant: GrantNow, state: CustomerState, offered: Mapping[str, PolarBenefit]) -> dict[str, Any]:
    gives: dict[str, Any] = {
        "kind": grant.benefit_type,
        "metadata": _metadata(grant, offered),
        "properties": _without_secrets(grant.properties),
    }
    meter_id = grant.properties.get("last_credited_meter_id")
    if meter_id and state.snapshot:
        meters = [meter for meter in state.snapshot.data.active_meters if meter.get("meter_id") == meter_id]
        gives["meter"] = meters[0] if meters else None
    return gives
