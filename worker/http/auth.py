"""Who is asking: bearer tokens of apps and of operators."""

import hashlib
from dataclasses import dataclass
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from config.settings import Settings, Token
from worker.http.errors import ApiError


@dataclass(frozen=True)
class Caller:
    """A known caller. `name` may be logged."""

    name: str
    is_operator: bool
    reads_keys: bool


class Tokens:
    """All accepted tokens, known by their SHA-256: comparing digests tells nothing of a token through time."""

    def __init__(self, settings: Settings) -> None:
        self._callers: dict[bytes, Caller] = {}
        for token in settings.api_tokens:
            self._add(token, Caller(token.name, is_operator=False, reads_keys=token.name in settings.key_readers))
        for token in settings.ops_tokens:
            self._add(token, Caller(token.name, is_operator=True, reads_keys=True))

    def _add(self, token: Token, caller: Caller) -> None:
        self._callers[hashlib.sha256(token.value.get_secret_value().encode()).digest()] = caller

    def caller(self, authorization: str | None) -> Caller:
        """Return who sent this `Authorization` header. Raises ApiError (401)."""
        scheme, _, token = (authorization or "").partition(" ")
        known = self._callers.get(hashlib.sha256(token.strip().encode()).digest())
        if scheme.lower() != "bearer" or known is None:
            detail = "Send `Authorization: Bearer <token>` with a token from ALMONER_API_TOKENS or ALMONER_OPS_TOKENS"
            raise ApiError(401, detail, **{"www-authenticate": "Bearer"})
        return known


def app_guard(connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
    """Let apps and operators pass. Raises ApiError (401)."""
    tokens: Tokens = connection.app.state.tokens
    connection.scope["state"]["caller"] = tokens.caller(connection.headers.get("authorization"))


def operator_guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Let operators pass. Raises ApiError (401, 403)."""
    app_guard(connection, handler)
    caller: Caller = connection.scope["state"]["caller"]
    if not caller.is_operator:
        raise ApiError(403, "This needs a token from ALMONER_OPS_TOKENS")
