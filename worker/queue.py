"""The queue: ARQ on Redis, as a trigger and nothing more. The only file that knows ARQ.

Jobs carry ids. Losing all of them loses nothing: the sweep finds the rows. What is set here, and why:

- ARQ polls every half second by default; a job would wait 250 ms on average. Here each enqueue also publishes a wake-up
  on the same connection, and polling is only the fallback. (arq 0.28, `Worker.main`)
- Job ids are random: ARQ refuses an id whose result it still keeps, and would refuse a replay (python-arq/arq#432).
- Every exception is caught in the job, tries are counted in the database: ARQ retries only its own `Retry`
  (python-arq/arq#401) and declares a job dead only when it is picked up again (python-arq/arq#233).
- A worker ends when Redis restarts (python-arq/arq#435); `work` starts it again.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import uuid4

import structlog
from arq.connections import ArqRedis
from arq.constants import expires_extra_ms, job_key_prefix
from arq.jobs import serialize_job
from arq.utils import timestamp_ms
from arq.worker import Worker, func
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

log = structlog.get_logger()

BATCH = 100
"""How many ids one job carries at most: work that is waiting together is cheaper done together."""

QUEUE = "almoner:queue"
"""Ours alone: the merchant's app may use ARQ on the same Redis, and ARQ's workers end jobs that they do not know."""
_WAKE = "almoner:wake"
_POLL_SECONDS = 1.0
_JOB_SECONDS = 60

Job = Callable[[Any], Awaitable[object]]


def _dump(job: dict[str, Any]) -> bytes:
    return json.dumps(job, default=str).encode()


def _connect(url: str) -> ArqRedis:
    pool = ConnectionPool.from_url(url, socket_connect_timeout=2, socket_timeout=5, health_check_interval=30)
    return ArqRedis(pool, job_serializer=_dump, job_deserializer=json.loads)


class Queue:
    """Enqueues jobs. A queue that is down is logged once, not raised: the rows are in the database."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._redis = _connect(url)
        self._is_down = False

    async def process(self, delivery_ids: Sequence[int]) -> None:
        """Have these deliveries processed soon."""
        await self._enqueue("process", delivery_ids)

    async def settle(self, grant_ids: Sequence[str]) -> None:
        """Have these grants settled soon."""
        await self._enqueue("settle", grant_ids)

    async def _enqueue(self, function: str, ids: Sequence[Any]) -> None:
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                now = timestamp_ms()
                for start in range(0, len(ids), BATCH):
                    job_id = uuid4().hex
                    arguments = (list(ids[start : start + BATCH]),)
                    job = serialize_job(function, arguments, {}, None, now, serializer=_dump)
                    pipe.psetex(job_key_prefix + job_id, expires_extra_ms, job)
                    pipe.zadd(QUEUE, {job_id: now})
                pipe.publish(_WAKE, b"1")
                await pipe.execute()
            self._is_down = False
        except (RedisError, OSError, TimeoutError) as error:
            if not self._is_down:
                log.warning("the queue cannot be reached; the sweep does its work", error=str(error))
            self._is_down = True

    async def is_up(self) -> bool:
        """Whether the queue answers."""
        try:
            await self._redis.ping()
        except (RedisError, OSError, TimeoutError):
            return False
        return True

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose(close_connection_pool=True)

    async def work(self, jobs: dict[str, Job], *, slots: int, stopping: asyncio.Event) -> None:
        """Run jobs until `stopping`, through every restart of Redis."""
        # One line for each job at level info is more than half of ARQ's cost, and says nothing of a customer.
        logging.getLogger("arq").setLevel(logging.WARNING)
        is_lost = False
        while not stopping.is_set():
            redis = _connect(self._url)
            worker = _Worker(
                [func(_job(name, job), name=name, timeout=_JOB_SECONDS, max_tries=1) for name, job in jobs.items()],
                redis_pool=redis,
                queue_name=QUEUE,
                max_jobs=slots,
                poll_delay=_POLL_SECONDS,
                # Jobs that run stay at the head of the queue, for every worker to read past.
                queue_read_limit=max(1000, 20 * slots),
                keep_result=0,
                handle_signals=False,
                retry_jobs=False,
                job_serializer=_dump,
                job_deserializer=json.loads,
                log_results=False,
            )
            try:
                await worker.work(stopping)
            except (RedisError, OSError, TimeoutError) as error:
                if worker.was_up or not is_lost:
                    log.warning("the worker lost the queue; trying again twice a second", error=str(error))
                is_lost = True
            except Exception:
                log.exception("the worker failed; starting it again")
            finally:
                await redis.aclose(close_connection_pool=True)
            try:
                async with asyncio.timeout(0.5):
                    await stopping.wait()
            except TimeoutError:
                continue


def _job(name: str, job: Job) -> Any:  # noqa: ANN401 - arq's own protocol for a coroutine
    async def run(_ctx: dict[Any, Any], ids: list[Any]) -> None:
        try:
            await job(ids)
        except Exception:
            log.exception("a job failed; the sweep will do its work", job=name, count=len(ids))

    run.__qualname__ = name
    return run


class _Worker(Worker):
    """ARQ's worker, woken instead of polling."""

    was_up = False
    """Whether the queue has answered it."""

    async def work(self, stopping: asyncio.Event) -> None:
        """Run until `stopping`, then let running jobs finish. Raises what the connection raises."""
        self.loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        listening = asyncio.create_task(self._listen())
        ending = asyncio.create_task(stopping.wait())
        ending.add_done_callback(lambda _: self._wake.set())
        try:
            while not stopping.is_set():
                self._wake.clear()
                await self._poll_iteration()
                self.was_up = True
                if listening.done():
                    listening.result()
                try:
                    async with asyncio.timeout(self.poll_delay_s):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        finally:
            await _cancel(listening, ending)
            await asyncio.gather(*self.tasks.values(), return_exceptions=True)

    async def _listen(self) -> None:
        async with self.pool.pubsub() as channel:
            await channel.subscribe(_WAKE)
            while True:
                if await channel.get_message(ignore_subscribe_messages=True, timeout=4):
                    self._wake.set()

    def _release_sem_dec_counter_on_complete(self) -> None:
        """Free a slot, and look for more at once where all were taken: jobs may be waiting that woke us before."""
        was_full = self.job_counter >= self.max_jobs
        super()._release_sem_dec_counter_on_complete()
        if was_full:
            self._wake.set()


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks until they have ended: redis-py sends by `asyncio.wait_for`, which up to Python 3.11 may swallow it.

    https://github.com/python/cpython/issues/86296
    """
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=0.1)
    await asyncio.gather(*tasks, return_exceptions=True)
