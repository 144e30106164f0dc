"""Polar's objects, as Polar would show them, for playing its part. Pure: ids and times are passed in."""

import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

Object = dict[str, Any]

PERIOD = timedelta(days=30)


def iso(at: datetime) -> str:
    """Write a time as Polar does."""
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class World:
    """What the merchant sells: Polar's ids, taken from the catalogue."""

    organization_id: str
    products: tuple[str, ...]
    benefits: tuple[str, ...]


@dataclass
class Ids:
    """Ids drawn one after the other from a seed: the same story has the same ids."""

    random: random.Random

    def next(self) -> str:
        """Return the next id."""
        return str(UUID(int=self.random.getrandbits(128), version=4))


@dataclass
class Shop:
    """The merchant's side of a story."""

    world: World
    ids: Ids
    opened_at: datetime
    products: list[Object] = field(init=False)
    benefits: list[Object] = field(init=False)

    def __post_init__(self) -> None:
        """Describe the benefits and two products, inventing what the catalogue does not name."""
        benefit_ids = self.world.benefits or (self.ids.next(),)
        self.benefits = [self._benefit(one) for one in benefit_ids]
        product_ids = [*self.world.products, *(self.ids.next() for _ in range(2 - len(self.world.products)))]
        self.products = [self._product(one, number) for number, one in enumerate(product_ids, start=1)]

    def _benefit(self, benefit_id: str) -> Object:
        return {
            "id": benefit_id, "created_at": iso(self.opened_at), "modified_at": None, "type": "custom",
            "description": "Access", "selectable": True, "deletable": True, "is_deleted": False,
            "organization_id": self.world.organization_id, "metadata": {}, "visibility": "public",
            "properties": {"note": None}, "visibility_configurable": True,
        }  # fmt: skip

    def _product(self, product_id: str, number: int) -> Object:
        return {
            "id": product_id, "created_at": iso(self.opened_at), "modified_at": None, "trial_interval": None,
            "trial_interval_count": None, "name": f"Product {number}", "description": None, "visibility": "public",
            "recurring_interval": "month", "recurring_interval_count": 1, "meter_interval": None,
            "meter_interval_count": None, "is_recurring": True, "is_archived": False,
            "organization_id": self.world.organization_id, "metadata": {}, "is_deletable": False,
            "prices": [], "benefits": self.benefits, "medias": [], "attached_custom_fields": [],
        }  # fmt: skip


def customer(ids: Ids, shop: Shop, external_id: str, name: str, at: datetime, *, team: bool) -> Object:
    """A customer as created."""
    return {
        "id": ids.next(), "created_at": iso(at), "modified_at": None, "metadata": {}, "external_id": external_id,
        "email": f"{external_id}@example.com", "email_verified": True, "type": "team" if team else "individual",
        "name": name, "billing_name": name, "billing_address": None, "tax_id": None, "locale": "en",
        "organization_id": shop.world.organization_id, "default_payment_method_id": None, "deleted_at": None,
        "first_user_event_at": None, "avatar_url": None,
    }  # fmt: skip


def member(ids: Ids, owner: Object, email: str, role: str, at: datetime) -> Object:
    """A person under a customer."""
    return {
        "id": ids.next(), "created_at": iso(at), "modified_at": None, "customer_id": owner["id"], "email": email,
        "name": None, "external_id": None, "role": role,
    }  # fmt: skip


