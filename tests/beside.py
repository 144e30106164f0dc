"""A service that runs beside a test which is no coroutine."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

UntilDone = Callable[[], Awaitable[object]]
"""Says that the service is ready, and returns when the test has ended."""


@contextmanager
def beside(serve: Callable[[UntilDone], Coroutine[Any, Any, None]]) -> Iterator[None]:
    """Run `serve` on a loop of its own, in a thread, from when it is ready. Raises what `serve` raises."""
    ready, done = threading.Event(), threading.Event()
    failed: list[BaseException] = []

    async def until_done() -> None:
        ready.set()
        await asyncio.to_thread(done.wait)

    def thread() -> None:
        try:
            asyncio.run(serve(until_done))
        except BaseException as error:  # noqa: BLE001 - told to the test
            failed.append(error)
        finally:
            ready.set()

    serving = threading.Thread(target=thread)
    serving.start()
    ready.wait()
    try:
        if not failed:
            yield
    finally:
        done.set()
        serving.join()
    if failed:
        raise failed[0]
