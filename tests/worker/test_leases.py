"""Two workers on one database: neither acts on what the other is at, and nothing is left to the one that died."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy.util import await_only
from structlog.testing import capture_logs

from config.catalogue import BenefitConfig, Per, parse_catalogue
from config.settings import Settings
from connectors import TERMS
from connectors.base import ActionRequired, ConnectorError, Holding, Receipt, Recipient, Serving
from connectors.custom_link import Terms
from tests.conftest import PRODUCT, SECOND_PRODUCT, Clock, Recorded, Running, run_service
from worker.app import open_service
from worker.pipeline import Pipeline
from worker.simulate import SimulatedEvent
from worker.store import customers, grants, inbox
from worker.store.database import Database

BENEFITS = f"""
[benefits.door]
connector = "custom_link"
for = {{ products = ["{PRODUCT}"] }}
url = "https://example.com/{{customer.external_id}}"

[benefits.hall]
connector = "custom_link"
for = {{ products = ["{SECOND_PRODUCT}"] }}
url = "https://example.com/hall"
"""

SHARED = "hall"


@dataclass
class Platform(Serving):
    """The world outside, as both workers see it. Calls whose gates are given wait there, after having had effect."""

    Config: ClassVar[type[BenefitConfig]] = Terms
    per: ClassVar[Per] = "customer"
    dynamic: ClassVar[bool] = False

    is_shared: bool = False
    inside: set[str] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)
    gates: list[asyncio.Event] = field(default_factory=list)
    refuses: list[ConnectorError] = field(default_factory=list)
    naming: list[Callable[[], Coroutine[Any, Any, None]]] = field(default_factory=list)
    at_once: Counter[str] = field(default_factory=Counter)
    most_at_once: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def called(self, calls: int) -> None:
        """Wait until so many calls had their effect, and the last waits at its gate."""
        while len(self.calls) < calls or self.gates:
            self.changed.clear()
            await self.changed.wait()

    @staticmethod
    def missing(config: Any, settings: Settings) -> list[str]:
        return []

    def resource(self, to: Recipient, config: Any) -> str:
        if self.refuses:
            raise self.refuses.pop()
        if self.naming:
            await_only(self.naming.pop()())
        return SHARED if self.is_shared else f"door:{to.customer_id}"

    async def grant(self, to: Recipient, config: Any, held: Receipt | None) -> Receipt:
        assert held is None or not held.intended
        resource = self.resource(to, config)
        number = await self._act("grant", resource, lambda: self.inside.add(resource))
        return Receipt(resource, {"call": number})

    async def revoke(self, held: Receipt, *, last: bool = True) -> None:
        await self._act("revoke", held.resource, lambda: self.inside.discard(held.resource))

    async def holds(self, held: Receipt) -> Holding:
        return Holding.HELD if held.resource in self.inside else Holding.GONE

    def offer(self, held: Receipt) -> dict[str, Any]:
        return {"kind": "link", **held.data}

    @staticmethod
    def present(offer: dict[str, Any], grant_id: str, at: Any) -> dict[str, Any]:
        return offer

    async def _act(self, what: str, resource: str, effect: Callable[[], None]) -> int:
        self.calls.append(what)
        number = len(self.calls)
        self.at_once[resource] += 1
        self.most_at_once = max(self.most_at_once, *self.at_once.values())
        try:
            await asyncio.sleep(0.001)
            effect()
            if self.gates:
                gate = self.gates.pop(0)
                self.changed.set()
                await gate.wait()
        finally:
            self.at_once[resource] -= 1
        return number


@dataclass
class Two:
    """Two workers, and a receiver that has the first one's database open."""

    running: Running
    platform: Platform
    first: Pipeline
    second: Pipeline

    async def post(self, events: Sequence[SimulatedEvent]) -> None:
        for event in events:
            assert (await self.running.post(event)).status_code == 202

    async def process(self, by: Pipeline) -> list[str]:
        """Fold everything that was received; returns the grants that are due, which nobody has settled yet."""
        now = self.running.clock.at
        found = await by.database.read(
            lambda connection: inbox.due(connection, now, untouched_since=now, limit=10_000)
        )  # fmt: skip
        await by.process(found)
        return await by.database.read(lambda connection: grants.due(connection, now, untouched_since=now, limit=1000))

    async def bought(self, seed: int = 1) -> tuple[list[SimulatedEvent], list[str]]:
        """A purchase, folded; returns the events of its refund, and the grants to settle."""
        events = self.running.story("refund", seed)
        paid = next(number for number, event in enumerate(events) if event.type == "refund.created")
        await self.post(events[:paid])
        return events[paid:], await self.process(self.first)

    async def drain(self) -> None:
        """Both work until there is nothing left to do."""
        while any(await asyncio.gather(self.first.sweep(at_once=True), self.second.sweep(at_once=True))):
            pass

    async def until_called(self, calls: int) -> None:
        async with asyncio.timeout(5):
            await self.platform.called(calls)

    async def outlive_the_lease(self) -> None:
        self.running.clock.move(seconds=self.first.settings.call_timeout.total_seconds() + 6)

    async def rows(self) -> list[dict[str, Any]]:
        return await self.first.database.read(lambda connection: grants.listed(connection, {}, limit=1000))

    async def row(self) -> dict[str, Any]:
        [row] = await self.rows()
        return row


