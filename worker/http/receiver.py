"""POST /webhooks/polar: raw bytes, verify, store durably, answer, and only then trigger.

A raw ASGI handler in front of Litestar, whose request handling would cost more than all else here
(benchmarks/accept.py).
"""

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
import structlog
from litestar.types import ASGIApp, Receive, Scope, Send

from config.settings import Settings
from handlers import HANDLERS, IGNORED, MIRRORED, UNKNOWN_TYPE
from handlers.events import MalformedEvent, peek
from worker import metrics
from worker.pipeline import Pipeline
from worker.store import inbox
from worker.store.database import Database
from worker.store.inbox import Accepted, Arrival
from worker.store.models import DeliveryStatus
from worker.verify import Key, NotVerified, Verified, keys_of, verify

log = structlog.get_logger()

PATH = "/webhooks/polar"

_HEADERS = frozenset(
    (b"webhook-id", b"webhook-timestamp", b"webhook-signature", b"webhook-api-version", b"content-type",
     b"content-encoding", b"content-length")
)  # fmt: skip

_ROOM = 64 * 1024 * 1024
_READ_SECONDS = 10
"""Polar itself gives up after 10 s; whoever sends slower than that holds memory, and nothing is verified yet."""

_encode = msgspec.json.Encoder().encode
_JSON = (b"content-type", b"application/json")
_ANSWERS = {
    name: metrics.ARRIVED.labels(name) for name in ("accepted", "duplicate", "ignored", "refused", "unavailable")
}


class Refused(Exception):
    """A request that is not taken in: its status, the error's name, and what to change."""

    def __init__(self, status: int, error: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.error, self.detail = status, error, detail


class Room:
    """Bounds the memory that bodies take which are not verified yet: anybody can send those."""

    def __init__(self, most: int) -> None:
        self._left = most

    def take(self, size: int) -> None:
        """Take room for so many bytes. Raises _Unavailable where there is none: Polar comes again."""
        if size > self._left:
            raise _Unavailable("too many large requests at once")
        self._left -= size

    def give_back(self, size: int) -> None:
        """Give it back."""
        self._left += size


class RefusalLog:
    """Writes refusals down, a few a second at most: whoever sends us rubbish shall not fill the disk, nor slow it."""

    def __init__(self, database: Database, *, keep: int) -> None:
        self._database = database
        self._keep = keep
        self._waiting: deque[dict[str, Any]] = deque(maxlen=20)
        self._writing: asyncio.Task[None] | None = None

    def note(self, refusal: dict[str, Any]) -> None:
        """Have a refusal written soon; of many at once, the last few."""
        if self._keep == 0:
            return
        self._waiting.append(refusal)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        while self._waiting:
            batch = list(self._waiting)
            self._waiting.clear()
            try:
                await self._database.write(partial(inbox.refuse, refused=batch, keep=self._keep))
                log.warning("webhooks were refused", error=batch[-1]["error"], detail=batch[-1]["detail"],
                            next="see `almoner deliveries refused`")  # fmt: skip
            except Exception as error:  # noqa: BLE001 - a refusal that is not noted harms nobody
                log.warning("refusals could not be written", error=type(error).__name__)
            await asyncio.sleep(1)


def make_receiver(pipeline: Pipeline, settings: Settings, refusals: RefusalLog, now: Callable[[], datetime]) -> ASGIApp:
    """Return the handler of `POST /webhooks/polar`, which stands in front of Litestar."""
    keys = keys_of(secret.get_secret_value() for secret in settings.webhook_secrets)

    room = Room(max(_ROOM, 4 * settings.max_body_bytes))

    async def receive_webhook(scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in _HEADERS}
        size = 0
        try:
            _check_headers(scope, headers, settings.max_body_bytes)
            body = await _read(receive, settings.max_body_bytes, room)
            size = len(body)
            accepted, webhook_id = await _take_in(pipeline, keys, headers, body, settings, now())
        except Refused as refused:
            _ANSWERS["refused"].inc()
            refusals.note(_refusal(refused, headers, size, now()))
            await _send(
                send, refused.status, _encode({"error": refused.error, "detail": refused.detail}), close=not size
            )
        except TimeoutError:
            _ANSWERS["refused"].inc()
            detail = f"The body did not arrive within {_READ_SECONDS} s"
            await _send(send, 408, _encode({"error": "RequestTimeout", "detail": detail}), close=True)
        except _Unavailable as unavailable:
            _ANSWERS["unavailable"].inc()
            log.error("a webhook could not be stored; Polar will send it again", error=str(unavailable))
            detail = "It could not be stored; send it again"
            await _send(send, 503, _encode({"error": "Unavailable", "detail": detail}), (b"retry-after", b"5"))
        else:
            _ANSWERS[accepted.status].inc()
            await _send(send, 202, b'{"id":%s,"status":"%s"}' % (_encode(webhook_id), accepted.status.encode()))

    return receive_webhook


class _Unavailable(Exception):
    """We cannot store now."""


def _check_headers(scope: Scope, headers: dict[str, str], limit: int) -> None:
    method = scope.get("method")
    if method != "POST":
        raise Refused(405, "MethodNotAllowed", "Polar sends webhooks by POST")
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        detail = f"The content type must be application/json, as Polar sends it, not {content_type[:80] or 'missing'}"
        raise Refused(415, "UnsupportedMediaType", detail)
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "UnsupportedMediaType", "The body must not be compressed; the signature is over its bytes")
    length = headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise Refused(413, "PayloadTooLarge", _too_large(limit))


