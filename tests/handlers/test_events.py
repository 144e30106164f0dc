"""Reading bodies: a result or MalformedEvent with a reason, whatever arrives."""

import copy
import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handlers import HANDLERS, IGNORED, MIRRORED
from handlers.events import (
    Customer,
    Event,
    MalformedEvent,
    Order,
    PolarGrant,
    Snapshot,
    Subscription,
    parse,
    peek,
    read,
    read_snapshot,
)
from handlers.state import CustomerState, decode, encode
from tests.events import event, recorded

AT = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
TYPES = sorted([*HANDLERS, *MIRRORED, *IGNORED])
FORMS = [Customer, Order, Subscription, PolarGrant]
CUSTOMER = json.loads(recorded("customer.created"))["data"]

DEEP = b"[" * 100_000 + b"]" * 100_000
EVENT = b'{"type":"customer.created","timestamp":"2026-11-01T12:00:00Z","data":%s}'

# Authentic, and an event: it must be taken in, though its data may turn out to be unreadable.
ODD_EVENTS = {
    "NaN": EVENT % b'{"id":NaN}',
    "Infinity": EVENT % b'{"id":Infinity}',
    "a number beyond a float": EVENT % b'{"id":1e999}',
    "a number of a thousand digits": EVENT % (b"1" * 1000),
    "a lone surrogate": EVENT % b'{"id":"\\ud800"}',
    "half a pair of surrogates": EVENT % b'{"id":"\\ud83dx"}',
    "NUL": EVENT % b'{"id":"\\u0000"}',
    "deep nesting": EVENT % DEEP,
    "bad UTF-8 in the data": EVENT % b'{"id":"\xff\xfe"}',
    "a timestamp that is a number": b'{"type":"customer.created","timestamp":1790000000,"data":{}}',
    "a timestamp that is null": b'{"type":"customer.created","timestamp":null,"data":{}}',
    "no timestamp": b'{"type":"customer.created","data":{}}',
    "a version that is a number": b'{"type":"customer.created","api_version":2026.1,"data":{}}',
    "the type said twice": b'{"type":"order.paid","type":"customer.created","data":{}}',
    "data that is null": EVENT % b"null",
    "a byte order mark": b"\xef\xbb\xbf" + EVENT % b"{}",
    "UTF-16": (EVENT % b"{}").decode().encode("utf-16"),
}

NOT_EVENTS = {
    "Slack's format": b'{"text":"New order","blocks":[]}',
    "Discord's format": b'{"content":"New order","embeds":[{"type":"rich"}]}',
    "no data": b'{"type":"customer.created","timestamp":"2026-11-01T12:00:00Z"}',
    "no type": b'{"data":{}}',
    "a type that is a number": b'{"type":7,"data":{}}',
    "a type that is null": b'{"type":null,"data":{}}',
    "an empty type": b'{"type":"","data":{}}',
    "a type with a line break": b'{"type":"a.b\\n","data":{}}',
    "a type with NUL": b'{"type":"a\\u0000b","data":{}}',
    "a type with a lone surrogate": b'{"type":"\\ud800","data":{}}',
    "a type that is too long": b'{"type":"%s","data":{}}' % (b"a" * 101),
    "a list": b"[1]",
    "a string": b'"type"',
    "null": b"null",
}

NOT_JSON = {
    "nothing": b"",
    "a form": b"type=customer.created",
    "half a body": b'{"type":"customer.created","data":{',
    "something after the end": EVENT % b"{}" + b"}",
    "bad UTF-8 in the type": b'{"type":"\xff","data":{}}',
    "NUL bytes": b"\x00" * 16,
}


@pytest.mark.parametrize("body", ODD_EVENTS.values(), ids=ODD_EVENTS)
def test_an_event_that_is_odd_is_taken_in_all_the_same(body: bytes) -> None:
    assert peek(body).type == "customer.created"


@pytest.mark.parametrize("body", NOT_EVENTS.values(), ids=NOT_EVENTS)
def test_what_is_no_event_is_refused_with_what_to_change_at_polar(body: bytes) -> None:
    with pytest.raises(MalformedEvent, match=r"no `type` and `data`.*format of this webhook endpoint to Raw"):
        peek(body)


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_what_is_no_json_is_refused_as_that(body: bytes) -> None:
    with pytest.raises(MalformedEvent, match="not JSON that can be read"):
        peek(body)


