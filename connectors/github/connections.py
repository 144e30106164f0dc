"""How requests get to GitHub: one at a time in each connection, and readings that many ask for shared."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from config.settings import Settings
from connectors.github.answers import Answer

if TYPE_CHECKING:
    from github import Auth
    from github.Requester import Requester

T = TypeVar("T")


def private_key(settings: Settings) -> str:
    """Return the App's key as PEM text. Raises ValueError with a sentence."""
    text = settings.github_private_key.get_secret_value()
    if "-----BEGIN" not in text:
        try:
            text = Path(text).expanduser().read_text(encoding="ascii")
        except (OSError, ValueError):
            raise ValueError("ALMONER_GITHUB_PRIVATE_KEY is neither PEM text nor a file that we can read") from None
    text = text.replace("\\n", "\n").strip()
    if not re.search(r"-----BEGIN [A-Z ]*PRIVATE KEY-----", text):
        raise ValueError("ALMONER_GITHUB_PRIVATE_KEY is not a private key in PEM form")
    return text


@lru_cache(maxsize=2)
def signing(pem: str) -> "Callable[[dict[str, Any]], str | bytes]":
    """Return what signs an App's tokens. To read a key takes 50 ms, to sign with it one. Raises ValueError."""
    import jwt
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError):
        raise ValueError(
            "ALMONER_GITHUB_PRIVATE_KEY cannot be read; it must be the App's key, without a password"
        ) from None
    return lambda claims: jwt.encode(claims, key, algorithm="RS256")  # type: ignore[arg-type]


def own_auth(settings: Settings) -> "Auth.Auth":
    """Return how we sign in ourselves: as the App, or by the token. Blocks: PyGithub takes a while to import.

    Raises ValueError with a sentence.
    """
    from github import Auth

    if not settings.github_app_id:
        return Auth.Token(settings.github_token.get_secret_value())
    return Auth.AppAuth(settings.github_app_id, sign_func=signing(private_key(settings)))


class MovedElsewhere(Exception):
    """We were redirected to another host or scheme."""


class Connections:
    """PyGithub's requesters of one sign-in.

    A requester keeps the address of its next request in the connection that all its calls share: two threads in one
    of them send each other's requests. So each is one thread's at a time. We ask it for one request each; PyGithub's
    own methods hide headers, and fetch what is missing when an attribute is read, wherever that is.
    """

    def __init__(self, auth: "Auth.Auth", base_url: str, timeout: int) -> None:
        self._auth = auth
        self._base_url = base_url
        self._timeout = timeout
        self._free: list[Requester] = []

    def send(self, verb: str, path: str, body: Mapping[str, Any] | None) -> Answer:
        """Send one request. Blocks. Raises MovedElsewhere, JSONDecodeError, and what requests does."""
        requester = self._taken()
        try:
            status, headers, text = requester.requestJson(verb, path, input=body)
        except RuntimeError:  # PyGithub's own, for such a redirect and nothing else
            raise MovedElsewhere from None
        finally:
            self._free.append(requester)
        is_json = text and (status < 400 or text.lstrip().startswith("{"))
        return Answer(status, headers, json.loads(text) if is_json else None)

    def _taken(self) -> "Requester":
        with suppress(IndexError):
            return self._free.pop()
        from github import Github

        return Github(
            auth=self._auth,
            base_url=self._base_url,
            timeout=self._timeout,
            user_agent="almoner",
            retry=None,
            seconds_between_requests=0,
            seconds_between_writes=0,
            lazy=True,
            api_version="2022-11-28",
        ).requester


@dataclass(eq=False)
class _Reading:
    task: "asyncio.Task[Any] | None" = None
    waiting: int = 0
    has_begun: bool = False
    is_given_up: bool = False


class Shared:
    """Readings that many ask for at once: whoever asks before one begins shares it; whoever asks later, the next."""

    def __init__(self) -> None:
        self._last: dict[Hashable, _Reading] = {}

    async def ask(self, key: Hashable, read: Callable[[], Awaitable[T]]) -> T:
        """Return what a reading of this name finds that begins after now."""
        before = self._last.get(key)
        if before is None or before.has_begun or before.is_given_up:
            reading = self._last[key] = _Reading()
            reading.task = asyncio.create_task(self._read(key, reading, before, read))
        else:
            reading = before
        reading.waiting += 1
        try:
            return await asyncio.shield(reading.task)  # type: ignore[arg-type]
        finally:
            reading.waiting -= 1
            if not reading.waiting:
                reading.is_given_up = True
                reading.task.cancel()  # type: ignore[union-attr]

    async def _read(
        self, key: Hashable, reading: _Reading, before: _Reading | None, read: Callable[[], Awaitable[T]]
    ) -> T:
        try:
            if before and before.task and not before.task.done():
                await asyncio.wait([before.task])
            reading.has_begun = True
            return await read()
        finally:
            if self._last.get(key) is reading:
                del self._last[key]
