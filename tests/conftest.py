"""Fixtures: real SQLite and PostgreSQL, the whole service on them, and a clock that tests move."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
import sqlalchemy as sa
import structlog
from sqlmodel import SQLModel

from config.catalogue import Catalogue, parse_catalogue
from config.settings import Settings
from connectors import TERMS
from worker.app import Service, open_service
from worker.http.api import make_api
from worker.http.context import Context
from worker.http.present import DownloadTokens
from worker.simulate import SimulatedEvent, headers, play
from worker.simulated import World
from worker.store import inbox
from worker.store.migrate import migrate
from worker.store.ready import ReadyAnswers

POSTGRES_SERVER = os.environ.get("TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432")
# Each process that runs tests has two numbered databases of its own, of the sixteen there are.
_NUMBER = 8 + 2 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
REDIS_URL = f"{os.environ.get('TEST_REDIS_URL', 'redis://127.0.0.1:6379')}/{_NUMBER}"
MUST_NOT_SKIP = bool(os.environ.get("CI"))

SECRET = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
ORGANIZATION = "6513270e-269e-4d37-b2a7-4de452e6b438"
PRODUCT = "9b1f6d2e-3c4a-4f5b-8d6e-7a8b9c0d1e2f"
SECOND_PRODUCT = "0d6a3a9c-7f5e-4b2d-9c1a-3e4f5a6b7c8d"
POLAR_BENEFIT = "2c7e5a90-1b3d-4e6f-9a8c-5d4e3f2a1b0c"
WORLD = World(ORGANIZATION, (PRODUCT, SECOND_PRODUCT), (POLAR_BENEFIT,))

BENEFITS = f"""
[benefits.key]
connector = "license_key"
for = {{ products = ["{PRODUCT}"] }}
grace = "3d"
prefix = "ACME"
limit_activations = 3

[benefits.files]
connector = "file_download"
for = {{ products = ["{PRODUCT}"] }}
folder = "FOLDER"
files = ["manual.txt", "sub/app.bin"]

[benefits.link]
connector = "custom_link"
for = {{ benefits = ["{POLAR_BENEFIT}"] }}
url = "https://example.com/join?who={{customer.external_id}}"
sign = true

[benefits.better]
connector = "custom_link"
for = {{ products = ["{SECOND_PRODUCT}"] }}
note = "Welcome, {{customer.email}}"
"""


def skip(reason: str) -> None:
    """Skip with a reason; where CI has promised to start everything, fail instead."""
    if MUST_NOT_SKIP:
        pytest.fail(f"CI must not skip: {reason}")
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def _plain_logs() -> None:
    """Tracebacks without the values of all variables, which take structlog's default half a second each."""
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(),
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


@dataclass
class Clock:
    """A clock that stands still until a test moves it."""

    at: datetime = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.at

    def move(self, **by: float) -> None:
        self.at += timedelta(**by)


@dataclass
class Recorded:
    """A trigger that only remembers: what it was told is left to the sweep."""

    deliveries: list[int] = field(default_factory=list)
    grants: list[str] = field(default_factory=list)

    async def process(self, delivery_ids: Sequence[int]) -> None:
        self.deliveries += delivery_ids

    async def settle(self, grant_ids: Sequence[str]) -> None:
        self.grants += grant_ids

    async def is_up(self) -> bool:
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def now(clock: Clock) -> datetime:
    return clock.at


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "almoner.db"
    asyncio.run(migrate(f"sqlite:///{path}"))
    with sa.create_engine(f"sqlite:///{path}").connect() as connection:
        connection.execute(sa.text("PRAGMA wal_checkpoint(TRUNCATE)"))
        connection.connection.close()
    return path


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A database of this run, migrated, or the reason why there is none."""
    name = f"almoner_test_{os.getpid()}"

    async def make() -> None:
        server = await asyncpg.connect(f"{POSTGRES_SERVER}/postgres", timeout=3)
        await server.execute(f"DROP DATABASE IF EXISTS {name}")
        await server.execute(f"CREATE DATABASE {name}")
        await server.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")  # nobody pulls the plug here
        await server.close()
        await migrate(url)

    async def drop() -> None:
        server = await asyncpg.connect(f"{POSTGRES_SERVER}/postgres", timeout=3)
        await server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await server.close()

    url = f"{POSTGRES_SERVER.replace('postgresql://', 'postgresql+asyncpg://')}/{name}"
    try:
        asyncio.run(make())
    except (OSError, asyncpg.PostgresError) as error:
        skip(f"no PostgreSQL at {POSTGRES_SERVER}: {error}")
    yield url
    asyncio.run(drop())


async def _empty(url: str) -> None:
    """Delete what the test before left: truncating twenty tables takes twenty times as long."""
    server = await asyncpg.connect(url.replace("postgresql+asyncpg", "postgresql"))
    await server.execute("; ".join(f"DELETE FROM {table.name}" for table in reversed(SQLModel.metadata.sorted_tables)))
    await server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty, migrated database: each test runs on both kinds."""
    if request.param == "sqlite":
        return copy_of_template(request.getfixturevalue("sqlite_template"), tmp_path)
    url: str = request.getfixturevalue("postgres_url")
    asyncio.run(_empty(url))
    return url


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """An empty, migrated SQLite database, for what does not depend on the kind."""
    return copy_of_template(sqlite_template, tmp_path)


