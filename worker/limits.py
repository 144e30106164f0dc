"""The limits of platforms, as connectors use them."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial

import structlog

from connectors.base import Rate, Unavailable
from worker.store import limits
from worker.store.database import Database

log = structlog.get_logger()

_PATIENCE_SECONDS = 1.5
"""A place that is free so soon is waited for: the sweep, which would come again, looks once a second."""


class StoredLimits:
    """Limits, in the database: every worker's calls are counted together."""

    def __init__(self, database: Database, now: Callable[[], datetime], *, patience: float = _PATIENCE_SECONDS) -> None:
        self._database = database
        self._now = now
        self._patience = patience
        self._learned: dict[str, Rate] = {}

    async def take(self, *rates: Rate) -> None:
        """Take a place under each limit, or none. Raises Unavailable with `retry_after`."""
        await self._ask(rates, only_check=False)

    async def check(self, *rates: Rate) -> None:
        """Take nothing, but raise as `take` would."""
        await self._ask(rates, only_check=True)

    async def _ask(self, rates: Sequence[Rate], *, only_check: bool) -> None:
        slept = 0.0
        while True:
            place = partial(
                limits.take, rates=rates, now=self._now(), patience=self._patience - slept, only_check=only_check
            )
            wait = await self._database.write(place)
            if wait is None:
                return
            if not wait.is_short:
                raise Unavailable(wait.reason, retry_after=wait.seconds)
            slept += wait.seconds
            await asyncio.sleep(wait.seconds)

    async def park(self, name: str, seconds: float, reason: str) -> None:
        """Have all who take places of this name wait so long."""
        until = self._now() + timedelta(seconds=seconds)
        is_news = await self._database.write(partial(limits.park, name=name, until=until, reason=reason))
        if is_news:
            log.warning("a platform asked us to wait", limit=name, seconds=round(seconds, 1), reason=reason)

    async def learn(self, rate: Rate) -> None:
        """Remember what the platform says its limit is."""
        if self._learned.get(rate.name) != rate:
            await self._database.write(partial(limits.learn, rate=rate))
            self._learned[rate.name] = rate
