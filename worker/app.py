"""The composition root: everything is made here, once, and handed to whoever needs it."""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog
import uvicorn

from config.catalogue import Catalogue, CatalogueError, parse_catalogue, read_catalogue
from config.settings import Settings
from connectors import CONNECTORS, TERMS
from connectors.base import Tools
from worker.accounts import Accounts, StoredTokens, seal_of
from worker.audit import Audit
from worker.batching import Together
from worker.embedded import EmbeddedServer
from worker.http.api import make_api
from worker.http.context import Context
from worker.http.present import DownloadTokens
from worker.license_calls import LicenseCalls
from worker.license_keys import StoredLicenseKeys, hashed
from worker.limits import StoredLimits
from worker.pipeline import PROCESS_BATCH, SETTLE_BATCH, Pipeline, Trigger
from worker.polar import Polar
from worker.polar_keys import PolarKeys
from worker.queue import Job, Queue
from worker.quotas import Quotas
from worker.signing_keys import SigningKeys
from worker.store import grants
from worker.store.database import Database
from worker.store.migrate import migrate, needs_migration
from worker.store.ready import ReadyAnswers
from worker.tally import Tally

log = structlog.get_logger()

_SETTLING = 8
"""Batches of grants that are settled side by side, so that a slow platform does not hold up the others."""

_REST_SECONDS = 0.005

EXAMPLE_BENEFITS = Path(__file__).parent.parent / "config" / "benefits.example.toml"


class NotReady(Exception):
    """The service cannot start; the message says what to do first."""


def utc_now() -> datetime:
    """Return the time. The only place that asks the clock; everything else is told."""
    return datetime.now(UTC)


class StoredPasses:
    """Passes, in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self, resource: str) -> None:
        """Open the pass; already open is success."""
        await self._database.write(lambda connection: grants.set_pass(connection, resource, is_open=True))

    async def close(self, resource: str) -> None:
        """Close the pass; already closed or never opened is success."""
        await self._database.write(lambda connection: grants.set_pass(connection, resource, is_open=False))

    async def is_open(self, resource: str) -> bool:
        """Whether the pass is open now."""
        return await self._database.peek(lambda connection: grants.is_open(connection, resource))


class NoTrigger:
    """For commands that act by themselves: what they leave is found by a worker's sweep."""

    async def process(self, delivery_ids: Sequence[int]) -> None:
        """Do nothing."""

    async def settle(self, grant_ids: Sequence[str]) -> None:
        """Do nothing."""


@dataclass
class Service:
    """An open database and the pipeline on it."""

    settings: Settings
    database: Database
    pipeline: Pipeline
    tools: Tools
    limits: StoredLimits
    tokens: StoredTokens
    accounts: Accounts
    license_keys: StoredLicenseKeys
    license_calls: LicenseCalls
    quotas: Quotas
    polar: Polar | None
    """A client of Polar's API; None without a token."""
    polar_keys: PolarKeys


def load_catalogue(settings: Settings) -> Catalogue:
    """Read the benefits file, checked as a whole, with the settings that its connectors need.

    In development the example stands in for a missing file. Raises CatalogueError.
    """
    path = settings.benefits
    if settings.environment == "development" and not path.exists():
        path = EXAMPLE_BENEFITS
    catalogue = read_catalogue(path, TERMS, settings.grace)
    problems = [
        f"benefits.{benefit.key}: {problem}"
        for benefit in catalogue.benefits.values()
        for problem in CONNECTORS[benefit.connector].missing(benefit.config, settings)
    ]
    if problems:
        raise CatalogueError(str(path), problems)
    return catalogue


def _polar(settings: Settings, limits: StoredLimits, now: Callable[[], datetime]) -> Polar | None:
    """Return a client of Polar's API, where there is a token for it."""
    if not settings.polar_access_token.get_secret_value():
        return None
    seconds = settings.call_timeout.total_seconds()
    return Polar(settings.polar_access_token, settings.polar_base_url, limits, now, timeout=seconds)


@asynccontextmanager
async def open_service(
    settings: Settings,
    catalogue: Catalogue,
    *,
    trigger: Trigger | None = None,
    now: Callable[[], datetime] = utc_now,
) -> AsyncIterator[Service]:
    """Open the database, and make the pipeline on it. Raises NotReady where the database must be migrated first."""
    if settings.environment == "development":
        await migrate(settings.database)
    elif await needs_migration(settings.database):
        raise NotReady("The database is not up to date. Run: almoner migrate")
    database = Database(settings.database)
    executor = ThreadPoolExecutor(max_workers=settings.connector_calls, thread_name_prefix="connector")
    limits, tokens = StoredLimits(database, now), StoredTokens(database, seal_of(settings), now)
    keys = StoredLicenseKeys(database, seal_of(settings), now)
    tools = Tools(settings, StoredPasses(database), keys, executor, now, limits, tokens)
    pipeline = Pipeline(
        database=database,
        settings=settings,
        connectors={name: made(tools) for name, made in CONNECTORS.items()},
        parse_catalogue=lambda text, grace: parse_catalogue(text, TERMS, grace),
        trigger=trigger or NoTrigger(),
        now=now,
        catalogue=catalogue,
    )
    tally, quotas = Tally(database), Quotas(database, now)
    polar = _polar(settings, limits, now)
    issued_there = PolarKeys(database, polar, settings, now)
    try:
        yield Service(
            settings=settings,
            database=database,
            pipeline=pipeline,
            tools=tools,
            limits=limits,
            tokens=tokens,
            accounts=Accounts(database, pipeline, seal_of(settings)),
            license_keys=keys,
            license_calls=LicenseCalls(database, pipeline, tally),
            quotas=quotas,
            polar=polar,
            polar_keys=issued_there,
        )
    finally:
        await pipeline.close()
        await tally.close()
        await issued_there.close()
        if polar:
            await polar.close()
        for connector in pipeline.connectors.values():
            if hasattr(connector, "close"):
                await connector.close()
        await database.close()
        executor.shutdown(wait=False, cancel_futures=True)


