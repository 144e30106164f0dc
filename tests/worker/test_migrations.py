"""What a migration does to rows that are there already."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command

from tests.worker.test_database import empty_url
from worker.store.database import Database
from worker.store.licenses import by_id, digest_of, find
from worker.store.migrate import _config, _on, migrate

__all__ = ["empty_url"]  # a fixture

KEY = "ACME-1C285B2D-6CE6-4BC7-B8BE-ADB6A7E304DA"


async def on(url: str, work: Callable[[sa.Connection], Any]) -> Any:
    database = Database(url)
    try:
        return await database.write(work)
    finally:
        await database.close()


def insert(connection: sa.Connection, key_id: str, status: str, key: str) -> None:
    columns = {
        "id": key_id, "resource": f"license_key:key:c-1::{key_id}-order", "benefit": "key", "customer_id": "c-1",
        "key": key, "status": status, "usage": 3, "validations": 4,
        "created_at": datetime(2026, 11, 1, tzinfo=UTC) if connection.dialect.name != "sqlite" else
        "2026-11-01 00:00:00.000000",
    }  # fmt: skip
    table = sa.table("license_keys", *(sa.column(name) for name in columns))
    connection.execute(table.insert().values(columns))


@pytest.mark.parametrize("back", [False, True])
async def test_keys_that_were_issued_before_are_found_and_keep_their_standing(empty_url: str, back: bool) -> None:
    await _on(empty_url, lambda connection: command.upgrade(_config(connection), "0002"))

    def issue(connection: sa.Connection) -> None:
        insert(connection, "lives", "granted", KEY)
        insert(connection, "ended", "revoked", "ACME-ENDED")
        insert(connection, "off", "disabled", "ACME-OFF")

    await on(empty_url, issue)
    await migrate(empty_url)
    if back:
        await _on(empty_url, lambda connection: command.downgrade(_config(connection), "0002"))
        rows = await on(empty_url, lambda connection: dict(
            connection.execute(sa.text("SELECT id, status FROM license_keys")).all()
        ))  # fmt: skip
        assert rows == {"lives": "granted", "ended": "revoked", "off": "disabled"}
        await migrate(empty_url)
    found = await on(empty_url, lambda connection: find(connection, digest_of(KEY), None))
    assert found
    assert (found.key.display_key, found.key.purchase, found.key.usage) == ("****-E304DA", "lives-order", 3)
    standings = {
        one: await on(empty_url, lambda connection, one=one: by_id(connection, one).standing)  # type: ignore[union-attr, misc]
        for one in ("lives", "ended", "off")
    }
    assert standings == {"lives": "granted", "ended": "revoked", "off": "disabled"}
