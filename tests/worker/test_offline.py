"""Offline licences: how long they are good, never longer than the answer online; whom they are for; and over HTTP."""

import importlib.util
import json
from base64 import urlsafe_b64decode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from config.catalogue import Catalogue, parse_catalogue
from connectors import TERMS
from handlers.events import Subscription
from handlers.state import CustomerState, ManualGrant
from tests.conftest import BENEFITS, Clock, Running, run_service
from tests.events import BENEFIT, PRODUCT, state_of, story
from tests.events import catalogue as read
from tests.worker.test_reconcile import give, subscribe, take_seat
from worker.benefit_ids import own_id
from worker.licensing import Activation, Key, Reason, Refused
from worker.offline import Asked, Known, Licence, NotOffered, draft, offer, paid, valid_until
from worker.reconcile import Because, Standing, entitled
from worker.simulate import Story
from worker.simulated import PERIOD
from worker.store import licenses

ROOT = Path(__file__).parents[2]
DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)


def load_verify() -> Any:
    """docs/verify/verify.py, as an app would copy it."""
    spec = importlib.util.spec_from_file_location("verify_licence", ROOT / "docs" / "verify" / "verify.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


verifier = load_verify()

# How long.

AT = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)


def why(standing: Standing = "active", until: datetime | None = None) -> Because:
    return Because(source="subscription", id="s", subscription_id="s", standing=standing, until=until)


def subscription(**fields: Any) -> Subscription:
    return Subscription(id="s", created_at=AT, status="active", product_id="p", current_period_start=AT - DAY,
                        current_period_end=AT + 9 * DAY, **fields)  # fmt: skip


def test_a_subscription_is_good_through_its_period_and_the_grace() -> None:
    found = paid(why(), subscription(), 3 * DAY)
    assert (found.through, found.until) == (AT + 9 * DAY, AT + 12 * DAY)


@pytest.mark.parametrize("ends", [{"cancel_at_period_end": True}, {"pause_at_period_end": True}])
def test_one_that_is_to_end_has_no_grace(ends: dict[str, bool]) -> None:
    found = paid(why(), subscription(**ends), 3 * DAY)
    assert (found.through, found.until) == (AT + 9 * DAY, AT + 9 * DAY)


def test_one_that_ends_earlier_than_its_period_ends_then() -> None:
    found = paid(why(), subscription(cancel_at_period_end=True, ends_at=AT + DAY), 3 * DAY)
    assert (found.through, found.until) == (AT + DAY, AT + DAY)


def test_an_end_that_was_taken_back_counts_no_more() -> None:
    assert paid(why(), subscription(ends_at=AT + DAY), DAY).until == AT + 10 * DAY


def test_one_that_is_past_due_was_paid_until_its_period_began_and_is_good_through_its_grace() -> None:
    found = paid(why("grace", AT + 2 * DAY), subscription(), 3 * DAY)
    assert (found.through, found.until) == (AT - DAY, AT + 2 * DAY)


def test_a_subscription_that_tells_no_period_is_bounded_by_what_is_answered_online() -> None:
    bare = Subscription(id="s", created_at=AT, status="active", product_id="p")
    assert paid(why(until=AT + DAY), bare, DAY) == paid(why(until=AT + DAY), None, DAY)


def test_what_is_bought_once_has_no_end() -> None:
    once = paid(why(), None, DAY)
    assert (once.through, once.until) == (None, None)


def test_the_earliest_end_counts_in_whole_seconds() -> None:
    odd = timedelta(microseconds=999_999)
    assert valid_until(None, AT + DAY) == AT + DAY
    assert valid_until(AT + odd, AT + DAY, None) == AT
    assert valid_until(AT + 3 * DAY, AT + 2 * DAY, None, AT + DAY) == AT + DAY


# For whom.

OFFLINE = f"""
[benefits.it]
connector = "license_key"
description = "Acme Pro"
for = {{ products = ["{PRODUCT}"] }}
grace = "3d"
offline = "60d"
"""
TERM = 60 * DAY


def key_of(state: CustomerState, terms: Catalogue, at: datetime, **fields: Any) -> Key:
    """The key that whoever is entitled now has."""
    due = next(iter(entitled(state, terms, at)), None)
    values: dict[str, Any] = dict.fromkeys(Key.__dataclass_fields__) | {
        "id": "key", "benefit": "it", "source": "own", "customer_id": state.id, "display_key": "****-ABCDEF",
        "given": True, "status": "granted", "usage": 0, "validations": 0, "created_at": at,
        "member_id": due.member_id if due else None, "purchase": due.purchase if due else None,
    }  # fmt: skip
    return Key(**(values | fields))


