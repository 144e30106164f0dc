"""Processes killed at random points, Redis wiped, events shuffled and sent twice: in the end everything is as it ought
to be, and it takes seconds."""

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from socket import socket
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import httpx
import pytest
import sqlalchemy as sa
from redis.asyncio import Redis
from redis.exceptions import RedisError

from config.catalogue import parse_catalogue
from connectors import TERMS
from tests.conftest import BENEFITS, REDIS_URL, SECRET, WORLD, Clock, copy_of_template, run_service, skip
from worker.simulate import SCENARIOS, SimulatedEvent, arrange, headers, play
from worker.store import inbox
from worker.store.database import Database
from worker.store.models import DeliveryStatus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

ALMONER = Path(sys.executable).parent / "almoner"
APP = {"authorization": "Bearer app-token-1"}
_ADDRESS = urlsplit(REDIS_URL)
REDIS_DATABASE = urlunsplit(_ADDRESS._replace(path=f"/{int(_ADDRESS.path.strip('/') or 0) + 1}"))
"""Not that of the other tests, whose workers would take our jobs."""

Happening = Literal["receive", "work", "flush"]
Answers = dict[str, Any]


@dataclass(frozen=True)
class Told:
    """What happened to some customers, and what they have in the end when all is processed in order, undisturbed."""

    folder: Path
    benefits: str
    stories: dict[str, list[SimulatedEvent]]
    """By customer."""
    expected: dict[str, Answers]


async def answers(client: httpx.AsyncClient, customer_id: str) -> Answers:
    entitlements = await client.get(f"/v1/customers/{customer_id}/entitlements", headers=APP)
    state = await client.get(f"/v1/customers/{customer_id}/state", headers=APP)
    assert {entitlements.status_code, state.status_code} <= {200, 404}
    listed = entitlements.json().get("entitlements", [])
    # What was given for a moment, because its events came in that order, is revoked; in order it was never there.
    assert {one["status"] for one in listed if not one["entitled"]} <= {"revoked"}
    return {
        "entitled": {one["benefit"]: one["status"] for one in listed if one["entitled"]},
        "state": state.json(),
    }


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Told:
    folder = tmp_path_factory.mktemp("in-order")
    (folder / "sub").mkdir()
    (folder / "manual.txt").write_text("the manual")
    (folder / "sub" / "app.bin").write_bytes(b"binary")
    benefits = BENEFITS.replace("FOLDER", str(folder))
    clock = Clock(datetime.now(UTC))
    stories = [play(scenario, WORLD, seed=seed, now=clock.at) for seed, scenario in enumerate(SCENARIOS)]

    async def in_order() -> dict[str, Answers]:
        catalogue = parse_catalogue(benefits, TERMS, timedelta())
        async with run_service(copy_of_template(sqlite_template, folder), folder, catalogue, clock) as running:
            await running.receive([event for story in stories for event in story])
            return {story[0].customer_id: await answers(running.client, story[0].customer_id) for story in stories}

    expected = asyncio.run(in_order())
    return Told(folder, benefits, {story[0].customer_id: story for story in stories}, expected)


FORGE = """
import json, os, signal, sys
import uvloop, uvicorn.protocols.http.httptools_impl
import worker.app, worker.cli, worker.cli.run
children = []
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if "kill" in order:
        pid = order["kill"]
        children.remove(pid)
        ended_by_itself, _ = os.waitpid(pid, os.WNOHANG)
        if not ended_by_itself:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        print(ended_by_itself, flush=True)
        continue
    pid = os.fork()
    if not pid:
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(order["environment"])
        sys.argv = ["almoner", order["part"]]
        try:
            worker.cli.main()
        finally:
            os._exit(1)
    children.append(pid)
    print(pid, flush=True)
for pid in children:
    os.kill(pid, signal.SIGKILL)
"""
"""A process that has imported everything, and becomes `almoner receive` or `almoner work` by forking, since importing
takes longer than all else here. It is their parent: what it kills is surely still theirs."""


