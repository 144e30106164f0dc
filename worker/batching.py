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
        self._waiting: dict[Any, asyncio.Task[None]] = {}
        """Items whose call has not begun, each with that call."""
        self._next: list[Any] = []
        """The items of the last call that has not begun."""

    async def __call__(self, items: Sequence[Any]) -> None:
        """Do the work for these items, and perhaps others; returns when it is done. Raises what the work raises."""
        calls = dict.fromkeys(self._call_for(item) for item in items)
        if calls:
            await asyncio.wait(calls)  # whoever gives up waiting takes nothing from the others
        failed = [error for call in calls if (error := call.exception())]
        if failed:
            raise failed[0]

    def _call_for(self, item: Any) -> asyncio.Task[None]:  # noqa: ANN401 - whatever can be a key
        if item in self._waiting:
            return self._waiting[item]
        if self._next and len(self._next) < self._most:
            call = self._waiting[self._next[0]]
            self._next.append(item)
        else:
            self._next = [item]
            call = asyncio.create_task(self._call(self._next))
        self._waiting[item] = call
        return call

    async def _call(self, batch: list[Any]) -> None:
        async with self._at_once:
            began = asyncio.get_running_loop().time()
            if began < self._rested_at:
                await asyncio.sleep(self._rested_at - began)
            for item in batch:
                del self._waiting[item]
            if self._next is batch:
                self._next = []
            began = asyncio.get_running_loop().time()
            try:
                await self._work(batch)
            finally:
                ended = asyncio.get_running_loop().time()
                self._rested_at = ended + min(ended - began, self._rest)
