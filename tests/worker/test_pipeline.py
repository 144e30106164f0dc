"""The one path beyond the good case: what waits, what fails, what is swept, a changed benefits file, replay."""

import asyncio
import dataclasses
import json
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from config.catalogue import Catalogue, parse_catalogue
from connectors import TERMS
from handlers import HANDLERS
from tests.conftest import BENEFITS, POLAR_BENEFIT, PRODUCT, SECRET, Clock, Running, run_service, settings_for
from worker import folding
from worker import pipeline as pipeline_module
from worker.app import NoTrigger, open_service
from worker.pipeline import SWEEP_PULSE, Pipeline
from worker.replay import replay
from worker.simulate import SimulatedEvent
from worker.store import catalogues, customers, grants, inbox
from worker.store.inbox import Filter
from worker.verify import fingerprint


def changed(text: str) -> Catalogue:
    return parse_catalogue(text, TERMS, timedelta())


def without(catalogue: Catalogue, key: str) -> Catalogue:
    text = catalogue.text.replace("\n[benefits.", "\x00[benefits.")
    parts = [part for part in text.split("\x00") if not part.startswith(f"[benefits.{key}]")]
    return changed("\n".join(parts))


async def row_of(running: Running, event: SimulatedEvent) -> dict[str, Any]:
    row = await running.service.database.read(lambda connection: inbox.found(connection, event.webhook_id))
    assert row
    return row


# What waits.


async def test_a_revoked_seat_that_names_nobody_waits_until_its_owner_is_known(running: Running) -> None:
    """Polar empties the seat before it says that it is revoked (polar.md 1.6)."""
    events = running.story("seats")
    last = max(number for number, event in enumerate(events) if event.type == "customer_seat.revoked")
    await running.receive([events[last]])
    row = await row_of(running, events[last])
    assert row["status"] == "pending"
    assert "nobody is known yet" in row["reason"]
    running.trigger.deliveries.clear()
    await running.receive([event for number, event in enumerate(events) if number != last])
    assert row["id"] in running.trigger.deliveries, "it goes on as soon as its owner is known"
    assert (await row_of(running, events[last]))["status"] == "done"
    assert (await row_of(running, events[last]))["customer_id"] == events[0].customer_id


async def test_what_waited_for_its_owner_goes_on_by_the_sweep_alone(running: Running) -> None:
    events = running.story("seats")
    alone = next(event for event in events if event.type == "customer_seat.revoked")
    await running.receive([alone])
    running.trigger.deliveries.clear()
    await running.receive([event for event in events if event is not alone])
    assert (await row_of(running, alone))["status"] == "done"


async def test_a_seat_whose_owner_never_becomes_known_is_dead_in_the_end_and_can_be_replayed(running: Running) -> None:
    events = running.story("seats")
    alone = next(event for event in events if event.type == "customer_seat.revoked")
    await running.receive([alone])
    for _ in range(15):
        running.clock.move(hours=1)
        await running.service.pipeline.drain()
    row = await row_of(running, alone)
    assert (row["status"], row["attempts"]) == ("dead", 12)
    await running.receive([event for event in events if event is not alone])
    done = await replay(running.service.pipeline, Filter(webhook_ids=(alone.webhook_id,)))
    assert done.statuses == {"done": 1}


# What fails.