def copy_of_template(template: Path, folder: Path) -> str:
    shutil.copy(template, folder / "almoner.db")
    return f"sqlite:///{folder / 'almoner.db'}"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    (folder / "sub").mkdir(parents=True)
    (folder / "manual.txt").write_text("the manual")
    (folder / "sub" / "app.bin").write_bytes(bytes(range(256)) * 4)
    return folder


@pytest.fixture
def catalogue(files: Path) -> Catalogue:
    return parse_catalogue(BENEFITS.replace("FOLDER", str(files)), TERMS, timedelta())


def settings_for(database_url: str, folder: Path, **more: Any) -> Settings:
    values: dict[str, Any] = {
        "database_url": database_url,
        "data_dir": folder,
        "webhook_secrets": SECRET,
        "api_tokens": "app:app-token-1,portal:portal-token-1",
        "ops_tokens": "operator:ops-token-1",
        "key_readers": "portal",
        "signing_keys": "signing-key-1",
        "link_secret": "link-secret-1",
        "encryption_keys": "encryption-key-1",
        "public_url": "https://sidecar.example.com",
    }
    return Settings(**(values | more))


@dataclass
class Running:
    """The service, without a queue: `drain` does what a worker would."""

    service: Service
    context: Context
    trigger: Recorded
    clock: Clock
    client: httpx.AsyncClient

    async def post(self, event: SimulatedEvent, secret: str = SECRET, **more: str) -> httpx.Response:
        signed = headers(event, secret, scheme="standard", at=self.clock.at) | more
        return await self.client.post("/webhooks/polar", content=event.body, headers=signed)

    async def receive(self, events: Sequence[SimulatedEvent]) -> None:
        for event in events:
            answer = await self.post(event)
            assert answer.status_code == 202, answer.text
        await self.service.pipeline.drain()

    def story(self, scenario: str, seed: int = 1) -> list[SimulatedEvent]:
        return play(scenario, WORLD, seed=seed, now=self.clock.at)

    async def live(self, scenario: str, seed: int = 1) -> str:
        """Play a whole scenario; returns the customer's external id."""
        events = self.story(scenario, seed)
        await self.receive(events)
        return events[0].external_id

    async def get(self, path: str, token: str = "app-token-1", **more: Any) -> httpx.Response:
        return await self.client.get(path, headers={"authorization": f"Bearer {token}"} | more)

    async def answer(self, external_id: str, benefit: str, query: str = "") -> dict[str, Any]:
        response = await self.get(f"/v1/customers/external/{external_id}/entitlements/{benefit}{query}")
        assert response.status_code == 200, response.text
        document: dict[str, Any] = response.json()
        return document

    async def statuses(self, external_id: str) -> dict[str, str]:
        response = await self.get(f"/v1/customers/external/{external_id}/entitlements")
        return {one["benefit"]: one["status"] for one in response.json()["entitlements"]}


async def open_running(
    stack: AsyncExitStack, settings: Settings, catalogue: Catalogue, clock: Callable[[], datetime], trigger: Any
) -> tuple[Service, Context, httpx.AsyncClient]:
    service = await stack.enter_async_context(open_service(settings, catalogue, trigger=trigger, now=clock))
    assert await service.pipeline.propose(catalogue) is None
    context = Context(
        settings=settings,
        database=service.database,
        pipeline=service.pipeline,
        queue=trigger,
        connectors=service.pipeline.connectors,
        ready=ReadyAnswers(service.database),
        tokens=DownloadTokens(settings),
        accounts=service.accounts,
        limits=service.limits,
        license_keys=service.license_keys,
        license_calls=service.license_calls,
        quotas=service.quotas,
        polar_keys=service.polar_keys,
        now=clock,
    )
    transport = httpx.ASGITransport(make_api(context, clock, at_once=False))  # type: ignore[arg-type]
    client = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://almoner"))
    return service, context, client


@asynccontextmanager
async def run_service(
    database_url: str, folder: Path, catalogue: Catalogue, clock: Clock, **more: Any
) -> AsyncIterator[Running]:
    """The service on this database. After the test the ledger balances and nothing is unsettled without a reason."""
    trigger = Recorded()
    async with AsyncExitStack() as stack:
        settings = settings_for(database_url, folder, **more)
        service, context, client = await open_running(stack, settings, catalogue, clock, trigger)
        yield Running(service, context, trigger, clock, client)
        await assert_sound(service)


@pytest.fixture
async def running(database_url: str, tmp_path: Path, catalogue: Catalogue, clock: Clock) -> AsyncIterator[Running]:
    """The service, on each kind of database in turn."""
    async with run_service(database_url, tmp_path, catalogue, clock) as service:
        yield service


@pytest.fixture
async def on_sqlite(sqlite_url: str, tmp_path: Path, catalogue: Catalogue, clock: Clock) -> AsyncIterator[Running]:
    """The service on SQLite, for what does not depend on the kind of database."""
    async with run_service(sqlite_url, tmp_path, catalogue, clock) as service:
        yield service


async def assert_sound(service: Service) -> None:
    """The ledger is what the rows say, it balances, and no grant is left unsettled without a reason."""
    balance, counted = await service.database.read(
        lambda connection: (inbox.balance(connection), inbox.counted(connection))
    )
    assert balance == counted
    assert balance["received"] == sum(amount for account, amount in balance.items() if account != "received")
    stuck = await service.database.read(
        lambda connection: connection.execute(
            sa.text("SELECT id, status FROM grants WHERE settled_generation < generation AND reason IS NULL "
                    "AND next_attempt_at IS NULL")
        ).all()
    )  # fmt: skip
    assert not stuck
