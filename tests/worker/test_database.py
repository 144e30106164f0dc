"""Opening, reading, writing and migrating the database, on SQLite and on PostgreSQL."""

import asyncio
import os
import sqlite3
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlmodel import SQLModel

from config.catalogue import Catalogue
from tests.conftest import POSTGRES_SERVER, settings_for, skip
from worker.app import NotReady, open_service
from worker.store import database as database_module
from worker.store.database import Database, sqlite_path
from worker.store.migrate import _config, _on, migrate, needs_migration
from worker.store.upsert import among, upsert

ledger = SQLModel.metadata.tables["ledger"]
pulses = SQLModel.metadata.tables["pulses"]
passes = SQLModel.metadata.tables["passes"]


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    await database.close()


@pytest.fixture
async def sqlite(sqlite_url: str) -> AsyncIterator[Database]:
    database = Database(sqlite_url)
    yield database
    await database.close()


def add(account: str, amount: int = 1) -> sa.Insert:
    return ledger.insert().values(account=account, amount=amount)


def accounts(connection: sa.Connection) -> list[str]:
    return list(connection.execute(sa.select(ledger.c.account).order_by(ledger.c.id)).scalars())


async def test_what_was_written_is_read_by_every_way_of_reading(database: Database) -> None:
    written = await database.write(lambda connection: connection.execute(add("a")).rowcount)
    assert written == 1
    assert await database.read(accounts) == ["a"]
    assert await database.peek(accounts) == ["a"]


async def test_what_another_process_committed_is_seen_by_the_next_read(database: Database) -> None:
    other = Database(database.url)
    assert await database.read(accounts) == await database.peek(accounts) == []
    for number in range(3):
        await other.write(lambda connection, number=number: connection.execute(add(str(number))))  # type: ignore[misc]
        assert len(await database.read(accounts)) == number + 1
        assert len(await database.peek(accounts)) == number + 1
    await other.close()
    code = (
        "import sqlite3, sys; connection = sqlite3.connect(sys.argv[1]); "
        "connection.execute(sys.argv[2]); connection.commit()"
        if database.is_sqlite
        else "import asyncio, asyncpg, sys\n"
        "async def main():\n    connection = await asyncpg.connect(sys.argv[1])\n"
        "    await connection.execute(sys.argv[2])\n    await connection.close()\n"
        "asyncio.run(main())"
    )
    address = sqlite_path(database.url) if database.is_sqlite else database.url.replace("+asyncpg", "")
    statement = "INSERT INTO ledger (account, amount) VALUES ('theirs', 1)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, address, statement)
    assert await process.wait() == 0
    assert (await database.read(accounts))[-1] == "theirs"
    assert (await database.peek(accounts))[-1] == "theirs"


async def test_a_write_that_raises_leaves_nothing_behind(database: Database) -> None:
    def fail(connection: sa.Connection) -> None:
        connection.execute(add("half"))
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await database.write(fail)
    assert await database.read(accounts) == []
    await database.write(lambda connection: connection.execute(add("whole")))
    assert await database.read(accounts) == ["whole"]


async def test_of_writes_at_once_those_that_fail_fail_alone(database: Database) -> None:
    """On SQLite they share a transaction."""

    def write(connection: sa.Connection, number: int) -> int:
        connection.execute(add(str(number)))
        if number == 3:
            raise ValueError("three")
        if number == 6:
            connection.execute(passes.insert(), [{"resource": "same", "is_open": True}] * 2)
        return number

    results = await asyncio.gather(
        *(database.write(lambda connection, number=number: write(connection, number)) for number in range(10)),  # type: ignore[misc]
        return_exceptions=True,
    )
    assert isinstance(results[3], ValueError)
    assert isinstance(results[6], IntegrityError)
    assert [one for one in results if isinstance(one, int)] == [0, 1, 2, 4, 5, 7, 8, 9]
    assert sorted(await database.read(accounts)) == ["0", "1", "2", "4", "5", "7", "8", "9"]