@dataclass
class Forge:
    process: subprocess.Popen[str]

    def ask(self, **order: Any) -> str:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{json.dumps(order)}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@pytest.fixture(scope="module")
def started_forge() -> Iterator["subprocess.Popen[str]"]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ALMONER_")}
    with subprocess.Popen(
        [sys.executable, "-c", FORGE], env=inherited, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process  # leaving closes its input, at which it kills what is left and ends


@pytest.fixture(scope="module")
def forge(started_forge: "subprocess.Popen[str]", told: Told) -> Forge:
    """It imports while the stories are told in order."""
    assert started_forge.stdout
    assert started_forge.stdout.readline() == "ready\n"
    return Forge(started_forge)


@dataclass
class Processes:
    """A receiver and a worker, each a process of its own."""

    forge: Forge
    environment: dict[str, str]
    port: int
    folder: Path
    running: dict[str, str] = field(default_factory=dict)

    def start(self, part: str) -> None:
        log = self.folder / f"{part}.log"
        self.running[part] = self.forge.ask(part=part, environment=self.environment, log=str(log))

    def kill(self, part: str) -> None:
        ended_by_itself = self.forge.ask(kill=int(self.running.pop(part)))
        assert ended_by_itself == "0", (self.folder / f"{part}.log").read_text()[-2000:]

    def kill_all(self) -> None:
        for part in list(self.running):
            self.kill(part)

    @contextmanager
    def worker_by_command(self) -> Iterator[None]:
        with (
            (self.folder / "work.log").open("ab") as log,
            subprocess.Popen([ALMONER, "work"], env=os.environ | self.environment, stdout=log, stderr=log) as process,
        ):
            try:
                yield
                assert process.poll() is None
            finally:
                process.kill()


@pytest.fixture
async def redis() -> AsyncIterator[Redis]:
    client = Redis.from_url(REDIS_DATABASE)
    try:
        await client.flushdb()
    except (RedisError, OSError) as error:
        skip(f"no Redis at {REDIS_DATABASE}: {error}")
    yield client
    await client.flushdb()
    await client.aclose()


@pytest.fixture
def url(database_url: str, tmp_path: Path) -> str:
    """On SQLite a file that is not there yet: both processes begin by making it."""
    return f"sqlite:///{tmp_path / 'new.db'}" if database_url.startswith("sqlite") else database_url


@pytest.fixture
def processes(url: str, forge: Forge, told: Told, tmp_path: Path) -> Iterator[Processes]:
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    (tmp_path / "benefits.toml").write_text(told.benefits)
    ours = {
        "PORT": str(port),
        "DATA_DIR": str(tmp_path),
        "DATABASE_URL": url,
        "REDIS_URL": REDIS_DATABASE,
        "WEBHOOK_SECRETS": SECRET,
        "API_TOKENS": "app:app-token-1",
        "OPS_TOKENS": "operator:ops-token-1",
        "SIGNING_KEYS": "signing-key-1",
        "LINK_SECRET": "link-secret-1",
        "PUBLIC_URL": "https://sidecar.example.com",
        "BENEFITS": str(tmp_path / "benefits.toml"),
        "CALL_TIMEOUT": "1s",  # a killed worker's leases run out five seconds later
    }
    made = Processes(forge, {f"ALMONER_{name}": value for name, value in ours.items()}, port, tmp_path)
    try:
        yield made
    finally:
        made.kill_all()


@dataclass
class Polar:
    """Sends events as Polar does: many at once, and each again until it is answered with 2xx."""

    client: httpx.AsyncClient
    waiting: deque[SimulatedEvent]
    total: int
    accepted: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    failed: int = 0
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self) -> None:
        async with asyncio.TaskGroup() as senders:
            for _ in range(12):
                senders.create_task(self._send())

    async def _send(self) -> None:
        while self.waiting:
            event = self.waiting.popleft()
            while not await self._delivered(event):
                self.failed += 1
                await asyncio.sleep(0.1)
            self.answered += 1
            self.moved.set()
            await asyncio.sleep(random.uniform(0, 0.1))

    async def _delivered(self, event: SimulatedEvent) -> bool:
        signed = headers(event, SECRET, scheme="standard", at=datetime.now(UTC))
        try:
            answer = await self.client.post("/webhooks/polar", content=event.body, headers=signed)
        except httpx.TransportError:
            return False
        if answer.status_code == 503:
            return False
        assert answer.status_code == 202, answer.text
        self.accepted[event.webhook_id] += answer.json()["status"] != "duplicate"
        return True

    async def has_sent(self, share: float) -> None:
        """Wait until about this share of the events was answered."""
        until = (share + random.uniform(-0.05, 0.05)) * self.total
        while self.answered < until:
            self.moved.clear()
            await self.moved.wait()


