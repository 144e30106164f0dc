"""Opening the database, and the two ways to use it: `read` and `write`.

Every query is a plain function of a synchronous SQLAlchemy connection. Where it runs depends on the database: on
PostgreSQL over asyncpg; on SQLite reads over aiosqlite and all writes in one thread, which commits whatever is waiting
as one group. So a commit (an fsync) is shared, no two writers of a process fight for SQLite's single lock, and what
one item of a group does wrong is undone alone.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import StaticPool

T = TypeVar("T")

_GROUP = 64
_BUSY_SECONDS = 10.0


def sqlite_path(url: str) -> str:
    """Return the file of an SQLite address like `sqlite:///path`."""
    return url.split(":///", 1)[1]


def sync_url(url: str) -> str:
    """Return the address for a synchronous engine, which migrations use on SQLite."""
    return url.replace("sqlite+aiosqlite", "sqlite")


def _set_pragmas(connection: Any, *, query_only: bool) -> None:  # noqa: ANN401 - a driver's connection
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(_BUSY_SECONDS * 1000)}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    if query_only:
        cursor.execute("PRAGMA query_only = ON")
    cursor.close()


@dataclass
class _Item:
    work: Callable[[sa.Connection], Any]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class _SqliteWriter:
    """One thread, one connection, one transaction for all that waits."""

    def __init__(self, path: str) -> None:
        self._engine = sa.create_engine(f"sqlite:///{path}", isolation_level="AUTOCOMMIT", poolclass=StaticPool,
                                        connect_args={"check_same_thread": False})  # fmt: skip
        sa.event.listen(self._engine, "connect", lambda raw, _: _set_pragmas(raw, query_only=False))
        self._waiting: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="sqlite-writer", daemon=True)
        self._thread.start()

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        loop = asyncio.get_running_loop()
        item = _Item(work, loop, loop.create_future())
        self._waiting.put(item)
        result: T = await item.done
        return result

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join()
        self._engine.dispose()

    def _run(self) -> None:
        with self._engine.connect() as connection:
            raw = connection.connection.driver_connection
            if raw is None:  # pragma: no cover - SQLAlchemy always has one here
                raise RuntimeError("SQLite gave no connection")
            while (first := self._waiting.get()) is not None:
                group = [first]
                while len(group) < _GROUP and not self._waiting.empty():
                    item = self._waiting.get()
                    if item is None:
                        self._waiting.put(None)
                        break
                    group.append(item)
                self._commit(connection, raw, group)
                _resolve(group)

    def _commit(self, connection: sa.Connection, raw: Any, group: list[_Item]) -> None:  # noqa: ANN401 - sqlite3's
        try:
            raw.execute("BEGIN IMMEDIATE")
            for item in group:
                raw.execute("SAVEPOINT item")
                try:
                    item.result = item.work(connection)
                    raw.execute("RELEASE item")
                except Exception as error:  # noqa: BLE001 - handed to whoever asked
                    item.error = error
                    raw.execute("ROLLBACK TO item")
                    raw.execute("RELEASE item")
            raw.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - handed to everybody of the group: nothing was committed
            for item in group:
                item.error = item.error or error
            if raw.in_transaction:
                raw.execute("ROLLBACK")


def _resolve(group: list[_Item]) -> None:
    for loop in {item.loop for item in group}:
        mine = [item for item in group if item.loop is loop]
        try:
            loop.call_soon_threadsafe(_tell, mine)
        except RuntimeError:  # the loop has ended; nobody waits any more
            continue


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
            self._engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
            sa.event.listen(self._engine.sync_engine, "connect", lambda raw, _: _set_pragmas(raw, query_only=True))
            self.quick = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            _set_pragmas(self.quick, query_only=True)
            quick = self.quick
            self._quick_engine = sa.create_engine(
                "sqlite://", creator=lambda: quick, poolclass=StaticPool, isolation_level="AUTOCOMMIT"
            )
        else:
            self._engine = create_async_engine(
                self.url, pool_size=20, max_overflow=10, connect_args={"timeout": 5, "command_timeout": 30}
            )

    @property
    def is_sqlite(self) -> bool:
        """Whether this is SQLite."""
        return self.url.startswith("sqlite")

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Run a query that changes nothing. Raises what the database raises."""
        async with self._engine.connect() as connection:
            return await connection.run_sync(work)

    async def peek(self, work: Callable[[sa.Connection], T]) -> T:
        """Run a read of one row by its key: on SQLite at once, without leaving this thread."""
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
            await asyncio.to_thread(self._writer.close)
        if self.quick:
            self.quick.close()
        await self._engine.dispose()