async def test_reading_cannot_change_anything_on_sqlite(sqlite: Database) -> None:
    with pytest.raises(OperationalError, match="readonly"):
        await sqlite.read(lambda connection: connection.execute(add("a")))
    with pytest.raises(OperationalError, match="readonly"):
        await sqlite.peek(lambda connection: connection.execute(add("a")))


async def test_sqlite_is_told_to_be_durable(sqlite: Database) -> None:
    def pragmas(connection: sa.Connection) -> dict[str, object]:
        names = ("synchronous", "journal_mode", "foreign_keys")
        return {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names}

    full = {"synchronous": 2, "journal_mode": "wal", "foreign_keys": 1}
    assert await sqlite.write(pragmas) == full
    assert await sqlite.read(pragmas) == full
    assert await sqlite.peek(pragmas) == full


def size_of_log(database: Database) -> int:
    return Path(f"{sqlite_path(database.url)}-wal").stat().st_size


async def test_writes_that_wait_share_one_commit(sqlite: Database) -> None:
    """The frames of the log are written by commit: twenty small writes take about as many as one."""
    await sqlite.write(lambda connection: connection.execute(add("first")))
    before = size_of_log(sqlite)
    await sqlite.write(lambda connection: connection.execute(add("alone")))
    alone = size_of_log(sqlite) - before
    await asyncio.gather(*(sqlite.write(lambda connection: connection.execute(add("many"))) for _ in range(20)))
    assert size_of_log(sqlite) - before - alone <= 3 * alone
    assert len(await sqlite.read(accounts)) == 22


async def test_whoever_gives_up_waiting_holds_nobody_up(database: Database) -> None:
    given_up = asyncio.create_task(database.write(lambda connection: connection.execute(add("given up"))))
    await asyncio.sleep(0)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    await database.write(lambda connection: connection.execute(add("b")))
    assert (await database.read(accounts))[-1] == "b"


