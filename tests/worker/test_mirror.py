"""Polar's objects as they were last sent: the same rows in any order of events, right, and without secrets."""

import copy
import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from handlers.events import Event, parse
from handlers.state import CustomerState, customer_of, grants_now, is_deleted, subscriptions_now
from tests.conftest import POLAR_BENEFIT, Running
from tests.events import BEGINS, WORLD, event, events_of, folded, history, story
from tests.handlers.test_any_order import _histories
from worker import mirror
from worker.mirror import Step, benefits_in, benefits_of, newest
from worker.mirror_rows import text_of
from worker.replay import replay
from worker.simulate import SCENARIOS, Story, arrange, play
from worker.simulated import iso
from worker.store import objects
from worker.store.inbox import Filter
from worker.store.objects import Row

_orders = settings(
    deadline=None,
    max_examples=8,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


def all_rows(connection: sa.Connection) -> dict[tuple[str, str], dict[str, Any]]:
    rows = connection.execute(sa.select(objects.objects)).mappings()
    return {(row["kind"], row["id"]): dict(row) for row in rows}


def kept(batches: Sequence[Sequence[Event]], customer_id: str) -> dict[tuple[str, str], dict[str, Any]]:
    """What is in the table after these batches of one customer's events, each a transaction of its own."""
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        objects.objects.create(connection)
        state = CustomerState(id=customer_id)
        for batch in batches:
            after = folded(batch, state)
            carried = mirror.keep(connection, [Step(state, after, batch)])
            objects.keep_benefits(connection, carried)
            state = after
        found = all_rows(connection)
    engine.dispose()
    return found


def cut(events: Sequence[Event], sizes: Sequence[int]) -> list[Sequence[Event]]:
    batches, begin = [], 0
    for size in sizes:
        batches.append(events[begin : begin + size])
        begin += size
    return [batch for batch in [*batches, events[begin:]] if batch]


def check(events: list[Event], customer_id: str, data: st.DataObject) -> None:
    expected = kept([[one] for one in events], customer_id)
    again = data.draw(st.lists(st.sampled_from(events), max_size=len(events)), label="told twice")
    arrived = data.draw(st.permutations(events + again), label="as it arrives")
    sizes = data.draw(st.lists(st.integers(1, 8), max_size=20), label="batches")
    assert kept(cut(arrived, sizes), customer_id) == expected


@pytest.mark.parametrize("scenario", SCENARIOS)
@_orders
@given(seed=st.integers(0, 1000), data=st.data())
def test_any_order_in_any_batches_ends_in_the_same_rows(scenario: str, seed: int, data: st.DataObject) -> None:
    told = play(scenario, WORLD, seed=seed, now=BEGINS)
    events = [one for one in _parsed(scenario, seed) if not one.type.startswith("checkout.")]
    check(events, told[0].customer_id, data)


@cache
def _parsed(scenario: str, seed: int) -> list[Event]:
    return [parse(one.webhook_id, one.body) for one in play(scenario, WORLD, seed=seed, now=BEGINS)]


@pytest.mark.parametrize("customer_id", sorted(_histories()))
@_orders
@given(data=st.data())
def test_each_recorded_customer_ends_in_the_same_rows_in_any_order(customer_id: str, data: st.DataObject) -> None:
    check([one for one in _histories()[customer_id] if not one.type.startswith("checkout.")], customer_id, data)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("backwards", [False, True])
def test_the_rows_say_what_the_facts_say(scenario: str, *, backwards: bool) -> None:
    events = _parsed(scenario, 1)
    customer_id = play(scenario, WORLD, seed=1, now=BEGINS)[0].customer_id
    state = folded(events, CustomerState(id=customer_id))
    rows = kept([[one] for one in (events[::-1] if backwards else events)], customer_id)
    customer = rows["customer", customer_id]
    known = customer_of(state)
    assert known
    assert (customer["deleted"], customer["name"]) == (is_deleted(state), known.name)
    for one, now in grants_now(state).items():
        row = rows["benefit_grant", one]
        body = json.loads(row["body"])
        assert body["is_granted"] == row["is_granted"] == now.granted
        assert body["is_revoked"] == now.taken_back
        assert (body["granted_at"] is not None) == now.granted
    for one, purchase in subscriptions_now(state).items():
        row = rows["subscription", one]
        assert json.loads(row["body"])["status"] == row["status"]
        assert (row["status"] in {"active", "trialing"}) == purchase.active
    assert {one for kind, one in rows if kind == "order"} == set(state.orders)
    assert {one for kind, one in rows if kind == "subscription"} == set(state.subscriptions)
    assert {one for kind, one in rows if kind == "benefit"} == {POLAR_BENEFIT}


def test_what_came_is_kept_whole() -> None:
    told = story()
    told.subscribe()
    rows = kept([events_of(told)], told.buyer["id"])
    [subscription] = [row for (kind, _), row in rows.items() if kind == "subscription"]
    [order] = [row for (kind, _), row in rows.items() if kind == "order"]
    [grant] = [row for (kind, _), row in rows.items() if kind == "benefit_grant"]
    assert times_aside(json.loads(subscription["body"])) == times_aside(told.subscriptions[0])
    last = json.loads([one for one in told.events if one.type == "order.paid"][-1].body)["data"]
    assert json.loads(order["body"]) == last
    without = {name: value for name, value in told.grants[0].items() if name != "previous_properties"}
    assert times_aside(json.loads(grant["body"])) == times_aside(without)
    assert (subscription["name"], subscription["amount"]) == ("Product 1", 3000)
    assert subscription["organization_id"] == order["organization_id"] == WORLD.organization_id


def times_aside(document: Any) -> Any:
    """Times are written anew where a snapshot may overrule them: `00Z` is `00.000000Z`."""
    if isinstance(document, dict):
        return {name: times_aside(value) for name, value in document.items()}
    if isinstance(document, str) and document.endswith("Z"):
        return datetime.fromisoformat(document)
    return document


# Snapshots.


def after_a_snapshot(told: Story, change: dict[str, Any]) -> Iterator[list[Event]]:
    """A snapshot says that nothing is active, in both orders with what was said before."""
    [subscription] = told.subscriptions
    told.change(subscription, **change)
    told.send("subscription.updated", subscription)
    said = copy.deepcopy(subscription)
    subscription["status"] = "gone"
    told.send_state()
    subscription.update(said)
    events = events_of(told)
    yield events
    yield events[::-1]


@pytest.mark.parametrize(
    ("change", "status"),
    [({}, "unpaid"), ({"cancel_at_period_end": True}, "canceled"), ({"pause_at_period_end": True}, "paused"),
     ({"status": "past_due"}, "past_due")],
)  # fmt: skip
def test_a_subscription_that_a_newer_snapshot_does_not_list_is_active_no_more(
    change: dict[str, Any], status: str
) -> None:
    told = story()
    told.subscribe()
    one = told.subscriptions[0]["id"]
    for events in after_a_snapshot(told, change):
        for batches in ([events], [[single] for single in events]):
            row = kept(batches, told.buyer["id"])["subscription", one]
            assert row["status"] == json.loads(row["body"])["status"] == status


def test_what_a_newer_snapshot_says_of_a_subscription_is_shown_until_an_event_says_more() -> None:
    told = story()
    told.subscribe()
    [subscription] = told.subscriptions
    before = len(told.events)
    told.change(subscription, amount=5000, cancel_at_period_end=True, metadata={"plan": "x"})
    told.send_state()
    rows = kept([events_of(told)[:before], events_of(told)[before:]], told.buyer["id"])
    row = rows["subscription", subscription["id"]]
    body = json.loads(row["body"])
    assert (row["amount"], body["amount"]) == (5000, 5000)
    assert body["cancel_at_period_end"] is True
    assert body["metadata"] == {"plan": "x"}
    told.change(subscription, amount=4000)
    told.send("subscription.updated", subscription)
    row = kept([[one] for one in events_of(told)], told.buyer["id"])["subscription", subscription["id"]]
    assert json.loads(row["body"])["amount"] == 4000


def test_a_grant_that_a_newer_snapshot_does_not_list_was_taken_back_nobody_said_when() -> None:
    told = story()
    told.buy_once()
    told.grants[0]["is_granted"] = False  # the event that says so was lost
    told.send_state()
    for batches in ([events_of(told)], [[one] for one in events_of(told)], [events_of(told)[::-1]]):
        row = kept(batches, told.buyer["id"])["benefit_grant", told.grants[0]["id"]]
        body = json.loads(row["body"])
        assert (row["is_granted"], body["is_granted"], body["is_revoked"]) == (False, False, True)
        assert (row["granted_at"], row["revoked_at"], body["granted_at"], body["revoked_at"]) == (None,) * 4


def test_a_snapshot_alone_is_not_enough_for_a_row() -> None:
    told = story()
    told.buy_once()
    events = [one for one in events_of(told) if not one.type.startswith("benefit_grant.")]
    assert not [one for kind, one in kept([events], told.buyer["id"]) if kind == "benefit_grant"]


# Benefits.


def described(**fields: Any) -> dict[str, Any]:
    return {
        "id": POLAR_BENEFIT, "created_at": iso(BEGINS), "modified_at": None, "type": "custom", "description": "old",
        "selectable": True, "deletable": True, "is_deleted": False, "organization_id": WORLD.organization_id,
        "metadata": {}, "visibility": "public", "properties": {"note": None}, "visibility_configurable": True,
    } | fields  # fmt: skip


def told_of(*benefits: dict[str, Any]) -> list[Event]:
    return [event("benefit.updated", one, BEGINS, f"delivery-{number}") for number, one in enumerate(benefits)]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    ("first", "second", "winner"),
    [
        ({"description": "a"}, {"description": "b", "modified_at": iso(BEGINS + timedelta(seconds=1))}, "b"),
        ({"description": "b", "modified_at": iso(BEGINS + timedelta(seconds=1))}, {"description": "a"}, "b"),
        ({"description": "a"}, {"description": "b"}, "b"),
        ({"description": "a", "is_deleted": True}, {"description": "b", "modified_at": iso(BEGINS + timedelta(1))},
         "a"),
    ],
)  # fmt: skip
def test_of_a_benefit_the_newest_description_is_kept_and_deleted_is_final(
    first: dict[str, Any], second: dict[str, Any], winner: str, *, backwards: bool
) -> None:
    events = told_of(described(**first), described(**second))
    events = events[::-1] if backwards else events
    assert benefits_in((one, json.loads(bytes(one.data))) for one in events)[POLAR_BENEFIT]["name"] == winner
    rows: dict[str, Row] = {}
    for one in events:
        rows = newest(rows, benefits_of(one))
    assert rows[POLAR_BENEFIT]["name"] == winner


