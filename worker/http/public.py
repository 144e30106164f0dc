"""Whoever calls without a token: so many calls a minute from an address."""

import ipaddress
from functools import lru_cache
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from worker.http.auth import Tokens
from worker.http.context import Context
from worker.http.errors import ApiError
from worker.quotas import SPAN_SECONDS


async def address_guard(connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
    """Count a call of an address. Raises ApiError (429).

    An app's token is let through: Polar's SDKs send it here too (polar.md 7.1), for all the customers of an app.
    """
    sent = connection.headers.get("authorization")
    if not sent or not _is_known(connection.app.state.tokens, sent):
        address = connection.client.host if connection.client else ""
        connection.scope["state"][STRANGER] = address
        await count_address(connection.app.state.context, address)


STRANGER = "stranger"
"""Under this name a request's state has the address of whoever calls without a token."""


async def count_address(context: Context, address: str, *, what: str = "address", most: int | None = None) -> None:
    """Count a call; `most` a minute, or as is set. Raises ApiError (429)."""
    most = context.settings.license_calls_per_address if most is None else most
    wait = await context.quotas.take(f"{what}:{_network(address)}", most)
    if wait is not None:
        text = f"More than {most} such calls in {SPAN_SECONDS} s from one address; come again in {wait} s"
        raise ApiError(429, text, **{"retry-after": str(wait)})


def _is_known(tokens: Tokens, authorization: str) -> bool:
    try:
        tokens.caller(authorization)
    except ApiError:
        return False
    return True


@lru_cache(maxsize=10_000)
def _network(address: str) -> str:
    """Return whose address it is: of IPv6 everybody has a /64 of their own."""
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(known, ipaddress.IPv6Address):
        return str(known.ipv4_mapped or ipaddress.ip_network((known, 64), strict=False))
    return str(known)
