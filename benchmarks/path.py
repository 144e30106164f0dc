"""The whole path on the embedded default: from a signed webhook to a proven grant.

Time to grant on an idle system; a burst of 10,000 events; a steady 300 a second; what idling costs. The baseline is
the rate of ARQ jobs that do nothing, and the time of one accepted POST, in the same run.
"""

import asyncio
import os
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from common import servers
from common.load import http_request, run_load

from worker.simulate import SimulatedEvent, headers, play
from worker.simulated import World

WORLD = World(
    "6513270e-269e-4d37-b2a7-4de452e6b438",
    ("9b1f6d2e-3c4a-4f5b-8d6e-7a8b9c0d1e2f",),
    ("2c7e5a90-1b3d-4e6f-9a8c-5d4e3f2a1b0c",),
)

_ARQ = """
import asyncio, sys, time, logging
from arq.connections import RedisSettings, create_pool
from arq.worker import Worker, func
async def nothing(ctx, number): pass
async def main():
    settings = RedisSettings(unix_socket_path=sys.argv[1])
    pool = await create_pool(settings, default_queue_name="baseline")
    for number in range(4000): await pool.enqueue_job("nothing", number)
    worker = Worker([func(nothing, name="nothing", keep_result=0)], redis_pool=pool, queue_name="baseline", burst=True,
                    max_jobs=50, poll_delay=0.02, handle_signals=False)
    began = time.perf_counter(); await worker.main(); print(4000 / (time.perf_counter() - began))
import uvloop; uvloop.run(main())
"""


def arq_rate(folder: Path) -> float:
    """ARQ jobs a second that do nothing, on the same embedded queue server."""
    command = [sys.executable, "-c", _ARQ, str(folder / "queue" / "queue.sock")]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)


def requests_of(events: Iterable[SimulatedEvent]) -> list[bytes]:
    now = datetime.now(UTC)
    return [
        http_request("POST", "/webhooks/polar", headers(event, servers.SECRET, scheme="standard", at=now), event.body)
        for event in events
    ]


class Database:
    """Reads the service's own database from outside."""

    def __init__(self, folder: Path) -> None:
        self._database = sqlite3.connect(folder / "almoner.db", timeout=10, isolation_level=None)

    def ledger(self) -> dict[str, int]:
        return dict(self._database.execute("SELECT account, sum(amount) FROM ledger GROUP BY account").fetchall())

    def unsettled(self) -> int:
        return self._count("next_attempt_at IS NOT NULL")

    def granted(self) -> int:
        return self._count("status = 'granted'")

    def _count(self, condition: str) -> int:
        return int(self._database.execute(f"SELECT count(*) FROM grants WHERE {condition}").fetchone()[0])

    def is_settled(self) -> bool:
        return self.ledger().get("pending", 0) == 0 and self.unsettled() == 0

    def latencies(self, since: str) -> list[float]:
        """Milliseconds from receiving the delivery that is the reason until the grant was proven."""
        rows = self._database.execute(
            "SELECT (julianday(g.granted_at) - julianday(d.received_at)) * 86400000 FROM grants g "
            "JOIN deliveries d ON d.webhook_id = json_extract(g.because, '$[0].delivery') "
            "WHERE g.status = 'granted' AND d.received_at >= ?",
            (since,),
        )
        return sorted(row[0] for row in rows)


def stamp() -> str:
    return datetime.now(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


def percentile(ordered: list[float], share: float) -> float:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else float("nan")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="almoner-bench-") as name:
        folder = Path(name)
        with servers.almoner("up", folder=folder) as (port, pid, _):
            database = Database(folder)
            idle(pid)
            time_to_grant(port, database)
            burst(port, database, folder)
            steady(port, database)
            print(f"peak memory of all processes: {servers.peak_megabytes(pid):.0f} MB (at most 300)")


def idle(pid: int) -> None:
    time.sleep(2)
    before = servers.cpu_seconds(pid)
    time.sleep(5)
    print(f"idle: {(servers.cpu_seconds(pid) - before) / 5:.1%} of one core (at most 2 %)")


def time_to_grant(port: int, database: Database) -> None:
    """One purchase after the other, each alone in an idle system, over one open connection."""
    posts, grants = [], []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for seed in range(60):
            story = play("purchase", WORLD, seed=seed, now=datetime.now(UTC))
            paid = next(number for number, event in enumerate(story) if event.type == "order.paid")
            *before, last = requests_of(story[: paid + 1])
            for request in before[:-1]:  # `order.updated` says already that it is paid
                post(connection, request)
            while not database.is_settled():
                time.sleep(0.002)
            had = database.granted()
            began = time.perf_counter()
            post(connection, last)
            posts.append((time.perf_counter() - began) * 1000)
            while database.granted() <= had:
                time.sleep(0.0002)
            grants.append((time.perf_counter() - began) * 1000)
    p50_post, p50 = statistics.median(posts), statistics.median(grants)
    print(
        f"idle: one POST p50 {p50_post:.2f} ms; webhook sent to license key granted p50 {p50:.1f} ms, "
        f"p99 {percentile(sorted(grants), 0.99):.1f} ms"
    )
    print(f"RATIO time to grant / one POST {p50 / p50_post:.1f} (under 10)")


def post(connection: socket.socket, request: bytes) -> None:
    connection.sendall(request)
    answer = b""
    while not answer.endswith(b"}"):
        answer += connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 202"), answer


def burst(port: int, database: Database, folder: Path) -> None:
    events = [
        event for seed in range(1000, 1000 + 910) for event in play("purchase", WORLD, seed=seed, now=datetime.now(UTC))
    ][:10_000]
    requests = requests_of(events)
    before = database.ledger().get("received", 0)
    began = time.perf_counter()
    accepted = asyncio.run(run_load(port, iter(requests), connections=32, seconds=120))
    accepting = time.perf_counter() - began
    while not database.is_settled():
        time.sleep(0.02)
        if time.perf_counter() - began > 300:
            raise SystemExit(f"not settled after 300 s: {database.ledger()}, {database.unsettled()} unsettled")
    seconds = time.perf_counter() - began
    ledger = database.ledger()
    others = sum(amount for account, amount in ledger.items() if account != "received")
    jobs = arq_rate(folder)
    print(
        f"burst: {len(requests)} accepted in {accepting:.1f} s ({accepted.statuses}), all processed and settled in "
        f"{seconds:.1f} s; received {ledger['received'] - before}, the ledger balances: {ledger['received'] == others}"
    )
    rate = len(requests) / seconds
    print(f"RATIO whole path {rate / jobs:.2f} (at least 0.4, aim 1): {rate:.0f} deliveries/s, {jobs:.0f} empty jobs/s")


def steady(port: int, database: Database, rate: int = 300, seconds: float = 10) -> None:
    events = [
        event for seed in range(5000, 5300) for event in play("purchase", WORLD, seed=seed, now=datetime.now(UTC))
    ]
    requests = requests_of(events[: int(rate * seconds)])
    since = stamp()
    result = asyncio.run(run_load(port, iter(requests), connections=16, seconds=seconds + 5, rate=rate))
    while not database.is_settled():
        time.sleep(0.02)
    found = database.latencies(since)
    print(
        f"steady {rate}/s: accepted p50 {result.percentile(0.5):.1f} p99 {result.percentile(0.99):.1f} ms; accepted to "
        f"granted p50 {percentile(found, 0.5):.1f} p99 {percentile(found, 0.99):.1f} ms (aim 10 and 30), "
        f"{len(found)} grants"
    )


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    main()
