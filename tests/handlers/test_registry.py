"""Every event type that Polar sends has a place, a reason and a recorded payload."""

import gzip
import json
from functools import cache
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from handlers import HANDLERS, IGNORED, MIRRORED
from handlers.events import MalformedEvent, Offering, PolarBenefit, parse, peek, read
from handlers.state import CustomerState, decode, encode
from tests.events import DATA, FOLDER, event, recorded

# Polar's list, family by family; `subscription.migrated` is newer than the schemas.
TYPES = [
    f"{family}.{verb}"
    for family, verbs in {
        "checkout": ("created", "updated", "expired"),
        "customer": ("created", "updated", "deleted", "state_changed"),
        "member": ("created", "updated", "deleted"),
        "customer_seat": ("assigned", "claimed", "revoked"),
        "order": ("created", "updated", "paid", "refunded"),
        "subscription": (
            "created", "updated", "active", "canceled", "uncanceled", "cycled", "revoked", "past_due", "paused",
            "resumed", "migrated",
        ),
        "refund": ("created", "updated"),
        "product": ("created", "updated"),
        "benefit": ("created", "updated"),
        "benefit_grant": ("created", "updated", "cycled", "revoked"),
        "discount": ("created", "updated", "deleted"),
        "organization": ("updated",),
    }.items()
    for verb in verbs
]  # fmt: skip
WITHOUT_SCHEMA = {"subscription.migrated": "subscription.updated"}
BEFORE_ALL = CustomerState(id="nobody yet")


@cache
def _schemas() -> dict[str, Any]:
    with gzip.open(DATA / "webhook_schemas.json.gz", "rt", encoding="utf-8") as text:
        found: dict[str, Any] = json.load(text)["events"]
    return found


def test_there_are_42_types_and_each_stands_in_exactly_one_place() -> None:
    assert len(TYPES) == len(set(TYPES)) == 42
    places = [*HANDLERS, *MIRRORED, *IGNORED]
    assert sorted(places) == sorted(TYPES)


def test_polars_own_schemas_name_no_type_that_we_leave_out() -> None:
    assert set(_schemas()) == set(TYPES) - set(WITHOUT_SCHEMA)


def test_nothing_is_ignored_without_a_reason() -> None:
    assert all(len(reason.split()) >= 3 for reason in IGNORED.values())


def test_what_is_mirrored_is_kept_as_one_of_two_kinds() -> None:
    assert set(MIRRORED.values()) == {"benefits", "products"}


def test_there_is_one_recorded_payload_for_each_type_and_none_beside() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(TYPES)


@pytest.mark.parametrize("type_", TYPES)
def test_the_recorded_payload_is_what_polar_sends(type_: str) -> None:
    body = json.loads(recorded(type_))
    assert body["type"] == type_
    schema = _schemas()[WITHOUT_SCHEMA.get(type_, type_)]["schema"]
    said = {**body, "type": WITHOUT_SCHEMA.get(type_, type_)}
    Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(said)


@pytest.mark.parametrize("type_", TYPES)
def test_the_recorded_payload_is_seen_and_parsed_alike(type_: str) -> None:
    body = json.loads(recorded(type_))
    seen = peek(recorded(type_))
    parsed = parse("delivery", recorded(type_))
    assert (seen.type, parsed.type) == (type_, type_)
    assert seen.timestamp == body["timestamp"]
    assert seen.api_version == "2026-10"
    assert parsed.timestamp.isoformat().replace("+00:00", "Z") == body["timestamp"]
    assert json.loads(bytes(parsed.data)) == body["data"]


@pytest.mark.parametrize("type_", HANDLERS)
def test_a_handler_keeps_the_fact_and_its_delivery_and_the_state_can_be_stored(type_: str) -> None:
    parsed = parse("the delivery", recorded(type_))
    state = HANDLERS[type_](BEFORE_ALL, parsed)
    assert state.as_of == parsed.timestamp
    assert b'"the delivery"' in encode(state)
    assert decode(encode(state)) == state
    assert CustomerState(id="nobody yet") == BEFORE_ALL


@pytest.mark.parametrize("type_", HANDLERS)
def test_a_handler_told_the_same_twice_changes_nothing_more(type_: str) -> None:
    parsed = parse("delivery", recorded(type_))
    once = HANDLERS[type_](BEFORE_ALL, parsed)
    assert HANDLERS[type_](once, parsed) == once


@pytest.mark.parametrize("type_", HANDLERS)
def test_a_handler_refuses_data_that_it_cannot_read_with_a_reason(type_: str) -> None:
    whole = parse("delivery", recorded(type_))
    broken = event(type_, {"id": 7}, whole.timestamp)
    with pytest.raises(MalformedEvent, match=rf"the data of {type_} cannot be read: "):
        HANDLERS[type_](BEFORE_ALL, broken)


@pytest.mark.parametrize("type_", MIRRORED)
def test_what_is_mirrored_can_be_told_apart_by_id_and_age(type_: str) -> None:
    parsed = parse("delivery", recorded(type_))
    offering: Offering = read(parsed, Offering)
    assert offering.id == json.loads(recorded(type_))["data"]["id"]
    assert offering.modified_at or offering.created_at


def test_a_benefits_properties_are_left_out_since_discord_puts_a_token_there() -> None:
    whole = json.loads(recorded("benefit.updated"))
    whole["data"]["properties"] = {"guild_token": "secret-token"}
    described: PolarBenefit = read(parse("delivery", json.dumps(whole).encode()), PolarBenefit)
    assert described.id == whole["data"]["id"]
    assert "secret-token" not in repr(described)