def known(
    state: CustomerState, at: datetime, terms: Catalogue | str = OFFLINE, activations: tuple[Activation, ...] = (),
    **fields: Any,
) -> Known:  # fmt: skip
    terms = read(terms) if isinstance(terms, str) else terms
    return Known(key_of(state, terms, at, **fields), activations, state, terms)


def drafted(told: Story, terms: str = OFFLINE, **fields: Any) -> Licence:
    return draft(known(state_of(told), told.at, terms, **fields), Asked(), "licence", told.at)


def refusal(found: Known, at: datetime, asked: Asked = Asked()) -> Refused | NotOffered:  # noqa: B008 - a constant
    with pytest.raises((Refused, NotOffered)) as refused:
        draft(found, asked, "licence", at)
    return refused.value  # type: ignore[return-value]


def device(at: datetime, **fields: Any) -> Activation:
    return Activation(**{"id": "device", "license_key_id": "key", "label": "Laptop", "conditions": {}, "meta": {},
                         "created_at": at, "modified_at": None, "seen_at": at, **fields})  # fmt: skip


def whole(written: str) -> datetime:
    return datetime.fromisoformat(written).replace(microsecond=0)


def test_a_licence_says_whose_it_is_for_what_and_until_when() -> None:
    told = story()
    begun = told.subscribe()
    ends = whole(begun["current_period_end"])
    assert drafted(told) == Licence(
        id="licence", license_key_id="key", display_key="****-ABCDEF", benefit="it", benefit_id=own_id("it"),
        description="Acme Pro", customer_id=told.buyer["id"], external_customer_id=told.buyer["external_id"],
        organization_id=told.buyer["organization_id"], activation_id=None, fingerprint=None,
        issued_at=told.at.replace(microsecond=0), valid_until=ends + 3 * DAY, paid_through=ends,
    )  # fmt: skip


def test_a_benefit_of_polars_shows_the_id_that_it_has_there() -> None:
    told = story()
    give(told, subscription=subscribe(told)["id"])
    terms = OFFLINE.replace("for = { products", "for = { benefits").replace(PRODUCT, BENEFIT)
    made = drafted(told, terms)
    assert made.benefit_id == BENEFIT
    assert made.paid_through == whole(told.subscriptions[0]["current_period_end"])


def test_polars_grant_of_a_subscription_that_is_to_end_lasts_no_longer() -> None:
    told = story()
    ends = told.at + 5 * DAY
    fields = {"cancel_at_period_end": True, "current_period_end": ends.isoformat(), "ends_at": ends.isoformat()}
    give(told, subscription=subscribe(told, **fields)["id"])
    terms = OFFLINE.replace("for = { products", "for = { benefits").replace(PRODUCT, BENEFIT)
    assert drafted(told, terms).valid_until == ends.replace(microsecond=0)


def test_what_was_bought_once_is_good_for_the_whole_term() -> None:
    told = story()
    told.buy_once()
    made = drafted(told)
    assert (made.paid_through, made.valid_until) == (None, (told.at + TERM).replace(microsecond=0))


def test_no_licence_outlasts_the_term_or_the_key() -> None:
    told = story()
    told.subscribe()
    short = OFFLINE.replace("60d", "1d")
    assert drafted(told, short).valid_until == (told.at + DAY).replace(microsecond=0)
    ends = told.at + timedelta(hours=1)
    assert drafted(told, short, expires_at=ends).valid_until == ends.replace(microsecond=0)


def test_in_grace_it_ends_when_the_answer_online_does() -> None:
    told = story()
    begun = told.subscribe()
    told.cycle(begun)
    told.at += timedelta(hours=2)  # some hours may pass before the payment fails
    told.change(begun, status="past_due", past_due_at=told.at.isoformat())
    told.send("subscription.past_due", begun)
    made = drafted(told)
    assert made.paid_through == whole(begun["current_period_start"])
    (online,) = entitled(state_of(told), read(OFFLINE), told.at)
    assert online.valid_until == datetime.fromisoformat(begun["past_due_at"]) + 3 * DAY
    assert made.valid_until == online.valid_until.replace(microsecond=0)


