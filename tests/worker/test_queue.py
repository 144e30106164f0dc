"""The queue, against a real Redis: it makes things quick, and nothing depends on it."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from arq.constants import default_queue_name, job_key_prefix
from redis.asyncio import Redis
from redis.exceptions import RedisError
from structlog.testing import capture_logs

from tests.conftest import REDIS_URL, settings_for, skip
from worker.app import run
from worker.queue import BATCH, QUEUE, Job, Queue

_ADDRESS = urlsplit(REDIS_URL)
SERVER = (_ADDRESS.hostname or "127.0.0.1", _ADDRESS.port or 6379)
DATABASE = _ADDRESS.path.strip("/") or "0"


@pytest.fixture
async def redis() -> AsyncIterator[Redis]:
    """The server's database of these tests, emptied."""
    client = Redis.from_url(REDIS_URL)
    try:
        await client.flushdb()
    except (RedisError, OSError) as error:
        skip(f"no Redis at {REDIS_URL}: {error}")
    yield client
    await client.aclose()


@pytest.fixture
async def queue(redis: Redis) -> AsyncIterator[Queue]:
    queue = Queue(REDIS_URL)
    yield queue
    await queue.close()


async def until(true: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.002)


@dataclass
class Jobs:
    """Jobs that write down what they were given."""

    processed: list[Any] = field(default_factory=list)
    settled: list[Any] = field(default_factory=list)

    async def process(self, ids: list[Any]) -> None:
        self.processed += ids

    async def settle(self, ids: list[Any]) -> None:
        self.settled += ids

    @property
    def by_name(self) -> dict[str, Job]:
        return {"process": self.process, "settle": self.settle}


@asynccontextmanager
async def working(queue: Queue, jobs: dict[str, Job], *, slots: int = 10) -> AsyncIterator[None]:
    """A worker on the queue, that is waiting to be woken."""
    stopping = asyncio.Event()
    worker = asyncio.create_task(queue.work(jobs, slots=slots, stopping=stopping))
    await listening()
    try:
        yield
    finally:
        stopping.set()
        await worker


async def listening() -> None:
    async with Redis.from_url(REDIS_URL) as client:
        deadline = time.monotonic() + 5
        while not dict(await client.pubsub_numsub("almoner:wake"))[b"almoner:wake"]:
            assert time.monotonic() < deadline, "the worker does not listen"
            await asyncio.sleep(0.002)
    await asyncio.sleep(0.02)  # its first look at the queue is over too: from here on it waits


async def test_a_job_carries_ids_as_json_and_nothing_else(queue: Queue, redis: Redis) -> None:
    await queue.process([1, 2])
    await queue.settle(["a"])
    stored = [json.loads(await redis.get(key) or b"") for key in await redis.keys(f"{job_key_prefix}*")]
    assert sorted((one["f"], one["a"], one["k"]) for one in stored) == [
        ("process", [[1, 2]], {}),
        ("settle", [["a"]], {}),
    ]
    assert await redis.zcard(QUEUE) == 2


async def test_many_ids_go_in_jobs_of_bounded_size(queue: Queue, redis: Redis) -> None:
    await queue.process(range(2 * BATCH + 1))
    sizes = [len(json.loads(await redis.get(key) or b"")["a"][0]) for key in await redis.keys(f"{job_key_prefix}*")]
    assert sorted(sizes) == [1, BATCH, BATCH]
    jobs = Jobs()
    async with working(queue, jobs.by_name):
        await until(lambda: len(jobs.processed) == 2 * BATCH + 1)
    assert sorted(jobs.processed) == list(range(2 * BATCH + 1))


async def test_each_kind_of_job_reaches_its_own_function(queue: Queue) -> None:
    jobs = Jobs()
    async with working(queue, jobs.by_name):
        await queue.process([1])
        await queue.settle(["a"])
        await until(lambda: bool(jobs.processed and jobs.settled))
    assert (jobs.processed, jobs.settled) == ([1], ["a"])


async def test_a_job_is_picked_up_at_once_not_at_the_next_poll(queue: Queue) -> None:
    """ARQ alone takes 250 ms on average, and here the fallback polls every second."""
    jobs = Jobs()
    took = []
    async with working(queue, jobs.by_name):
        for number in range(5):
            began = time.monotonic()
            await queue.process([number])
            await until(lambda number=number: number in jobs.processed)  # type: ignore[misc]
            took.append(time.monotonic() - began)
    assert sorted(took)[2] < 0.1


async def test_jobs_that_wait_for_a_slot_start_as_soon_as_one_is_free(queue: Queue) -> None:
    jobs = Jobs()

    async def slow(ids: list[Any]) -> None:
        await asyncio.sleep(0.005)
        jobs.processed += ids

    async with working(queue, {"process": slow}, slots=2):
        began = time.monotonic()
        for number in range(12):
            await queue.process([number])
        await until(lambda: len(jobs.processed) == 12)
        assert time.monotonic() - began < 0.9  # waiting for a poll each time would take five seconds


