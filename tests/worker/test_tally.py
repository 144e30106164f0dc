"""Validations are counted in memory and written together; only a kill loses the last second of them."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from config.catalogue import Catalogue
from tests.conftest import Clock, Running, run_service
from worker import tally as module
from worker.store import licenses
from worker.store.database import Database
from worker.tally import Tally


async def key_of(running: Running) -> str:
    await running.live("purchase")
    return await running.service.database.read(
        lambda connection: connection.execute(sa.select(licenses.license_keys.c.id)).scalar_one()
    )


async def validations(database: Database, key_id: str) -> tuple[Any, Any]:
    key = await database.read(lambda connection: licenses.by_id(connection, key_id))
    assert key
    return key.validations, key.last_validated_at


async def test_counts_are_written_together_once_a_second(
    running: Running, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_EVERY_SECONDS", 0.01)
    key_id = await key_of(running)
    tally = Tally(running.service.database)
    assert [tally.count(key_id, None, clock()) for _ in range(3)] == [1, 2, 3]
    for _ in range(200):
        if await validations(running.service.database, key_id) == (3, clock()):
            break
        await asyncio.sleep(0.01)
    else:
        pytest.fail("the counts were never written")
    await tally.close()


async def test_what_is_counted_is_written_at_the_end(
    sqlite_url: str, tmp_path: Path, catalogue: Catalogue, clock: Clock
) -> None:
    async with run_service(sqlite_url, tmp_path, catalogue, clock) as running:
        key_id = await key_of(running)
        tally = Tally(running.service.database)
        for number in range(450):
            tally.count(key_id if number % 2 else f"gone-{number}", f"activation-{number}", clock())
        await tally.close()
        assert await validations(running.service.database, key_id) == (225, clock())


async def test_what_is_being_written_when_the_service_ends_is_written(
    on_sqlite: Running, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is being written, an activation is seen all the same; and whoever waits for it may give up."""
    monkeypatch.setattr(module, "_EVERY_SECONDS", 0.01)
    key_id = await key_of(on_sqlite)
    database, slowly = on_sqlite.service.database, asyncio.Event()
    write, writing = database.write, asyncio.Event()

    async def slow(work: Any) -> Any:
        writing.set()
        await slowly.wait()
        return await write(work)

    monkeypatch.setattr(database, "write", slow)
    tally = Tally(database)
    for _ in range(3):
        tally.count(key_id, "device", clock())
    await writing.wait()
    assert tally.seen_at("device", clock() - timedelta(hours=1)) == clock()
    assert tally.count(key_id, None, clock()) == 4
    impatient = asyncio.create_task(tally.write())
    await asyncio.sleep(0)
    impatient.cancel()
    closing = asyncio.create_task(tally.close())
    await asyncio.sleep(0.02)
    slowly.set()
    await closing
    assert await validations(database, key_id) == (4, clock())


async def test_while_the_database_fails_it_stays_counted(on_sqlite: Running, clock: Clock) -> None:
    key_id = await key_of(on_sqlite)
    closed = Database(on_sqlite.service.database.url)
    await closed.close()
    tally = Tally(closed)
    tally.count(key_id, "activation", clock())
    await tally.write()
    assert tally.count(key_id, "activation", clock()) == 2
    clock.move(minutes=-1)
    earlier = clock()
    clock.move(minutes=1)
    assert tally.seen_at("activation", earlier) == clock()
    tally._database = on_sqlite.service.database
    await tally.close()
    assert await validations(on_sqlite.service.database, key_id) == (2, clock())
