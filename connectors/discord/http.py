"""discord.py's HTTP part, without its gateway, held to limits that all workers share.

Import it when it is first used: discord.py takes a second.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import aiohttp
import httpx
from discord import File, HTTPException
from discord.http import HTTPClient, Ratelimit, Route, json_or_text

from config.settings import Settings
from connectors.base import Limits, Rate, Unavailable
from connectors.http import error_for_status, retry_after

# https://docs.discord.com/developers/topics/opcodes-and-status-codes#json-json-error-codes
_OF_ONE_CUSTOMER = {50025, 40007}
_INVALID = {401, 403}
_MOST_INVALID = 5
_PARKED_SECONDS = 600.0
_UNTOLD_SECONDS = 60.0
_LONGEST_SECONDS = 86_400.0


@dataclass
class _Heard:
    """What an answer said beside its content."""

    headers: Mapping[str, str] = field(default_factory=dict)
    body: object = None


class DiscordHttp(HTTPClient):
    """discord.py's HTTP part, which counts limits for all workers together, and neither sleeps nor tries again.

    Of itself it sleeps where a bucket is empty, on 429, and on 500, 502, 504 and 524, for up to 25 s.
    """

    def __init__(self, settings: Settings, places: "Places", now: Callable[[], datetime]) -> None:
        trace = aiohttp.TraceConfig()
        trace.on_request_end.append(_hear)
        loop = asyncio.get_running_loop()
        super().__init__(loop, aiohttp.TCPConnector(limit=settings.connector_calls), http_trace=trace)
        self._base = settings.discord_api_url
        self._seconds = settings.call_timeout.total_seconds()
        self._now = now
        self._places = places

    def get_ratelimit(self, key: str) -> Ratelimit:  # noqa: ARG002 - there is one kind
        """Return a limit that has nobody wait: ours are counted before."""
        return _Uncounted(None)

    async def request(
        self,
        route: Route,
        *,
        files: Sequence[File] | None = None,
        form: Iterable[dict[str, Any]] | None = None,
        **kwargs: Any,  # noqa: ANN401 - discord.py's own signature
    ) -> Any:  # noqa: ANN401
        """Make one request. Raises HTTPException where it was refused, and Unavailable where it may go well later."""
        async with self._places.turn(route):
            return await self._answer(route, files=files, form=form, **kwargs)

    async def _answer(self, route: Route, **kwargs: Any) -> Any:  # noqa: ANN401 - discord.py's own signature
        bucket = await self._places.take(route)
        # Not by `Route.BASE`, which would move every client in the process.
        route.url = self._base + route.url.removeprefix(Route.BASE)
        heard = _Heard()
        try:
            async with asyncio.timeout(self._seconds):
                answer = await super().request(route, trace_request_ctx=heard, **kwargs)
        except HTTPException as error:
            if error.status == 429:
                raise await self._places.limited(route, heard, self._now()) from None
            if error.status < 500:
                await self._places.heard(route, heard.headers, bucket)
            await self._places.refused(route, error)
            if error.status >= 500:
                wait = retry_after(heard.headers.get("Retry-After"), self._now())
                raise error_for_status(error.status, f"Discord answered {error.status}", retry_after=wait) from None
            raise
        except TimeoutError:
            raise Unavailable(f"Discord did not answer within {self._seconds:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"Discord cannot be reached: {type(error).__name__}") from None
        except ValueError:
            answer = "not JSON"
        if answer and isinstance(answer, str):
            raise Unavailable("Discord answered something that cannot be read")
        await self._places.heard(route, heard.headers, bucket)
        self._places.succeeded(route)
        return answer

    async def post_form(self, path: str, form: Mapping[str, str]) -> dict[str, Any]:
        """Post a form without the bot's token, and return the answer, also of a 4xx. Raises Unavailable."""
        route = Route("POST", path)
        await self._places.take(route)
        try:
            async with httpx.AsyncClient(timeout=self._seconds) as client:
                answer = await client.post(f"{self._base}{path}", data=form)
            document = answer.json()
        except httpx.HTTPError as error:
            raise Unavailable(f"Discord cannot be reached: {type(error).__name__}") from None
        except ValueError:
            document = None
        if answer.status_code == 429:
            raise await self._places.limited(route, _Heard(answer.headers, document), self._now())
        if answer.status_code >= 500 or not isinstance(document, dict):
            raise Unavailable(f"Discord answered {answer.status_code} to {path}")
        return document


async def _hear(_: aiohttp.ClientSession, context: SimpleNamespace, end: aiohttp.TraceRequestEndParams) -> None:
    """Note the headers, and raise at once what discord.py would sleep on."""
    heard: _Heard = context.trace_request_ctx
    heard.headers = end.response.headers
    if end.response.status == 429 or end.response.status >= 500:
        body = await json_or_text(end.response)
        heard.body = body
        raise HTTPException(end.response, body)


class _Uncounted(Ratelimit):
    """A limit of discord.py that is none."""

    async def acquire(self) -> None:
        return

    async def __aexit__(self, *_: object) -> None:
        return


