"""What Polar's clients are to get: what was on the wire, and their own errors."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

# Each call that reads, and where it is on the wire; `{...}` is filled in. The last part says by whose token.
READS = {
    "customers.list": ("/v1/customers/?limit=100&sorting=created_at", "app"),
    "customers.get": ("/v1/customers/{customer_id}", "app"),
    "customers.get_external": ("/v1/customers/{customer_id}", "app"),
    "customers.get_state": ("/v1/customers/{customer_id}/state", "app"),
    "customers.get_state_external": ("/v1/customers/{customer_id}/state", "app"),
    "subscriptions.list": ("/v1/subscriptions/?limit=100&active=true", "app"),
    "orders.list": ("/v1/orders/?limit=100&customer_id={customer_id}", "app"),
    "benefits.list": ("/v1/benefits/?limit=100", "app"),
    "benefits.get": ("/v1/benefits/{benefit_id}", "app"),
    "benefits.get_polars": ("/v1/benefits/{polar_benefit_id}", "app"),
    "benefits.grants": ("/v1/benefits/{benefit_id}/grants?is_granted=true", "app"),
    "benefit_grants.list": ("/v1/benefit-grants/?limit=100&customer_id={customer_id}", "app"),
    "license_keys.list": ("/v1/license-keys/?limit=100&benefit_id={benefit_id}", "app"),
    "license_keys.get": ("/v1/license-keys/{key_id}", "app"),
    "license_keys.update": ("/v1/license-keys/{key_id}", "app"),
    "customer_portal.license_keys.list": ("/v1/customer-portal/license-keys/", "session"),
    "customer_portal.license_keys.get": ("/v1/customer-portal/license-keys/{key_id}", "session"),
    "customer_portal.downloadables.list": ("/v1/customer-portal/downloadables/", "session"),
    "customer_portal.benefit_grants.list": ("/v1/customer-portal/benefit-grants/?limit=100", "session"),
    "customer_portal.customer_session.introspect": ("/v1/customer-portal/customer-session/introspect", "session"),
    "customer_portal.customer_session.get_authenticated_user": (
        "/v1/customer-portal/customer-session/user", "session",
    ),
    "webhooks.list_webhook_deliveries": (
        "/v1/webhooks/deliveries?event_type=order.paid&succeeded=true&limit=100", "operator",
    ),
}  # fmt: skip
ACTS = {
    "license_keys.validate", "license_keys.activate", "license_keys.get_activation", "license_keys.deactivate",
    "customer_sessions.create", "customer_portal.license_keys.validate", "customer_portal.license_keys.activate",
    "customer_portal.license_keys.deactivate", "webhooks.redeliver_webhook_event",
}  # fmt: skip
# What changes with every call or client.
MOVES = {"validations", "usage", "last_validated_at", "modified_at", "key", "display_key", "processed_at"}

# How each error arrives: the status, and its class in 1.x and in 0.x, which does not know all of them.
ERRORS = {
    "404 customer": (404, "ResourceNotFound", "ResourceNotFound"),
    "404 state": (404, "ResourceNotFound", "ResourceNotFound"),
    "404 benefit": (404, "ResourceNotFound", "ResourceNotFound"),
    "404 key": (404, "ResourceNotFound", "ResourceNotFound"),
    "404 event": (404, "ResourceNotFound", "ResourceNotFound"),
    "403": (403, "NotPermitted", "NotPermitted"),
    "422": (422, "HTTPValidationError", "HTTPValidationError"),
    "401": (401, "Unauthorized", "Unauthorized"),
    "400": (400, "BadRequest", "SDKError"),
    "429": (429, "PolarRateLimitError", "SDKError"),
}


def differing(got: Any, sent: Any, where: str) -> Iterator[str]:
    """Yield where what a client got is not what was sent. It may leave out what it does not know."""
    if isinstance(got, dict) and isinstance(sent, dict):
        for name in got.keys() - MOVES:
            if name in sent:
                yield from differing(got[name], sent[name], f"{where}.{name}")
            elif got[name]:
                yield f"{where}.{name}: {got[name]!r} was never sent"
    elif isinstance(got, list) and isinstance(sent, list) and len(got) == len(sent):
        for number, pair in enumerate(zip(got, sent, strict=True)):
            yield from differing(*pair, f"{where}[{number}]")
    elif got != sent and _time(got) != _time(sent):
        yield f"{where}: {got!r} instead of {sent!r}"


def _time(value: Any) -> Any:
    """Read a time; clients for Node have them to the millisecond."""
    try:
        read = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return value
    return read.replace(microsecond=read.microsecond // 1000 * 1000)
