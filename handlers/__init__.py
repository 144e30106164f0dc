"""What events mean: every event type that Polar sends, and what it changes in one customer's state.

HANDLERS change a customer's state. MIRRORED events describe what the organization offers to everybody: the newest
description is kept, and the answers of those who hold it are refreshed. IGNORED events change nothing, for the reason
given; they are stored and counted like all others. A type that stands nowhere here is stored, acknowledged, counted
and can be replayed after an upgrade.
"""

from typing import Protocol

from handlers import benefit_grants, customers, members, orders, refunds, seats, subscriptions
from handlers.events import Event
from handlers.state import CustomerState


class Handler(Protocol):
    """What one event changes in one customer's state. Pure: no I/O, no clock. Raises MalformedEvent."""

    def __call__(self, state: CustomerState, event: Event, /) -> CustomerState:
        """Return the state after the event; the same object where nothing changed is fine."""


HANDLERS: dict[str, Handler] = {
    "customer.created": customers.described,
    "customer.updated": customers.described,
    "customer.deleted": customers.deleted,
    "customer.state_changed": customers.state_changed,
    "member.created": members.described,
    "member.updated": members.described,
    "member.deleted": members.deleted,
    "order.created": orders.changed,
    "order.updated": orders.changed,
    "order.paid": orders.changed,
    "order.refunded": orders.changed,
    "refund.created": refunds.changed,
    "refund.updated": refunds.changed,
    "subscription.created": subscriptions.changed,
    "subscription.updated": subscriptions.changed,
    "subscription.active": subscriptions.changed,
    "subscription.cycled": subscriptions.changed,
    "subscription.past_due": subscriptions.changed,
    "subscription.canceled": subscriptions.changed,
    "subscription.uncanceled": subscriptions.changed,
    "subscription.revoked": subscriptions.changed,
    "subscription.paused": subscriptions.changed,
    "subscription.resumed": subscriptions.changed,
    "subscription.migrated": subscriptions.changed,
    "customer_seat.assigned": seats.changed,
    "customer_seat.claimed": seats.changed,
    "customer_seat.revoked": seats.changed,
    "benefit_grant.created": benefit_grants.changed,
    "benefit_grant.updated": benefit_grants.changed,
    "benefit_grant.cycled": benefit_grants.changed,
    "benefit_grant.revoked": benefit_grants.changed,
}

MIRRORED: dict[str, str] = {
    "benefit.created": "benefits",
    "benefit.updated": "benefits",
    "product.created": "products",
    "product.updated": "products",
}

IGNORED: dict[str, str] = {
    "checkout.created": "nothing is owed before there is an order or a subscription",
    "checkout.updated": "what a checkout leads to arrives as an order, a subscription and grants",
    "checkout.expired": "nothing was bought",
    "discount.created": "discounts change prices, not what is owed",
    "discount.updated": "discounts change prices, not what is owed",
    "discount.deleted": "discounts change prices, not what is owed",
    "organization.updated": "the organization's own settings change nobody's benefits",
}

UNKNOWN_TYPE = "this version of Almoner does not know the type; replay after an upgrade"
"""The reason that is kept with a type that stands nowhere above."""
