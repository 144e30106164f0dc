"""polar-sdk 1.x for Python plays every call that the sidecar serves, in the API version that it is told."""

import dataclasses
import importlib
from typing import Any

from tests.sdk.playing import Played


def _dump(answer: Any) -> Any:
    return dataclasses.asdict(answer) if dataclasses.is_dataclass(answer) and not isinstance(answer, type) else answer


def play() -> None:
    played = Played(_dump)
    known = played.known
    version: Any = importlib.import_module(f"polar.v{known['version'].replace('-', '_')}")
    with (
        version.Polar(known["app"], base_url=known["address"]) as polar,
        version.Polar(known["operator"], base_url=known["address"]) as operator,
    ):
        _lists(played, polar, known)
        _license_keys(played, polar, known)
        _portal(played, polar, known)
        _webhooks(played, operator, known)
        _refusals(played, polar, operator, known)
    played.end()


def _lists(played: Played, polar: Any, known: dict[str, Any]) -> None:
    played.call("customers.list", lambda: polar.customers.list(limit=100, sorting=["created_at"]))
    played.call("customers.get", lambda: polar.customers.get(known["customer_id"]))
    played.call("customers.get_external", lambda: polar.customers.get_external(known["external_id"]))
    played.call("customers.get_state", lambda: polar.customers.get_state(known["customer_id"]))
    played.call("customers.get_state_external", lambda: polar.customers.get_state_external(known["external_id"]))
    played.call("subscriptions.list", lambda: polar.subscriptions.list(limit=100, active=True))
    played.call("orders.list", lambda: polar.orders.list(limit=100, customer_id=known["customer_id"]))
    played.call("benefits.list", lambda: polar.benefits.list(limit=100))
    played.call("benefits.get", lambda: polar.benefits.get(known["benefit_id"]))
    played.call("benefits.get_polars", lambda: polar.benefits.get(known["polar_benefit_id"]))
    played.call("benefits.grants", lambda: polar.benefits.grants(known["benefit_id"], is_granted=True))
    played.call("benefit_grants.list", lambda: polar.benefit_grants.list(limit=100, customer_id=known["customer_id"]))


def _license_keys(played: Played, polar: Any, known: dict[str, Any]) -> None:
    organization, key_id = known["organization_id"], known["key_id"]
    played.call("license_keys.list", lambda: polar.license_keys.list(benefit_id=[known["benefit_id"]], limit=100))
    key = played.call("license_keys.get", lambda: polar.license_keys.get(key_id)).key
    known["key"] = key
    played.call("license_keys.update", lambda: polar.license_keys.update(key_id, usage=0, limit_usage=10))
    played.call(
        "license_keys.validate",
        lambda: polar.license_keys.validate(key=key, organization_id=organization, increment_usage=1),
    )
    activation = played.call(
        "license_keys.activate",
        lambda: polar.license_keys.activate(
            key=key, organization_id=organization, label="laptop", meta={"os": "linux"}
        ),
    )
    played.refused(
        "403", lambda: polar.license_keys.activate(key=key, organization_id=organization, label="one too many")
    )
    played.call("license_keys.get_activation", lambda: polar.license_keys.get_activation(key_id, activation.id))
    played.call(
        "license_keys.deactivate",
        lambda: polar.license_keys.deactivate(key=key, organization_id=organization, activation_id=activation.id),
    )


def _portal(played: Played, polar: Any, known: dict[str, Any]) -> None:
    key, organization = known["key"], known["organization_id"]
    portal = polar.customer_portal
    session = played.call(
        "customer_sessions.create",
        lambda: polar.customer_sessions.create(customer_id=known["customer_id"], return_url=known["return_url"]),
    )
    mine = {"request_access_token": session.token}
    played.call(
        "customer_portal.license_keys.validate",
        lambda: portal.license_keys.validate(key=key, organization_id=organization),
    )
    activation = played.call(
        "customer_portal.license_keys.activate",
        lambda: portal.license_keys.activate(key=key, organization_id=organization, label="phone"),
    )
    played.call(
        "customer_portal.license_keys.deactivate",
        lambda: portal.license_keys.deactivate(key=key, organization_id=organization, activation_id=activation.id),
    )
    played.call("customer_portal.license_keys.list", lambda: portal.license_keys.list(**mine))
    played.call("customer_portal.license_keys.get", lambda: portal.license_keys.get(known["key_id"], **mine))
    played.call("customer_portal.downloadables.list", lambda: portal.downloadables.list(**mine))
    played.call("customer_portal.benefit_grants.list", lambda: portal.benefit_grants.list(limit=100, **mine))
    played.call("customer_portal.customer_session.introspect", lambda: portal.customer_session.introspect(**mine))
    played.call(
        "customer_portal.customer_session.get_authenticated_user",
        lambda: portal.customer_session.get_authenticated_user(**mine),
    )
    played.call("license_keys.rotate", lambda: polar.license_keys.rotate(known["key_id"]))


def _webhooks(played: Played, operator: Any, known: dict[str, Any]) -> None:
    played.call(
        "webhooks.list_webhook_deliveries",
        lambda: operator.webhooks.list_webhook_deliveries(event_type=["order.paid"], succeeded=True, limit=100),
    )
    played.call(
        "webhooks.redeliver_webhook_event", lambda: operator.webhooks.redeliver_webhook_event(known["webhook_id"])
    )


def _refusals(played: Played, polar: Any, operator: Any, known: dict[str, Any]) -> None:
    nobody, organization = known["nobody"], known["organization_id"]
    licenses = polar.customer_portal.license_keys
    played.refused("404 customer", lambda: polar.customers.get(nobody))
    played.refused("404 state", lambda: polar.customers.get_state_external("nobody"))
    played.refused("404 benefit", lambda: polar.benefits.get(nobody))
    played.refused("404 key", lambda: licenses.validate(key="unknown", organization_id=organization))
    played.refused("404 event", lambda: operator.webhooks.redeliver_webhook_event(nobody))
    played.refused(
        "400",
        lambda: licenses.validate(key=known["small_key"], organization_id=organization, increment_usage=1000),
    )
    played.refused("401", lambda: licenses.list(request_access_token="almoner_cst_wrong"))
    played.refused("422", lambda: polar.customer_sessions.create(customer_id=nobody))
    played.refused("429", lambda: licenses.validate(key=known["busy_key"], organization_id=organization))


if __name__ == "__main__":
    play()