async def test_the_database_keeps_the_newest_description_too(running: Running) -> None:
    old, new = (benefits_of(one) for one in told_of(described(), described(modified_at=iso(BEGINS + timedelta(1)))))
    for rows in (old, new, old, {}):
        await running.service.database.write(lambda connection, rows=rows: objects.keep_benefits(connection, rows))  # type: ignore[misc]
    # Two processes that saw nothing of each other.
    statement = objects._KEEP_NEWER
    for rows in (old, new, old):
        await running.service.database.write(
            lambda connection, rows=rows: connection.execute(statement(connection), list(rows.values()))  # type: ignore[misc]
        )
    found = await running.service.database.read(all_rows)
    assert found["benefit", POLAR_BENEFIT]["modified_at"] == BEGINS + timedelta(1)


@pytest.mark.parametrize("type_", ["subscription.updated", "benefit_grant.updated", "product.updated"])
@pytest.mark.parametrize(
    "odd", [None, 1, "x", [], {}, [None], [1], {"id": 1}, [{"id": "x"}], {"benefits": 5}, {"benefits": [None, {}]},
            [{"id": "x", "properties": {}, "created_at": "never", "type": "custom"}]]
)  # fmt: skip
def test_what_is_no_whole_benefit_is_passed_over(type_: str, odd: Any) -> None:
    """As inside checkouts, which leave most of it out."""
    for data in ({"id": "x", "benefit": odd, "product": odd, "benefits": odd}, odd):
        assert benefits_of(event(type_, data, BEGINS)) == {}


