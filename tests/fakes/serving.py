"""Runs an application of a test on a real loopback port, in a thread of its own."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

_SECONDS_TO_START = 10.0


class _Server(uvicorn.Server):
    """Uvicorn, as it is outside of the main thread: signals are not its business."""

    def port(self) -> int:
        return self.servers[0].sockets[0].getsockname()[1]  # type: ignore[no-any-return]


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an ASGI application; gives its address, `http://127.0.0.1:PORT`."""
    server = _Server(
        uvicorn.Config(
            app,
            host="127.0.0.1",
            port=0,
            lifespan="off",
            access_log=False,
            log_config=None,
            timeout_graceful_shutdown=1,
        )
    )
    thread = threading.Thread(target=server.run, name="fake", daemon=True)
    thread.start()
    until = time.monotonic() + _SECONDS_TO_START
    while not server.started:
        if not thread.is_alive() or time.monotonic() > until:
            raise RuntimeError("the fake did not start")
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.port()}"
    finally:
        server.should_exit = True
        thread.join(timeout=_SECONDS_TO_START)