def test_what_is_nested_so_deeply_that_not_even_the_type_is_found_is_refused() -> None:
    with pytest.raises(MalformedEvent, match="nested too deeply"):
        peek(b'{"data":%s,"type":"customer.created"}' % DEEP)


def test_peek_tells_type_timestamp_and_version() -> None:
    seen = peek(recorded("order.paid"))
    assert (seen.type, seen.api_version) == ("order.paid", "2026-10")
    assert datetime.fromisoformat(seen.timestamp) == parse("", recorded("order.paid")).timestamp


def test_an_envelope_of_an_older_endpoint_has_no_version() -> None:
    assert peek(EVENT % b"{}").api_version is None
    assert parse("delivery", EVENT % b"{}").type == "customer.created"


def test_keys_beside_data_do_no_harm() -> None:
    body = json.loads(recorded("subscription.migrated"))
    assert "data" in body
    body |= {"provider": "elsewhere", "provider_subscription_id": "sub_1"}
    assert parse("delivery", json.dumps(body).encode()).type == "subscription.migrated"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "Input data was truncated"),
        (b"null", "Expected `object`"),
        (b'{"timestamp":"2026-11-01T12:00:00Z","data":{}}', "missing required field `type`"),
        (b'{"type":"a","data":{}}', "missing required field `timestamp`"),
        (b'{"type":"a","timestamp":"2026-11-01T12:00:00Z"}', "missing required field `data`"),
        (b'{"type":"a","timestamp":"yesterday","data":{}}', "RFC3339"),
        (b'{"type":"a","timestamp":"9999-12-31T23:59:60Z","data":{}}', "RFC3339"),
        (b'{"type":"a","timestamp":1790000000,"data":{}}', "Expected `datetime`"),
        (b'{"type":"a","timestamp":"2026-11-01T12:00:00","data":{}}', "timezone"),
        (b'{"type":"\xff","timestamp":"2026-11-01T12:00:00Z","data":{}}', "utf-8"),
        (b'{"type":"a","timestamp":"2026-11-01T12:00:00Z","data":%s}' % DEEP, "recursion"),
    ],
)
def test_parse_says_what_is_wrong_with_an_envelope(body: bytes, reason: str) -> None:
    with pytest.raises(MalformedEvent, match=f"the envelope cannot be read: .*{reason}"):
        parse("delivery", body)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": None}, "id"),
        ({"created_at": "2026-11-01T12:00:00"}, "timezone"),
        ({"deleted_at": "2026-11-01T12:00:00"}, "timezone"),
        ({"created_at": "soon"}, "RFC3339"),
        ({"metadata": None}, "metadata"),
        ({"email": 7}, "email"),
    ],
)
def test_read_names_the_field_that_cannot_be_read(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(MalformedEvent, match=f"the data of customer.updated cannot be read: .*{reason}"):
        read(event("customer.updated", CUSTOMER | change, AT), Customer)


@pytest.mark.parametrize(
    "value",
    [DEEP, b'"\xff"', b'"\\ud800"', b'"\\ud83dx"', b"NaN", b"Infinity", b"1e999", b"1" * 10_000],
    ids=["deep", "bad UTF-8", "surrogate", "half a pair", "NaN", "Infinity", "huge", "ten thousand digits"],
)
def test_what_no_parser_takes_is_malformed_when_it_is_worked_on(value: bytes) -> None:
    whole = json.dumps({name: one for name, one in CUSTOMER.items() if name != "metadata"}).encode()
    body = EVENT % (b'%s,"metadata":{"a":%s}}' % (whole[:-1], value))
    assert peek(body).type == "customer.created"
    with pytest.raises(MalformedEvent, match=r"cannot be read: \S"):
        read(parse("delivery", body), Customer)


def test_fields_that_polar_adds_later_are_passed_over() -> None:
    customer: Customer = read(event("customer.updated", CUSTOMER | {"shoe_size": 43}, AT), Customer)
    assert customer.id == CUSTOMER["id"]


def test_of_a_key_said_twice_the_last_holds_as_it_does_everywhere_in_json() -> None:
    data = json.dumps(CUSTOMER).encode()[:-1] + b',"email":"last@example.com"}'
    customer: Customer = read(parse("delivery", EVENT % data), Customer)
    assert customer.email == "last@example.com"


def test_a_whole_number_beyond_64_bits_in_metadata_can_be_stored_and_read_again() -> None:
    said = event("customer.updated", CUSTOMER | {"metadata": {"count": 10**30}}, AT)
    state = HANDLERS["customer.updated"](CustomerState(id=CUSTOMER["id"]), said)
    assert decode(encode(state)) == state


def test_a_snapshot_is_a_customer_with_three_lists() -> None:
    body = json.loads(recorded("customer.state_changed"))["data"]
    meter = {"id": "1", "meter_id": "m", "balance": 75.0}
    snapshot = read_snapshot(event("customer.state_changed", body | {"active_meters": [meter]}, AT))
    assert isinstance(snapshot, Snapshot)
    assert snapshot.customer.id == body["id"]
    assert [one.id for one in snapshot.active_subscriptions] == [one["id"] for one in body["active_subscriptions"]]
    assert [one.id for one in snapshot.granted_benefits] == [one["id"] for one in body["granted_benefits"]]
    assert snapshot.active_meters == [meter]


@pytest.mark.parametrize("field", ["active_subscriptions", "granted_benefits", "active_meters"])
def test_a_snapshot_with_a_list_that_is_none_is_malformed(field: str) -> None:
    body = json.loads(recorded("customer.state_changed"))["data"]
    with pytest.raises(MalformedEvent, match=field):
        read_snapshot(event("customer.state_changed", body | {field: {"id": "1"}}, AT))


# Whatever arrives.


def _swallow(body: bytes) -> Event | None:
    """Take a body the whole way; anything but a result or MalformedEvent fails the test."""
    with suppress(MalformedEvent):
        peek(body)
    try:
        parsed = parse("delivery", body)
    except MalformedEvent:
        return None
    for form in FORMS:
        with suppress(MalformedEvent):
            read(parsed, form)
    return parsed


def _fold(parsed: Event) -> None:
    """Fold what can be read; what was folded can be stored."""
    try:
        state = HANDLERS[parsed.type](CustomerState(id="nobody"), parsed)
    except MalformedEvent:
        return
    assert decode(encode(state)) == state


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True)
    | st.text(st.characters(codec=None), max_size=20)
    | st.sampled_from(
        ["2026-11-01T12:00:00", "2026-11-01T12:00:00+14:00", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_disturbance = st.sampled_from([b"\x00", b'"', b"}", b"\xff", b"1e999", b"NaN"])
_bounded = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


@_bounded
@given(st.binary(max_size=300) | st.binary(max_size=100).map(lambda data: EVENT % data))
def test_any_bytes_end_in_a_result_or_in_malformed_event(body: bytes) -> None:
    _swallow(body)


@_bounded
@given(_json)
def test_any_json_ends_in_a_result_or_in_malformed_event(document: Any) -> None:
    _swallow(json.dumps(document).encode())
    _swallow(EVENT % json.dumps(document).encode())


@_bounded
@given(st.sampled_from(TYPES), st.data())
def test_a_real_payload_with_its_bytes_disturbed_ends_in_a_result_or_in_malformed_event(
    type_: str, data: st.DataObject
) -> None:
    body = bytearray(recorded(type_))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        length = data.draw(st.sampled_from([0, 1, 1, 2, 8]))
        body[at : at + length] = data.draw(st.binary(max_size=4) | _disturbance)
    parsed = _swallow(bytes(body))
    if parsed and parsed.type in HANDLERS:
        _fold(parsed)


@_bounded
@given(st.sampled_from(sorted(HANDLERS)), st.data())
def test_a_real_payload_with_a_field_replaced_is_folded_or_malformed(type_: str, data: st.DataObject) -> None:
    body = copy.deepcopy(json.loads(recorded(type_)))
    target = body["data"]
    if isinstance(target.get("customer"), dict) and data.draw(st.booleans()):
        target = target["customer"]
    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(_json)
    parsed = _swallow(json.dumps(body).encode())
    if parsed:
        _fold(parsed)
