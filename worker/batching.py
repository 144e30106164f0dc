"""Work that waits together is done together."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any


class Together:
    """Collects items while a call is under way, then makes one call for all that came meanwhile.

    A transaction costs more than what one item adds to it: under load batches grow by themselves, and an item that
    comes alone waits for nothing. After a call the next one waits for as long as that took, `rest` (seconds) at the
    most: whoever shares the database gets their turn, and the next batch is larger.
    """

    def __init__(
        self, work: Callable[[Sequence[Any]], Awaitable[object]], *, most: int, at_once: int = 1, rest: float = 0.0
    ) -> None:
        self._work = work
        self._rest = rest
        self._rested_at = 0.0
        self._most = most
        self._at_once = asyncio.Semaphore(at_once)
        self._waiting: dict[Any, None] = {}
        self._next: asyncio.Task[None] | None = None

    async def __call__(self, items: Sequence[Any]) -> None:
        """Do the work for these items, and perhaps others; returns when it is done. Raises what the work raises."""
        self._waiting |= dict.fromkeys(items)
        while any(item in self._waiting for item in items):
            if self._next is None or self._next.done():
                self._next = asyncio.create_task(self._call())
            await asyncio.shield(self._next)

    async def _call(self) -> None:
        async with self._at_once:
            began = asyncio.get_running_loop().time()
            if began < self._rested_at:
                await asyncio.sleep(self._rested_at - began)
            batch = list(self._waiting)[: self._most]
            for item in batch:
                del self._waiting[item]
            self._next = None
            began = asyncio.get_running_loop().time()
            try:
                await self._work(batch)
            finally:
                ended = asyncio.get_running_loop().time()
                self._rested_at = ended + min(ended - began, self._rest)
