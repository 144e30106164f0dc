"""Validations that change nothing but a count: counted in memory, written together every second.

A process that is killed loses the counts of its last second and nothing else; uses that are limited never come here.
"""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

import sqlalchemy as sa
import structlog

from worker.store import licenses
from worker.store.database import Database

log = structlog.get_logger()

_EVERY_SECONDS = 1.0
_CHUNK = 200


@dataclass
class _Counted:
    keys: dict[str, tuple[int, datetime]] = field(default_factory=dict)
    seen: dict[str, datetime] = field(default_factory=dict)


class Tally:
    """Counts validations until they are written."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._counted = _Counted()
        self._writing: asyncio.Task[None] | None = None

    def count(self, key_id: str, activation_id: str | None, now: datetime) -> int:
        """Count a validation; returns how many of this key are not written yet, with this one."""
        count = self._counted.keys.get(key_id, (0, now))[0] + 1
        self._counted.keys[key_id] = count, now
        if activation_id:
            self._counted.seen[activation_id] = now
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_soon())
        return count

    def seen_at(self, activation_id: str, stored: datetime) -> datetime:
        """Return when an activation was last seen: here, or as stored."""
        return max(stored, self._counted.seen.get(activation_id, stored))

    async def write(self) -> None:
        """Write what is counted. While the database fails it stays counted."""
        counted, self._counted = self._counted, _Counted()
        if not counted.keys:
            return
        # In one order, so that two processes do not wait for each other in a circle; and few at a time, since on SQLite
        # they are written on the event loop's own thread.
        keys = [{"of": one, "count": count, "at": at} for one, (count, at) in sorted(counted.keys.items())]
        seen = [{"of": one, "at": at} for one, at in sorted(counted.seen.items())]
        try:
            while keys or seen:
                part = partial(_write, keys=keys[:_CHUNK], seen=seen[:_CHUNK])
                await self._database.write(part)
                del keys[:_CHUNK], seen[:_CHUNK]
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing of this part was written
            log.warning("validations could not be counted; they will be", error=type(error).__name__)
            self._take_back(keys, seen)

    def _take_back(self, keys: list[dict[str, Any]], seen: list[dict[str, Any]]) -> None:
        for row in keys:
            more, later = self._counted.keys.get(row["of"], (0, row["at"]))
            self._counted.keys[row["of"]] = row["count"] + more, later
        self._counted.seen = {row["of"]: row["at"] for row in seen} | self._counted.seen

    async def _write_soon(self) -> None:
        while self._counted.keys:
            await asyncio.sleep(_EVERY_SECONDS)
            await self.write()

    async def close(self) -> None:
        """Write what is counted, for the last time."""
        if self._writing:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        await self.write()


def _write(connection: sa.Connection, keys: list[dict[str, Any]], seen: list[dict[str, Any]]) -> None:
    licenses.count_validations(connection, keys)
    licenses.see(connection, seen)
