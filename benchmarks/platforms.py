"""1,000 grants on GitHub and on Discord, against fakes that enforce the platforms' limits: how near to the least time
that the limits allow, and whether one of them was ever broken. Time runs `1 / PACE` times as fast, on both sides."""

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import sqlalchemy as sa

from config.catalogue import parse_catalogue
from config.settings import Settings
from connectors import TERMS
from connectors.discord_role import DiscordRole
from connectors.github_repository import GitHubRepository
from worker.app import Service, open_service, utc_now
from worker.batching import Together
from worker.limits import StoredLimits
from worker.pipeline import PROCESS_BATCH, SETTLE_BATCH, Pipeline
from worker.store.inbox import Arrival
from worker.store.models import DeliveryStatus

ROOT = Path(__file__).parents[1]
COUNT = 1_000
REPOSITORIES = 25
PACE = 0.05
"""A minute is three seconds. The machine must still do in it what the platforms allow in a minute."""

GUILD, ROLE = "197038439483310086", "1100000000000000001"
ORGANIZATION = str(UUID(int=1))


def least_seconds(count: int, limits: Sequence[tuple[int, float]]) -> float:
    """When the last of so many calls can begin, if each begins as early as all limits allow."""
    times: list[float] = []
    for number in range(count):
        times.append(max((times[number - most] + span for most, span in limits if number >= most), default=0.0))
    return times[-1] * PACE


