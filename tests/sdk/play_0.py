"""polar-sdk 0.32.0 for Python, which has an environment of its own (`make sdks`), plays the same."""

from typing import Any

import polar_sdk  # type: ignore[import-not-found]  # it is not in this environment

from tests.sdk.playing import Played


def _dump(answer: Any) -> Any:
    answer = getattr(answer, "result", answer)  # lists are wrapped
    return answer.model_dump(mode="json", by_alias=True) if hasattr(answer, "model_dump") else answer


def play() -> None:
    played = Played(_dump)
    known = played.known
    with (
        polar_sdk.Polar(access_token=known["app"], server_url=known["address"]) as polar,
        polar_sdk.Polar(access_token=known["operator"], server_url=known["address"]) as operator,
    ):
        _lists(played, polar, known)
        _license_keys(played, polar, known)
        _portal(played, polar, known)
        _webhooks(played, operator, known)
        _refusals(played, polar, operator, known)
    played.end()


def _lists(played: Played, polar: Any, known: dict[str, Any]) -> None:
    played.call("customers.list", lambda: polar.customers.list(limit=100, sorting=["created_at"]))
    played.call("customers.get", lambda: polar.customers.get(id=known["customer_id"]))
    played.call("customers.get_external", lambda: polar.customers.get_external(external_id=known["external_id"]))
    played.call("customers.get_state", lambda: polar.customers.get_state(id=known["customer_id"]))
    played.call(
        "customers.get_state_external", lambda: polar.customers.get_state_external(external_id=known["external_id"])
    )
    played.call("subscriptions.list", lambda: polar.subscriptions.list(limit=100, active=True))
    played.call("orders.list", lambda: polar.orders.list(limit=100, customer_id=known["customer_id"]))
    played.call("benefits.list", lambda: polar.benefits.list(limit=100))
    played.call("benefits.get", lambda: polar.benefits.get(id=known["benefit_id"]))
    played.call("benefits.get_polars", lambda: polar.benefits.get(id=known["polar_benefit_id"]))
    played.call("benefits.grants", lambda: polar.benefits.grants(id=known["benefit_id"], is_granted=True))
    played.call("benefit_grants.list", lambda: polar.benefit_grants.list(limit=100, customer_id=known["customer_id"]))


def _license_keys(played: Played, polar: Any, known: dict[str, Any]) -> None:
    key_id, keys = known["key_id"], polar.license_keys
    played.call("license_keys.list", lambda: keys.list(benefit_id=[known["benefit_id"]], limit=100))
    key = played.call("license_keys.get", lambda: keys.get(id=key_id)).key
    known["key"] = key
    about = {"key": key, "organization_id": known["organization_id"]}
    played.call(
        "license_keys.update",
        lambda: keys.update(id=key_id, license_key_update={"usage": 0, "limit_usage": 10}),
    )
    played.call("license_keys.validate", lambda: keys.validate(request=about | {"increment_usage": 1}))
    laptop = about | {"label": "laptop", "meta": {"os": "linux"}}
    activation = played.call("license_keys.activate", lambda: keys.activate(request=laptop))
    played.refused("403", lambda: keys.activate(request=about | {"label": "one too many"}))
    played.call("license_keys.get_activation", lambda: keys.get_activation(id=key_id, activation_id=activation.id))
    played.call("license_keys.deactivate", lambda: keys.deactivate(request=about | {"activation_id": activation.id}))


def _portal(played: Played, polar: Any, known: dict[str, Any]) -> None:
    about = {"key": known["key"], "organization_id": known["organization_id"]}
    portal = polar.customer_portal
    for_whom = {"customer_id": known["customer_id"], "return_url": known["return_url"]}
    session = played.call("customer_sessions.create", lambda: polar.customer_sessions.create(request=for_whom))
    mine = {"security": {"customer_session": session.token}}
    played.call("customer_portal.license_keys.validate", lambda: portal.license_keys.validate(request=about))
    activation = played.call(
        "customer_portal.license_keys.activate",
        lambda: portal.license_keys.activate(request=about | {"label": "phone"}),
    )
    played.call(
        "customer_portal.license_keys.deactivate",
        lambda: portal.license_keys.deactivate(request=about | {"activation_id": activation.id}),
    )
    played.call("customer_portal.license_keys.list", lambda: portal.license_keys.list(**mine))
    played.call("customer_portal.license_keys.get", lambda: portal.license_keys.get(id=known["key_id"], **mine))
    played.call("customer_portal.downloadables.list", lambda: portal.downloadables.list(**mine))
    played.call("customer_portal.benefit_grants.list", lambda: portal.benefit_grants.list(limit=100, **mine))
    played.call("customer_portal.customer_session.introspect", lambda: portal.customer_session.introspect(**mine))
    played.call(
        "customer_portal.customer_session.get_authenticated_user",
        lambda: portal.customer_session.get_authenticated_user(**mine),
    )


def _webhooks(played: Played, operator: Any, known: dict[str, Any]) -> None:
    played.call(
        "webhooks.list_webhook_deliveries",
        lambda: operator.webhooks.list_webhook_deliveries(event_type=["order.paid"], succeeded=True, limit=100),
    )
    played.call(
        "webhooks.redeliver_webhook_event",
        lambda: operator.webhooks.redeliver_webhook_event(id=known["webhook_id"]),
    )


def _refusals(played: Played, polar: Any, operator: Any, known: dict[str, Any]) -> None:
    nobody, organization = known["nobody"], {"organization_id": known["organization_id"]}
    licenses = polar.customer_portal.license_keys
    played.refused("404 customer", lambda: polar.customers.get(id=nobody))
    played.refused("404 state", lambda: polar.customers.get_state_external(external_id="nobody"))
    played.refused("404 benefit", lambda: polar.benefits.get(id=nobody))
    played.refused("404 key", lambda: licenses.validate(request=organization | {"key": "unknown"}))
    played.refused("404 event", lambda: operator.webhooks.redeliver_webhook_event(id=nobody))
    too_much = organization | {"key": known["small_key"], "increment_usage": 1000}
    played.refused("400", lambda: licenses.validate(request=too_much))
    played.refused("401", lambda: licenses.list(security={"customer_session": "almoner_cst_wrong"}))
    played.refused("422", lambda: polar.customer_sessions.create(request={"customer_id": nobody}))
    played.refused("429", lambda: licenses.validate(request=organization | {"key": known["busy_key"]}))


if __name__ == "__main__":
    play()