def checkout(ids: Ids, shop: Shop, buyer: Object, product: Object, at: datetime) -> Object:
    """An open checkout. It holds a secret and an address, as the real one does."""
    brief = {name: value for name, value in product.items() if name not in {"metadata", "is_deletable",
                                                                            "attached_custom_fields"}}  # fmt: skip
    brief["benefits"] = [{k: v for k, v in one.items() if k not in {"metadata", "visibility", "properties",
                                                                    "visibility_configurable"}}
                         for one in product["benefits"]]  # fmt: skip
    return {
        "id": ids.next(), "created_at": iso(at), "modified_at": None, "custom_field_data": {},
        "payment_processor": "stripe", "status": "open", "client_secret": f"polar_cs_{ids.next()}",
        "url": "https://polar.sh/checkout/polar_cs_x", "expires_at": iso(at + timedelta(hours=1)),
        "success_url": "https://example.com/thanks", "return_url": None, "embed_origin": None, "amount": 3000,
        "seats": None, "min_seats": None, "max_seats": None, "units": None, "min_units": None, "max_units": None,
        "discount_amount": 0, "net_amount": 3000, "tax_amount": 0, "tax_behavior": "exclusive", "total_amount": 3000,
        "currency": "usd", "allow_trial": True, "active_trial_interval": None, "active_trial_interval_count": None,
        "trial_end": None, "organization_id": shop.world.organization_id, "product_id": product["id"],
        "product_price_id": None, "discount_id": None, "allow_discount_codes": True,
        "require_billing_address": False, "is_discount_applicable": True, "is_free_product_price": False,
        "is_payment_required": True, "is_payment_setup_required": True, "is_payment_form_required": True,
        "customer_id": buyer["id"], "is_business_customer": False, "customer_name": buyer["name"],
        "customer_email": buyer["email"], "customer_ip_address": "192.0.2.7", "customer_billing_name": None,
        "customer_billing_address": None, "customer_tax_id": None, "locale": "en", "payment_method_type": None,
        "payment_processor_metadata": {},
        "billing_address_fields": dict.fromkeys(("country", "state", "city", "postal_code", "line1", "line2"),
                                                "optional"),
        "trial_interval": None, "trial_interval_count": None, "metadata": {},
        "external_customer_id": buyer["external_id"], "products": [brief], "product": brief, "product_price": None,
        "prices": {product["id"]: []}, "discount": None, "subscription_id": None, "attached_custom_fields": [],
        "customer_metadata": {},
    }  # fmt: skip


def subscription(ids: Ids, buyer: Object, product: Object, at: datetime, *, seats: int | None, trial: bool) -> Object:
    """A subscription in its first period, or on trial."""
    return {
        "id": ids.next(), "created_at": iso(at), "modified_at": None, "amount": 3000, "currency": "usd",
        "recurring_interval": "month", "recurring_interval_count": 1, "status": "trialing" if trial else "active",
        "current_period_start": iso(at), "current_period_end": iso(at + PERIOD), "current_meter_period_start": None,
        "current_meter_period_end": None, "trial_start": iso(at) if trial else None,
        "trial_end": iso(at + PERIOD) if trial else None, "cancel_at_period_end": False, "canceled_at": None,
        "started_at": iso(at), "ends_at": None, "ended_at": None, "past_due_at": None, "pause_at_period_end": False,
        "paused_at": None, "resumes_at": None, "customer_id": buyer["id"], "product_id": product["id"],
        "discount_id": None, "checkout_id": None, "seats": seats, "units": None,
        "customer_cancellation_reason": None, "customer_cancellation_comment": None, "metadata": {},
        "custom_field_data": {}, "customer": buyer, "product": product, "discount": None, "prices": [], "meters": [],
        "pending_update": None,
    }  # fmt: skip


_ORDER_SUBSCRIPTION = (
    "id", "created_at", "modified_at", "amount", "currency", "recurring_interval", "recurring_interval_count",
    "status", "current_period_start", "current_period_end", "current_meter_period_start", "current_meter_period_end",
    "trial_start", "trial_end", "cancel_at_period_end", "canceled_at", "started_at", "ends_at", "ended_at",
    "past_due_at", "pause_at_period_end", "paused_at", "resumes_at", "customer_id", "product_id", "discount_id",
    "checkout_id", "seats", "units", "customer_cancellation_reason", "customer_cancellation_comment", "metadata",
)  # fmt: skip


