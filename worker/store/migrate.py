"""Migrations, by Alembic: at start in development, by `almoner migrate` in production."""

import asyncio
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import create_async_engine

from worker.store.database import sqlite_path

T = TypeVar("T")

_LOCK = 727_660_118  # any number; two processes that start together migrate one after the other


def _config(connection: sa.Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


async def migrate(url: str) -> None:
    """Bring the database's tables to the newest form; nothing happens where they are."""
    await _on(url, _upgrade)


async def needs_migration(url: str) -> bool:
    """Whether the tables are not of the newest form."""
    return await _on(url, lambda connection: _current(connection) != _newest())


def _upgrade(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    if _current(connection) != _newest():
        command.upgrade(_config(connection), "head")


def _current(connection: sa.Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


@cache
def _newest() -> str | None:
    return ScriptDirectory.from_config(_config()).get_current_head()


async def _on(url: str, work: Callable[[sa.Connection], T]) -> T:
    if url.startswith("sqlite"):
        return await asyncio.to_thread(_on_sqlite, url, work)
    engine = create_async_engine(url)
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(work)
    finally:
        await engine.dispose()


def _on_sqlite(url: str, work: Callable[[sa.Connection], T]) -> T:
    path = Path(sqlite_path(url))
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = sa.create_engine(f"sqlite:///{path}", isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(sa.text("PRAGMA busy_timeout = 10000"))
            connection.execute(sa.text("PRAGMA journal_mode = WAL"))
            connection.execute(sa.text("BEGIN IMMEDIATE"))
            try:
                result = work(connection)
            except BaseException:
                connection.execute(sa.text("ROLLBACK"))
                raise
            connection.execute(sa.text("COMMIT"))
            return result
    finally:
        engine.dispose()
