"""Faults that users of other systems suffered, each by its number, and that we claim to be safe from."""

import asyncio
import json
from typing import Any

import pytest

from handlers import HANDLERS
from tests.conftest import Running
from worker.replay import replay
from worker.simulate import SimulatedEvent
from worker.store import inbox
from worker.store.inbox import Filter


def edited(event: SimulatedEvent, **data: Any) -> SimulatedEvent:
    """The same event, with other data in it."""
    body = json.loads(event.body)
    body["data"] |= data
    return SimulatedEvent(
        event.webhook_id, event.type, event.timestamp, event.customer_id, event.external_id, json.dumps(body).encode()
    )


def first(events: list[SimulatedEvent], type_: str) -> SimulatedEvent:
    return next(event for event in events if event.type == type_)


async def row_of(running: Running, event: SimulatedEvent) -> dict[str, Any]:
    row = await running.service.database.read(lambda connection: inbox.found(connection, event.webhook_id))
    assert row
    return row


async def entitled(running: Running, events: list[SimulatedEvent], benefit: str = "key") -> bool:
    answer = await running.get(f"/v1/customers/{events[0].customer_id}/entitlements/{benefit}")
    return bool(answer.json()["entitled"])


async def test_dj_stripe_832_what_failed_is_processed_though_its_retry_is_a_duplicate(
    on_sqlite: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(state: Any, event: Any) -> Any:
        raise ZeroDivisionError

    events = on_sqlite.story("purchase")
    with monkeypatch.context() as patched:
        for name in ("order.created", "order.updated", "order.paid"):
            patched.setitem(HANDLERS, name, fail)
        await on_sqlite.receive(events)
        assert not await entitled(on_sqlite, events)
        assert (await on_sqlite.post(first(events, "order.paid"))).json()["status"] == "duplicate"
    on_sqlite.clock.move(seconds=5)
    await on_sqlite.service.pipeline.drain()
    assert await entitled(on_sqlite, events)


async def test_dj_stripe_1239_and_convoy_2747_copies_of_one_moment_are_one_delivery(running: Running) -> None:
    event = running.story("purchase")[0]
    answers = await asyncio.gather(*(running.post(event) for _ in range(30)))
    assert {answer.status_code for answer in answers} == {202}
    assert [answer.json()["status"] for answer in answers].count("accepted") == 1
    await running.service.pipeline.drain()
    assert (await row_of(running, event))["duplicates"] == 29


async def test_cashier_stripe_1759_created_after_updated_does_not_take_the_subscription_back(
    on_sqlite: Running,
) -> None:
    events = on_sqlite.story("subscription")
    created = edited(first(events, "subscription.created"), status="incomplete")
    await on_sqlite.receive([*(event for event in events if event.webhook_id != created.webhook_id), created])
    assert await entitled(on_sqlite, events)


async def test_stripe_sync_engine_337_a_type_that_nobody_knows_is_kept_and_counted(on_sqlite: Running) -> None:
    event = on_sqlite.story("purchase")[0]
    strange = SimulatedEvent(
        "msg_337", "entitlement.granted", event.timestamp, "", "",
        b'{"type":"entitlement.granted","timestamp":"2026-11-01T00:00:00Z","data":{}}',
    )  # fmt: skip
    assert (await on_sqlite.post(strange)).json()["status"] == "ignored"
    assert (await row_of(on_sqlite, strange))["body"] == strange.body
    assert (await on_sqlite.service.database.read(inbox.balance))["ignored"] == 1


async def test_polar_10173_and_laravel_polar_19_values_and_fields_of_tomorrow_break_nothing(
    on_sqlite: Running,
) -> None:
    events = on_sqlite.story("subscription")
    later = edited(
        first(events, "subscription.updated"),
        status="hibernating", brand_new_field={"a": [1]}, recurring_interval="decade",
    )  # fmt: skip
    await on_sqlite.receive([event if event.webhook_id != later.webhook_id else later for event in events])
    assert (await row_of(on_sqlite, later))["status"] == "done"


async def test_polar_6134_a_stale_subscription_inside_an_order_is_not_believed(on_sqlite: Running) -> None:
    events = on_sqlite.story("subscription")
    paid = first(events, "order.paid")
    stale = json.loads(paid.body)["data"]["subscription"] | {"status": "canceled", "ended_at": "2026-11-01T11:00:00Z"}
    order = edited(paid, subscription=stale)
    await on_sqlite.receive([event if event.webhook_id != order.webhook_id else order for event in events])
    assert await entitled(on_sqlite, events)


async def test_polar_9084_active_and_past_due_of_one_renewal_end_the_same_in_any_order(on_sqlite: Running) -> None:
    ends = []
    for seed, backwards in ((1, False), (2, True)):
        events = on_sqlite.story("past-due", seed)
        await on_sqlite.receive(events[::-1] if backwards else events)
        answer = await on_sqlite.get(f"/v1/customers/{events[0].customer_id}/entitlements/key")
        ends.append((answer.json()["entitled"], answer.json()["standing"]))
    assert ends == [(True, "grace")] * 2


async def test_polar_adapters_381_a_customer_without_an_external_id_is_a_customer(on_sqlite: Running) -> None:
    events = [edited(event, external_id=None) for event in on_sqlite.story("purchase")
              if event.type != "customer.state_changed"]  # fmt: skip
    created = edited(events[0], external_id=None)
    await on_sqlite.receive([created, first(events, "order.paid")])
    answer = await on_sqlite.get(f"/v1/customers/{events[0].customer_id}/state")
    assert answer.status_code == 200


@pytest.mark.parametrize("backwards", [False, True])
async def test_posthog_98651_and_airbyte_31917_of_two_events_of_one_moment_the_later_in_kind_wins(
    on_sqlite: Running, *, backwards: bool
) -> None:
    events = on_sqlite.story("subscription")
    paid, created = first(events, "order.paid"), first(events, "order.created")
    at = json.loads(paid.body)["timestamp"]
    body = json.loads(created.body) | {"timestamp": at}
    body["data"] |= {"modified_at": json.loads(paid.body)["data"]["modified_at"], "subscription_id": None}
    one = SimulatedEvent(created.webhook_id, created.type, paid.timestamp, "", "", json.dumps(body).encode())
    other = edited(paid, subscription_id=None)
    await on_sqlite.receive([other, one] if backwards else [one, other])
    assert await entitled(on_sqlite, events)


async def test_eliza_10160_and_clevis_439_what_no_trigger_came_for_is_processed(on_sqlite: Running) -> None:
    events = on_sqlite.story("purchase")
    for event in events:
        await on_sqlite.post(event)
    on_sqlite.trigger.deliveries.clear()
    on_sqlite.clock.move(seconds=3)
    while await on_sqlite.service.pipeline.sweep():
        on_sqlite.clock.move(seconds=3)
    assert (await on_sqlite.answer(events[0].external_id, "key"))["status"] == "granted"


async def test_rdyrct_222_our_own_clock_decides_nothing_about_which_event_is_newer(on_sqlite: Running) -> None:
    events = on_sqlite.story("refund")
    on_sqlite.clock.move(days=-300)
    await on_sqlite.receive(events[::-1])
    assert not await entitled(on_sqlite, events)


async def test_outpost_670_a_replay_is_never_refused_as_a_duplicate(on_sqlite: Running) -> None:
    events = on_sqlite.story("purchase")
    await on_sqlite.receive(events)
    for _ in range(3):
        done = await replay(on_sqlite.service.pipeline, Filter(webhook_ids=(events[0].webhook_id,)))
        assert done.statuses == {"done": 1}
    assert (await row_of(on_sqlite, events[0]))["replays"] == 3


async def test_convex_polar_48_an_event_that_we_cannot_use_is_no_reason_to_refuse_it(on_sqlite: Running) -> None:
    """Ten events refused in a row, and Polar disables the endpoint."""
    events = on_sqlite.story("purchase")
    for number, event in enumerate(events[:10]):
        broken = SimulatedEvent(f"msg_48_{number}", event.type, event.timestamp, "", "",
                                json.dumps({"type": event.type, "data": []}).encode())  # fmt: skip
        assert (await on_sqlite.post(broken)).status_code == 202
    await on_sqlite.service.pipeline.drain()


async def test_polar_5389_an_edited_benefit_gives_nothing_back_that_was_revoked(on_sqlite: Running) -> None:
    events = on_sqlite.story("refund")
    await on_sqlite.receive(events)
    grant = json.loads(first(events, "benefit_grant.created").body)["data"]
    at = on_sqlite.clock.at
    body = {"type": "benefit.updated", "timestamp": at.isoformat(),
            "data": grant["benefit"] | {"modified_at": at.isoformat()}}  # fmt: skip
    await on_sqlite.receive([SimulatedEvent("m", "benefit.updated", at, "", "", json.dumps(body).encode())])
    assert not await entitled(on_sqlite, events)
    assert not await entitled(on_sqlite, events, "link")
