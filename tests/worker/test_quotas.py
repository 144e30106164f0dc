"""Quotas: calls of all processes count together, and what nobody exceeds costs nothing."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa

from tests.conftest import Clock
from worker import quotas as module
from worker.quotas import Quotas
from worker.store import quotas as stored
from worker.store.database import Database


@pytest.fixture
async def databases(database_url: str) -> AsyncIterator[list[Database]]:
    opened = [Database(database_url) for _ in range(2)]
    yield opened
    for one in opened:
        await one.close()


async def counted(database: Database) -> dict[str, int]:
    def look(connection: sa.Connection) -> dict[str, int]:
        return {row.name: row.count_ for row in connection.execute(
            sa.select(stored.quotas.c.name, stored.quotas.c.count.label("count_"))
        )}  # fmt: skip

    return await database.read(look)


async def let_through(quotas: list[Quotas], calls: int, most: int) -> int:
    answers = [await quotas[number % len(quotas)].take("somebody", most) for number in range(calls)]
    return answers.count(None)


async def test_two_processes_together_let_no_more_through_than_the_quota(
    databases: list[Database], clock: Clock
) -> None:
    both = [Quotas(one, clock) for one in databases]
    assert await let_through(both, 100, 40) == 40
    assert await both[0].take("somebody", 40) == 60
    assert await both[1].take("somebody else", 40) is None


async def test_of_many_calls_at_once_each_process_more_lets_a_twelfth_more_through_at_most(
    databases: list[Database], clock: Clock
) -> None:
    both = [Quotas(one, clock) for one in databases]
    calls = [both[number % 2].take("somebody", 40) for number in range(200)]
    assert 40 <= (await asyncio.gather(*calls)).count(None) <= 40 + 40 // 12


async def test_who_asks_little_is_never_written(databases: list[Database], clock: Clock) -> None:
    quotas = Quotas(databases[0], clock)
    for number in range(50):
        assert await quotas.take(f"key-{number}", 120) is None
    assert await counted(databases[0]) == {}


async def test_a_new_minute_begins_anew_and_the_wait_is_until_then(databases: list[Database], clock: Clock) -> None:
    quotas = Quotas(databases[0], clock)
    clock.move(seconds=25.5)
    assert await let_through([quotas], 5, 4) == 4
    assert await quotas.take("somebody", 4) == 35
    clock.move(seconds=35)
    assert await quotas.take("somebody", 4) is None


async def test_zero_is_no_limit(databases: list[Database], clock: Clock) -> None:
    quotas = Quotas(databases[0], clock)
    assert await let_through([quotas], 50, 0) == 50


async def test_while_the_database_fails_each_process_counts_alone(databases: list[Database], clock: Clock) -> None:
    await databases[0].close()
    quotas = Quotas(databases[0], clock)
    assert await let_through([quotas], 20, 8) == 8


async def test_who_waits_for_the_database_holds_up_nobody_else(
    databases: list[Database], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 0.05)
    quotas, waiting = Quotas(databases[0], clock), asyncio.Event()

    async def hangs(_work: object) -> int:
        await waiting.wait()
        return 0

    monkeypatch.setattr(databases[0], "write", hangs)
    began = time.monotonic()
    answers = await asyncio.gather(*(quotas.take(f"name-{number}", 8) for number in range(40)))
    assert answers == [None] * 40
    assert time.monotonic() - began < 1.0
    waiting.set()


async def test_minutes_that_have_ended_are_forgotten(databases: list[Database], clock: Clock) -> None:
    quotas = Quotas(databases[0], clock)
    await let_through([quotas], 4, 4)
    clock.move(hours=3)
    await databases[0].write(lambda connection: stored.prune(connection, clock()))
    assert await counted(databases[0]) == {}