HAPPENS: list[tuple[float, tuple[Happening, ...]]] = [
    (0.15, ("work",)),
    (0.3, ("receive",)),
    (0.45, ("flush", "work")),
    (0.6, ("receive", "work")),
    (0.75, ("work", "flush", "receive")),
]
"""After about which share of the events which process is killed, or Redis wiped; it starts again at once."""


async def test_nothing_is_lost_whatever_is_killed(told: Told, processes: Processes, url: str, redis: Redis) -> None:
    events = [event for story in told.stories.values() for event in story]
    sent = arrange(events, shuffle=True, duplicate=0.2, seed=random.randrange(1_000_000))
    processes.start("receive")
    processes.start("work")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{processes.port}", timeout=5) as client:
        polar = Polar(client, deque(sent), len(sent))
        sending = asyncio.create_task(polar.send())
        for share, happens in HAPPENS:
            await polar.has_sent(share)
            for name in happens:
                if name == "flush":
                    await redis.flushdb()
                else:
                    processes.kill(name)
            for name in happens:
                if name != "flush":
                    processes.start(name)
        await sending
        await redis.flushdb()
        processes.kill("work")
        killed_at = time.monotonic()
        async with opened(url) as database:
            with processes.worker_by_command():
                await settled(database)
            recovered = time.monotonic() - killed_at
            await assert_conserved(database, events)
        assert max(polar.accepted.values()) == 1  # whatever was sent again was known
        found = {customer_id: await answers(client, customer_id) for customer_id in told.stories}
    assert found == told.expected
    print(  # noqa: T201 - a figure that is published
        f"\n{url.partition(':')[0]}: {len(sent)} events, {polar.failed} answers lost, "
        f"recovered in {recovered:.1f} s, the start of the worker included"
    )
    assert recovered < 20  # ARQ alone would take 310


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    database = Database(url)
    try:
        yield database
    finally:
        await database.close()


_UNSETTLED = sa.text("SELECT count(*) FROM grants WHERE next_attempt_at IS NOT NULL")


async def settled(database: Database) -> None:
    """Wait until there is nothing left to do."""
    deadline = time.monotonic() + 30
    while True:
        pending, unsettled = await database.read(
            lambda connection: (
                inbox.counted(connection)[DeliveryStatus.PENDING],
                connection.execute(_UNSETTLED).scalar_one(),
            )
        )
        if not pending and not unsettled:
            return
        assert time.monotonic() < deadline, f"{pending} deliveries and {unsettled} grants are left"
        await asyncio.sleep(0.02)


async def assert_conserved(database: Database, events: Sequence[SimulatedEvent]) -> None:
    """Every event is there once, processed, and the ledger says so."""
    balance, counted, rows = await database.read(
        lambda connection: (
            inbox.balance(connection),
            inbox.counted(connection),
            inbox.listed(connection, inbox.Filter(), limit=10_000),
        )
    )
    assert balance == counted
    assert sorted(row["webhook_id"] for row in rows) == sorted({event.webhook_id for event in events})
    assert {row["status"] for row in rows} <= {DeliveryStatus.DONE, DeliveryStatus.IGNORED}, Counter(
        row["reason"] for row in rows
    )