async def run(
    settings: Settings,
    *,
    receive: bool,
    work: bool,
    announce: Callable[[str], None] = lambda _: None,
) -> None:
    """Run the receiver, the worker, or both in one process, until SIGTERM or SIGINT.

    `announce` is told the address once it answers. Raises NotReady, NoServer, CatalogueError.
    """
    catalogue = load_catalogue(settings)
    stopping = asyncio.Event()
    listening = _listen(settings) if receive else None
    if listening:  # port 0 takes a free one, which links must name
        settings = settings.model_copy(update={"port": listening.getsockname()[1]})
    server = None if settings.redis_url else EmbeddedServer(settings.data_dir)
    queue = Queue(server.url if server else settings.redis_url)
    try:
        if server:
            settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            server.start()
        async with open_service(settings, catalogue, trigger=queue) as service, asyncio.TaskGroup() as tasks:
            # Whoever works puts a changed file in force; whoever only receives takes what there is.
            held = None if not work and await service.pipeline.follow() else await service.pipeline.propose(catalogue)
            if held:
                log.error("the changed benefits file is held; the one before stays in force", because=held,
                          next="look at `almoner check`, then run `almoner accept-benefits`")  # fmt: skip
            if server:
                tasks.create_task(server.watch(stopping))
            if work:
                await service.tokens.reseal()
                await service.license_keys.reseal()
                await service.license_keys.hide(hashed(service.pipeline.catalogue))
                await SigningKeys(service.database, settings, service.pipeline.now).reseal()
                tasks.create_task(service.pipeline.sweep_for_ever(stopping))
                tasks.create_task(service.polar_keys.read_for_ever(stopping))
                tasks.create_task(Audit(service.pipeline).audit_for_ever(stopping))
                service.pipeline.works_near = True
                jobs: dict[str, Job] = {
                    "process": Together(service.pipeline.process, most=PROCESS_BATCH, rest=_REST_SECONDS),
                    "settle": Together(
                        service.pipeline.settle, most=SETTLE_BATCH, at_once=_SETTLING, rest=_REST_SECONDS
                    ),
                }
                tasks.create_task(queue.work(jobs, slots=settings.worker_slots, stopping=stopping))
            else:
                tasks.create_task(service.pipeline.follow_for_ever(stopping))
            _stop_on_signals(stopping)
            _collect_seldom()
            if listening:
                tasks.create_task(_serve(_context(service, queue), listening, stopping, announce))
            else:
                announce("")
            await stopping.wait()
    finally:
        await queue.close()
        if server:
            server.stop()
        if listening:
            listening.close()


def _collect_seldom() -> None:
    """Spare what was made at the start from garbage collection: looking through it all takes 100 ms each time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _context(service: Service, queue: Queue) -> Context:
    return Context(
        settings=service.settings,
        database=service.database,
        pipeline=service.pipeline,
        queue=queue,
        connectors=service.pipeline.connectors,
        ready=ReadyAnswers(service.database),
        tokens=DownloadTokens(service.settings),
        accounts=service.accounts,
        limits=service.limits,
        license_keys=service.license_keys,
        license_calls=service.license_calls,
        quotas=service.quotas,
        polar_keys=service.polar_keys,
        now=service.pipeline.now,
    )


def _listen(settings: Settings) -> socket.socket:
    """Take the address before anything else is started. Raises NotReady where it is taken."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With its protocol named: else asyncio turns Nagle's algorithm off for none of its connections.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        listening.close()
        raise NotReady(f"Cannot listen on {settings.host}:{settings.port}: {error}") from None
    return listening


class _Server(uvicorn.Server):
    """uvicorn, that says when it answers, and that stops with the rest."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        self._started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to us: uvicorn would raise them again when it has ended, before the database is closed."""
        yield


async def _serve(
    context: Context, listening: socket.socket, stopping: asyncio.Event, announce: Callable[[str], None]
) -> None:
    config = uvicorn.Config(
        make_api(context, context.now),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        proxy_headers=bool(context.settings.trusted_proxies),
        forwarded_allow_ips=list(context.settings.trusted_proxies),
        timeout_graceful_shutdown=10,
    )
    server = _Server(config, lambda: announce(context.settings.local_url))
    ending = asyncio.create_task(_end(server, stopping))
    try:
        await server.serve(sockets=[listening])
    finally:
        stopping.set()
        await ending
        listening.close()


async def _end(server: uvicorn.Server, stopping: asyncio.Event) -> None:
    await stopping.wait()
    server.should_exit = True


def _stop_on_signals(stopping: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, stopping.set)


def run_for_ever(
    settings: Settings, *, receive: bool, work: bool, announce: Callable[[str], None] = lambda _: None
) -> None:
    """Run until a signal comes, on uvloop where there is one."""
    try:
        import uvloop
    except ImportError:  # pragma: no cover - Windows
        runner = asyncio.run
    else:
        runner = uvloop.run
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    runner(run(settings, receive=receive, work=work, announce=announce))
