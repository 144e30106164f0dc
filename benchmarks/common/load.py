"""A load of ready-made requests over a fixed number of connections, for a bounded time, to loopback only."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Result:
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    def percentile(self, share: float) -> float:
        """Milliseconds within which that share of the requests was answered."""
        ordered = sorted(self.latencies)
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000 if ordered else 0.0


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.buffer = b""
        self.answer: asyncio.Future[int] | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, separator, rest = self.buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        lowered = head.lower()
        start = lowered.find(b"content-length:")
        length = int(lowered[start + 15 :].split(b"\r\n", 1)[0]) if start >= 0 else 0
        if len(rest) >= length:
            self.buffer = rest[length:]
            if self.answer and not self.answer.done():
                self.answer.set_result(int(head[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        if self.answer and not self.answer.done():
            self.answer.set_exception(exc or ConnectionError("the server closed the connection"))

    async def ask(self, request: bytes) -> int:
        self.answer = asyncio.get_running_loop().create_future()
        assert self.transport
        self.transport.write(request)
        return await self.answer


async def run_load(
    port: int, requests: Iterator[bytes], *, connections: int, seconds: float, rate: float | None = None
) -> Result:
    """Send requests until the time or the requests end. `rate` (a second, all connections) paces them."""
    result = Result()
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    slot = iter(range(10**9))

    async def client() -> None:
        _, connection = await loop.create_connection(_Connection, "127.0.0.1", port)
        for request in requests:
            if time.perf_counter() - began > seconds:
                break
            if rate:
                due = began + next(slot) / rate
                if (wait := due - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
            sent = time.perf_counter()
            status = await connection.ask(request)
            result.latencies.append(time.perf_counter() - sent)
            result.statuses[status] = result.statuses.get(status, 0) + 1
        if connection.transport:
            connection.transport.close()

    await asyncio.gather(*(client() for _ in range(connections)))
    result.seconds = time.perf_counter() - began
    return result


def http_request(method: str, path: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body