def order(ids: Ids, buyer: Object, product: Object, at: datetime, *, reason: str, paid_for: Object | None) -> Object:
    """An order, still unpaid; `paid_for` is its subscription."""
    brief = {k: v for k, v in product.items() if k not in {"prices", "benefits", "medias", "attached_custom_fields",
                                                           "is_deletable"}}  # fmt: skip
    embedded = {name: paid_for[name] for name in _ORDER_SUBSCRIPTION} if paid_for else None
    return {
        "id": ids.next(), "created_at": iso(at), "modified_at": None, "status": "pending", "paid": False,
        "subtotal_amount": 3000, "discount_amount": 0, "net_amount": 3000, "tax_amount": 0, "total_amount": 3000,
        "applied_balance_amount": 0, "due_amount": 3000, "refunded_amount": 0, "refunded_tax_amount": 0,
        "currency": "usd", "billing_reason": reason, "billing_name": buyer["name"], "billing_address": None,
        "invoice_number": "ACME-0001", "is_invoice_generated": False, "receipt_number": None, "seats": None,
        "customer_id": buyer["id"], "product_id": product["id"], "discount_id": None,
        "subscription_id": paid_for["id"] if paid_for else None, "checkout_id": None, "metadata": {},
        "custom_field_data": {}, "platform_fee_amount": 0, "platform_fee_currency": "usd", "customer": buyer,
        "product": brief, "discount": None, "subscription": embedded, "items": [], "description": product["name"],
        "refundable_amount": 0, "refundable_tax_amount": 0, "tax_behavior": "exclusive",
    }  # fmt: skip


def refund(ids: Ids, shop: Shop, refunded: Object, at: datetime) -> Object:
    """A refund that takes the benefits back."""
    return {
        "id": ids.next(), "created_at": iso(at), "modified_at": None, "metadata": {}, "status": "succeeded",
        "reason": "customer_request", "amount": refunded["total_amount"], "tax_amount": 0, "currency": "usd",
        "organization_id": shop.world.organization_id, "order_id": refunded["id"], "subscription_id": None,
        "customer_id": refunded["customer_id"], "revoke_benefits": True, "dispute": None,
    }  # fmt: skip


def grant(
    ids: Ids, buyer: Object, person: Object, benefit: Object, at: datetime, *, bought: tuple[str | None, str | None]
) -> Object:
    """A grant, given; `bought` is the subscription's or the order's id."""
    return {
        "id": ids.next(), "created_at": iso(at), "modified_at": iso(at), "granted_at": iso(at), "is_granted": True,
        "revoked_at": None, "is_revoked": False, "subscription_id": bought[0], "order_id": bought[1],
        "customer_id": buyer["id"], "member_id": person["id"], "benefit_id": benefit["id"], "error": None,
        "properties": {}, "customer": buyer, "member": person, "benefit": benefit, "previous_properties": None,
    }  # fmt: skip


def seat(ids: Ids, owner: Object, bought: Object, at: datetime) -> Object:
    """An empty seat."""
    return {
        "id": ids.next(), "created_at": iso(at), "modified_at": None, "subscription_id": bought["id"],
        "order_id": None, "status": "pending", "customer_id": owner["id"], "member_id": None, "member": None,
        "email": None, "customer_email": owner["email"], "invitation_token_expires_at": iso(at + timedelta(days=1)),
        "claimed_at": None, "revoked_at": None, "seat_metadata": None,
    }  # fmt: skip


_STATE_SUBSCRIPTION = (
    "id", "created_at", "modified_at", "custom_field_data", "metadata", "status", "amount", "currency",
    "recurring_interval", "current_period_start", "current_period_end", "trial_start", "trial_end",
    "cancel_at_period_end", "canceled_at", "started_at", "ends_at", "product_id", "discount_id", "seats", "units",
    "meters",
)  # fmt: skip


def state(owner: Object, subscriptions: list[Object], grants: list[Object]) -> Object:
    """A customer's state: what `customer.state_changed` carries."""
    return {
        **owner,
        "active_subscriptions": [
            {name: one[name] for name in _STATE_SUBSCRIPTION}
            for one in subscriptions
            if one["status"] in {"active", "trialing"}
        ],
        "granted_benefits": [
            {
                "id": one["id"], "created_at": one["created_at"], "modified_at": one["modified_at"],
                "granted_at": one["granted_at"], "benefit_id": one["benefit_id"],
                "benefit_type": one["benefit"]["type"], "benefit_metadata": one["benefit"]["metadata"],
                "properties": one["properties"],
            }
            for one in grants
            if one["is_granted"]
        ],
        "active_meters": [],
    }  # fmt: skip
