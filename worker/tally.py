"""Validations that change nothing but a count: counted in memory, written together every second.

A process that is killed loses the counts of its last second and nothing else; uses that are limited never come here.
"""

import asyncio
import contextlib
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

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
        self._leaving = _Counted()
        """What is being written: it counts until it is."""
        self._one_at_a_time = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None

    def count(self, key_id: str, activation_id: str | None, now: datetime) -> int:
        """Count a validation; returns how many of this key are not written yet, with this one."""
        count = self._counted.keys.get(key_id, (0, now))[0] + 1
        self._counted.keys[key_id] = count, now
        if activation_id:
            self._counted.seen[activation_id] = now
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_soon())
        return count + self._leaving.keys.get(key_id, (0, now))[0]

    def seen_at(self, activation_id: str, stored: datetime) -> datetime:
        """Return when an activation was last seen: here, or as stored."""
        return max(stored, *(one.seen.get(activation_id, stored) for one in (self._counted, self._leaving)))

    async def write(self) -> None:
        """Write what is counted; while the database fails it stays counted. Whoever waits for it may give up."""
        await asyncio.shield(asyncio.ensure_future(self._write_counted()))

    async def _write_counted(self) -> None:
        async with self._one_at_a_time:
            self._leaving, self._counted = self._counted, _Counted()
            try:
                while self._leaving.keys or self._leaving.seen:
                    # In one order, so that two processes do not wait for each other in a circle; and few at a time,
                    # since on SQLite they are written on the event loop's own thread.
                    keys, seen = (sorted(part)[:_CHUNK] for part in (self._leaving.keys, self._leaving.seen))
                    await self._database.write(partial(_write, counted=self._leaving, keys=keys, seen=seen))
                    for one in keys:
                        del self._leaving.keys[one]
                    for one in seen:
                        del self._leaving.seen[one]
            except Exception as error:  # noqa: BLE001 - whatever it is, nothing of this part was written
                log.warning("validations could not be counted; they will be", error=type(error).__name__)
                self._take_back()

    def _take_back(self) -> None:
        for key_id, (count, at) in self._leaving.keys.items():
            more, later = self._counted.keys.get(key_id, (0, at))
            self._counted.keys[key_id] = count + more, later
        self._counted.seen = self._leaving.seen | self._counted.seen
        self._leaving = _Counted()

    async def _write_soon(self) -> None:
        while (self._counted.keys or self._counted.seen) and not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EVERY_SECONDS):
                    await self._stopping.wait()
            await self.write()

    async def close(self) -> None:
        """Write what is counted, for the last time."""
        self._stopping.set()
        if self._writing:
            await self._writing
        await self.write()


def _write(connection: sa.Connection, counted: _Counted, keys: list[str], seen: list[str]) -> None:
    rows = [(one, counted.keys[one]) for one in keys]
    licenses.count_validations(connection, [{"of": one, "count": count, "at": at} for one, (count, at) in rows])
    licenses.see(connection, [{"of": one, "at": counted.seen[one]} for one in seen])
