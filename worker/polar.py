"""Polar's API, by httpx: one client for whatever asks Polar, under one limit that all processes share.

It only asks. What the answers mean is for those who ask.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from importlib.metadata import version
from types import NoneType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec
from pydantic import SecretStr

from connectors.base import ActionRequired, Limits, Rate, Rejected, Unavailable
from connectors.http import error_for_status, retry_after

API_VERSION = "2026-10"

# Polar allows 500 calls a minute, the sandbox 100, to an organization as a whole: what is left is for the merchant's
# own programs. https://polar.sh/docs/api-reference/introduction
_RATE, _SANDBOX_RATE = Rate("polar", 400, 60.0), Rate("polar", 80, 60.0)
_PARK_SECONDS = 60.0
"""How long nobody asks after a 429 that names no time: as long as Polar's own window."""
_MOST_BYTES = 16 * 1024 * 1024
_PAGE = 100
"""The most that Polar gives at once: https://polar.sh/docs/api-reference/introduction"""
_ERROR_NAME = re.compile(r"[A-Za-z_]{1,60}")

T = TypeVar("T")


class NotFound(Rejected):
    """Polar has no such thing, or this token may not see it."""


class _Pagination(msgspec.Struct):
    max_page: int


class _Page(msgspec.Struct):
    items: list[msgspec.Raw]
    pagination: _Pagination


