"""How often somebody may call in a minute, all processes together.

Of each name a process counts the first twelfth of its quota by itself, which costs nothing; beyond that each call is
counted in the database before it is answered. So each process more may let a twelfth more through, and no more.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from functools import partial

import structlog

from worker.store import quotas
from worker.store.database import Database

log = structlog.get_logger()

SPAN_SECONDS = 60
_CHEAP_SHARE = 12
_PATIENCE_SECONDS = 2.0
"""A database that takes longer than this to count is as good as down."""


class Quotas:
    """Counts calls by name, each under a most of its own; 0 is no limit."""

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now
        self._begin(0)

    def _begin(self, span: int) -> None:
        self._span = span
        self._mine: Counter[str] = Counter()
        """The calls that were let through here."""
        self._told: Counter[str] = Counter()
        """How many of them the database knows."""
        self._others: dict[str, int] = {}
        """What the others had let through when we last told."""
        self._one_at_a_time: dict[str, asyncio.Lock] = {}

    async def take(self, name: str, most: int) -> int | None:
        """Count a call; returns None, or after how many seconds to come again where there were `most` already."""
        if most == 0:
            return None
        at = int(self._now().timestamp())
        span = at - at % SPAN_SECONDS
        if span != self._span:
            self._begin(span)
        wait = span + SPAN_SECONDS - at
        place = self._mine[name] + 1
        """Which of our calls this is."""
        if self._others.get(name, 0) + place > most:
            return wait
        self._mine[name] = place
        if self._others.get(name, 0) + place > most // _CHEAP_SHARE:
            await self._tell_of(name, place)
            return wait if self._span == span and self._others.get(name, 0) + place > most else None
        return None

    async def _tell_of(self, name: str, place: int) -> None:
        """Tell the database of a call, with all that were made meanwhile, unless it was told of with others."""
        async with self._one_at_a_time.setdefault(name, asyncio.Lock()):
            if self._told[name] < place <= self._mine[name]:
                await self._tell(name)

    async def _tell(self, name: str) -> None:
        """Tell the database what we have let through, and learn what all have. When it fails we count alone."""
        span, told, others, mine = self._span, self._told, self._others, self._mine[name]
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                total = await self._database.write(partial(quotas.add, name=name, span=span, count=mine - told[name]))
        except Exception as error:  # noqa: BLE001 - a limit that cannot be counted must not end the service
            log.warning("calls could not be counted together; each process counts alone", error=type(error).__name__)
            return
        told[name] = mine
        others[name] = total - mine
