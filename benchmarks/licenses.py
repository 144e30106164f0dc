"""Validating license keys: ratio to a do-nothing Litestar POST in the same run.

Among 1,000 and among 100,000 keys, each of a customer of its own; 32 connections, one process, with the limits for
callers switched on (but never reached). With an increment, the use is durable before the answer.
"""

import asyncio
import hashlib
import json
import random
import sqlite3
import statistics
import tempfile
import uuid
from itertools import cycle
from pathlib import Path

from answer import WORLD, one_customer
from common import servers
from common.load import Result, http_request, run_load

SECONDS = 2.0
ROUNDS = 5
LIMITS = {"license_calls_per_address": "100000000", "license_calls_per_key": "1000000"}
PATH = "/v1/customer-portal/license-keys/validate"
AIMS = {"validate": 0.4, "validate with increment": 0.2}


def main() -> None:
    for count in (1_000, 100_000):
        with tempfile.TemporaryDirectory(prefix="almoner-bench-") as folder:
            measure(count, Path(folder))


def measure(count: int, folder: Path) -> None:
    with servers.almoner("up", folder=folder) as (port, _, _):
        customer = one_customer(port)
    keys = multiply(folder, customer, count)
    drawn = random.Random(1)
    some = [drawn.choice(keys) for _ in range(5000)]
    asked = {"validate": [request(key) for key in some]}
    asked["validate with increment"] = [request(key, increment_usage=1) for key in some]
    nothing = [http_request("POST", "/", {"content-type": "application/json"}, body(keys[0]))]
    ratios: dict[str, list[float]] = {name: [] for name in asked}
    with servers.baseline() as (base_port, _), servers.almoner("receive", folder=folder, **LIMITS) as (port, pid, _):
        for _ in range(ROUNDS):
            base = load(base_port, nothing)
            for name, requests in asked.items():
                before = servers.cpu_seconds(pid)
                result = load(port, requests)
                cost = (servers.cpu_seconds(pid) - before) / len(result.latencies) * 1e6
                assert set(result.statuses) == {200}, result.statuses
                ratios[name].append(result.rate / base.rate)
                print(
                    f"{count:>7} keys, {name:<23}: {result.rate:6.0f}/s of {base.rate:6.0f}/s   "
                    f"ratio {ratios[name][-1]:.2f}   p50 {result.percentile(0.5):.1f}   "
                    f"p99 {result.percentile(0.99):.1f} ms   {cost:.0f} us of CPU each"
                )
        memory = servers.peak_megabytes(pid)
    for name, found in ratios.items():
        print(f"RATIO {name} among {count}: {statistics.median(found):.2f} (at least {AIMS[name]})")
    print(f"memory {memory:.0f} MB")


def body(key: str, **more: int) -> bytes:
    return json.dumps({"key": key, "organization_id": WORLD.organization_id} | more).encode()


def request(key: str, **more: int) -> bytes:
    return http_request("POST", PATH, {"content-type": "application/json"}, body(key, **more))


def load(port: int, requests: list[bytes]) -> Result:
    return asyncio.run(run_load(port, cycle(requests), connections=32, seconds=SECONDS))


def multiply(folder: Path, customer: str, count: int) -> list[str]:
    """Copy the customer's row and the key's, with other ids; returns the keys."""
    made = [(str(uuid.uuid4()), str(uuid.uuid4()), f"ACME-{str(uuid.uuid4()).upper()}") for _ in range(count)]
    with sqlite3.connect(folder / "almoner.db") as database:
        copy(database, "customers", f"id = '{customer}'", [{"id": one, "external_id": one} for one, _, _ in made])
        copy(
            database,
            "license_keys",
            f"customer_id = '{customer}'",
            [
                {
                    "id": key_id, "resource": key_id, "customer_id": owner, "key": key,
                    "display_key": "****-" + key[-6:], "digest": hashlib.sha256(key.encode()).hexdigest(),
                }
                for owner, key_id, key in made
            ],
        )  # fmt: skip
    return [key for _, _, key in made]


def copy(database: sqlite3.Connection, table: str, where: str, changes: list[dict[str, str]]) -> None:
    columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
    row = dict(zip(columns, database.execute(f"SELECT * FROM {table} WHERE {where}").fetchone(), strict=True))
    marks = ", ".join("?" * len(columns))
    database.executemany(
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})",
        (tuple((row | change).values()) for change in changes),
    )


if __name__ == "__main__":
    main()
