"""Ready answers, read fresh each time: one row by one index, a few microseconds on SQLite.

No copy is kept in memory: a commit by any process is seen by the next read (docs/decisions.md, 3).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from worker.store.database import Database


@dataclass(frozen=True, slots=True)
class Ready:
    """A customer's ready answers."""

    customer_id: str
    external_id: str | None
    version: int
    as_of: str | None
    """ISO 8601, UTC."""
    document: bytes | None


_SELECT = {
    (column, key): (
        f"SELECT id, external_id, version, as_of, {column} FROM customers "  # noqa: S608 - both are names of ours
        f"WHERE {key} = :name AND version > 0 ORDER BY deleted, id DESC LIMIT 1"
    )
    for column in ("polar_state", "entitlements")
    for key in ("id", "external_id")
}


class ReadyAnswers:
    """Reads ready answers by id or by external id."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def state(self, key: str, name: str) -> Ready | None:
        """Return the state in Polar's shape of the customer whose `id` or `external_id` (`key`) is `name`."""
        return await self._read("polar_state", key, name)

    async def entitlements(self, key: str, name: str) -> Ready | None:
        """Return the map from benefit to answer of the customer whose `id` or `external_id` (`key`) is `name`."""
        return await self._read("entitlements", key, name)

    async def _read(self, column: str, key: str, name: str) -> Ready | None:
        statement = _SELECT[column, key]
        values: Mapping[str, Any] = {"name": name}
        if self._database.quick:
            row = self._database.quick.execute(statement, values).fetchone()
            at = f"{row[3].replace(' ', 'T')}Z" if row and row[3] else None
            return Ready(row[0], row[1], row[2], at, row[4]) if row else None
        found = await self._database.read(
            lambda connection: connection.execute(sa.text(statement), values).one_or_none()
        )
        if found is None:
            return None
        at = _iso(found[3]) if isinstance(found[3], datetime) else None
        return Ready(found[0], found[1], found[2], at, found[4])


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
