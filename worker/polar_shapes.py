"""Polar's objects as they are shown: what is embedded as it is now, and every field that a client of any version needs.

Pure. Between the versions only the prices of seats differ: 2027-01 has `tiers`, `minimum_units` and `maximum_units`
where the others have `seat_tiers` (the classes of polar-sdk 1.0.2).
"""

from collections.abc import Mapping
from typing import Any

Document = dict[str, Any]

SEATS_BY_UNITS = "2027-01"

# Null where an object is of a version, or was sent by a Polar, that had no such field yet: clients want to find them.
_SUBSCRIPTION = (
    "modified_at", "current_meter_period_start", "current_meter_period_end", "trial_start", "trial_end", "canceled_at",
    "started_at", "ends_at", "ended_at", "past_due_at", "paused_at", "resumes_at", "discount_id", "checkout_id",
    "seats", "units", "customer_cancellation_reason", "customer_cancellation_comment", "discount", "pending_update",
)  # fmt: skip
_ORDER = (
    "modified_at", "billing_name", "billing_address", "invoice_number", "receipt_number", "seats", "units",
    "product_id", "discount_id", "subscription_id", "checkout_id", "next_payment_attempt_at", "platform_fee_currency",
    "product", "discount", "subscription",
)  # fmt: skip
_GRANT = ("member_id", "member", "error")
_ORDER_SUBSCRIPTION = tuple(name for name in _SUBSCRIPTION if name not in {"discount", "pending_update"})


def customer_shown(customer: Document, organization_id: str) -> Document:
    """Return a customer. An event that embeds one may leave out what Polar's own list always has."""
    shown = customer | {"type": customer.get("type") or "individual"}
    shown["organization_id"] = customer.get("organization_id") or organization_id
    if shown["type"] == "individual":
        shown["email"] = customer.get("email") or ""
    return shown


def subscription_shown(subscription: Document, version: str) -> Document:
    """Return a subscription, its prices as this version has them."""
    shown = _completed(subscription, _SUBSCRIPTION) | {"prices": _prices(subscription.get("prices"), version)}
    product = shown.get("product")
    if isinstance(product, dict):
        shown["product"] = product | {"prices": _prices(product.get("prices"), version)}
    return shown


def order_shown(order: Document) -> Document:
    """Return an order."""
    shown = _completed(order, _ORDER)
    paid_for = shown["subscription"]
    return shown | {"subscription": _completed(paid_for, _ORDER_SUBSCRIPTION) if isinstance(paid_for, dict) else None}


def grant_shown(grant: Document) -> Document:
    """Return a grant of Polar's. One that holds has no error, even if a snapshot said so and not its own event."""
    shown = _completed(grant, _GRANT)
    return shown | {"error": None if shown["is_granted"] else shown["error"]}


def _completed(document: Document, names: tuple[str, ...]) -> Document:
    return document | {name: None for name in names if name not in document}


def _prices(prices: object, version: str) -> list[Any]:
    if not isinstance(prices, list):
        return []
    return [_price(price, version) if isinstance(price, dict) else price for price in prices]


def _price(price: Document, version: str) -> Document:
    if price.get("amount_type") != "seat_based":
        return price
    is_by_units = "tiers" in price
    if is_by_units == (version == SEATS_BY_UNITS):
        return price
    try:
        return _by_seats(price) if is_by_units else _by_units(price)
    except (KeyError, TypeError, ValueError):  # of a version that we do not know
        return price


def _by_units(price: Document) -> Document:
    """A tier ends at its bound, and begins where the one before ended."""
    seats: Mapping[str, Any] = price["seat_tiers"]
    tiers = [{"bound": one.get("max_seats"), "unit_amount": str(one["price_per_seat"])} for one in seats["tiers"]]
    return {name: value for name, value in price.items() if name != "seat_tiers"} | {
        "tiers": {"type": seats.get("seat_tier_type") or "volume", "tiers": tiers},
        "minimum_units": seats.get("minimum_seats"),
        "maximum_units": seats.get("maximum_seats"),
    }


def _by_seats(price: Document) -> Document:
    """Amounts of 2027-01 may have fractions of a cent; before, they were whole."""
    least, most = price.get("minimum_units") or 1, price.get("maximum_units")
    tiers, begins = [], least
    for one in price["tiers"]["tiers"]:
        bound = one.get("bound")
        amount = round(float(one["unit_amount"]))
        tiers.append({"min_seats": begins, "max_seats": bound, "price_per_seat": amount})
        begins = (bound or 0) + 1
    gone = {"tiers", "minimum_units", "maximum_units"}
    seats = {"seat_tier_type": price["tiers"]["type"], "tiers": tiers, "minimum_seats": least, "maximum_seats": most}
    return {name: value for name, value in price.items() if name not in gone} | {"seat_tiers": seats}