def test_a_member_has_a_licence_of_their_seat() -> None:
    told = story(team=True)
    member = take_seat(told, subscribe(told, seats=2), "mia")
    made = drafted(told)
    assert made.valid_until == whole(told.subscriptions[0]["current_period_end"]) + 3 * DAY
    assert known(state_of(told), told.at).key.member_id == member


def by_hand(**fields: Any) -> CustomerState:
    manual = ManualGrant(id="m", benefit="it", reason="a gift", by="ada", **fields)
    return msgspec.structs.replace(state_of(story()), manual={"m": manual})


def test_what_was_given_by_hand_ends_when_it_was_said_to() -> None:
    at = story().at
    ending = draft(known(by_hand(ends_at=at + DAY), at), Asked(), "licence", at)
    assert (ending.valid_until, ending.paid_through) == ((at + DAY).replace(microsecond=0), None)
    assert draft(known(by_hand(), at), Asked(), "licence", at).valid_until == (at + TERM).replace(microsecond=0)


def test_of_two_purchases_the_one_that_lasts_longer_counts() -> None:
    told = story()
    told.subscribe()
    told.buy_once()
    made = drafted(told, OFFLINE + 'per = "customer"\n')
    assert (made.paid_through, made.valid_until) == (None, (told.at + TERM).replace(microsecond=0))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"given": False}, Reason.REVOKED),
        ({"status": "revoked"}, Reason.REVOKED),
        ({"status": "disabled"}, Reason.DISABLED),
        ({"expires_at": story().at}, Reason.EXPIRED),
        ({"purchase": "another"}, Reason.REVOKED),
    ],
)
def test_a_key_that_is_not_good_has_none_and_says_why(fields: dict[str, Any], reason: Reason) -> None:
    told = story()
    told.buy_once()
    refused = refusal(known(state_of(told), told.at, **fields), told.at)
    assert isinstance(refused, Refused)
    assert (refused.status, refused.reason) == (403, reason)


def test_what_ends_right_now_has_none() -> None:
    """With no grace, between the end of a period and Polar's word of the next."""
    told = story()
    begun = told.subscribe()
    at = datetime.fromisoformat(begun["current_period_end"])
    refused = refusal(known(state_of(told), at, OFFLINE.replace('grace = "3d"', "")), at)
    assert isinstance(refused, Refused)
    assert (refused.status, refused.reason) == (403, Reason.EXPIRED)
    assert draft(known(state_of(told), at), Asked(), "licence", at).valid_until > at


def test_whose_purchase_was_taken_back_has_none_even_before_the_key_is_taken() -> None:
    told = story()
    made = told.buy_once()
    found = known(state_of(told), told.at)
    told.send("refund.created", {"id": "r", "created_at": told.at.isoformat(), "status": "pending",
                                 "order_id": made["id"], "customer_id": told.buyer["id"], "revoke_benefits": True,
                                 })  # fmt: skip
    refused = refusal(Known(found.key, (), state_of(told), found.catalogue), told.at)
    assert isinstance(refused, Refused)
    assert refused.reason == Reason.REVOKED


@pytest.mark.parametrize(
    ("terms", "fields", "words"),
    [
        (OFFLINE.replace('offline = "60d"', ""), {}, 'offline = "30d"'),
        (OFFLINE, {"source": "polar"}, "Polar issued this key"),
        (OFFLINE, {"benefit": "gone"}, "has no license key 'gone' any more"),
    ],
)
def test_where_none_are_offered_it_is_said_what_to_write(terms: str, fields: dict[str, Any], words: str) -> None:
    told = story()
    told.buy_once()
    refused = refusal(known(state_of(told), told.at, terms, **fields), told.at)
    assert isinstance(refused, NotOffered)
    assert refused.status == 403
    assert words in refused.detail


LIMITED = OFFLINE + "limit_activations = 2\n"


def test_a_key_with_an_activation_limit_needs_a_live_activation() -> None:
    told = story()
    told.buy_once()
    found = known(state_of(told), told.at, LIMITED, (device(told.at),), limit_activations=2)
    assert (refusal(found, told.at).status, refusal(found, told.at, Asked("another")).status) == (422, 404)
    made = draft(found, Asked("device"), "licence", told.at)
    assert (made.activation_id, made.fingerprint) == ("device", None)


