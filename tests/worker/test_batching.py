"""Work that waits together is done together, and everybody waits for exactly what they asked for."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from worker.batching import Together


@dataclass
class Work:
    """Work that is held up until a test lets it go on; items named `bad` make their whole call fail."""

    calls: list[list[str]] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    going: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    at_once: int = 0
    most_at_once: int = 0

    async def __call__(self, items: Sequence[str]) -> None:
        self.calls.append(list(items))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.going.acquire()
            if "bad" in items:
                raise ValueError("bad")
            self.done += items
        finally:
            self.at_once -= 1

    def let(self, calls: int = 100) -> None:
        for _ in range(calls):
            self.going.release()


async def settled() -> None:
    """Let everything run that can run now."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_comes_alone_waits_for_nothing() -> None:
    work = Work()
    work.let()
    together = Together(work, most=10, rest=30)
    async with asyncio.timeout(1):
        await together(["a"])
    assert work.calls == [["a"]]


async def test_what_comes_during_a_call_shares_the_next_in_order() -> None:
    work = Work()
    together = Together(work, most=10)
    async with asyncio.TaskGroup() as asking:
        asking.create_task(together(["a"]))
        await settled()
        for item in ("b", "c", "d"):
            asking.create_task(together([item]))
        await settled()
        work.let()
    assert work.calls == [["a"], ["b", "c", "d"]]


async def test_an_item_that_waits_already_is_done_once_and_one_that_is_being_done_is_done_again() -> None:
    work = Work()
    together = Together(work, most=10)
    async with asyncio.TaskGroup() as asking:
        asking.create_task(together(["a"]))
        await settled()
        asking.create_task(together(["a", "b", "b"]))  # `a` may have changed since the first call read it
        asking.create_task(together(["b"]))
        await settled()
        work.let()
    assert work.calls == [["a"], ["a", "b"]]


async def test_a_call_takes_no_more_than_the_most_and_nothing_is_left_over() -> None:
    work = Work()
    work.let()
    together = Together(work, most=2)
    await together(["a", "b", "c", "d", "e"])
    assert work.calls == [["a", "b"], ["c", "d"], ["e"]]
    assert work.done == ["a", "b", "c", "d", "e"]


async def test_it_returns_only_when_its_own_items_are_done() -> None:
    """Somebody else may have begun the call that has our items: a job that ended early would be waited for by none."""
    work = Work()
    together = Together(work, most=2)
    first = asyncio.create_task(together(["a", "b"]))
    ours = asyncio.create_task(together(["c", "d"]))
    await settled()
    other = asyncio.create_task(together(["e"]))
    await settled()
    work.let(1)
    await first
    await settled()
    assert not ours.done()
    work.let(1)
    await ours
    assert work.done == ["a", "b", "c", "d"]
    work.let(1)
    await other


async def test_no_more_calls_at_once_than_allowed() -> None:
    work = Work()
    together = Together(work, most=1, at_once=3)
    async with asyncio.TaskGroup() as asking:
        asking.create_task(together([str(number) for number in range(7)]))
        await settled()
        assert len(work.calls) == 3
        work.let()
    assert work.most_at_once == 3
    assert len(work.done) == 7


async def test_a_call_that_fails_fails_for_those_in_it_and_for_nobody_else() -> None:
    work = Work()
    together = Together(work, most=2)
    good, bad, after = (asyncio.create_task(together(items)) for items in (["a", "b"], ["bad", "c"], ["d"]))
    await settled()
    work.let()
    await good
    with pytest.raises(ValueError, match="bad"):
        await bad
    await after
    assert work.done == ["a", "b", "d"]
    await together(["c"])
    assert work.done[-1] == "c"


async def test_the_rest_of_what_was_asked_is_done_even_where_a_part_fails() -> None:
    work = Work()
    work.let()
    together = Together(work, most=1)
    with pytest.raises(ValueError, match="bad"):
        await together(["a", "bad", "b", "c"])
    assert work.done == ["a", "b", "c"]


async def test_giving_up_waiting_takes_nothing_from_others_nor_from_the_work() -> None:
    work = Work()
    together = Together(work, most=10)
    begun = asyncio.create_task(together(["a"]))
    await settled()
    given_up = asyncio.create_task(together(["b", "c"]))
    patient = asyncio.create_task(together(["c"]))
    await settled()
    for one in (begun, given_up):
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
    work.let()
    await patient
    assert work.done == ["a", "b", "c"]


async def test_asking_for_nothing_is_answered_at_once() -> None:
    work = Work()
    await Together(work, most=10)([])
    assert work.calls == []


async def test_after_a_call_the_next_rests_as_long_as_it_took_but_no_longer_than_allowed() -> None:
    async def gap(rest: float) -> tuple[float, float]:
        times: list[float] = []

        async def slow(_items: Sequence[str]) -> None:
            times.append(time.monotonic())
            await asyncio.sleep(0.1)
            times.append(time.monotonic())

        await Together(slow, most=1, rest=rest)(["a", "b"])
        return times[1] - times[0], times[2] - times[1]

    (took, as_long), (_, limited) = await asyncio.gather(gap(rest=10), gap(rest=0.01))
    assert as_long >= took * 0.95
    assert 0.009 <= limited < 0.09