def _too_large(limit: int) -> str:
    return f"The body is larger than {limit} bytes (ALMONER_MAX_BODY_BYTES)"


async def _read(receive: Receive, limit: int, room: Room) -> bytes:
    message = await receive()
    if message["type"] != "http.request":
        raise Refused(400, "BadRequest", "The client went away")
    body = message.get("body", b"")
    if message.get("more_body"):
        async with asyncio.timeout(_READ_SECONDS):
            body = await _read_on(body, receive, limit, room)
    if len(body) > limit:
        raise Refused(413, "PayloadTooLarge", _too_large(limit))
    if not body:
        raise Refused(400, "BadRequest", "The body is empty; Polar sends an event as JSON")
    return body


async def _read_on(body: bytes, receive: Receive, limit: int, room: Room) -> bytes:
    """Read the pieces that follow, no further than the limit."""
    parts, size, more = [body], len(body), True
    taken = 0
    try:
        while more:
            if size > limit:
                raise Refused(413, "PayloadTooLarge", _too_large(limit))
            room.take(size - taken)
            taken = size
            message = await receive()
            if message["type"] != "http.request":
                raise Refused(400, "BadRequest", "The client went away")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
    finally:
        room.give_back(taken)
    return b"".join(parts)


async def _take_in(
    pipeline: Pipeline, keys: tuple[Key, ...], headers: dict[str, str], body: bytes, settings: Settings, now: datetime
) -> tuple[Accepted, str]:
    try:
        verified = verify(headers, body, keys, now, settings.tolerance)
    except NotVerified as error:
        raise Refused(403, "WebhookVerificationError", str(error)) from None
    try:
        arrival = _arrival(verified, headers, body, now)
    except MalformedEvent as error:
        raise Refused(400, "NotAnEvent", str(error)) from None
    try:
        return await pipeline.accept(arrival), verified.webhook_id
    except Exception as error:
        raise _Unavailable(f"{type(error).__name__}: {str(error)[:200]}") from error


def _arrival(verified: Verified, headers: dict[str, str], body: bytes, now: datetime) -> Arrival:
    seen = peek(body)
    reason = None
    status = DeliveryStatus.PENDING
    if seen.type not in HANDLERS and seen.type not in MIRRORED:
        status, reason = DeliveryStatus.IGNORED, IGNORED.get(seen.type, UNKNOWN_TYPE)
    return Arrival(
        webhook_id=verified.webhook_id,
        type=seen.type,
        status=status,
        reason=reason,
        event_at=_event_time(seen.timestamp),
        sent_at=verified.sent_at,
        received_at=now,
        api_version=_version(headers.get("webhook-api-version") or seen.api_version),
        secret=verified.secret,
        scheme=verified.scheme,
        digest=hashlib.sha256(body).hexdigest(),
        body=body,
    )


def _version(text: str | None) -> str | None:
    return "".join(letter for letter in text[:32] if letter.isprintable()) if text else None


def _event_time(text: str) -> datetime | None:
    """Return the envelope's time for the lists; what cannot be read is found when the delivery is processed."""
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _refusal(refused: Refused, headers: dict[str, str], size: int, now: datetime) -> dict[str, Any]:
    webhook_id = headers.get("webhook-id", "")[:255]
    return {
        "at": now,
        "status_code": refused.status,
        "error": refused.error,
        "detail": refused.detail,
        "webhook_id": webhook_id if webhook_id.isprintable() else None,
        "size": size,
    }


async def _send(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes], close: bool = False) -> None:
    extra = [(b"connection", b"close")] if close else []
    all_headers = [_JSON, (b"content-length", str(len(body)).encode()), *headers, *extra]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