def test_benefits_are_found_wherever_they_are_embedded() -> None:
    whole = described()
    for type_, data in (("benefit.created", whole), ("benefit_grant.created", {"benefit": whole}),
                        ("subscription.created", {"product": {"benefits": [whole]}}),
                        ("product.updated", {"benefits": [whole]})):  # fmt: skip
        assert [*benefits_of(event(type_, {"id": "x", **data}, BEGINS))] == [POLAR_BENEFIT]
    assert benefits_of(event("checkout.created", {"id": "x", "product": {"benefits": [whole]}}, BEGINS)) == {}


# Secrets, and what a database cannot hold.


def test_no_secret_is_kept() -> None:
    told = story()
    told.shop.benefits[0] |= {"type": "discord", "properties": {"guild_id": "1", "role_id": "2", "kick_member": False,
                                                                "guild_token": "SECRET-1"}}  # fmt: skip
    for product in told.shop.products:
        product["benefits"] = told.shop.benefits
    told.subscribe()
    told.change(told.grants[0], properties={"user_provided_key": "SECRET-2", "license_key_id": "x"})
    told.grants[0]["previous_properties"] = {"user_provided_key": "SECRET-3"}
    told.send("benefit_grant.updated", told.grants[0])
    told.change(told.subscriptions[0], metadata={"customer_ip_address": "SECRET-4", "client_secret": 'SECRET"-5'})
    told.send("subscription.updated", told.subscriptions[0])
    rows = kept([[one] for one in events_of(told)], told.buyer["id"])
    assert len(rows) == 5
    assert "SECRET" not in repr(rows)
    assert json.loads(rows["benefit", told.shop.benefits[0]["id"]]["body"])["properties"]["guild_token"] == ""


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\x00b", "a\ufffdb"), ("\x00\x00", "\ufffd\ufffd"), ("\\u0000", "\\u0000"), ("\\\x00", "\\\ufffd"),
        ("\\\\u0000\x00", "\\\\u0000\ufffd"), ("guild_token", "guild_token"), ('"guild_token":"x"',) * 2,
    ],
)  # fmt: skip
def test_nul_is_replaced_and_nothing_else_changes(value: str, shown: str) -> None:
    assert json.loads(text_of({"x": value, "y": [value], value: 1})) == {"x": shown, "y": [shown], shown: 1}