@pytest.fixture
async def two(database_url: str, tmp_path: Path, clock: Clock) -> AsyncIterator[Two]:
    catalogue = parse_catalogue(BENEFITS, TERMS, timedelta())
    platform = Platform()
    async with (
        run_service(database_url, tmp_path, catalogue, clock) as running,
        open_service(running.service.settings, catalogue, trigger=Recorded(), now=clock) as other,
    ):
        for service in (running.service, other):
            service.pipeline.connectors = {**service.pipeline.connectors, "custom_link": platform}
        yield Two(running, platform, running.service.pipeline, other.pipeline)


async def test_two_workers_that_are_told_the_same_do_it_once(two: Two) -> None:
    ids: list[str] = []
    for seed in range(8):
        _, ids = await two.bought(seed)
    acted = await asyncio.gather(*(worker.settle(ids) for worker in (two.first, two.second) * 3))
    assert sum(acted) == len(ids) == 8
    assert two.platform.calls == ["grant"] * 8
    assert {row["status"] for row in await two.rows()} == {"granted"}


async def test_two_workers_are_never_at_one_external_resource_at_once(two: Two) -> None:
    """Many customers' grants are about one thing; it is given by each, and taken with the last."""
    two.platform.is_shared = True
    refunds = [(await two.bought(seed))[0] for seed in range(6)]
    await two.drain()
    assert {row["status"] for row in await two.rows()} == {"granted"}
    for events in refunds[:-1]:
        await two.post(events)
    await two.drain()
    assert Counter(row["status"] for row in await two.rows()) == {"revoked": 5, "granted": 1}
    assert two.platform.inside == {SHARED}
    await two.post(refunds[-1])
    await two.drain()
    assert two.platform.inside == set()
    assert Counter(two.platform.calls) == {"grant": 6, "revoke": 1}
    assert two.platform.most_at_once == 1


async def test_what_waited_for_the_resource_is_triggered_as_soon_as_it_is_free(two: Two) -> None:
    two.platform.is_shared = True
    refunds = [(await two.bought(seed))[0] for seed in (1, 2)]
    await two.drain()
    for refund in refunds:
        await two.post(refund)
    ids = await two.process(two.first)
    gate = asyncio.Event()
    two.platform.gates = [gate]
    told = two.first.trigger = Recorded()
    settling = asyncio.create_task(two.first.settle([ids[0]]))
    await two.until_called(3)
    assert await two.second.settle(ids) == 0
    gate.set()
    await settling
    assert told.grants == [ids[1]]
    await two.second.settle(told.grants)
    assert {row["status"] for row in await two.rows()} == {"revoked"}


async def test_a_lease_that_ran_out_is_taken_over_and_the_late_result_is_not_saved(two: Two) -> None:
    _, ids = await two.bought()
    gate = asyncio.Event()
    two.platform.gates = [gate]
    late = asyncio.create_task(two.first.settle(ids))
    await two.until_called(1)
    assert await two.second.settle(ids) == 0
    await two.outlive_the_lease()
    assert await two.second.settle(ids) == 1
    before = await two.row()
    assert (before["status"], msgspec.json.decode(before["receipt"])["data"]) == ("granted", {"call": 2})
    gate.set()
    await late
    assert await two.row() == before


