"""How often somebody may call in a minute: exact where it matters, and cheap where it does not.

All processes count together in the database. Of each name a process counts the first quarter of its quota by itself,
and tells the others within half a second when that is more than a twelfth; beyond the quarter each call is counted in
the database before it is answered. So of a quota each process that asks little lets through a twelfth more at most.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial

import structlog

from worker.store import quotas
from worker.store.database import Database

log = structlog.get_logger()

SPAN_SECONDS = 60
_EVERY_SECONDS = 0.5
_CHEAP_SHARE = 4
_UNTOLD_SHARE = 12
_CHUNK = 200

Place = tuple[str, int]
"""A name, and the span in which it calls."""


class Quotas:
    """Counts calls by name, each under a most of its own; 0 is no limit."""

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now
        self._span = 0
        self._totals: dict[Place, int] = {}
        """What all processes had counted when we last asked."""
        self._mine: Counter[Place] = Counter()
        """What we have counted since."""
        self._due: set[Place] = set()
        """What of it is to be told."""
        self._telling: asyncio.Task[None] | None = None

    async def take(self, name: str, most: int) -> int | None:
        """Count a call; returns None, or after how many seconds to come again where there were `most` already."""
        if most == 0:
            return None
        at = int(self._now().timestamp())
        span = at - at % SPAN_SECONDS
        if span != self._span:
            self._span, self._totals, self._mine, self._due = span, {}, Counter(), set()
        place = name, span
        known = self._totals.get(place, 0) + self._mine[place]
        wait = span + SPAN_SECONDS - at
        if known >= most:
            return wait
        self._mine[place] += 1
        if known >= most // _CHEAP_SHARE:
            return await self._take_exactly(place, most, wait)
        if self._mine[place] >= max(most // _UNTOLD_SHARE, 1):
            self._due.add(place)
            if self._telling is None or self._telling.done():
                self._telling = asyncio.create_task(self._tell_soon())
        return None

    async def _take_exactly(self, place: Place, most: int, wait: int) -> int | None:
        if not await self._tell([place]):
            return None  # a limit that cannot be counted together must not end the service
        return wait if self._totals[place] > most else None

    async def _tell_soon(self) -> None:
        while self._due:
            await asyncio.sleep(_EVERY_SECONDS)
            due = sorted(self._due)
            for start in range(0, len(due), _CHUNK):
                await self._tell(due[start : start + _CHUNK])

    async def _tell(self, places: Sequence[Place]) -> bool:
        """Tell the database what we have counted, and learn what all have; says whether that worked."""
        self._due.difference_update(places)
        told = {place: count for place in places if (count := self._mine.pop(place, 0))}
        try:
            totals = await self._database.write(partial(quotas.add, counts=told))
        except Exception as error:  # noqa: BLE001 - counted again with the next
            log.warning("calls could not be counted together; each process counts alone", error=type(error).__name__)
            self._mine.update(told)
            return False
        for place in places:
            self._totals[place] = max(totals.get(place, 0), self._totals.get(place, 0))
        return True

    async def close(self) -> None:
        """Stop telling: what was not told is forgotten with the minute."""
        if self._telling:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)