async def test_odd_values_stop_nothing(running: Running) -> None:
    """NUL, numbers beyond any column, an address longer than any index holds."""
    told = story()
    told.buyer |= {"name": "a\x00b", "email": "x" * 5000 + "@example.com", "metadata": {"a\x00": "b\x00", "n": 10**30}}
    told.subscribe()
    told.change(told.subscriptions[0], amount=10**25)
    told.send("subscription.updated", told.subscriptions[0])
    order = json.loads([one for one in told.events if one.type == "order.paid"][-1].body)["data"]
    told.change(order, net_amount=-(10**25), product=[], customer=told.buyer)
    told.send("order.updated", order)
    await running.receive(told.events)
    rows = await running.service.database.read(all_rows)
    assert rows["customer", told.buyer["id"]]["name"] == "a\ufffdb"
    assert rows["order", order["id"]]["amount"] is None
    assert rows["order", order["id"]]["name"] is None
    answer = await running.get("/v1/customers/?metadata[a%00]=b%00&query=a%00b")
    assert answer.json()["pagination"]["total_count"] == 1


# In the whole service.


@pytest.mark.parametrize("scenario", ["seats", "recovery", "delete-customer"])
async def test_the_service_keeps_the_same_rows_however_it_is_told(running: Running, scenario: str) -> None:
    events = running.story(scenario)
    await running.receive(arrange(events, shuffle=True, duplicate=0.5, seed=7))
    found = await running.service.database.read(all_rows)
    parsed = [one for one in events if not one.type.startswith("checkout.")]
    assert found == kept([[parse(one.webhook_id, one.body) for one in parsed]], events[0].customer_id)


async def test_an_older_database_is_filled_by_replaying(running: Running) -> None:
    """Nothing changes in the facts; what is replayed is the newest all the same."""
    await running.receive(running.story("cancel"))
    before = await running.service.database.read(all_rows)
    await running.service.database.write(lambda connection: connection.execute(objects.objects.delete()))
    await replay(running.service.pipeline, Filter())
    await running.service.pipeline.drain()
    assert await running.service.database.read(all_rows) == before


async def test_a_customer_who_is_deleted_is_kept_but_marked(running: Running) -> None:
    events = running.story("delete-customer")
    await running.receive(events)
    rows = await running.service.database.read(all_rows)
    assert rows["customer", events[0].customer_id]["deleted"] is True


def test_the_recorded_history_has_every_kind() -> None:
    assert {one["type"].partition(".")[0] for one in history()} >= set(mirror._FACTS)