class Places:
    """The places for calls: https://docs.discord.com/developers/topics/rate-limits.

    Named by a fingerprint of the bot's token. Seconds of our own are multiplied by `pace`; Discord's are as it says.
    """

    def __init__(self, limits: Limits, token: str, pace: float) -> None:
        self._limits = limits
        self._bot = f"discord:{hashlib.sha256(token.encode()).hexdigest()[:8]}"
        self._pace = pace
        self._buckets: dict[str, str] = {}
        self._rates: dict[str, Rate] = {}
        self._refusals: dict[str, int] = {}
        self._firsts: dict[str, asyncio.Lock] = {}

    @asynccontextmanager
    async def turn(self, route: Route) -> AsyncIterator[None]:
        """Let the first call of a route go alone: until it is answered, nobody knows which bucket it is counted in."""
        if route.key not in self._buckets:
            async with self._firsts.setdefault(route.key, asyncio.Lock()):
                if route.key not in self._buckets:
                    yield
                    return
        yield

    async def take(self, route: Route) -> str:
        """Take a place under the limit of the bot and of the route's bucket, whose name is returned.

        There is none while the server is parked.
        """
        rates = [Rate(self._bot, 50, 1 * self._pace)]
        if route.guild_id:
            rates.append(Rate(self._guild(route), 50, 1 * self._pace))
        bucket = self._bucket(route)
        await self._limits.take(*rates, self._rate(bucket))
        return bucket

    async def heard(self, route: Route, headers: Mapping[str, str], bucket: str) -> None:
        """Learn what an answer says of its bucket. The first call of a window sees the whole of it ahead."""
        if "X-RateLimit-Bucket" in headers or route.key not in self._buckets:
            self._buckets[route.key] = headers.get("X-RateLimit-Bucket", route.key)
        try:
            limit, remaining = int(headers["X-RateLimit-Limit"]), int(headers["X-RateLimit-Remaining"])
            seconds = float(headers["X-RateLimit-Reset-After"])
        except (KeyError, ValueError):
            return
        name = self._bucket(route)
        known = self._rates.get(name)
        rate = Rate(name, limit, float(f"{seconds:.2g}"))
        is_news = known is None or known.limit != limit or known.seconds < rate.seconds
        if limit > 0 and seconds > 0 and remaining == limit - 1 and is_news:
            self._rates[name] = rate
            await self._limits.learn(rate)
        if name != bucket:
            # The place was taken under another name: this one counts it too.
            with suppress(Unavailable):
                await self._limits.take(self._rate(name))
        if remaining <= 0 and seconds > 0:
            # Its window began when the call arrived there, and not when we counted it.
            await self._limits.park(name, seconds, f"Discord's bucket of {route.key} is empty")

    async def limited(self, route: Route, heard: _Heard, now: datetime) -> Unavailable:
        """Park what a 429 is about, and return what to raise."""
        body = heard.body if isinstance(heard.body, dict) else {}
        told = body.get("retry_after", retry_after(heard.headers.get("Retry-After"), now))
        seconds = (
            min(max(told, 0.0), _LONGEST_SECONDS) if isinstance(told, int | float) else _UNTOLD_SECONDS * self._pace
        )
        # What does not come from Discord itself, but from who stands before it, is a ban of our address.
        is_banned = not body or not heard.headers.get("Via")
        is_global = is_banned or bool(body.get("global")) or "X-RateLimit-Global" in heard.headers
        reason = "Discord refuses our address for a while" if is_banned else f"Discord limits {route.key}"
        await self._limits.park(self._bot if is_global else self._bucket(route), seconds, reason)
        return Unavailable(reason, retry_after=seconds)

    async def refused(self, route: Route, error: HTTPException) -> None:
        """Park a server that refuses again and again: 10,000 of 401, 403 and 429 in 10 minutes ban our address.

        What is wrong with one customer says nothing about a server.
        """
        if error.status not in _INVALID or error.code in _OF_ONE_CUSTOMER:
            return
        name = self._guild(route) if route.guild_id else self._bot
        self._refusals[name] = self._refusals.get(name, 0) + 1
        if self._refusals[name] >= _MOST_INVALID:
            self._refusals[name] = 0
            what = f"the server {route.guild_id}" if route.guild_id else "the bot"
            reason = f"Discord refused {what} {_MOST_INVALID} times in a row ({error.status}, {error.code})"
            await self._limits.park(name, _PARKED_SECONDS * self._pace, reason)

    def succeeded(self, route: Route) -> None:
        """End a run of refusals; what may be read does not prove what may be changed."""
        if route.method != "GET" or not route.guild_id:
            self._refusals.pop(self._guild(route) if route.guild_id else self._bot, None)

    def _rate(self, bucket: str) -> Rate:
        return self._rates.get(bucket) or Rate(bucket, 10, 10 * self._pace)

    def _guild(self, route: Route) -> str:
        return f"{self._bot}:guild:{route.guild_id}"

    def _bucket(self, route: Route) -> str:
        """Return the name of a bucket: routes that share one share the name, once Discord has told. Per server."""
        return f"{self._bot}:{self._buckets.get(route.key, route.key)}:{route.guild_id or ''}"
