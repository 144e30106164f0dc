"""Opening the database, and the two ways to use it: `read` and `write`.

Every query is a plain function of a synchronous SQLAlchemy connection. Where it runs depends on the database: on
PostgreSQL over asyncpg; on SQLite reads over aiosqlite, and all writes over one connection, which commits whatever is
waiting as one group. So a commit (an fsync) is shared, no two writers of a process fight for SQLite's single lock, and
what one item of a group does wrong is undone alone.
"""

import asyncio
import random
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import StaticPool

T = TypeVar("T")

_GROUP_SECONDS = 0.005
"""How long statements keep the event loop, if a single item does not take longer."""
_BUSY_SECONDS = 10.0


def sqlite_path(url: str) -> str:
    """Return the file of an SQLite address like `sqlite:///path`."""
    return url.split(":///", 1)[1]


def _set_pragmas(connection: Any, *, query_only: bool) -> None:  # noqa: ANN401 - a driver's connection
    cursor = connection.cursor()
    # Also for the next statement: while another process opens or closes the file it may be locked for a moment.
    cursor.execute(f"PRAGMA busy_timeout = {int(_BUSY_SECONDS * 1000)}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    if query_only:
        cursor.execute("PRAGMA query_only = ON")
    else:
        cursor.execute("PRAGMA busy_timeout = 0")  # the writer waits by itself, without blocking the event loop
    cursor.close()


@dataclass
class _Item:
    work: Callable[[sa.Connection], Any]
    done: asyncio.Future[Any]
    result: Any = None
    error: Exception | None = None


class _SqliteWriter:
    """One connection, one transaction for all that waits.

    Statements run on the event loop's own thread, some milliseconds at a time; only the commit, which waits for the
    disk, runs in another. A thread for all of it takes five times as long under load: sqlite3 lets go of Python's lock
    at every row, and gets it back only when the busy loop yields it (docs/decisions.md, 4).
    """

    def __init__(self, path: str) -> None:
        self._engine = sa.create_engine(
            f"sqlite:///{path}",
            isolation_level="AUTOCOMMIT",
            poolclass=StaticPool,
            connect_args={"check_same_thread": False},
            hide_parameters=True,
        )
        sa.event.listen(self._engine, "connect", lambda raw, _: _set_pragmas(raw, query_only=False))
        self._connection = self._engine.connect()
        raw = self._connection.connection.driver_connection
        if raw is None:  # pragma: no cover - SQLAlchemy always has one here
            raise RuntimeError("SQLite gave no connection")
        self._raw: Any = raw
        self._waiting: deque[_Item] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite-commit")
        self._closed = False

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        if self._closed:
            raise RuntimeError("the database is closed")
        item = _Item(work, asyncio.get_running_loop().create_future())
        self._waiting.append(item)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_waiting())
        result: T = await item.done
        return result

    async def close(self) -> None:
        while self._writing and not self._writing.done():
            await asyncio.gather(self._writing, return_exceptions=True)
        self._closed = True
        self._disk.shutdown()
        self._connection.close()
        self._engine.dispose()

    async def _write_waiting(self) -> None:
        while self._waiting:
            group: list[_Item] = []
            try:
                await self._begin()
                self._work(group)
                await asyncio.get_running_loop().run_in_executor(self._disk, self._raw.execute, "COMMIT")
            except Exception as error:  # noqa: BLE001 - handed to everybody of the group: nothing was committed
                if not group:  # for all who wait the file is as locked
                    group, self._waiting = list(self._waiting), deque()
                for item in group:
                    item.error = item.error or error
                if self._raw.in_transaction:
                    self._raw.execute("ROLLBACK")
            _tell(group)

    async def _begin(self) -> None:
        """Take SQLite's lock, waiting for other processes without blocking the loop. Raises OperationalError."""
        gives_up = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._raw.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > gives_up:
                    raise
                await asyncio.sleep(random.uniform(0.001, 0.005))  # noqa: S311 - two that wait shall not meet again
            else:
                return

    def _work(self, group: list[_Item]) -> None:
        """Do what waits, until it has taken its time; what goes wrong in one item is undone alone."""
        ends = time.monotonic() + _GROUP_SECONDS
        while self._waiting and time.monotonic() < ends:
            item = self._waiting.popleft()
            if item.done.done():  # whoever asked has given up, and was told so
                continue
            group.append(item)
            self._raw.execute("SAVEPOINT item")
            try:
                item.result = item.work(self._connection)
            except Exception as error:  # noqa: BLE001 - handed to whoever asked
                item.error = error
                self._raw.execute("ROLLBACK TO item")
            self._raw.execute("RELEASE item")


def _tell(items: list[_Item]) -> None:
    for item in items:
        if item.done.done():
            continue
        if item.error is not None:
            item.done.set_exception(item.error)
        else:
            item.done.set_result(item.result)


@dataclass
class Database:
    """An open database."""

    url: str
    _engine: AsyncEngine = field(init=False)
    _writer: _SqliteWriter | None = field(init=False, default=None)
    _quick_engine: sa.Engine | None = field(init=False, default=None)
    quick: sqlite3.Connection | None = field(init=False, default=None)
    """SQLite only: a connection for reads of a few microseconds, on the event loop's own thread."""

    def __post_init__(self) -> None:
        """Connect lazily; on SQLite start the writer's thread."""
        if self.is_sqlite:
            path = sqlite_path(self.url)
            Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._writer = _SqliteWriter(path)
            self._engine = create_async_engine(f"sqlite+aiosqlite:///{path}", hide_parameters=True)
            sa.event.listen(self._engine.sync_engine, "connect", lambda raw, _: _set_pragmas(raw, query_only=True))
            self.quick = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            _set_pragmas(self.quick, query_only=True)
            self.quick.execute("PRAGMA cache_size = -16000")  # kB: the pages that questions come back to
            quick = self.quick
            self._quick_engine = sa.create_engine(
                "sqlite://", creator=lambda: quick, poolclass=StaticPool, isolation_level="AUTOCOMMIT",
                hide_parameters=True,
            )  # fmt: skip
        else:
            self._engine = create_async_engine(
                self.url, pool_size=20, max_overflow=10, connect_args={"timeout": 5, "command_timeout": 30},
                hide_parameters=True,
            )  # fmt: skip

    @property
    def is_sqlite(self) -> bool:
        """Whether this is SQLite."""
        return self.url.startswith("sqlite")

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Run a query that changes nothing. Raises what the database raises."""
        async with self._engine.connect() as connection:
            return await connection.run_sync(work)

    async def peek(self, work: Callable[[sa.Connection], T]) -> T:
        """Run a read of a few rows by an index: on SQLite at once, without leaving this thread."""
        if self._quick_engine:
            with self._quick_engine.connect() as connection:
                return work(connection)
        return await self.read(work)

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work` in one transaction, durable when this returns. Raises what `work` raises, with nothing done."""
        if self._writer:
            return await self._writer.write(work)
        async with self._engine.begin() as connection:
            return await connection.run_sync(work)

    async def close(self) -> None:
        """Finish what was asked for, then let go of every connection."""
        if self._writer:
            await self._writer.close()
        if self.quick:
            self.quick.close()
        await self._engine.dispose()
