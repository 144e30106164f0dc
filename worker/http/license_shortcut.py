"""The short way for validating a license key: the same answers, in front of Litestar.

Devices ask it again and again, and Litestar's own share of an answer is larger than all the rest (docs/decisions.md,
6). Whatever is not a plain question, or goes wrong in a way that is not foreseen, takes the long way.
"""

from collections.abc import Awaitable, Callable

import msgspec
from litestar.types import HTTPScope, Receive, Send

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
        message = await receive()
        if message["type"] != "http.request" or message["more_body"]:
            return _again(message, receive)
        try:
            data = _decode(message["body"])
            if scope["path"] != PUBLIC:
                tokens.caller(sent.get(b"authorization", b"").decode("latin-1"))
        except (msgspec.MsgspecError, UnicodeError, ApiError):
            return _again(message, receive)
        try:
            if scope["path"] == PUBLIC:
                await count_address(context, scope["client"][0] if scope["client"] else "")
            document = await validated(context, data, _VERSIONS[sent.get(VERSION_HEADER, CURRENT.encode())])
        except ApiError as error:
            headers = [(name.encode(), value.encode()) for name, value in (error.headers or {}).items()]
            await _send(send, error.status_code, _encode({"error": error.name, "detail": error.detail}), headers)
        except Exception:  # noqa: BLE001 - Litestar looks again, and says what is wrong
            return _again(message, receive)
        else:
            await _send(send, 200, _encode(document), [(REASON.encode(), b"valid")])
        return None

    return answer


def _is_plain(scope: HTTPScope, sent: dict[bytes, bytes]) -> bool:
    """Whether it is a small JSON body in one piece; and on the public path without a token, which may be an app's."""
    length = sent.get(b"content-length", b"")
    return (
        scope["method"] == "POST"
        and not scope["query_string"]
        and sent.get(b"content-type", b"").startswith(b"application/json")
        and length.isdigit()
        and int(length) <= _MOST_BYTES
        and not (scope["path"] == PUBLIC and b"authorization" in sent)
    )


def _again(message: object, receive: Receive) -> Receive:
    """Return a `receive` that gives this message first."""
    waiting = [message]

    async def again() -> object:
        return waiting.pop() if waiting else await receive()

    return again  # type: ignore[return-value]


async def _send(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    said = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": said})
    await send({"type": "http.response.body", "body": body, "more_body": False})
