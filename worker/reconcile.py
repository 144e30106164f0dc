"""Entitlements against grants. Pure: everything, the time too, is passed in."""

import hashlib
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Literal
from uuid import UUID, uuid5

import msgspec
from msgspec import Struct

from config.catalogue import Benefit, Catalogue
from connectors.base import Recipient
from handlers import state as facts
from handlers.events import Order, Subscription
from handlers.state import CustomerState, GrantNow, SubscriptionNow

_NAMESPACE = UUID("6b0f6c1e-4f0e-5d0a-9a53-2f5c9d1e8a77")

Standing = Literal["active", "trialing", "grace", "manual"]
_STRENGTH: dict[Standing, int] = {"active": 3, "trialing": 2, "manual": 1, "grace": 0}


Slot = tuple[str, str | None, str | None, str]
"""What there is one grant for: benefit, member, purchase, part."""


class Because(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One reason to have a benefit, down to the delivery that told us."""

    source: Literal["polar_grant", "subscription", "order", "seat", "manual"]
    id: str
    delivery: str | None = None
    subscription_id: str | None = None
    order_id: str | None = None
    standing: Standing
    until: datetime | None = None
    note: str | None = None


class Entitlement(Struct, frozen=True, kw_only=True):
    """This customer or member ought to have this benefit now, for these reasons."""

    benefit: str
    member_id: str | None
    purchase: str | None
    part: str = ""
    standing: Standing
    valid_until: datetime | None
    """When it ends by itself if no event comes; None when no end is known."""
    because: tuple[Because, ...]

    @property
    def slot(self) -> Slot:
        """What there is one grant for."""
        return self.benefit, self.member_id, self.purchase, self.part


class Held(Struct, frozen=True, kw_only=True):
    """What planning needs to know of a grant that we already have."""

    id: str
    benefit: str
    member_id: str | None
    purchase: str | None
    part: str = ""
    wanted: bool
    target: str

    @property
    def slot(self) -> Slot:
        """What there is one grant for."""
        return self.benefit, self.member_id, self.purchase, self.part


class Change(Struct, frozen=True, kw_only=True):
    """One grant that must become something else."""

    action: Literal["give", "renew", "take"]
    grant_id: str
    slot: Slot
    target: str


class Plan(Struct, frozen=True):
    """The difference between what ought to be and what is."""

    changes: tuple[Change, ...]

    @property
    def taken(self) -> int:
        """How many grants it takes back."""
        return sum(change.action == "take" for change in self.changes)


def grant_id(customer_id: str, slot: Slot) -> str:
    """Return the id of the one grant of this slot: the same on every machine and in every order of events."""
    benefit, member_id, purchase, part = slot
    names = [customer_id, benefit, member_id or "", purchase or "", *([part] if part else [])]
    return str(uuid5(_NAMESPACE, "\n".join(names)))


def entitled(state: CustomerState, catalogue: Catalogue, now: datetime) -> frozenset[Entitlement]:
    """Return what this customer and their members ought to have at `now`."""
    if facts.is_deleted(state):
        return frozenset()
    subscriptions = facts.subscriptions_now(state)
    grants = facts.grants_now(state)
    owner = facts.owner_of(state)
    found: dict[Slot, list[Because]] = {}
    for benefit in catalogue.benefits.values():
        reasons = [
            *_by_polar_grants(benefit, state, grants, subscriptions, now),
            *_by_subscriptions(benefit, state, subscriptions, now),
            *_by_orders(benefit, state),
            *_by_hand(benefit, state, now),
        ]
        for member_id, purchase, because in reasons:
            person = None if member_id == owner else member_id
            if person is not None and _has_left(state, person):
                continue
            for part in benefit.parts:
                slot = (benefit.key, person, purchase if benefit.per == "purchase" else None, part)
                found.setdefault(slot, []).append(because)
    return frozenset(_entitlement(slot, reasons) for slot, reasons in found.items())


Reason = tuple[str | None, str | None, Because]
"""Member, purchase, and why."""


def _by_polar_grants(
    benefit: Benefit,
    state: CustomerState,
    grants: dict[str, GrantNow],
    subscriptions: dict[str, SubscriptionNow],
    now: datetime,
) -> Iterator[Reason]:
    customer = facts.customer_of(state)
    is_team = customer is not None and customer.type == "team"
    refunded = _taken_back(state)
    for grant in grants.values():
        if grant.benefit_id not in benefit.by_benefits:
            continue
        if is_team and not grant.person_known:
            continue  # a team's snapshot does not say whose it is; the grant's own event will
        standing: Standing | None = "active" if grant.granted else None
        until = None
        paying = subscriptions.get(grant.subscription_id or "")
        if grant.order_id in refunded or (paying and _has_ended(paying)):
            # Polar may grant after all that is over: when an account is connected late, or the product gets another
            # benefit (polar.md 3.6 f and g).
            standing = None
        elif paying and not grant.granted:
            until = _grace_end(benefit, paying.data) if _went_unpaid(grant, paying.data) else None
            standing = "grace" if until and until > now else None
        elif paying and paying.data.status == "trialing" and grant.granted:
            standing = "trialing" if benefit.trials else None
        if standing:
            yield (
                grant.member_id,
                grant.subscription_id or grant.order_id,
                Because(
                    source="polar_grant",
                    id=grant.id,
                    delivery=grant.delivery,
                    subscription_id=grant.subscription_id,
                    order_id=grant.order_id,
                    standing=standing,
                    until=until,
                ),
            )


def _by_subscriptions(
    benefit: Benefit, state: CustomerState, subscriptions: dict[str, SubscriptionNow], now: datetime
) -> Iterator[Reason]:
    for one in subscriptions.values():
        if one.data.product_id not in benefit.by_products:
            continue
        standing, until = _standing(benefit, one, now)
        if not standing:
            continue
        if one.data.seats is None:
            yield (
                None,
                one.data.id,
                Because(
                    source="subscription",
                    id=one.data.id,
                    subscription_id=one.data.id,
                    delivery=one.delivery,
                    standing=standing,
                    until=until,
                ),
            )
        else:
            yield from _by_seats(state, one.data, standing, until)


def _standing(benefit: Benefit, one: SubscriptionNow, now: datetime) -> tuple[Standing | None, datetime | None]:
    """Return how a subscription entitles at `now`, and until when if no further event comes."""
    data = one.data
    if one.active:
        until = data.ends_at or data.current_period_end if data.cancel_at_period_end else None
        if data.pause_at_period_end:
            until = data.current_period_end
        if until and until <= now:
            return None, None
        if data.status == "trialing":
            return ("trialing", until) if benefit.trials else (None, None)
        return "active", until
    until = _grace_end(benefit, data)
    return ("grace", until) if until and until > now else (None, None)


def _has_ended(one: SubscriptionNow) -> bool:
    return not one.active and one.data.status in {"canceled", "unpaid", "incomplete_expired", "paused"}


def _grace_end(benefit: Benefit, subscription: Subscription) -> datetime | None:
    """Return until when a benefit outlives a failed payment; None when the subscription is not past due."""
    if subscription.status != "past_due":
        return None
    since = subscription.past_due_at or subscription.modified_at or subscription.created_at
    return since + benefit.grace


def _went_unpaid(grant: GrantNow, subscription: Subscription) -> bool:
    """Whether the failed payment took the grant: grace gives back nothing that was lost before, or never held."""
    since = subscription.past_due_at
    if since is None or not grant.taken_back:
        return grant.taken_back
    return grant.created_at <= since and not (grant.revoked_at and grant.revoked_at < since)


def _by_orders(benefit: Benefit, state: CustomerState) -> Iterator[Reason]:
    refunded = _taken_back(state)
    for known in state.orders.values():
        order = known.data
        # An order of a subscription pays for a period; the subscription itself entitles, and refunding the
        # order does not end it (polar.md 1.6).
        if order.product_id not in benefit.by_products or order.subscription_id or not order.paid:
            continue
        if order.status == "void" or order.id in refunded:
            continue
        if order.seats is None:
            yield (
                None,
                order.id,
                Because(source="order", id=order.id, order_id=order.id, delivery=known.delivery, standing="active"),
            )
        else:
            yield from _by_seats(state, order, "active", None)


def _taken_back(state: CustomerState) -> set[str]:
    """Return the orders refunded with their benefits: at once, and whatever becomes of the refund (polar.md 1.6)."""
    return {known.data.order_id for known in state.refunds.values() if known.data.revoke_benefits}


def _by_seats(
    state: CustomerState, purchase: Subscription | Order, standing: Standing, until: datetime | None
) -> Iterator[Reason]:
    """Yield each member who claimed a seat of the purchase; the buyer has one only if they claimed it."""
    for known in state.seats.values():
        seat = known.data
        if seat.status != "claimed" or purchase.id not in {seat.subscription_id, seat.order_id} or not seat.member_id:
            continue
        yield (
            seat.member_id,
            purchase.id,
            Because(
                source="seat",
                id=seat.id,
                subscription_id=seat.subscription_id,
                order_id=seat.order_id,
                delivery=known.delivery,
                standing=standing,
                until=until,
            ),
        )


def _by_hand(benefit: Benefit, state: CustomerState, now: datetime) -> Iterator[Reason]:
    for manual in state.manual.values():
        if manual.benefit == benefit.key and not (manual.ends_at and manual.ends_at <= now):
            yield (
                manual.member_id,
                None,
                Because(
                    source="manual",
                    id=manual.id,
                    standing="manual",
                    until=manual.ends_at,
                    note=f"{manual.reason} (by {manual.by})",
                ),
            )


def _has_left(state: CustomerState, member_id: str) -> bool:
    known = state.members.get(member_id)
    return known is not None and known.data.deleted


def _entitlement(slot: Slot, reasons: list[Because]) -> Entitlement:
    benefit, member_id, purchase, part = slot
    because = tuple(sorted(reasons, key=lambda reason: (-_STRENGTH[reason.standing], reason.source, reason.id)))
    ends = [reason.until for reason in because]
    return Entitlement(
        benefit=benefit,
        member_id=member_id,
        purchase=purchase,
        part=part,
        standing=because[0].standing,
        valid_until=None if None in ends else max(end for end in ends if end),
        because=because,
    )


def next_edge(entitlements: Iterable[Entitlement]) -> datetime | None:
    """Return when, without any event, the answer changes for the first time: the earliest end of any reason."""
    ends = (reason.until for one in entitlements for reason in one.because if reason.until)
    return min(ends, default=None)


def recipient(state: CustomerState, member_id: str | None, purchase: str | None) -> Recipient:
    """Return the customer, or the member, as platforms may know them: never one in place of the other."""
    customer = facts.customer_of(state)
    member = state.members.get(member_id) if member_id else None
    person = (member.data if member else None) if member_id else customer
    return Recipient(
        customer_id=state.id,
        external_id=person.external_id if person else None,
        email=person.email if person else None,
        name=person.name if person else None,
        member_id=member_id,
        purchase=purchase,
        organization_id=customer.organization_id if customer else None,
        accounts=facts.accounts_of(state, member_id),
        sources=facts.sources_of(state, member_id),
        names=facts.names_of(state, member_id),
    )


def target_of(benefit: Benefit, part: str, to: Recipient) -> str:
    """Return a digest of what a grant is made from. When it changes, the grant must be settled again.

    Of the person's accounts only that at the benefit's own platform counts.
    """
    known = {
        name: {place: one for place, one in getattr(to, name).items() if place == benefit.platform}
        for name in ("accounts", "sources", "names")
    }
    material = msgspec.json.encode(
        [benefit.parts[part].digest, msgspec.structs.replace(to, **known)], order="deterministic"
    )
    return hashlib.sha256(material).hexdigest()[:16]


def plan(
    state: CustomerState, entitlements: Iterable[Entitlement], grants: Iterable[Held], catalogue: Catalogue
) -> Plan:
    """Return what must change so that grants become what the entitlements say."""
    due = {one.slot: one for one in entitlements}
    held = {grant.slot: grant for grant in grants}
    changes = []
    for slot in sorted(due, key=str):
        benefit = catalogue.benefits[slot[0]]
        target = target_of(benefit, slot[3], recipient(state, slot[1], slot[2]))
        grant = held.get(slot)
        if grant is None or not grant.wanted:
            changes.append(Change(action="give", grant_id=grant_id(state.id, slot), slot=slot, target=target))
        elif grant.target != target:
            changes.append(Change(action="renew", grant_id=grant.id, slot=slot, target=target))
    for slot, grant in sorted(held.items(), key=str):
        if grant.wanted and slot not in due:
            changes.append(Change(action="take", grant_id=grant.id, slot=slot, target=grant.target))
    return Plan(tuple(changes))