async def test_a_handler_that_fails_leaves_the_delivery_for_later_and_the_others_alone(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dj-stripe#832: stored, the handler failed, the retry deduplicated away, never processed."""
    events = running.story("purchase")
    broken = next(event for event in events if event.type == "order.paid")

    def fail(state: Any, event: Any) -> Any:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setitem(HANDLERS, "order.paid", fail)
        await running.receive(events)
        row = await row_of(running, broken)
        assert (row["status"], row["attempts"]) == ("pending", 1)
        assert row["reason"] == "our handler failed: ZeroDivisionError"
        again = await running.post(broken)
        assert again.json()["status"] == "duplicate"
    others = [await row_of(running, event) for event in events if event is not broken]
    assert {row["status"] for row in others} <= {"done", "ignored"}
    running.clock.move(seconds=2)
    await running.service.pipeline.drain()
    assert (await row_of(running, broken))["status"] == "done"


async def test_a_fault_of_the_database_spoils_nothing_but_the_attempt(
    on_sqlite: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that fails is tried one by one; what fails alone waits, and is dead after the last attempt."""
    events = on_sqlite.story("purchase")
    cursed = events[-1]
    row_id = 0

    def fold(connection: Any, ids: Any, rules: Any, now: Any) -> Any:
        if row_id in ids:
            raise sa.exc.OperationalError("the disk", None, Exception("is full"))
        return honest(connection, ids, rules, now)

    honest = folding.process
    for event in events:
        await on_sqlite.post(event)
    row_id = (await row_of(on_sqlite, cursed))["id"]
    with monkeypatch.context() as patched:
        patched.setattr(folding, "process", fold)
        await on_sqlite.service.pipeline.drain()
        row = await row_of(on_sqlite, cursed)
        assert (row["status"], row["attempts"], row["reason"]) == ("pending", 1, "processing failed: OperationalError")
        assert (await row_of(on_sqlite, events[0]))["status"] == "done"
        for _ in range(12):
            on_sqlite.clock.move(hours=1)
            await on_sqlite.service.pipeline.drain()
        assert (await row_of(on_sqlite, cursed))["status"] == "dead"
    done = await replay(on_sqlite.service.pipeline, Filter(status="dead"))
    assert done.statuses == {"done": 1}


async def test_one_bad_row_does_not_spoil_those_it_came_with(on_sqlite: Running) -> None:
    """Group commit: many arrivals share a transaction, and each sender gets their own answer."""
    events = on_sqlite.story("purchase")[:6]
    pipeline = on_sqlite.service.pipeline
    honest = pipeline.database.write
    fail_first = [True]

    class Shaky:
        async def write(self, work: Any) -> Any:
            if fail_first and getattr(work, "func", None) is inbox.take_in and len(work.keywords["arrivals"]) > 1:
                fail_first.clear()
                raise sa.exc.IntegrityError("one of them", None, Exception())
            return await honest(work)

        def __getattr__(self, name: str) -> Any:
            return getattr(on_sqlite.service.database, name)

    pipeline.database = Shaky()  # type: ignore[assignment]
    answers = await asyncio.gather(*(on_sqlite.post(event) for event in events))
    assert not fail_first
    assert {answer.status_code for answer in answers} == {202}
    pipeline.database = on_sqlite.service.database
    await pipeline.drain()


# The sweep.


async def test_what_no_trigger_came_for_is_swept_after_some_seconds(running: Running) -> None:
    """Redis was down or wiped: the rows are there (elizaOS/eliza PR #10160)."""
    events = running.story("purchase")
    for event in events:
        await running.post(event)
    pipeline = running.service.pipeline
    assert not await pipeline.sweep(), "a trigger may be about to do it"
    running.clock.move(seconds=3)
    swept = await pipeline.sweep()
    assert swept.deliveries == sum(event.type.partition(".")[0] != "checkout" for event in events)
    running.clock.move(seconds=3)
    assert (await pipeline.sweep()).grants == 3
    assert not await pipeline.sweep()
    assert (await running.answer(events[0].external_id, "key"))["status"] == "granted"


async def test_the_sweep_goes_on_through_failures_and_says_that_it_lives(
    on_sqlite: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = on_sqlite.service.pipeline
    pipeline.settings = pipeline.settings.model_copy(update={"sweep_every": timedelta(milliseconds=5)})
    stopping = asyncio.Event()
    calls = []
    honest = Pipeline.sweep

    async def sweep(self: Pipeline, *, at_once: bool = False) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise sa.exc.OperationalError("database", None, Exception("away"))
        if len(calls) == 4:
            stopping.set()
        return await honest(self, at_once=at_once)

    monkeypatch.setattr(Pipeline, "sweep", sweep)
    await asyncio.wait_for(pipeline.sweep_for_ever(stopping), 5)
    assert len(calls) >= 4
    beaten = await on_sqlite.service.database.read(lambda connection: grants.last_beat(connection, SWEEP_PULSE))
    assert beaten == on_sqlite.clock.at


async def test_the_ledger_stays_small_and_balanced(running: Running) -> None:
    await running.live("purchase")
    database = running.service.database
    before = await database.read(inbox.balance)
    gone = await database.write(lambda connection: inbox.compact_ledger(connection, above=1))
    assert gone > 5
    assert await database.read(inbox.balance) == before
    assert await database.write(lambda connection: inbox.compact_ledger(connection, above=500)) == 0


# A changed benefits file.


async def test_a_new_benefit_reaches_the_customers_there_are(running: Running) -> None:
    customer = await running.live("purchase")
    more = running.service.pipeline.catalogue.text + (
        f'\n[benefits.extra]\nconnector = "custom_link"\nfor = {{ products = ["{PRODUCT}"] }}\nnote = "hi"\n'
    )
    assert await running.service.pipeline.propose(changed(more)) is None
    await running.service.pipeline.drain()
    assert (await running.answer(customer, "extra"))["status"] == "granted"


async def test_a_file_that_would_revoke_too_much_is_held_until_a_person_accepts_it(running: Running) -> None:
    customer = await running.live("purchase")
    pipeline = running.service.pipeline
    before = pipeline.catalogue
    fewer = changed("")
    assert await pipeline.preview(fewer) == (3, 3)
    held = await pipeline.propose(fewer)
    assert held
    assert "3 of 3 live grants (100%)" in held
    assert "ALMONER_MAX_REVOKE_SHARE" in held
    assert pipeline.catalogue.digest == before.digest
    await pipeline.drain()
    assert (await running.answer(customer, "key"))["entitled"] is True
    waiting = await running.service.database.read(catalogues.held)
    assert waiting
    assert waiting["held_because"] == held
    assert await pipeline.propose(fewer, accept=True) is None
    await pipeline.drain()
    assert (await running.answer(customer, "files"))["status"] == "revoked"
    assert await running.service.database.read(catalogues.held) is None


async def test_a_file_that_revokes_little_is_taken_up(running: Running) -> None:
    for seed in range(4):
        await running.live("purchase", seed=seed)
    pipeline = running.service.pipeline
    assert await pipeline.preview(without(pipeline.catalogue, "link")) == (4, 12)
    pipeline.settings = pipeline.settings.model_copy(update={"max_revoke_share": 0.34})
    assert await pipeline.propose(without(pipeline.catalogue, "link")) is None


async def test_the_other_processes_follow_a_new_file_by_themselves(
    database_url: str, tmp_path: Path, catalogue: Catalogue, clock: Clock
) -> None:
    async with (
        run_service(database_url, tmp_path, catalogue, clock) as one,
        run_service(database_url, tmp_path, catalogue, clock) as other,
    ):
        more = changed(catalogue.text.replace("limit_activations = 3", "limit_activations = 5"))
        assert await one.service.pipeline.propose(more) is None
        customer = await other.live("purchase")
        assert other.service.pipeline.catalogue.digest == more.digest
        assert (await other.answer(customer, "key"))["gives"]["limit_activations"] == 5


async def test_a_process_that_only_receives_follows_by_itself_and_survives_a_failure(
    database_url: str, tmp_path: Path, catalogue: Catalogue, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "_FOLLOW_SECONDS", 0.01)
    stopping = asyncio.Event()
    async with (
        run_service(database_url, tmp_path, catalogue, clock) as one,
        run_service(database_url, tmp_path, catalogue, clock) as other,
    ):
        peek, failures = other.service.database.peek, [OSError("gone for a moment")]

        async def fails_once(work: Any) -> Any:
            if failures:
                raise failures.pop()
            return await peek(work)

        monkeypatch.setattr(other.service.database, "peek", fails_once)
        following = asyncio.create_task(other.service.pipeline.follow_for_ever(stopping))
        more = changed(catalogue.text.replace("limit_activations = 3", "limit_activations = 5"))
        assert await one.service.pipeline.propose(more) is None
        for _ in range(200):
            if other.service.pipeline.catalogue.digest == more.digest:
                break
            await asyncio.sleep(0.01)
        else:
            pytest.fail("it never followed")
        stopping.set()
        await following


async def test_a_changed_limit_is_applied_to_the_key_that_there_is(running: Running) -> None:
    """polarsource/polar#5389: editing a benefit granted revoked keys again; here it changes live ones alone."""
    lives = await running.live("purchase", seed=1)
    lost = await running.live("refund", seed=2)
    before = await running.answer(lives, "key")
    pipeline = running.service.pipeline
    more = changed(pipeline.catalogue.text.replace("limit_activations = 3", "limit_activations = 5"))
    assert await pipeline.propose(more) is None
    await pipeline.drain()
    after = await running.answer(lives, "key")
    assert after["gives"]["license_key_id"] == before["gives"]["license_key_id"]
    assert after["gives"]["display_key"] == before["gives"]["display_key"]
    assert after["gives"]["limit_activations"] == 5
    assert (await running.answer(lost, "key"))["status"] == "none"


# What is the same for all customers.


async def test_an_edited_polar_benefit_reaches_the_answers_of_everybody_who_has_it(running: Running) -> None:
    """An edit sends no grant event and no state (polar.md 3.4)."""
    events = running.story("purchase")
    await running.receive(events)
    grant = json.loads(next(event for event in events if event.type == "benefit_grant.created").body)["data"]
    benefit = grant["benefit"] | {"modified_at": "2026-11-02T00:00:00Z", "metadata": {"tier": "gold"}}
    running.clock.move(days=1)

    def update(webhook_id: str, **fields: Any) -> SimulatedEvent:
        at = running.clock.at
        body = {"type": "benefit.updated", "timestamp": at.isoformat(), "data": benefit | fields}
        return SimulatedEvent(webhook_id, "benefit.updated", at, "", "", json.dumps(body).encode())

    stale = update("msg_old", modified_at="2026-01-01T00:00:00Z", metadata={"tier": "stale"})
    await running.receive([update("msg_new"), stale])
    answer = await running.answer(events[0].external_id, POLAR_BENEFIT)
    assert answer["gives"]["metadata"] == {"tier": "gold"}
    state = await running.get(f"/v1/customers/external/{events[0].external_id}/state")
    assert state.json()["granted_benefits"][0]["benefit_metadata"] == {"tier": "gold"}


# Replay.


async def test_replaying_everything_changes_nothing_and_is_never_called_a_duplicate(running: Running) -> None:
    """hookdeck/outpost PR #670: a manual retry was refused as a duplicate for a day."""
    events = [event for seed, name in enumerate(("cancel", "purchase", "seats")) for event in running.story(name, seed)]
    await running.receive(events)
    database = running.service.database
    rows = await database.read(lambda connection: grants.listed(connection, {}, limit=1000))
    states = {
        event.customer_id: (await running.get(f"/v1/customers/{event.customer_id}/state")).json() for event in events
    }
    steps: list[int] = []
    done = await replay(running.service.pipeline, Filter(), progress=steps.append)
    assert done.deliveries == sum(steps) == len(events)
    assert (done.given, done.taken) == (0, 0)
    assert set(done.statuses) == {"done", "ignored"}
    await running.service.pipeline.drain()
    assert await database.read(lambda connection: grants.listed(connection, {}, limit=1000)) == rows
    for customer_id, state in states.items():
        assert (await running.get(f"/v1/customers/{customer_id}/state")).json() == state
    assert (await row_of(running, events[0]))["replays"] == 1


@pytest.mark.parametrize(
    ("chosen", "share"),
    [
        (Filter(type="order.paid"), "order.paid"),
        (Filter(status="dead"), None),
        (Filter(webhook_ids=("nothing",)), None),
    ],
)
async def test_replay_takes_what_was_chosen_alone(running: Running, chosen: Filter, share: str | None) -> None:
    events = running.story("purchase")
    await running.receive(events)
    done = await replay(running.service.pipeline, chosen)
    assert done.deliveries == sum(event.type == share for event in events)


async def test_deliveries_are_found_by_each_of_the_filters(running: Running) -> None:
    first = running.story("purchase", 1)
    await running.receive(first)
    running.clock.move(hours=1)
    middle = running.clock.at
    second = running.story("purchase", 2)
    await running.receive(second)
    database = running.service.database

    async def found(**chosen: Any) -> int:
        count = await database.read(lambda connection: inbox.count(connection, Filter(**chosen)))
        listed = await database.read(lambda connection: inbox.listed(connection, Filter(**chosen), limit=1000))
        assert len(listed) == count
        return count

    assert await found() == len(first) + len(second)
    assert await found(since=middle) == len(second)
    assert await found(until=middle) == len(first)
    assert await found(customer_id=first[0].customer_id) == sum(e.type.split(".")[0] != "checkout" for e in first)
    assert await found(status="ignored") == 6
    assert await found(type="order.paid") == 2
    assert await found(webhook_ids=(first[0].webhook_id, second[0].webhook_id)) == 2
    assert Filter().is_empty
    page = await database.read(lambda connection: inbox.listed(connection, Filter(), limit=5))
    older = await database.read(lambda connection: inbox.listed(connection, Filter(), limit=5, before=page[-1]["id"]))
    assert page[-1]["id"] == older[0]["id"] + 1


async def test_rotating_the_secret_shows_when_the_old_one_is_no_longer_used(
    sqlite_url: str, tmp_path: Path, catalogue: Catalogue, clock: Clock
) -> None:
    new = "whsec_HxAREhMUFRYXGBkaGxwdHh8AAQIDBAUGBwgJCgsMDQ4="
    async with run_service(sqlite_url, tmp_path, catalogue, clock, webhook_secrets=f"{new},{SECRET}") as running:
        first, second, third = running.story("purchase")[:3]
        assert (await running.post(first, SECRET)).status_code == 202
        clock.move(minutes=1)
        assert (await running.post(second, new)).status_code == 202
        clock.move(seconds=1)
        assert (await running.post(third, new)).status_code == 202
        await running.service.pipeline.close()
        uses = await running.service.database.read(inbox.secrets_in_use)
        assert [use["secret"] for use in uses] == [fingerprint(new), fingerprint(SECRET)]
        await running.service.pipeline.drain()


async def test_customers_are_found_by_either_id(running: Running) -> None:
    events = running.story("purchase")
    await running.receive(events)
    for name, found in (
        (events[0].customer_id, events[0].customer_id),
        (events[0].external_id, events[0].customer_id),
        ("nobody", None),
    ):
        assert await running.service.database.read(partial(customers.find, name=name)) == found


async def test_a_trigger_of_commands_does_nothing(on_sqlite: Running) -> None:
    pipeline = dataclasses.replace(on_sqlite.service.pipeline, trigger=NoTrigger())
    await pipeline.trigger.process([1])
    await pipeline.trigger.settle(["x"])
    assert BENEFITS


async def test_a_held_file_is_held_with_its_grace_too(
    database_url: str, tmp_path: Path, catalogue: Catalogue, clock: Clock
) -> None:
    """ALMONER_GRACE is part of what is in force: a process with another one follows what was decided."""
    text = catalogue.text.replace('grace = "3d"\n', "")
    generous, strict = (parse_catalogue(text, TERMS, timedelta(days=days)) for days in (30, 0))
    async with run_service(database_url, tmp_path, generous, clock) as running:
        customer = await running.live("past-due")
        assert (await running.answer(customer, "key"))["standing"] == "grace"
        pipeline = running.service.pipeline
        held = await pipeline.propose(strict)
        assert held
        assert pipeline.catalogue.digest == generous.digest
        pipeline.catalogue = strict  # as a process with another ALMONER_GRACE begins
        await replay(pipeline, Filter())
        await pipeline.follow()
        await replay(pipeline, Filter())
        await pipeline.drain(rounds=20)
        assert (await running.answer(customer, "key"))["entitled"] is True
        assert not await pipeline.sweep(at_once=True), "the sweep comes to rest"


async def test_of_two_processes_that_start_with_different_files_one_decides(
    database_url: str, tmp_path: Path, catalogue: Catalogue, clock: Clock
) -> None:
    other = changed(catalogue.text + "\n# another digest\n")
    async with (
        open_service(settings_for(database_url, tmp_path), catalogue, now=clock) as one,
        open_service(settings_for(database_url, tmp_path), other, now=clock) as two,
    ):
        for _ in range(5):
            await asyncio.gather(*(
                service.pipeline.propose(file)
                for service, file in ((one, catalogue), (two, other), (one, other), (two, catalogue))
            ))  # fmt: skip
            row = await one.database.read(catalogues.in_force)  # raises where there are two
            assert row
            assert row["digest"] in {catalogue.digest, other.digest}


async def test_a_file_in_force_that_this_version_cannot_read_does_not_stop_its_work(running: Running) -> None:
    customer = await running.live("purchase")
    text = running.service.pipeline.catalogue.text + '\n[benefits.new]\nconnector = "of_tomorrow"\n'
    tomorrow = dataclasses.replace(running.service.pipeline.catalogue, text=text, digest="tomorrow")
    now = running.clock.at
    await running.service.database.write(lambda connection: catalogues.put_in_force(connection, tomorrow, now))
    other = await running.live("purchase", seed=2)
    for name in (customer, other):
        assert (await running.answer(name, "key"))["status"] == "granted"
    assert not await running.service.pipeline.sweep(at_once=True)


async def test_a_receiver_follows_the_file_in_force_before_it_replays_or_says_that_a_benefit_is_unknown(
    database_url: str, tmp_path: Path, catalogue: Catalogue, clock: Clock
) -> None:
    async with (
        run_service(database_url, tmp_path, catalogue, clock) as receiving,
        run_service(database_url, tmp_path, catalogue, clock) as working,
    ):
        events = working.story("purchase")
        await working.receive(events)
        more = changed(
            catalogue.text
            + f'\n[benefits.extra]\nconnector = "custom_link"\nfor = {{ products = ["{PRODUCT}"] }}\nnote = "hi"\n'
        )
        assert await working.service.pipeline.propose(more) is None
        await working.service.pipeline.drain()
        assert (await receiving.answer("nobody", "extra"))["entitled"] is False
        receiving.service.pipeline.catalogue = catalogue
        answer = await receiving.client.post(
            f"/ops/deliveries/{events[-1].webhook_id}/replay", headers={"authorization": "Bearer ops-token-1"}
        )
        assert (answer.json()["grants_given"], answer.json()["grants_taken"]) == (0, 0)
        assert (await working.answer(events[0].external_id, "extra"))["status"] == "granted"


async def test_a_benefit_that_everybody_has_is_made_known_a_few_at_a_time(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    for seed in range(5):
        events = running.story("purchase", seed)
        await running.receive(events)
        names.append(events[0].external_id)
    grant = json.loads(next(event for event in events if event.type == "benefit_grant.created").body)["data"]
    at = running.clock.at
    body = {"type": "benefit.updated", "timestamp": at.isoformat(),
            "data": grant["benefit"] | {"modified_at": at.isoformat(), "metadata": {"tier": "gold"}}}  # fmt: skip
    await running.post(SimulatedEvent("m", "benefit.updated", at, "", "", json.dumps(body).encode()))
    database, pipeline = running.service.database, running.service.pipeline
    await pipeline.close()  # the trigger is on its way
    await pipeline.process(running.trigger.deliveries)
    spread = [await database.write(partial(customers.spread, now=at, limit=2)) for _ in range(4)]
    assert spread == [2, 2, 1, 0]
    await pipeline.drain()
    for name in names:
        assert (await running.answer(name, POLAR_BENEFIT))["gives"]["metadata"] == {"tier": "gold"}


async def test_an_idle_worker_processes_what_it_accepts_and_a_busy_one_leaves_it_to_the_queue(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = running.service.pipeline
    pipeline.works_near = True
    events = [event for event in running.story("purchase") if not event.type.startswith("checkout")]
    await running.post(events[0])
    await pipeline.close()
    assert (await row_of(running, events[0]))["status"] == "done"
    assert running.trigger.deliveries == []
    go, begun = asyncio.Event(), asyncio.Event()
    honest = Pipeline.process

    async def slow(self: Pipeline, ids: Any) -> Any:
        begun.set()
        await go.wait()
        return await honest(self, ids)

    monkeypatch.setattr(Pipeline, "process", slow)
    await running.post(events[1])
    await begun.wait()
    await running.post(events[2])
    for _ in range(5000):
        if running.trigger.deliveries:
            break
        await asyncio.sleep(0.001)
    go.set()
    await pipeline.close()
    assert running.trigger.deliveries == [(await row_of(running, events[2]))["id"]]
    assert (await row_of(running, events[1]))["status"] == "done"


async def test_a_step_that_fails_near_is_left_to_the_sweep(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(self: Pipeline, ids: Any) -> Any:
        raise sa.exc.OperationalError("database", None, Exception("away"))

    pipeline = running.service.pipeline
    pipeline.works_near = True
    event = running.story("purchase")[0]
    with monkeypatch.context() as patched:
        patched.setattr(Pipeline, "process", fail)
        await running.post(event)
        await pipeline.close()
    assert (await row_of(running, event))["status"] == "pending"
    running.clock.move(seconds=3)
    await pipeline.drain()
    assert (await row_of(running, event))["status"] == "done"
