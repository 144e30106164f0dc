"""Answering "state of this customer" and "may they use this": ratio to a do-nothing Litestar GET in the same run.

Among 1,000 and among 100,000 customers; 32 connections, one process. A second process commits meanwhile, and every
answer after a commit must be the new one.
"""

import asyncio
import random
import sqlite3
import statistics
import tempfile
import time
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path

import httpx
from common import servers
from common.load import Result, http_request, run_load

from worker.simulate import headers, play
from worker.simulated import World

SECONDS = 2.0
ROUNDS = 5
HEADERS = {"authorization": f"Bearer {servers.TOKEN}"}
WORLD = World(
    "6513270e-269e-4d37-b2a7-4de452e6b438",
    ("9b1f6d2e-3c4a-4f5b-8d6e-7a8b9c0d1e2f",),
    ("2c7e5a90-1b3d-4e6f-9a8c-5d4e3f2a1b0c",),
)


def main() -> None:
    for count in (1_000, 100_000):
        with tempfile.TemporaryDirectory(prefix="almoner-bench-") as folder:
            measure(count, Path(folder))


def measure(count: int, folder: Path) -> None:
    with servers.almoner("up", folder=folder) as (port, _, _):
        customer = one_customer(port)
    multiply(folder, customer, count)
    drawn = random.Random(1)
    names = [f"usr-{drawn.randrange(count)}" for _ in range(5000)]
    asked = {
        "state": [http_request("GET", f"/v1/customers/external/{name}/state", HEADERS) for name in names],
        "entitlement": [
            http_request("GET", f"/v1/customers/external/{name}/entitlements/pro-key", HEADERS) for name in names
        ],
    }
    nothing = [http_request("GET", "/", {})]
    ratios: dict[str, list[float]] = {name: [] for name in asked}
    with servers.baseline() as (base_port, _), servers.almoner("receive", folder=folder) as (port, pid, _):
        for _ in range(ROUNDS):
            base = load(base_port, nothing)
            for name, requests in asked.items():
                result = load(port, requests)
                assert set(result.statuses) == {200}, result.statuses
                ratios[name].append(result.rate / base.rate)
                print(
                    f"{count:>7} customers, {name:<11}: {result.rate:6.0f}/s of {base.rate:6.0f}/s   "
                    f"ratio {ratios[name][-1]:.2f}   p50 {result.percentile(0.5):.1f}   "
                    f"p99 {result.percentile(0.99):.1f} ms"
                )
        stale, checked = staleness(folder, port)
        memory = servers.peak_megabytes(pid)
    for name, found in ratios.items():
        print(f"RATIO {name} among {count}: {statistics.median(found):.2f} (aim 0.8, at least 0.6)")
    print(f"stale after a commit elsewhere: {stale} of {checked}; memory {memory:.0f} MB")


def load(port: int, requests: list[bytes]) -> Result:
    return asyncio.run(run_load(port, cycle(requests), connections=32, seconds=SECONDS))


def one_customer(port: int) -> str:
    """A real customer, made by real webhooks; returns the id when everything is granted."""
    now = datetime.now(UTC)
    story = play("subscription", WORLD, seed=1, now=now)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=HEADERS) as client:
        for event in story:
            signed = headers(event, servers.SECRET, scheme="standard", at=now)
            client.post("/webhooks/polar", content=event.body, headers=signed).raise_for_status()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            answer = client.get(f"/v1/customers/{story[0].customer_id}/entitlements")
            if answer.status_code == 200:
                ours = [one for one in answer.json()["entitlements"] if not one["connector"].startswith("polar")]
                if len(ours) == 3 and all(one["status"] == "granted" for one in ours):
                    return story[0].customer_id
            time.sleep(0.05)
    raise RuntimeError("the customer was not fulfilled")


def multiply(folder: Path, customer: str, count: int) -> None:
    """Copy the customer's row, with other ids."""
    with sqlite3.connect(folder / "almoner.db") as database:
        columns = [row[1] for row in database.execute("PRAGMA table_info(customers)")]
        row = dict(
            zip(columns, database.execute("SELECT * FROM customers WHERE id = ?", (customer,)).fetchone(), strict=True)
        )
        marks = ", ".join("?" * len(columns))
        database.executemany(
            f"INSERT INTO customers ({', '.join(columns)}) VALUES ({marks})",
            (
                tuple((row | {"id": f"customer-{number}", "external_id": f"usr-{number}"}).values())
                for number in range(count)
            ),
        )


def staleness(folder: Path, port: int, checks: int = 1000) -> tuple[int, int]:
    """Commit from this process, ask at once: how often the answer is not the new one."""
    database = sqlite3.connect(folder / "almoner.db", timeout=10, isolation_level=None)
    stale = 0
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=HEADERS) as client:
        for number in range(checks):
            database.execute("UPDATE customers SET version = version + 1 WHERE external_id = 'usr-1'")
            [version] = database.execute("SELECT version FROM customers WHERE external_id = 'usr-1'").fetchone()
            answer = client.get("/v1/customers/external/usr-1/state")
            stale += int(answer.headers["almoner-version"]) != version
            del number
    database.close()
    return stale, checks


if __name__ == "__main__":
    main()