async def test_the_same_ids_may_be_triggered_again_at_any_time(queue: Queue, redis: Redis) -> None:
    """python-arq/arq#432: a job id whose result is kept is refused; that would block a replay."""
    jobs = Jobs()
    async with working(queue, jobs.by_name):
        for times in range(1, 4):
            await queue.process([7])
            await until(lambda times=times: len(jobs.processed) == times)  # type: ignore[misc]
        await queue.process([7])
        await queue.process([7])
        await until(lambda: len(jobs.processed) == 5)
    assert set(await redis.keys("arq:*")) <= {b"arq:queue:health-check"}  # and nothing is kept of what is done


async def test_a_job_that_fails_is_logged_once_and_the_worker_goes_on(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    """python-arq/arq#401: nothing is retried here; the sweep does it."""
    jobs = Jobs()

    async def fail(ids: list[Any]) -> None:
        jobs.settled += ids
        raise ValueError("a bad day")

    with capture_logs() as logs, caplog.at_level(logging.INFO):
        async with working(queue, {"process": jobs.process, "settle": fail}):
            await queue.settle(["a", "b"])
            await until(lambda: bool(jobs.settled))
            await queue.process([1])
            await until(lambda: bool(jobs.processed))
    assert jobs.settled == ["a", "b"]
    [line] = [one for one in logs if one["log_level"] == "error"]
    assert (line["job"], line["count"]) == ("settle", 2)
    assert not [record for record in caplog.records if record.name.startswith("arq")]


async def test_stopping_lets_a_running_job_finish(queue: Queue) -> None:
    jobs, may_end, began = Jobs(), asyncio.Event(), asyncio.Event()

    async def slow(ids: list[Any]) -> None:
        began.set()
        await may_end.wait()
        jobs.processed += ids

    stopping = asyncio.Event()
    worker = asyncio.create_task(queue.work({"process": slow}, slots=1, stopping=stopping))
    await queue.process([1])
    await began.wait()
    stopping.set()
    await asyncio.sleep(0.02)
    assert not worker.done()
    may_end.set()
    await worker
    assert jobs.processed == [1]


async def test_an_idle_worker_stops_at_once(queue: Queue) -> None:
    began = time.monotonic()
    async with working(queue, Jobs().by_name):
        began = time.monotonic()
    assert time.monotonic() - began < 0.4


async def test_a_worker_ends_also_where_a_cancellation_gets_lost(queue: Queue, redis: Redis) -> None:
    """Up to Python 3.11 `asyncio.wait_for`, by which redis-py sends, swallows one that comes as it ends."""
    await redis.zadd(QUEUE, {b"\xff": 1})  # fails while the listener still subscribes
    for _ in range(20):
        stopping = asyncio.Event()
        worker = asyncio.create_task(queue.work(Jobs().by_name, slots=1, stopping=stopping))
        await asyncio.sleep(0.001)
        stopping.set()
        async with asyncio.timeout(3):
            await worker


async def test_a_wiped_database_loses_jobs_but_not_the_worker(queue: Queue, redis: Redis) -> None:
    jobs, may_end, begun = Jobs(), asyncio.Event(), asyncio.Event()

    async def slow(ids: list[Any]) -> None:
        begun.set()
        await may_end.wait()
        jobs.processed += ids

    async with working(queue, {"process": slow}, slots=1):
        await queue.process([1])
        await begun.wait()
        await queue.process([2])
        await redis.flushdb()
        may_end.set()
        await until(lambda: 1 in jobs.processed)
        await queue.process([3])
        await until(lambda: 3 in jobs.processed)
    assert await redis.zcard(QUEUE) == 0


async def test_a_worker_whose_connections_are_cut_comes_back(queue: Queue, redis: Redis) -> None:
    """python-arq/arq#435: ARQ's own worker ends."""
    jobs = Jobs()
    with capture_logs() as logs:
        async with working(queue, jobs.by_name):
            for one in await redis.client_list():
                if one["sub"] == "1" and one["db"] == DATABASE:  # the listener's only, of this worker
                    await redis.client_kill_filter(_id=one["id"])
            await until(lambda: any("lost the queue" in one["event"] for one in logs))
            await listening()
            await queue.process([1])
            await until(lambda: jobs.processed == [1])


async def test_a_worker_survives_what_nobody_foresaw(queue: Queue, redis: Redis) -> None:
    jobs = Jobs()
    with capture_logs() as logs:
        stopping = asyncio.Event()
        await redis.zadd(QUEUE, {b"\xff": 1})  # an id that is no text: ARQ itself raises
        worker = asyncio.create_task(queue.work(jobs.by_name, slots=1, stopping=stopping))
        await until(lambda: any("starting it again" in one["event"] for one in logs))
        await redis.flushdb()
        await queue.process([1])
        await until(lambda: jobs.processed == [1])
        stopping.set()
        await worker


async def test_triggering_does_not_raise_while_redis_is_down_and_says_so_once() -> None:
    queue = Queue(f"redis://127.0.0.1:{closed_port()}/{DATABASE}")
    with capture_logs() as logs:
        await queue.process([1])
        await queue.settle(["a"])
    assert [one["event"] for one in logs] == ["the queue cannot be reached; the sweep does its work"]
    assert await queue.is_up() is False
    await queue.close()


async def test_triggering_gives_up_on_a_redis_that_refuses_to_store(queue: Queue, redis: Redis) -> None:
    await redis.set(QUEUE, "not a sorted set")
    with capture_logs() as logs:
        await queue.process([1])
    assert len(logs) == 1


async def test_an_outage_is_logged_anew_after_the_queue_was_back(redis: Redis) -> None:
    async with relayed() as relay:
        queue = Queue(relay.url)
        with capture_logs() as logs:
            await queue.process([1])
            assert await queue.is_up() is True
            for outages in (1, 2):
                await relay.cut()
                await queue.process([2])
                await queue.process([3])
                assert await queue.is_up() is False
                assert len(logs) == outages
                await relay.restore()
                await queue.process([4])
                assert await queue.is_up() is True
        assert await redis.zcard(QUEUE) == 3
        await queue.close()


async def test_a_worker_waits_for_a_redis_that_is_down_and_then_works(redis: Redis) -> None:
    jobs = Jobs()
    async with relayed() as relay:
        await relay.cut()
        queue = Queue(relay.url)
        stopping = asyncio.Event()
        with capture_logs() as logs:
            worker = asyncio.create_task(queue.work(jobs.by_name, slots=1, stopping=stopping))
            await until(lambda: bool(logs))
            await relay.restore()
            await queue.process([1])
            await until(lambda: jobs.processed == [1])
            await relay.cut()  # and again, in the middle of waiting
            await until(lambda: len(logs) >= 2)
            stopping.set()
            await worker
        await queue.close()


async def test_closing_leaves_no_connection_behind(redis: Redis) -> None:
    before = {one["id"] for one in await redis.client_list()}
    queue = Queue(REDIS_URL)
    async with working(queue, Jobs().by_name):
        await queue.process([1])
        assert {one["id"] for one in await redis.client_list()} > before
    await queue.close()
    deadline = time.monotonic() + 5
    while {one["id"] for one in await redis.client_list() if one["db"] == DATABASE} - before:
        assert time.monotonic() < deadline, "connections are left open"
        await asyncio.sleep(0.005)


async def test_a_worker_alone_runs_until_it_is_told_to_stop(redis: Redis, sqlite_url: str, tmp_path: Path) -> None:
    interval = sys.getswitchinterval()
    settings = settings_for(sqlite_url, tmp_path, redis_url=REDIS_URL, benefits=tmp_path / "none: the example is used")
    announced: asyncio.Queue[str] = asyncio.Queue()
    running = asyncio.create_task(run(settings, receive=False, work=True, announce=announced.put_nowait))
    try:
        assert await announced.get() == ""
        await listening()
    finally:
        os.kill(os.getpid(), signal.SIGTERM)  # its handler is the event loop's, until that is closed
        async with asyncio.timeout(5):
            await running
        sys.setswitchinterval(interval)


def closed_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


@dataclass
class Relay:
    """A way to Redis that a test can cut, as a restart of Redis does, without harming the others who use it."""

    port: int
    _server: asyncio.Server | None = None
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/{DATABASE}"

    async def restore(self) -> None:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", self.port)

    async def cut(self) -> None:
        if self._server:
            self._server.close()
            for writer in self._open:
                writer.transport.abort()
            await self._server.wait_closed()
            self._server = None
            await asyncio.sleep(0.01)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*SERVER)
        self._open |= {writer, back}
        await asyncio.gather(self._copy(reader, back), self._copy(there, writer))
        self._open -= {writer, back}

    @staticmethod
    async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        target.close()


def relayed() -> AbstractAsyncContextManager[Relay]:
    @asynccontextmanager
    async def open_relay() -> AsyncIterator[Relay]:
        relay = Relay(closed_port())
        await relay.restore()
        try:
            yield relay
        finally:
            await relay.cut()

    return open_relay()


async def test_jobs_of_the_merchants_own_app_on_the_same_redis_are_left_alone(queue: Queue, redis: Redis) -> None:
    """ARQ's worker ends jobs that it does not know, and `arq:queue` is everybody's default."""
    await redis.zadd(default_queue_name, {"a-job-of-the-app": 1})
    jobs = Jobs()
    async with working(queue, jobs.by_name):
        await queue.process([1])
        await until(lambda: jobs.processed == [1])
    assert await redis.zrange(default_queue_name, 0, -1) == [b"a-job-of-the-app"]
    assert default_queue_name != QUEUE