def test_the_fingerprint_is_that_of_the_activation() -> None:
    told = story()
    told.buy_once()
    at = told.at
    bound = device(at, conditions={"fingerprint": "abc"})
    found = known(state_of(told), at, LIMITED, (bound, device(at, id="free")), limit_activations=2)
    assert draft(found, Asked("device"), "licence", at).fingerprint == "abc"
    assert draft(found, Asked("device", "abc"), "licence", at).fingerprint == "abc"
    assert draft(found, Asked("free", "xyz"), "licence", at).fingerprint == "xyz"
    refused = refusal(found, at, Asked("device", "xyz"))
    assert isinstance(refused, Refused)
    assert (refused.status, refused.reason) == (403, Reason.FINGERPRINT_MISMATCH)


def test_without_a_limit_the_app_may_bind_it_to_a_device() -> None:
    told = story()
    told.buy_once()
    made = draft(known(state_of(told), told.at), Asked(fingerprint="xyz"), "licence", told.at)
    assert (made.activation_id, made.fingerprint) == (None, "xyz")


def test_with_a_heartbeat_it_lasts_no_longer_than_the_activation_would() -> None:
    """Else a device could stay offline with a licence, and its place be given to another meanwhile."""
    told = story()
    told.buy_once()
    at, terms = told.at, LIMITED + 'heartbeat = "7d"\n'
    devices = (device(at, seen_at=at - DAY), device(at, id="released", seen_at=at - 7 * DAY))
    found = known(state_of(told), at, terms, devices, limit_activations=2)
    assert draft(found, Asked("device"), "licence", at).valid_until == (at + 6 * DAY).replace(microsecond=0)
    assert refusal(found, at, Asked("released")).status == 404
    offered = offer(found, at)
    assert offered
    assert ([one.id for one in offered.devices], offered.names_device) == (["device"], True)


def test_a_customer_is_offered_nothing_that_would_be_refused() -> None:
    told = story()
    told.buy_once()
    state, at = state_of(told), told.at
    assert offer(known(state, at), at)
    assert offer(known(state, at, status="disabled"), at) is None
    assert offer(known(state, at, OFFLINE.replace('offline = "60d"', "")), at) is None


_TIMES = st.integers(-40 * 24, 40 * 24).map(lambda hours: timedelta(hours=hours))
_FIELDS = st.fixed_dictionaries(
    {
        "status": st.sampled_from(["active", "trialing", "past_due", "canceled", "paused", "unpaid"]),
        "current_period_start": _TIMES, "current_period_end": _TIMES,
        "past_due_at": st.none() | _TIMES, "ends_at": st.none() | _TIMES,
        "cancel_at_period_end": st.booleans(), "pause_at_period_end": st.booleans(),
    }
)  # fmt: skip


@given(fields=_FIELDS, grace=st.integers(0, 10), trials=st.booleans(), at=_TIMES, later=st.floats(0, 1))
def test_while_a_licence_is_good_the_answer_online_would_be_too(
    fields: dict[str, Any], grace: int, trials: bool, at: timedelta, later: float
) -> None:
    """If no further event comes; whatever the subscription is like."""
    told = story()
    now = told.at + at
    subscribe(told, **{name: (told.at + value).isoformat() if isinstance(value, timedelta) else value
                       for name, value in fields.items()})  # fmt: skip
    terms = read(OFFLINE.replace('"3d"', f'"{grace}d"') + f"trials = {str(trials).lower()}\n")
    state = state_of(told)
    try:
        made = draft(known(state, now, terms), Asked(), "licence", now)
    except Refused:
        return
    assert now < made.valid_until <= now + TERM
    moment = now + (made.valid_until - now) * later
    assert moment == made.valid_until or entitled(state, terms, moment)


# Over HTTP.


@pytest.fixture
def catalogue(files: Path) -> Catalogue:
    """The usual one; its license key has offline licences. Another has no activation limit."""
    with_offline = BENEFITS.replace("limit_activations = 3", 'limit_activations = 3\noffline = "30d"')
    free = '[benefits.free]\nconnector = "license_key"\nfor = { products = ["PRODUCT"] }\noffline = "30d"\n'
    text = with_offline.replace("FOLDER", str(files)) + free.replace("PRODUCT", PRODUCT)
    return parse_catalogue(text, TERMS, timedelta())


async def key_id_of(running: Running, benefit: str = "free", scenario: str = "purchase") -> str:
    """The id of the license key of a customer who has just bought one."""
    external_id = await running.live(scenario)
    key_id: str = (await running.answer(external_id, benefit))["gives"]["license_key_id"]
    return key_id