async def test_a_commit_that_fails_fails_for_the_whole_group_and_leaves_nothing(sqlite: Database) -> None:
    def break_a_promise(connection: sa.Connection) -> None:
        connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        connection.exec_driver_sql("INSERT INTO child VALUES (1)")  # refused only at the commit

    def make(connection: sa.Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE parent (id INTEGER PRIMARY KEY)")
        connection.exec_driver_sql("CREATE TABLE child (parent REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")

    def fail(_connection: sa.Connection) -> None:
        raise ValueError("its own fault")

    await sqlite.write(make)
    first, second, own = await asyncio.gather(
        sqlite.write(lambda connection: connection.execute(add("a"))),
        sqlite.write(break_a_promise),
        sqlite.write(fail),
        return_exceptions=True,
    )
    assert isinstance(first, sqlite3.IntegrityError)
    assert isinstance(second, sqlite3.IntegrityError)
    assert isinstance(own, ValueError)
    assert await sqlite.read(accounts) == []
    await sqlite.write(lambda connection: connection.execute(add("b")))
    assert await sqlite.read(accounts) == ["b"]


async def test_a_write_that_ends_the_transaction_itself_harms_only_its_group(sqlite: Database) -> None:
    with pytest.raises(sqlite3.OperationalError, match="savepoint"):
        await sqlite.write(lambda connection: connection.exec_driver_sql("ROLLBACK"))
    await sqlite.write(lambda connection: connection.execute(add("b")))
    assert await sqlite.read(accounts) == ["b"]


async def test_many_writes_do_not_hold_up_the_event_loop(sqlite: Database) -> None:
    """A long queue is written in groups of a few milliseconds; in between everybody else has a turn."""
    longest, last = 0.0, time.monotonic()

    def slow(connection: sa.Connection) -> None:
        time.sleep(0.002)
        connection.execute(add("a"))

    writing = asyncio.gather(*(sqlite.write(slow) for _ in range(60)))
    while not writing.done():
        await asyncio.sleep(0)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    assert longest < 0.08  # 0.12 and more if all were one group
    assert len(await sqlite.read(accounts)) == 60


async def test_a_write_waits_for_another_process_and_reads_go_on(sqlite: Database) -> None:
    other = sqlite3.connect(sqlite_path(sqlite.url), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("INSERT INTO ledger (account, amount) VALUES ('theirs', 1)")
    writing = asyncio.create_task(sqlite.write(lambda connection: connection.execute(add("ours"))))
    await asyncio.sleep(0.05)
    assert not writing.done()
    assert await sqlite.read(accounts) == await sqlite.peek(accounts) == []
    other.execute("COMMIT")
    other.close()
    async with asyncio.timeout(2):
        await writing
    assert await sqlite.read(accounts) == ["theirs", "ours"]


async def test_a_database_that_stays_locked_is_a_clear_error_and_not_the_end(
    sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_BUSY_SECONDS", 0.05)
    other = sqlite3.connect(sqlite_path(sqlite.url), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    wrote = await asyncio.gather(
        *(sqlite.write(lambda connection: connection.execute(add("a"))) for _ in range(20)), return_exceptions=True
    )
    assert {str(one) for one in wrote} == {"database is locked"}
    assert time.monotonic() - began < 0.5, "all who wait are told together"
    other.execute("ROLLBACK")
    other.close()
    await sqlite.write(lambda connection: connection.execute(add("b")))
    assert await sqlite.read(accounts) == ["b"]


async def test_opening_waits_for_a_process_that_has_the_file_to_itself(sqlite_url: str) -> None:
    """As at starting again after a kill, when another process recovers the log."""
    other = sqlite3.connect(sqlite_path(sqlite_url), isolation_level=None, check_same_thread=False)
    other.execute("PRAGMA journal_mode = DELETE")
    other.execute("BEGIN EXCLUSIVE")
    ending = threading.Timer(0.1, other.execute, ["ROLLBACK"])
    ending.start()
    database = await asyncio.to_thread(Database, sqlite_url)
    ending.join()
    other.close()
    await database.write(lambda connection: connection.execute(add("a")))
    await database.close()


async def test_closing_finishes_what_was_asked_for(sqlite_url: str) -> None:
    database = Database(sqlite_url)

    async def write_two() -> None:
        await database.write(lambda connection: connection.execute(add("a")))
        await database.write(lambda connection: connection.execute(add("b")))

    writing = asyncio.create_task(write_two())
    await asyncio.sleep(0)
    await asyncio.gather(database.close(), writing, return_exceptions=True)
    again = Database(sqlite_url)
    assert (await again.read(accounts))[:1] == ["a"]
    await again.close()


async def test_a_write_after_closing_is_an_error_and_never_hangs(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    await database.close()
    with pytest.raises(RuntimeError, match="closed"):
        await database.write(lambda connection: connection.execute(add("a")))


async def test_a_database_that_nobody_ever_used_closes_too(database_url: str) -> None:
    await Database(database_url).close()


async def test_the_folder_of_a_new_database_is_its_owners_only(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'new' / 'almoner.db'}")
    await database.close()
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


# Statements built once for each dialect.


async def test_an_upsert_inserts_changes_or_keeps_as_it_was_told(database: Database) -> None:
    columns, keys = ("name", "at"), ("name",)
    early, late = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
    overwrite = upsert(pulses, columns, keys)
    keep = upsert(pulses, columns, keys, change=lambda _: {})
    newer = upsert(pulses, columns, keys, where=lambda new: new.at > pulses.c.at, returning=True)

    def run(connection: sa.Connection) -> list[object]:
        seen: list[object] = []
        read = sa.select(pulses.c.at).where(pulses.c.name.in_(among("names")))
        for statement, at in ((overwrite, late), (overwrite, early), (keep, late)):
            connection.execute(statement(connection), {"name": "a", "at": at})
            seen += connection.execute(read, {"names": ["a", "b"]}).scalars()
        for at in (late, early):
            seen.append(connection.execute(newer(connection), {"name": "a", "at": at}).one_or_none())
        return seen

    late_row = ("a", late)
    assert await database.write(run) == [late, early, early, late_row, None]
    assert await database.write(lambda connection: overwrite(connection) is overwrite(connection))


# Migrations.


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without any table."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    name = f"almoner_test_empty_{os.getpid()}"

    async def on_server(*statements: str) -> None:
        server = await asyncpg.connect(f"{POSTGRES_SERVER}/postgres", timeout=3)
        for statement in statements:
            await server.execute(statement)
        await server.close()

    drop = f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"
    try:
        asyncio.run(on_server(drop, f"CREATE DATABASE {name}"))
    except (OSError, asyncpg.PostgresError) as error:
        skip(f"no PostgreSQL at {POSTGRES_SERVER}: {error}")
    yield f"{POSTGRES_SERVER.replace('postgresql://', 'postgresql+asyncpg://')}/{name}"
    asyncio.run(on_server(drop))


def tables(connection: sa.Connection) -> set[str]:
    return set(sa.inspect(connection).get_table_names())


async def test_the_migrations_make_exactly_the_tables_of_the_models(empty_url: str) -> None:
    await migrate(empty_url)

    def differences(connection: sa.Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, SQLModel.metadata))

    database = Database(empty_url)
    assert await database.read(differences) == []
    assert await database.read(tables) == {*SQLModel.metadata.tables, "alembic_version"}
    await database.close()


async def test_a_database_needs_migrating_until_it_was_and_once_more_changes_nothing(empty_url: str) -> None:
    assert await needs_migration(empty_url) is True
    await migrate(empty_url)
    assert await needs_migration(empty_url) is False
    database = Database(empty_url)
    await database.write(lambda connection: connection.execute(add("kept")))
    await migrate(empty_url)
    assert await database.read(accounts) == ["kept"]
    await database.close()


async def test_the_migrations_can_be_taken_back(empty_url: str) -> None:
    await migrate(empty_url)
    await _on(empty_url, lambda connection: command.downgrade(_config(connection), "base"))
    database = Database(empty_url)
    assert await database.read(tables) == {"alembic_version"}
    await database.close()


async def test_processes_that_start_together_migrate_one_after_the_other(empty_url: str) -> None:
    await asyncio.gather(*(migrate(empty_url) for _ in range(4)))
    assert await needs_migration(empty_url) is False


async def test_a_migration_that_fails_leaves_the_database_as_it_was(empty_url: str) -> None:
    database = Database(empty_url)
    await database.write(lambda connection: connection.exec_driver_sql("CREATE TABLE pulses (ours TEXT)"))
    with pytest.raises(sa.exc.DBAPIError, match="already exists"):
        await migrate(empty_url)
    assert await database.read(tables) == {"pulses"}
    await database.close()
    assert await needs_migration(empty_url) is True


async def test_production_refuses_a_database_that_is_not_up_to_date_and_touches_nothing(
    empty_url: str, tmp_path: Path, catalogue: Catalogue
) -> None:
    settings = settings_for(empty_url, tmp_path, environment="production")
    with pytest.raises(NotReady, match="Run: almoner migrate"):
        async with open_service(settings, catalogue):
            pass
    database = Database(empty_url)
    assert await database.read(tables) == set()
    await database.close()
    await migrate(empty_url)
    async with open_service(settings, catalogue) as service:
        assert await service.pipeline.propose(catalogue) is None


async def test_development_migrates_by_itself(empty_url: str, tmp_path: Path, catalogue: Catalogue) -> None:
    async with open_service(settings_for(empty_url, tmp_path), catalogue) as service:
        assert await service.pipeline.propose(catalogue) is None
