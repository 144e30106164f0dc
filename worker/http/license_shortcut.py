"""The short way for validating a license key: the same answers, in front of Litestar.

Devices ask it again and again, and Litestar's own share of an answer is larger than all the rest (docs/decisions.md,
6). Whatever is not a plain question takes the long way.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from litestar.types import HTTPScope, Receive, Send

from worker.http import errors
from worker.http.auth import Tokens
from worker.http.context import Context
from worker.http.errors import ApiError
from worker.http.license_forms import Validate
from worker.http.licenses import REASON, validated
from worker.http.polar_api import CURRENT, VERSION_HEADER, VERSIONS
from worker.http.public import count_address

LicenseShortcut = Callable[[HTTPScope, Receive, Send], Awaitable[Receive | None]]
"""Answers and returns None; or has done nothing but read, and returns a `receive` that gives the body again."""

PUBLIC = "/v1/customer-portal/license-keys/validate"
PATHS = frozenset((PUBLIC, "/v1/license-keys/validate"))

_MOST_BYTES = 16 * 1024
_decode = msgspec.json.Decoder(Validate).decode
_encode = msgspec.json.Encoder().encode
_VERSIONS = {one.encode(): one for one in VERSIONS}
_HEADERS = frozenset((b"authorization", b"content-type", b"content-length", b"transfer-encoding", VERSION_HEADER))


def make_license_shortcut(context: Context, tokens: Tokens) -> LicenseShortcut:
    """Return the short way for `POST .../license-keys/validate`."""

    async def answer(scope: HTTPScope, receive: Receive, send: Send) -> Receive | None:
        sent = {name: value for name, value in scope["headers"] if name in _HEADERS}
        if not _is_plain(scope, sent):
            return receive
        body, rest = await _read(receive)
        try:
            data = _decode(body)
            if scope["path"] != PUBLIC:
                tokens.caller(sent.get(b"authorization", b"").decode("latin-1"))
        except (msgspec.MsgspecError, UnicodeError, ApiError):
            return rest
        # From here on it is answered here, whatever comes: a second try could count uses twice.
        try:
            stranger = (scope["client"][0] if scope["client"] else "") if scope["path"] == PUBLIC else None
            if stranger is not None:
                await count_address(context, stranger)
            version = _VERSIONS[sent.get(VERSION_HEADER, CURRENT.encode())]
            document = await validated(context, data, version, stranger)
        except Exception as error:  # noqa: BLE001 - told in the one shape of errors
            await _send(send, *errors.told(error, scope["path"]))
        else:
            await _send(send, 200, document, {REASON: "valid"})
        return None

    return answer


async def _read(receive: Receive) -> tuple[bytes, Receive]:
    """Return a small body, as far as it goes, and a `receive` that gives it again."""
    read: list[Any] = []
    size, is_more = 0, True
    while is_more and size <= _MOST_BYTES:
        message: Any = await receive()
        read.append(message)
        is_more = message["type"] == "http.request" and message.get("more_body", False)
        size += len(message.get("body", b""))
    body = b"".join(message.get("body", b"") for message in read)
    waiting = list(reversed(read))

    async def again() -> Any:  # noqa: ANN401 - an ASGI message
        return waiting.pop() if waiting else await receive()

    return body if size <= _MOST_BYTES else b"", again


def _is_plain(scope: HTTPScope, sent: dict[bytes, bytes]) -> bool:
    """Whether it is a small JSON body; and on the public path without a token, which may be an app's."""
    length = sent.get(b"content-length", b"")
    return (
        scope["method"] == "POST"
        and not scope["query_string"]
        and sent.get(b"content-type", b"").startswith(b"application/json")
        and length.isdigit()
        and int(length) <= _MOST_BYTES
        and not (scope["path"] == PUBLIC and b"authorization" in sent)
    )


async def _send(send: Send, status: int, document: Any, headers: dict[str, str]) -> None:  # noqa: ANN401 - JSON
    body = _encode(document)
    said = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    said += [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": said})
    await send({"type": "http.response.body", "body": body, "more_body": False})