async def ask(running: Running, key_id: str, token: str = "app-token-1", **more: Any) -> Any:
    headers = {"authorization": f"Bearer {token}"} | more.pop("headers", {})
    return await running.client.post(f"/v1/license-keys/{key_id}/offline", headers=headers, **more)


async def listed(running: Running) -> dict[str, Any]:
    answer = await running.client.get("/.well-known/almoner-keys.json")
    assert answer.status_code == 200
    document: dict[str, Any] = answer.json()
    return document


async def activate(running: Running, key_id: str, **conditions: str) -> str:
    made = device(running.clock.at, id=str(uuid4()), license_key_id=key_id, conditions=conditions)
    await running.service.database.write(lambda connection: licenses.activate(connection, made, None))
    return made.id


async def sql(running: Running, statement: str, **values: Any) -> None:
    await running.service.database.write(lambda connection: connection.execute(sa.text(statement), values))


async def test_a_licence_is_verified_with_the_published_keys_and_nothing_else(running: Running) -> None:
    key_id = await key_id_of(running)
    answer = await ask(running, key_id)
    assert answer.status_code == 200, answer.text
    made = answer.json()
    said = verifier.verify(made["license"], await listed(running), running.clock.at)
    assert said == json.loads(urlsafe_b64decode(made["license"].split(".")[1] + "=="))
    assert (said["license_key_id"], said["kid"]) == (key_id, made["kid"])
    assert made["valid_until"] == said["valid_until"] == "2026-12-01T12:00:00Z"
    assert said["issued_at"] == "2026-11-01T12:00:00Z"
    assert list(said) == list(Licence.__struct_fields__)
    again = (await ask(running, key_id)).json()
    assert again["kid"] == made["kid"]
    assert verifier.verify(again["license"], await listed(running), running.clock.at)["id"] != said["id"]


async def test_neither_the_key_nor_a_private_half_is_in_a_licence_or_the_list(running: Running) -> None:
    key_id = await key_id_of(running)
    made = (await ask(running, key_id)).json()
    whole = await running.context.license_keys.whole(key_id)
    assert whole
    payload = urlsafe_b64decode(made["license"].split(".")[1] + "==").decode()
    assert whole not in payload
    assert whole[-6:] in payload
    (only,) = (await listed(running))["keys"]
    assert set(only) == {"kid", "alg", "public_key", "signs_from", "retired_at", "until"}


async def test_the_list_is_public_and_kept_for_an_hour_once_there_is_a_key(running: Running) -> None:
    empty = await running.client.get("/.well-known/almoner-keys.json")
    assert (empty.status_code, empty.json()) == (200, {"keys": []})
    assert empty.headers["cache-control"] == "no-store"
    await ask(running, await key_id_of(running))
    answer = await running.client.get("/.well-known/almoner-keys.json")
    assert answer.headers["cache-control"] == "public, max-age=3600"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["content-type"] == "application/json"


async def test_a_subscription_is_licensed_through_its_period_and_grace(running: Running) -> None:
    key_id = await key_id_of(running, "key", "subscription")
    device_id = await activate(running, key_id, fingerprint="abc")
    made = (await ask(running, key_id, json={"activation_id": device_id})).json()
    said = verifier.verify(made["license"], await listed(running), running.clock.at, "abc")
    assert said["activation_id"] == device_id
    assert datetime.fromisoformat(said["paid_through"]) <= running.clock.at + PERIOD
    assert said["valid_until"] == "2026-12-01T12:00:00Z"  # the term is shorter than period and grace
    with pytest.raises(verifier.LicenceError, match="fingerprint_mismatch"):
        verifier.verify(made["license"], await listed(running), running.clock.at)


async def test_a_key_with_a_limit_needs_an_activation_that_is_live(running: Running) -> None:
    key_id = await key_id_of(running, "key")
    device_id = await activate(running, key_id)
    other = await activate(running, "another-key")
    needed = await ask(running, key_id)
    assert (needed.status_code, needed.json()["error"]) == (422, "RequestValidationError")
    assert "activation_id" in needed.json()["detail"]
    for unknown in (str(uuid4()), "x", other):
        assert (await ask(running, key_id, json={"activation_id": unknown})).status_code == 404
    assert (await ask(running, key_id, json={"activation_id": device_id})).status_code == 200
    await running.service.database.write(
        lambda connection: licenses.deactivate(connection, key_id, [device_id], running.clock.at)
    )
    assert (await ask(running, key_id, json={"activation_id": device_id})).status_code == 404


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("status = 'disabled'", "disabled"),
        ("status = 'revoked'", "revoked"),
        ("given = false", "revoked"),
        ("expires_at = '2026-11-01 12:00:00'", "expired"),
    ],
)
async def test_a_key_that_is_not_good_is_refused_with_the_reason(running: Running, change: str, reason: str) -> None:
    key_id = await key_id_of(running)
    await sql(running, f"UPDATE license_keys SET {change} WHERE id = :id", id=key_id)
    refused = await ask(running, key_id)
    assert (refused.status_code, refused.json()["error"]) == (403, "NotPermitted")
    assert refused.headers["almoner-reason"] == reason
    assert (await listed(running))["keys"] == []