class Polar:
    """A client with one token of one organization. Every call takes a place under the shared limit.

    Errors of every call: Unavailable (429, with `retry_after`; 5xx, network, time; an answer that cannot be read),
    ActionRequired of the merchant (401, 403), NotFound, Rejected (anything else).
    """

    def __init__(
        self,
        token: SecretStr,
        base_url: str,
        limits: Limits,
        now: Callable[[], datetime],
        *,
        timeout: float = 10.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Ask at `base_url`; a call takes at most `timeout` seconds as a whole, without waiting for its turn."""
        self.base_url = base_url.rstrip("/")
        self._limits = limits
        self._now = now
        self._timeout = timeout
        is_sandbox = (urlsplit(base_url).hostname or "").startswith("sandbox")
        self._rate = _SANDBOX_RATE if is_sandbox else _RATE
        self._token = token
        self._transport = transport

    @cached_property
    def _client(self) -> httpx.AsyncClient:
        """Made when first used: reading all certificates takes a moment, and most commands ask nothing."""
        return httpx.AsyncClient(
            timeout=self._timeout,
            transport=self._transport,
            follow_redirects=False,  # a token is for the address that was set, and for no other
            headers={
                "authorization": f"Bearer {self._token.get_secret_value()}",
                "polar-version": API_VERSION,
                "user-agent": f"almoner/{version('almoner')}",
                "accept": "application/json",
            },
        )

    def __repr__(self) -> str:
        """Say where it asks, and nothing of the token."""
        return f"Polar({self.base_url!r})"

    async def close(self) -> None:
        """Close the connections."""
        if "_client" in self.__dict__:
            await self._client.aclose()

    async def get(
        self,
        path: str,
        params: Mapping[str, Any] | None = None,
        *,
        scope: str,
        form: type[T],
        rates: Sequence[Rate] = (),
    ) -> T:
        """Return what is at a path like `/v1/license-keys/{id}`, read as `form`.

        `scope` is what the token needs for it, like `license_keys:read`. `rates` are limits of our own, besides.
        """
        return await self._call("GET", path, scope=scope, form=form, rates=rates, params=params)

    async def post(
        self,
        path: str,
        body: Any = None,  # noqa: ANN401 - whatever is JSON
        *,
        scope: str,
        form: type[T],
        rates: Sequence[Rate] = (),
    ) -> T:
        """Send `body` as JSON, or nothing, and return the answer, read as `form`: `NoneType` where nothing is said."""
        return await self._call("POST", path, scope=scope, form=form, rates=rates, body=body)

    async def pages(
        self,
        path: str,
        params: Mapping[str, Any] | None = None,
        *,
        scope: str,
        form: type[T],
        size: int = _PAGE,
    ) -> AsyncIterator[list[T]]:
        """Go through a list, page by page.

        Polar counts pages by offset: what is added or removed meanwhile moves the rest, so that something may come
        twice or not at all. Where that matters, sort by creation, the oldest first, or go through it again.
        """
        number, last = 1, 1
        while number <= last:
            asked = {**(params or {}), "page": number, "limit": size}
            page = await self.get(path, asked, scope=scope, form=_Page)
            yield [_read(item, form) for item in page.items]
            number, last = number + 1, page.pagination.max_page

    async def _call(
        self,
        method: str,
        path: str,
        *,
        scope: str,
        form: type[T],
        rates: Sequence[Rate],
        params: Mapping[str, Any] | None = None,
        body: Any = None,  # noqa: ANN401 - whatever is JSON
    ) -> T:
        await self._limits.take(*rates, self._rate)
        content = None if body is None else msgspec.json.encode(body)
        request = self._client.build_request(
            method, self.base_url + path, params=params, content=content,
            headers={"content-type": "application/json"} if content else None,
        )  # fmt: skip
        try:
            async with asyncio.timeout(self._timeout):
                answer, data = await self._exchange(request)
        # `from None`: the request, with the token, hangs on httpx's own errors.
        except (TimeoutError, httpx.TimeoutException):
            raise Unavailable(f"Polar did not answer within {self._timeout:g} s") from None
        except httpx.HTTPError as error:
            raise Unavailable(f"Polar cannot be reached: {type(error).__name__}") from None
        if not answer.is_success:
            raise await self._refusal(answer, data, scope)
        return _read(b"null" if form is NoneType else data, form)

    async def _exchange(self, request: httpx.Request) -> tuple[httpx.Response, bytes]:
        """Send a request; returns the answer and its body. Raises what httpx raises, and Rejected for a huge body."""
        answer = await self._client.send(request, stream=True)
        data = bytearray()
        try:
            async for part in answer.aiter_bytes():
                data += part
                if len(data) > _MOST_BYTES:
                    raise Rejected(f"Polar answers with more than {_MOST_BYTES // 1024**2} MiB")
        finally:
            await answer.aclose()
        return answer, bytes(data)

    async def _refusal(self, answer: httpx.Response, data: bytes, scope: str) -> Exception:
        """Return the error of an answer that is no success; a 429 has everybody wait."""
        wait = retry_after(answer.headers.get("retry-after"), self._now())
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            wait = _PARK_SECONDS if wait is None else wait
            await self._limits.park(self._rate.name, wait, "Polar asked us to wait (429)")
        return refusal(answer.status_code, _error_name(data), scope, wait)


def refusal(status: int, name: str, scope: str, wait: float | None) -> Exception:
    """Return what a status of Polar's means, and the class of error that its body names. `wait` in seconds."""
    said = f"Polar answers {status}{f' {name}' if name else ''}"
    if status == httpx.codes.UNAUTHORIZED:
        return ActionRequired(f"{said}: ALMONER_POLAR_ACCESS_TOKEN is not valid there (any more)", who="merchant")
    if status == httpx.codes.FORBIDDEN:
        return ActionRequired(f"{said}: ALMONER_POLAR_ACCESS_TOKEN needs the scope {scope}", who="merchant")
    # A version of the API that Polar no longer serves is answered 404 as well, but without this name: it must not
    # look as if everything were gone (polar.md 1.1).
    if status == httpx.codes.NOT_FOUND and name == "ResourceNotFound":
        return NotFound("Polar has no such object that ALMONER_POLAR_ACCESS_TOKEN may see (404)")
    return error_for_status(status, said, retry_after=wait)


def _error_name(data: bytes) -> str:
    """Return only the error's class: details of a 422 repeat what was sent, and that may be a license key."""
    try:
        name = msgspec.json.decode(data, type=dict[str, Any]).get("error")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return name if isinstance(name, str) and _ERROR_NAME.fullmatch(name) else ""


def _read(data: bytes | msgspec.Raw, form: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=form)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # Without msgspec's own words, which may quote a value. Later: it may be a proxy's page, or a fault of Polar's.
        raise Unavailable("Polar's answer cannot be read") from None