async def test_a_late_grant_does_not_undo_a_revocation_in_our_books(two: Two) -> None:
    refund, ids = await two.bought()
    gate = asyncio.Event()
    two.platform.gates = [gate]
    late = asyncio.create_task(two.first.settle(ids))
    await two.until_called(1)
    await two.outlive_the_lease()
    await two.post(refund)
    await two.process(two.second)
    assert await two.second.settle(ids) == 1
    assert two.platform.inside == set()
    gate.set()
    await late
    row = await two.row()
    assert (row["status"], row["receipt"], row["next_attempt_at"]) == ("revoked", None, None)


async def test_a_will_that_changes_while_the_other_worker_acts_is_settled_afterwards(two: Two) -> None:
    refund, ids = await two.bought()
    gate = asyncio.Event()
    two.platform.gates = [gate]
    acting = asyncio.create_task(two.first.settle(ids))
    await two.until_called(1)
    await two.post(refund)
    await two.process(two.second)
    assert await two.second.settle(ids) == 0
    gate.set()
    await acting
    row = await two.row()
    assert (row["status"], row["wanted"], row["held"] in two.platform.inside) == ("revoking", False, True)
    told = two.first.trigger
    assert isinstance(told, Recorded)
    assert told.grants[-1:] == ids
    await two.second.settle(ids)
    assert two.platform.inside == set()
    assert (await two.row())["status"] == "revoked"


