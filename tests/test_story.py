"""The main job, told from a customer's first webhook to the last revocation, over HTTP, on both databases."""

import json

import pytest

from tests.conftest import POLAR_BENEFIT, Running
from worker.simulate import SCENARIOS, arrange

ENTITLED = {
    "purchase": {"key", "files", "link"},
    "subscription": {"key", "files", "link"},
    "trial": {"key", "files", "link"},
    "renewal": {"key", "files", "link"},
    "cancel-scheduled": {"key", "files", "link"},
    "cancel": set(),
    "past-due": {"key", "link"} - {"link"},
    "recovery": {"key", "files", "link"},
    "pause": set(),
    "refund": set(),
    "upgrade": {"better"},
    "seats": {"key", "files", "link"},
    "delete-customer": set(),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_each_story_ends_with_what_the_customer_ought_to_have(running: Running, scenario: str) -> None:
    events = running.story(scenario)
    await running.receive(events)
    customer_id = events[0].customer_id
    response = await running.get(f"/v1/customers/{customer_id}/entitlements")
    ours = [one for one in response.json()["entitlements"] if not one["connector"].startswith("polar:")]
    assert {one["benefit"] for one in ours if one["entitled"]} == ENTITLED[scenario]
    assert {one["status"] for one in ours if one["entitled"]} <= {"granted"}
    assert {one["status"] for one in ours if not one["entitled"]} <= {"revoked"}


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_order_and_duplicates_change_nothing(running: Running, scenario: str) -> None:
    straight = await running.live(scenario, seed=1)
    events = arrange(running.story(scenario, seed=2), shuffle=True, duplicate=0.5, seed=3)
    await running.receive(events)
    shuffled = next(event.external_id for event in events if event.external_id)
    if scenario != "delete-customer":
        assert await running.statuses(straight) == await running.statuses(shuffled)


async def test_a_purchase_gives_a_key_files_and_a_link_and_the_answers_carry_proof(running: Running) -> None:
    customer = await running.live("purchase")
    key = await running.answer(customer, "key")
    assert key["entitled"] is True
    assert key["gives"]["display_key"].startswith("****-")
    assert key["because"][0]["source"] == "order"
    assert key["because"][0]["delivery"]
    files = await running.answer(customer, "files")
    assert [one["name"] for one in files["gives"]["files"]] == ["manual.txt", "sub/app.bin"]
    link = await running.answer(customer, "link")
    assert f"who={customer}" in link["gives"]["url"]
    assert "almoner_signature=" in link["gives"]["url"]
    polar = await running.answer(customer, POLAR_BENEFIT)
    assert polar["entitled"] is True
    assert polar["connector"] == "polar:custom"


async def test_cancelling_takes_everything_back_and_buying_again_revives_the_same_key(running: Running) -> None:
    customer = await running.live("recovery")
    query = "?reveal=keys"
    response = await running.get(f"/v1/customers/external/{customer}/entitlements/key{query}", token="portal-token-1")
    before = response.json()["gives"]["key"]
    assert before.startswith("ACME-")
    state = await running.get(f"/v1/customers/external/{customer}/state")
    assert len(state.json()["active_subscriptions"]) == 1
    assert json.dumps(state.json()).count(POLAR_BENEFIT) == 1
