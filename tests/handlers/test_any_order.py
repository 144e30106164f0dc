"""Any history, in any order, with anything told twice, ends as it does in order: in the same state, owing the same."""

import json
from datetime import datetime, timedelta
from functools import cache

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from config.catalogue import Catalogue
from handlers.events import Event, parse
from handlers.state import CustomerState, accounts_of, customer_of, decode, encode, is_deleted
from tests.events import BEGINS, BENEFIT, BETTER, DATA, PRODUCT, WORLD, catalogue, folded, history
from worker.reconcile import Entitlement, entitled, plan
from worker.simulate import SCENARIOS, play

HISTORY_WORLD = json.loads((DATA / "history-world.json").read_text())

# No shrinking: a counterexample's order is random anyway, and each step folds a whole history.
_orders = settings(
    deadline=None,
    max_examples=12,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


@cache
def _histories() -> dict[str, list[Event]]:
    """The recorded events by customer; a cleared seat belongs to whoever its subscription belongs to."""
    owners: dict[str, str] = {}
    found: dict[str, list[Event]] = {}
    for one in history():
        data = json.loads(one["body"])["data"]
        customer_id = data["id"] if one["type"].startswith("customer.") else data.get("customer_id")
        customer_id = customer_id or owners.get(data.get("subscription_id", ""))
        if customer_id:
            owners[data["id"]] = customer_id
            found.setdefault(customer_id, []).append(parse(one["webhook_id"], one["body"].encode()))
    return found


@cache
def _sold_in_history() -> Catalogue:
    """Every product and every Polar benefit of the history entitles to something, each in another way."""
    tables = [
        f'[benefits.product-{number}]\nconnector = "custom_link"\nnote = "x"\ngrace = "{number % 5}d"\n'
        f'per = "{"purchase" if number % 2 else "customer"}"\nfor = {{ products = ["{product}"] }}\n'
        for number, product in enumerate(HISTORY_WORLD["products"])
    ] + [
        f'[benefits.benefit-{number}]\nconnector = "custom_link"\nnote = "x"\ngrace = "{number % 3}d"\n'
        f'trials = {"false" if number % 2 else "true"}\nfor = {{ benefits = ["{benefit}"] }}\n'
        for number, benefit in enumerate(HISTORY_WORLD["benefits"])
    ]
    return catalogue("\n".join(tables))


SIMULATED = catalogue(f"""
[benefits.key]
connector = "license_key"
grace = "3d"
for = {{ products = ["{PRODUCT}"] }}
[benefits.once]
connector = "custom_link"
note = "x"
trials = false
for = {{ products = ["{PRODUCT}", "{BETTER}"] }}
[benefits.granted]
connector = "custom_link"
note = "x"
grace = "3d"
for = {{ benefits = ["{BENEFIT}"] }}
""")


def _outcome(
    events: list[Event], customer_id: str, sold: Catalogue, moments: list[datetime]
) -> tuple[CustomerState, bytes, list[frozenset[Entitlement]]]:
    state = folded(events, CustomerState(id=customer_id))
    return state, encode(state), [entitled(state, sold, moment) for moment in moments]


def _moments(events: list[Event]) -> list[datetime]:
    """When to ask: in the middle of the story, right after it, in the grace that may follow, and much later."""
    first, last = events[0].timestamp, max(one.timestamp for one in events)
    after = [timedelta(seconds=1), timedelta(days=2), timedelta(days=40)]
    return [first + (last - first) / 2, *(last + more for more in after)]


def _check(events: list[Event], customer_id: str, sold: Catalogue, data: st.DataObject) -> None:
    expected = _outcome(events, customer_id, sold, _moments(events))
    again = data.draw(st.lists(st.sampled_from(events), max_size=len(events)), label="told twice")
    arrived = data.draw(st.permutations(events + again), label="as it arrives")
    assert _outcome(arrived, customer_id, sold, _moments(events)) == expected


@pytest.mark.parametrize("customer_id", sorted(_histories()))
@_orders
@given(data=st.data())
def test_each_recorded_customer_ends_the_same_in_any_order(customer_id: str, data: st.DataObject) -> None:
    _check(_histories()[customer_id], customer_id, _sold_in_history(), data)


@pytest.mark.parametrize("scenario", SCENARIOS)
@_orders
@given(seed=st.integers(0, 1000), data=st.data())
def test_each_simulated_story_ends_the_same_in_any_order(scenario: str, seed: int, data: st.DataObject) -> None:
    events = play(scenario, WORLD, seed=seed, now=BEGINS)
    _check([parse(one.webhook_id, one.body) for one in events], events[0].customer_id, SIMULATED, data)


@pytest.mark.parametrize("scenario", SCENARIOS)
@_orders
@given(data=st.data())
def test_one_endpoint_more_tells_the_same_under_other_ids_and_changes_nothing(
    scenario: str, data: st.DataObject
) -> None:
    """The same bodies under two ids are ties to the last byte but the id, so either may stand in the state."""
    told = play(scenario, WORLD, seed=1, now=BEGINS)
    events = [parse(f"{endpoint}/{one.webhook_id}", one.body) for one in told for endpoint in "ab"]
    expected = _outcome(events, told[0].customer_id, SIMULATED, _moments(events))
    arrived = data.draw(st.permutations(events), label="as it arrives")
    assert _outcome(arrived, told[0].customer_id, SIMULATED, _moments(events)) == expected


@_orders
@given(scenario=st.sampled_from(sorted(SCENARIOS)), data=st.data())
def test_storing_the_state_between_any_two_events_changes_nothing(scenario: str, data: st.DataObject) -> None:
    told = play(scenario, WORLD, seed=1, now=BEGINS)
    arrived = data.draw(st.permutations([parse(one.webhook_id, one.body) for one in told]))
    stored = CustomerState(id=told[0].customer_id)
    for one in arrived:
        stored = decode(encode(folded([one], stored)))
    assert stored == folded(arrived, CustomerState(id=told[0].customer_id))


@pytest.mark.parametrize("customer_id", sorted(_histories()))
def test_the_recorded_history_ends_as_the_world_that_it_was_recorded_in(customer_id: str) -> None:
    world = HISTORY_WORLD["customers"][customer_id]
    state = folded(_histories()[customer_id], CustomerState(id=customer_id))
    customer = customer_of(state)
    assert customer is not None
    assert (customer.email, customer.external_id) == (world["email"], world["external_id"])
    assert is_deleted(state) == world["deleted"]
    for platform, account in accounts_of(state, None).items():
        assert int(account) == int(world[f"{platform}_id"])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_is_owed_is_planned_alike_whatever_the_order(scenario: str) -> None:
    told = play(scenario, WORLD, seed=1, now=BEGINS)
    events = [parse(one.webhook_id, one.body) for one in told]
    plans = []
    for arrived in (events, events[::-1]):
        state = folded(arrived, CustomerState(id=told[0].customer_id))
        plans.append(plan(state, entitled(state, SIMULATED, BEGINS), [], SIMULATED))
    assert plans[0] == plans[1]