@pytest.mark.parametrize("is_refunded", [False, True])
async def test_what_a_worker_did_before_it_died_is_found_by_the_other(two: Two, *, is_refunded: bool) -> None:
    """It dies between the platform's act and our note of it: only the intended receipt tells."""
    refund, ids = await two.bought()
    two.platform.gates = [asyncio.Event()]
    dying = asyncio.create_task(two.first.settle(ids))
    await two.until_called(1)
    row = await two.row()
    assert msgspec.json.decode(row["receipt"]) == {
        "resource": row["held"],
        "data": {},
        "connector": "custom_link",
        "intended": True,
        "waiting": None,
        "offers": 0,
    }
    assert row["held"] in two.platform.inside
    dying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dying
    if is_refunded:
        await two.post(refund)
        await two.process(two.second)
    assert not await two.second.settle(ids)  # the lease still stands
    await two.outlive_the_lease()
    await two.second.drain()
    assert bool(two.platform.inside) is not is_refunded
    assert (await two.row())["status"] == ("revoked" if is_refunded else "granted")
    assert two.platform.calls == ["grant", "revoke" if is_refunded else "grant"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # SQLite has one writer at a time
async def test_a_will_that_changes_between_reading_it_and_taking_the_lease_is_not_acted_upon(two: Two) -> None:
    """What is given by then would never be taken back: for the other worker, nothing was there."""
    refund, ids = await two.bought()
    await two.post(refund)

    async def meanwhile() -> None:
        assert await two.process(two.second) == ids
        assert await two.second.settle(ids) == 1

    two.platform.naming = [meanwhile]
    assert await two.first.settle(ids) == 0
    await two.drain()
    assert two.platform.calls == []
    row = await two.row()
    assert (row["status"], row["receipt"], row["next_attempt_at"]) == ("revoked", None, None)


@dataclass
class Paused:
    """A database whose second write, the one that saves what came of settling, waits."""

    database: Database
    may: asyncio.Event = field(default_factory=asyncio.Event)
    waits: asyncio.Event = field(default_factory=asyncio.Event)
    writes: int = 0

    async def write(self, work: Callable[[sa.Connection], Any]) -> Any:
        self.writes += 1
        if self.writes == 2:
            self.waits.set()
            await self.may.wait()
        return await self.database.write(work)


async def pause_before_saving(worker: Pipeline, ids: list[str]) -> tuple[asyncio.Task[int], asyncio.Event]:
    paused = Paused(worker.database)
    worker.database = paused  # type: ignore[assignment]
    settling = asyncio.create_task(worker.settle(ids))
    await paused.waits.wait()
    worker.database = paused.database
    return settling, paused.may


async def die_while_giving(two: Two, worker: Pipeline, ids: list[str]) -> asyncio.Task[int]:
    """The platform has given it; nobody has written down more than what was intended."""
    two.platform.gates = [asyncio.Event()]
    settling = asyncio.create_task(worker.settle(ids))
    await two.until_called(1)
    settling.cancel()
    assert two.platform.inside
    return settling


async def test_finding_nothing_to_take_back_does_not_wipe_out_what_is_given_meanwhile(two: Two) -> None:
    """It needs no lease, so its result may be late: it counts only if nobody was there since."""
    refund, ids = await two.bought()
    await two.post(refund)
    await two.process(two.first)
    late, may_save = await pause_before_saving(two.second, ids)
    customer_id = refund[0].customer_id
    by_hand = {
        "id": "1", "customer_id": customer_id, "member_id": None, "benefit": "door", "reason": "sorry",
        "given_by": "operator", "created_at": two.running.clock.at, "ends_at": None,
    }  # fmt: skip
    await two.first.database.write(lambda connection: customers.give_by_hand(connection, by_hand))
    await two.first.refresh([customer_id])
    await die_while_giving(two, two.first, ids)
    may_save.set()
    await late
    assert (await two.row())["held"] in two.platform.inside
    await two.first.database.write(
        lambda connection: customers.withdraw(connection, customer_id, "door", two.running.clock.at)
    )
    await two.outlive_the_lease()
    await two.drain()
    assert two.platform.inside == set()
    assert (await two.row())["status"] == "revoked"


async def test_a_late_refusal_does_not_wipe_out_what_is_given_meanwhile(two: Two) -> None:
    _, ids = await two.bought()
    two.platform.refuses = [ActionRequired("connect your account", who="customer")]
    late, may_save = await pause_before_saving(two.second, ids)
    await die_while_giving(two, two.first, ids)
    may_save.set()
    await late
    row = await two.row()
    assert (row["status"], row["who"], row["held"] in two.platform.inside) == ("granting", None, True)
    await two.outlive_the_lease()
    await two.drain()
    assert (await two.row())["status"] == "granted"


async def test_a_worker_settles_what_it_planned_without_the_queue_unless_it_is_busy(two: Two) -> None:
    told = two.first.trigger = Recorded()
    two.first.works_near = True
    gates = [asyncio.Event() for _ in range(8)]
    two.platform.gates = gates.copy()
    for seed in range(10):
        await two.bought(seed)
    await two.until_called(8)
    assert len(told.grants) == 2
    for gate in gates:
        gate.set()
    await two.first.close()
    assert Counter(row["status"] for row in await two.rows()) == {"granted": 8, "granting": 2}
    await two.drain()


async def test_what_cannot_be_settled_near_is_logged_and_left_to_the_sweep(two: Two) -> None:
    two.first.works_near = True
    gate = asyncio.Event()
    two.platform.gates = [gate]
    await two.bought()
    await two.until_called(1)
    database, two.first.database = two.first.database, Broken()  # type: ignore[assignment]
    gate.set()
    with capture_logs() as logs:
        await two.first.close()
    two.first.database = database
    assert [(one["log_level"], one["count"]) for one in logs] == [("error", 1)]
    await two.outlive_the_lease()
    await two.drain()
    assert (await two.row())["status"] == "granted"


class Broken:
    """A database that is gone."""

    async def write(self, work: Callable[[sa.Connection], Any]) -> Any:
        raise ConnectionRefusedError


async def test_two_workers_that_fold_the_same_deliveries_do_it_once(two: Two) -> None:
    for seed in range(4):
        await two.post(two.running.story("renewal", seed))
    now = two.running.clock.at
    ids = await two.first.database.read(lambda connection: inbox.due(connection, now, untouched_since=now, limit=1000))
    folded = await asyncio.gather(*(worker.process(ids) for worker in (two.first, two.second) * 2))
    assert sorted(outcome.id for one in folded for outcome in one.outcomes) == sorted(ids)
    assert await two.first.database.read(customers.total) == 4
    await two.drain()
