"""Accepting a webhook durably: verify, store with a commit, 202. Ratio to a do-nothing Litestar POST in the same run.

SQLite with synchronous=FULL, bodies of 8 kB, each its own webhook-id, 32 connections, one process.
"""

import asyncio
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from common import servers
from common.load import Result, http_request, run_load

from worker.simulate import SimulatedEvent, headers

CONNECTIONS = 32
SECONDS = 3.0
ROUNDS = 5


def bodies(count: int, label: str) -> list[bytes]:
    """Ready-signed requests of about 8 kB."""
    now = datetime.now(UTC)
    filler = "x" * 7600
    made = []
    for number in range(count):
        customer = f"00000000-0000-4000-8000-{number % 1000:012d}"
        body = (
            f'{{"type":"customer.updated","timestamp":"{now.isoformat()}","api_version":"2026-10","data":'
            f'{{"id":"{customer}","created_at":"{now.isoformat()}","metadata":{{"filler":"{filler}"}}}}}}'
        ).encode()
        event = SimulatedEvent(f"{label}-{number}", "customer.updated", now, customer, "", body)
        signed = headers(event, servers.SECRET, scheme="standard", at=now)
        made.append(http_request("POST", "/webhooks/polar", signed, body))
    return made


def baseline_requests(count: int) -> list[bytes]:
    return [
        http_request("POST", "/", {"content-type": "application/json"}, b'{"filler":"' + b"x" * 7800 + b'"}')
    ] * count


def once(requests: Iterator[bytes], port: int, rate: float | None = None) -> Result:
    return asyncio.run(run_load(port, requests, connections=CONNECTIONS, seconds=SECONDS, rate=rate))


def main() -> None:
    ratios, rates, costs = [], [], []
    with servers.baseline() as (base_port, _), servers.almoner("receive") as (port, pid, _):
        once(iter(baseline_requests(2000)), base_port)
        once(iter(bodies(2000, "warm")), port)
        for number in range(ROUNDS):
            nothing = once(iter(baseline_requests(80_000)), base_port)
            made = bodies(int(nothing.rate * SECONDS * 1.2), f"round{number}-{time.time_ns()}")
            before = servers.cpu_seconds(pid)
            accepted = once(iter(made), port)
            cost = (servers.cpu_seconds(pid) - before) / max(len(accepted.latencies), 1) * 1e6
            assert set(accepted.statuses) == {202}, accepted.statuses
            ratios.append(accepted.rate / nothing.rate)
            rates.append(accepted.rate)
            costs.append(cost)
            print(
                f"round {number + 1}: nothing {nothing.rate:7.0f}/s   accepted {accepted.rate:7.0f}/s   "
                f"ratio {ratios[-1]:.2f}   p50 {accepted.percentile(0.5):.1f} ms   "
                f"p99 {accepted.percentile(0.99):.1f} ms   {cost:.0f} us of CPU each"
            )
        half = statistics.median(rates) / 2
        made = bodies(int(half * SECONDS * 1.1), f"half-{time.time_ns()}")
        steady = once(iter(made), port, rate=half)
        p50, p99 = steady.percentile(0.5), steady.percentile(0.99)
        print(f"at half of that load ({half:.0f}/s): p50 {p50:.1f} ms, p99 {p99:.1f} ms")
        print(f"memory {servers.peak_megabytes(pid):.0f} MB")
    print(f"RATIO accept {statistics.median(ratios):.2f} (aim 0.8, at least 0.5)")


if __name__ == "__main__":
    main()
