"""Limits of platforms: in no span of time more calls than allowed, by all workers together, on both databases."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.base import Rate, Unavailable
from tests.conftest import Clock
from worker.limits import StoredLimits
from worker.store import limits
from worker.store.database import Database

MINUTE = Rate("github:app:writes", 3, 60)
HOUR = Rate("github:app:writes-hour", 5, 3600)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = Database(database_url)
    yield opened
    await opened.close()


@pytest.fixture
def stored(database: Database, clock: Clock) -> StoredLimits:
    return StoredLimits(database, clock, patience=0)


async def refused(stored: StoredLimits, *rates: Rate) -> float:
    with pytest.raises(Unavailable) as caught:
        await stored.take(*rates)
    assert caught.value.retry_after is not None, "waiting for a limit uses up no attempt"
    return caught.value.retry_after


async def test_as_many_as_allowed_pass_and_the_next_is_told_when_there_is_a_place(
    stored: StoredLimits, clock: Clock
) -> None:
    for _ in range(3):
        await stored.take(MINUTE)
        clock.move(seconds=1)
    wait = await refused(stored, MINUTE)
    assert 57 <= wait <= 60
    clock.move(seconds=wait)
    await stored.take(MINUTE)


async def test_two_workers_share_what_is_left(database: Database, clock: Clock) -> None:
    one, other = (StoredLimits(database, clock, patience=0) for _ in range(2))
    outcomes = await asyncio.gather(*(who.take(MINUTE) for who in (one, other) * 5), return_exceptions=True)
    assert sum(outcome is None for outcome in outcomes) == 3


async def test_places_are_taken_under_all_limits_or_none(stored: StoredLimits, clock: Clock) -> None:
    await stored.take(MINUTE, HOUR)
    for _ in range(4):
        clock.move(minutes=2)
        await stored.take(HOUR)
    assert await refused(stored, MINUTE, HOUR) > 60
    for _ in range(3):  # the refused ones took nothing
        await stored.take(MINUTE)


async def test_two_calls_take_two_places_at_once_or_none(stored: StoredLimits, clock: Clock) -> None:
    await stored.take(MINUTE, MINUTE)
    clock.move(seconds=10)
    assert 50 <= await refused(stored, MINUTE, MINUTE) <= 52
    await stored.take(MINUTE)


async def test_checking_takes_nothing_and_refuses_as_taking_would(stored: StoredLimits, clock: Clock) -> None:
    for _ in range(5):
        await stored.check(MINUTE)
    for _ in range(3):
        await stored.take(MINUTE)
    with pytest.raises(Unavailable):
        await stored.check(MINUTE)


async def test_those_who_wait_are_told_different_times_so_that_they_do_not_all_come_at_once(
    stored: StoredLimits, clock: Clock
) -> None:
    for _ in range(3):
        await stored.take(MINUTE)
        clock.move(seconds=10)
    waits = [await refused(stored, MINUTE) for _ in range(6)]
    assert waits == sorted(waits)
    assert [round(later - earlier) for earlier, later in zip(waits, waits[3:], strict=False)] == [61, 61, 61]


async def test_what_is_parked_is_refused_whatever_is_left_and_the_longer_wait_counts(
    stored: StoredLimits, clock: Clock, database: Database
) -> None:
    await stored.park(MINUTE.name, 100, "GitHub asked us to wait")
    await stored.park(MINUTE.name, 10, "shorter")
    with pytest.raises(Unavailable, match="GitHub asked us to wait") as caught:
        await stored.take(MINUTE)
    assert caught.value.retry_after == 100
    parked = await database.read(partial(limits.parked, now=clock.at))
    assert parked == {MINUTE.name: (clock.at + timedelta(seconds=100), "GitHub asked us to wait")}
    clock.move(seconds=100)
    await stored.take(MINUTE)
    assert await database.read(partial(limits.parked, now=clock.at)) == {}


async def test_what_the_platform_says_of_its_limit_counts_from_then_on(stored: StoredLimits) -> None:
    await stored.learn(Rate(MINUTE.name, 1, 10))
    await stored.learn(Rate(MINUTE.name, 1, 10))
    await stored.take(MINUTE)
    assert await refused(stored, MINUTE) <= 11


async def test_a_short_wait_is_slept_through(database: Database) -> None:
    from worker.app import utc_now

    stored = StoredLimits(database, utc_now)
    quick = Rate("discord:bot", 2, 0.1)
    for _ in range(6):
        await stored.take(quick)


async def test_limits_that_nobody_uses_are_forgotten(stored: StoredLimits, clock: Clock, database: Database) -> None:
    await stored.take(MINUTE)
    await stored.take(HOUR)
    clock.move(days=3)
    await stored.take(HOUR)
    await database.write(partial(limits.prune, now=clock.at))
    left = await database.read(lambda connection: connection.execute(limits.limits.select()).all())
    assert [row.name for row in left] == [HOUR.name]


class Row:
    """A limit's row, in memory."""

    parked_until = reason = most = seconds = None
    calls = promised = b""


@given(st.lists(st.floats(0, 30), min_size=1, max_size=60), st.integers(1, 5))
@settings(deadline=None, max_examples=200)
def test_no_span_of_time_ever_has_more_calls_than_allowed(steps: Sequence[float], limit: int) -> None:
    """Whoever is refused comes again when told, and whoever comes in between may take a place too."""
    rate, row, at, calls = Rate("x", limit, 20), Row(), 1_000_000.0, []
    for step in steps:
        at += step
        window = limits._Window(row, rate, at, 1)
        if window.first_free > at:
            assert window.promise() >= window.first_free
        else:
            window.calls.append(at)
            calls.append(at)
        row.calls, row.promised = window.calls.tobytes(), window._promised.tobytes()
    for start in calls:
        assert sum(start <= one < start + rate.seconds for one in calls) <= limit