async def test_polars_keys_and_benefits_without_terms_have_none(on_sqlite: Running) -> None:
    key_id = await key_id_of(on_sqlite)
    await sql(on_sqlite, "UPDATE license_keys SET source = 'polar' WHERE id = :id", id=key_id)
    refused = await ask(on_sqlite, key_id)
    assert (refused.status_code, refused.json()["error"]) == (403, "NotPermitted")
    assert "Polar issued this key" in refused.json()["detail"]
    assert "almoner-reason" not in refused.headers


async def test_a_changed_benefits_file_counts_at_once(on_sqlite: Running) -> None:
    key_id = await key_id_of(on_sqlite)
    pipeline = on_sqlite.service.pipeline
    without = pipeline.catalogue.text.replace('offline = "30d"', "")
    await pipeline.propose(parse_catalogue(without, TERMS, timedelta()), accept=True)
    refused = await ask(on_sqlite, key_id)
    assert refused.status_code == 403
    assert 'write offline = "30d" in [benefits.free]' in refused.json()["detail"]


@pytest.mark.parametrize("body", [b"", b"null", b"{}", b'{"activation_id": null}'])
async def test_the_body_may_be_left_out(on_sqlite: Running, body: bytes) -> None:
    key_id = await key_id_of(on_sqlite)
    answer = await ask(on_sqlite, key_id, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "body", [b"x", b"[]", b'"x"', b'{"activation": "x"}', b'{"activation_id": 3}', b'{"fingerprint": ""}', b"\xff",
             b'{"fingerprint": "' + b"x" * 501 + b'"}', b'{"fingerprint": "\\ud800"}'],
)  # fmt: skip
async def test_a_malformed_body_is_told(on_sqlite: Running, body: bytes) -> None:
    key_id = await key_id_of(on_sqlite)
    answer = await ask(on_sqlite, key_id, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"] == "RequestValidationError"


async def test_unknown_keys_and_callers_are_told_apart(on_sqlite: Running) -> None:
    assert (await ask(on_sqlite, "x%00y")).status_code == 404
    assert (await ask(on_sqlite, str(uuid4()))).status_code == 404
    assert (await ask(on_sqlite, "x", token="nobody")).status_code == 401


async def test_as_text_it_is_the_file(on_sqlite: Running) -> None:
    key_id = await key_id_of(on_sqlite)
    answer = await ask(on_sqlite, key_id, headers={"accept": "text/plain"})
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    name = answer.headers["content-disposition"].removeprefix('attachment; filename="').removesuffix('.license"')
    assert name.isalnum()
    assert len(name) == 6
    assert answer.text.endswith("\n")
    assert verifier.verify(answer.text, await listed(on_sqlite), on_sqlite.clock.at)


async def test_without_a_key_to_encrypt_with_nothing_is_signed(
    sqlite_url: str, tmp_path: Path, catalogue: Catalogue, caplog: pytest.LogCaptureFixture
) -> None:
    async with run_service(sqlite_url, tmp_path, catalogue, Clock(), encryption_keys="") as running:
        refused = await ask(running, await key_id_of(running))
        assert (refused.status_code, refused.json()["error"]) == (503, "Unavailable")
    assert "signing keys cannot be kept without it" in caplog.text


async def test_what_is_answered_is_what_the_document_says(on_sqlite: Running) -> None:
    paths = (await on_sqlite.client.get("/schema/openapi.json")).json()["paths"]
    offline = paths["/v1/license-keys/{key_id}/offline"]["post"]
    assert {"200", "401", "403", "404", "422", "503"} <= set(offline["responses"])
    public = paths["/.well-known/almoner-keys.json"]["get"]
    assert set(public["responses"]) == {"200", "503"}
    assert public["security"] == [{}]
