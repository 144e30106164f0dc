"""What the simulator sends is what Polar would send: by its schemas, in its order, signed in its ways."""

import gzip
import json
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from standardwebhooks.webhooks import Webhook

from tests.conftest import SECRET, WORLD
from worker.simulate import SCENARIOS, arrange, default_scheme, headers, play
from worker.verify import keys_of, verify

NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
SCHEMAS = json.loads(gzip.decompress((Path(__file__).parent.parent / "data" / "webhook_schemas.json.gz").read_bytes()))[
    "events"
]

# The order that Polar keeps within each of these stories (polar.md 1.6).
ORDER: dict[str, list[str]] = {
    "purchase": [
        "customer.created", "customer.state_changed", "member.created", "checkout.created", "checkout.updated",
        "order.created", "order.updated", "order.paid", "checkout.updated", "benefit_grant.created",
        "customer.state_changed",
    ],
    "subscription": [
        "customer.created", "customer.state_changed", "member.created", "checkout.created", "checkout.updated",
        "subscription.created", "subscription.active", "subscription.updated", "order.created", "order.updated",
        "order.paid", "checkout.updated", "benefit_grant.created", "customer.state_changed",
    ],
}  # fmt: skip


def types(scenario: str) -> list[str]:
    return [event.type for event in play(scenario, WORLD, seed=1, now=NOW)]


def tail(scenario: str, begin: str) -> list[str]:
    played = types(scenario)
    return played[len(types(begin)) :]


def test_each_story_goes_in_polars_order() -> None:
    assert types("purchase") == ORDER["purchase"]
    assert types("subscription") == ORDER["subscription"]
    assert tail("renewal", "subscription") == [
        "subscription.cycled", "subscription.updated", "order.created", "order.updated", "order.paid",
        "benefit_grant.cycled", "customer.state_changed",
    ]  # fmt: skip
    assert tail("cancel", "subscription") == [
        "subscription.updated", "subscription.canceled", "customer.state_changed", "subscription.updated",
        "subscription.canceled", "subscription.revoked", "benefit_grant.revoked", "customer.state_changed",
    ]  # fmt: skip
    assert tail("past-due", "subscription") == [
        "subscription.cycled", "subscription.updated", "order.created", "subscription.updated",
        "subscription.past_due", "benefit_grant.revoked", "customer.state_changed",
    ]  # fmt: skip
    assert tail("refund", "purchase") == [
        "refund.created", "order.updated", "order.refunded", "benefit_grant.revoked", "customer.state_changed",
    ]  # fmt: skip
    assert tail("delete-customer", "subscription") == [
        "member.deleted", "customer.deleted", "customer.state_changed", "subscription.updated",
        "subscription.canceled", "subscription.revoked", "benefit_grant.revoked", "customer.state_changed",
    ]  # fmt: skip


def test_the_scenarios_that_were_asked_for_are_there() -> None:
    assert {"purchase", "subscription", "renewal", "cancel", "past-due", "refund", "upgrade", "seats",
            "delete-customer"} <= set(SCENARIOS)  # fmt: skip
    assert all(scenario.about for scenario in SCENARIOS.values())


@cache
def schema_of(type_: str) -> Any:
    return jsonschema.Draft202012Validator(SCHEMAS[type_]["schema"])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_body_is_valid_by_polars_own_schema(scenario: str) -> None:
    for event in play(scenario, WORLD, seed=2, now=NOW):
        body = json.loads(event.body)
        errors = [
            f"{event.type}: {'/'.join(map(str, error.absolute_path))}: {error.message[:200]}"
            for error in schema_of(event.type).iter_errors(body)
        ]
        assert not errors


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_time_goes_forward_and_the_last_event_is_now(scenario: str) -> None:
    events = play(scenario, WORLD, seed=3, now=NOW)
    times = [event.timestamp for event in events]
    assert times == sorted(times)
    assert times[-1] == NOW
    assert len({event.webhook_id for event in events}) == len(events)
    assert len({event.customer_id for event in events}) == 1


def test_the_same_seed_tells_the_same_story_and_another_tells_of_somebody_else() -> None:
    assert play("seats", WORLD, seed=1, now=NOW) == play("seats", WORLD, seed=1, now=NOW)
    one, other = (play("seats", WORLD, seed=seed, now=NOW) for seed in (1, 2))
    assert not {event.webhook_id for event in one} & {event.webhook_id for event in other}


def test_a_scenario_that_there_is_not_is_an_error() -> None:
    with pytest.raises(KeyError):
        play("holiday", WORLD, seed=1, now=NOW)


def test_arranging_shuffles_and_sends_a_share_twice() -> None:
    events = play("seats", WORLD, seed=1, now=NOW)
    assert arrange(events, shuffle=False, duplicate=0, seed=1) == events
    shuffled = arrange(events, shuffle=True, duplicate=0.5, seed=1)
    assert len(events) * 1.2 < len(shuffled) < len(events) * 1.8
    assert {event.webhook_id for event in shuffled} == {event.webhook_id for event in events}
    assert shuffled != sorted(shuffled, key=lambda event: event.timestamp)
    assert len(arrange(events, shuffle=False, duplicate=1, seed=1)) == 2 * len(events)


@pytest.mark.parametrize("scheme", ["standard", "legacy"])
def test_what_is_signed_verifies_under_its_scheme(scheme: Any) -> None:
    event = play("purchase", WORLD, seed=1, now=NOW)[0]
    signed = headers(event, SECRET, scheme=scheme, at=NOW)
    assert verify(signed, event.body, keys_of([SECRET]), NOW, timedelta(seconds=300)).scheme == scheme
    assert signed["user-agent"] == "polar.sh webhooks"
    assert signed["webhook-api-version"] == "2026-10"
    if scheme == "standard":
        expected = Webhook(SECRET).sign(event.webhook_id, NOW, event.body.decode())
        assert signed["webhook-signature"] == expected


def test_a_secret_that_is_no_base64_can_be_signed_with_under_the_legacy_scheme_alone() -> None:
    event = play("purchase", WORLD, seed=1, now=NOW)[0]
    with pytest.raises(ValueError, match="use the legacy scheme"):
        headers(event, "polar_whs_abc", scheme="standard", at=NOW)
    assert default_scheme(SECRET) == "standard"
    assert default_scheme("polar_whs_abc") == "legacy"
    assert default_scheme("whsec_ovyN6cPrTv56AApvzCaJno08SSmGJmgbWilb33N2JuK") == "legacy"