@contextmanager
def fake(name: str) -> Iterator[httpx.Client]:
    command = [sys.executable, "-m", f"tests.fakes.{name}", "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr or ():
            if found := re.search(r"listens on (\S+)", line):
                with httpx.Client(base_url=found[1], timeout=30) as client:
                    yield client
                return
        raise RuntimeError(f"the fake {name} did not start")
    finally:
        process.terminate()
        process.wait(10)


def tell(client: httpx.Client, what: str, **given: object) -> Any:
    answer = client.post(f"/_fake/{what}", json=given)
    answer.raise_for_status()
    return answer.json()


class Near:
    """A trigger that does here what workers do: batches, several at a time."""

    def __init__(self) -> None:
        self.pipeline: Pipeline
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, pipeline: Pipeline) -> None:
        self._process = Together(pipeline.process, most=PROCESS_BATCH)
        self._settle = Together(pipeline.settle, most=SETTLE_BATCH, at_once=8)

    async def process(self, delivery_ids: Sequence[int]) -> None:
        self._soon(self._process(delivery_ids))

    async def settle(self, grant_ids: Sequence[str]) -> None:
        self._soon(self._settle(grant_ids))

    def _soon(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def paid(number: int, product: int, field: str, account: str) -> Arrival:
    """The one event that a purchase needs, with the account in a checkout's field."""
    at = datetime.now(UTC).isoformat()
    customer = str(UUID(int=10_000_000 + number))
    data = {
        "id": str(UUID(int=20_000_000 + number)), "created_at": at, "modified_at": at, "status": "paid", "paid": True,
        "billing_reason": "purchase", "customer_id": customer, "product_id": str(UUID(int=100 + product)),
        "subscription_id": None, "custom_field_data": {field: int(account) if field == "github" else account},
        "customer": {"id": customer, "created_at": at, "external_id": f"user-{number}", "email": "a@example.com",
                     "organization_id": ORGANIZATION, "metadata": {}},
    }  # fmt: skip
    body = json.dumps({"type": "order.paid", "timestamp": at, "data": data}).encode()
    now = datetime.now(UTC)
    return Arrival(
        webhook_id=f"bench-{field}-{number}", type="order.paid", status=DeliveryStatus.PENDING, reason=None,
        event_at=now, sent_at=now, received_at=now, api_version="2026-10", secret="bench", scheme="standard",
        digest=str(number), body=body,
    )  # fmt: skip


async def grant_all(service: Service, arrivals: list[Arrival]) -> float:
    """Accept and settle everything; returns the seconds from the first accepted to the last given."""
    stopping = asyncio.Event()
    sweeping = asyncio.create_task(service.pipeline.sweep_for_ever(stopping))
    began = time.perf_counter()
    await asyncio.gather(*(service.pipeline.accept(one) for one in arrivals))
    counted = sa.text("SELECT count(*) FROM grants WHERE status IN ('granted', 'pending')")
    limit = time.perf_counter() + 900
    while True:
        done = await service.database.read(lambda connection: connection.execute(counted).scalar_one())
        if done == len(arrivals):
            break
        if time.perf_counter() > limit:
            raise SystemExit(f"only {done} of {len(arrivals)} were given in 900 s")
        await asyncio.sleep(0.02)
    seconds = time.perf_counter() - began
    stopping.set()
    await sweeping
    return seconds


def settings(folder: Path, **more: Any) -> Settings:
    return Settings(
        data_dir=folder, sweep_every=timedelta(seconds=0.05), sweep_after=timedelta(seconds=1),
        recheck_every=timedelta(hours=1), github_fields=("github",), discord_fields=("discord",), **more,
    )  # fmt: skip


async def on_github(client: httpx.Client, folder: Path) -> tuple[float, str]:
    app = tell(client, "app")
    tell(client, "users", first=1_000_000, count=COUNT)
    for number in range(REPOSITORIES):
        tell(client, "repository", repository=f"acme/repository-{number}")
    tell(client, "set", limits=True, pace=PACE)
    text = "\n".join(
        f'[benefits.repository-{number}]\nconnector = "github_repository"\n'
        f'for = {{ products = ["{UUID(int=100 + number)}"] }}\nrepository = "acme/repository-{number}"\n'
        for number in range(REPOSITORIES)
    )
    chosen = settings(
        folder, github_api_url=f"{str(client.base_url).rstrip('/')}/api/v3", github_app_id=str(app["app_id"]),
        github_private_key=app["private_key"],
    )  # fmt: skip
    arrivals = [paid(number, number % REPOSITORIES, "github", str(1_000_000 + number)) for number in range(COUNT)]
    seconds = await run(chosen, text, arrivals, "github_repository", GitHubRepository)
    state = tell(client, "state")
    invited = sum(len(one["invitations"]) for one in state["repositories"].values())
    return seconds, f"{invited} invited, {state['requests']} requests, {state['refused']} refused"


async def on_discord(client: httpx.Client, folder: Path) -> tuple[float, str]:
    tell(client, "add_role", role=ROLE)
    first = 300_000_000_000_000_000
    for number in range(COUNT):
        tell(client, "add_user", user=str(first + number), name=f"user{number}")
        tell(client, "join", user=str(first + number))
    tell(client, "configure", limits_on=True, scale=PACE)
    text = (
        f'[benefits.role]\nconnector = "discord_role"\nfor = {{ products = ["{UUID(int=100)}"] }}\n'
        f'guild = "{GUILD}"\nrole = "{ROLE}"\n'
    )
    chosen = settings(
        folder, discord_api_url=f"{str(client.base_url).rstrip('/')}/api/v10",
        discord_bot_token="bot-token-of-the-fake-1",
    )  # fmt: skip
    arrivals = [paid(number, 0, "discord", str(first + number)) for number in range(COUNT)]
    seconds = await run(chosen, text, arrivals, "discord_role", DiscordRole)
    log = await asyncio.to_thread(lambda: client.get("/_fake/log").json())
    refused = sum(one["status"] in {401, 403, 429} for one in log)
    return seconds, f"{len(log)} requests, {refused} refused"


async def run(chosen: Settings, text: str, arrivals: list[Arrival], name: str, made: Any) -> float:
    catalogue = parse_catalogue(text, TERMS, timedelta())
    near = Near()
    async with open_service(chosen, catalogue, trigger=near, now=utc_now) as service:
        limits = StoredLimits(service.database, utc_now, patience=1.5 * PACE)
        paced = made(replace(service.tools, limits=limits), pace=PACE)
        service.pipeline.connectors = dict(service.pipeline.connectors) | {name: paced}
        near.start(service.pipeline)
        await service.pipeline.propose(catalogue)
        seconds = await grant_all(service, arrivals)
        if hasattr(paced, "close"):
            await paced.close()
        return seconds


def main() -> None:
    runs = (
        # docs.github.com: 80 writes a minute, 500 an hour, and 50 invitations a day for each repository.
        ("github", on_github, least_seconds(COUNT, [(80, 60.0), (500, 3_600.0)])),
        # The bucket in which the fake counts roles: 10 in 10 seconds.
        ("discord", on_discord, least_seconds(COUNT, [(10, 10.0)])),
    )
    chosen = sys.argv[1:] or [name for name, *_ in runs]
    for name, measure, least in runs:
        if name not in chosen:
            continue
        with tempfile.TemporaryDirectory(prefix="almoner-bench-") as folder, fake(name) as client:
            seconds, counts = asyncio.run(measure(client, Path(folder)))
        print(f"{name}: {COUNT} grants in {seconds:.1f} s at {1 / PACE:g} times the speed; {counts}")
        print(f"RATIO to the least time that the limits allow ({least:.1f} s): {seconds / least:.2f} (at most 1.2)")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    main()
