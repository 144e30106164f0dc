"""Servers to measure, each a process of its own: the do-nothing baseline, and Almoner."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECRET = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
TOKEN = "benchmark-token"

_BASELINE = """
import socket, sys, uvicorn
from litestar import Litestar, get, post, Request
@post("/", status_code=202)
async def accept(request: Request) -> dict[str, str]:
    await request.body()
    return {"status": "accepted"}
@get("/")
async def answer() -> dict[str, str]:
    return {"status": "accepted"}
bound = socket.socket(); bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); bound.bind(("127.0.0.1", 0))
print(f"listens on http://127.0.0.1:{bound.getsockname()[1]}", file=sys.stderr, flush=True)
uvicorn.Server(uvicorn.Config(Litestar([accept, answer]), log_level="warning", access_log=False)).run([bound])
"""


@contextmanager
def baseline() -> Iterator[tuple[int, int]]:
    """A Litestar that does nothing; yields its port and process id."""
    with _process([sys.executable, "-c", _BASELINE], dict(os.environ)) as found:
        yield found


@contextmanager
def almoner(command: str = "up", folder: Path | None = None, **settings: str) -> Iterator[tuple[int, int, Path]]:
    """Almoner on its embedded default, in a folder that goes away; yields port, process id and the folder."""
    with tempfile.TemporaryDirectory(prefix="almoner-bench-") as temporary:
        place = folder or Path(temporary)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ALMONER_")}
        environment |= {
            "ALMONER_DATA_DIR": str(place),
            "ALMONER_PORT": "0",
            "ALMONER_WEBHOOK_SECRETS": SECRET,
            "ALMONER_API_TOKENS": f"app:{TOKEN}",
            "ALMONER_BENEFITS": str(ROOT / "config" / "benefits.example.toml"),
            "ALMONER_LOG_LEVEL": "warning",
            "NO_COLOR": "1",
        }
        environment |= {f"ALMONER_{name.upper()}": value for name, value in settings.items()}
        starter = [sys.executable, "-c", "from worker.cli import main; main()", command]
        with _process(starter, environment) as (port, pid):
            yield port, pid, place


@contextmanager
def _process(command: list[str], environment: dict[str, str]) -> Iterator[tuple[int, int]]:
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        said = []
        for line in process.stderr or ():
            said.append(line)
            if found := re.search(r"listens on http://[^ ]*:(\d+)", line):
                yield int(found[1]), process.pid
                return
        raise RuntimeError("the server did not start: " + "".join(said))
    finally:
        process.terminate()
        process.communicate(timeout=30)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its children that live."""
    total = 0.0
    for one in [pid, *_children(pid)]:
        fields = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def peak_megabytes(pid: int) -> float:
    """Peak memory of a process and its children, added up."""
    total = 0
    for one in [pid, *_children(pid)]:
        status = Path(f"/proc/{one}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+)", status)
        total += int(found[1]) if found else 0
    return total / 1024


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(one) for one in text.split()]
