"""The HTTP application: every route, in one list."""

from collections.abc import Callable
from datetime import datetime
from functools import cache, partial

import httpx
import msgspec
from litestar import Litestar
from litestar.datastructures import State
from litestar.enums import ScopeType
from litestar.exceptions import HTTPException, ValidationException
from litestar.response.base import ASGIResponse
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from worker.http import errors
from worker.http.accounts import AccountController
from worker.http.auth import Tokens
from worker.http.context import Context
from worker.http.customer_sessions import CustomerSessionController
from worker.http.customers import CustomerController
from worker.http.downloads import download
from worker.http.license_shortcut import PATHS as VALIDATING
from worker.http.license_shortcut import LicenseShortcut, make_license_shortcut
from worker.http.licenses import LicenseController, PublicLicenseController
from worker.http.offline import OfflineController, signing_keys
from worker.http.openapi import openapi_config
from worker.http.ops import OpsController, healthz, prometheus, readyz
from worker.http.page import PAGE
from worker.http.page_look import Look, is_page
from worker.http.page_visitor import Page
from worker.http.polar_api import CURRENT, VERSION_HEADER, VERSIONS
from worker.http.polar_benefits import PolarBenefitController, PolarGrantController
from worker.http.polar_customers import PolarCustomerController
from worker.http.polar_purchases import PolarOrderController, PolarSubscriptionController
from worker.http.portal import PortalController
from worker.http.receiver import PATH, RefusalLog, make_receiver
from worker.http.shortcut import PREFIX, Shortcut, make_shortcut
from worker.http.webhooks import WebhookController
from worker.signing_keys import SigningKeys


def make_api(
    context: Context,
    now: Callable[[], datetime],
    *,
    platforms: httpx.AsyncBaseTransport | None = None,
    at_once: bool = True,
) -> ASGIApp:
    """Return the application. `context` is all that it uses; `platforms` is where accounts are linked, if not there.

    Litestar's part takes 50 ms to make; unless `at_once` it is made when the first request needs it.
    """
    tokens = Tokens(context.settings)
    page = Page(context, platforms)
    keys = SigningKeys(context.database, context.settings, context.now)
    refusals = RefusalLog(context.database, keep=context.settings.retain_refusals)
    shortcuts = make_shortcut(context, tokens), make_license_shortcut(context, tokens)
    receiver = make_receiver(context.pipeline, context.settings, refusals, now)
    state = State({"context": context, "tokens": tokens, "page": page, "signing_keys": keys})
    litestar = cache(partial(_litestar, state, page, context.settings.max_body_bytes))
    if at_once:
        litestar()

    async def api(scope: Scope, receive: Receive, send: Send) -> None:
        await litestar()(scope, receive, send)

    return _routed(api, receiver, shortcuts, page.look)


def _litestar(state: State, page: Page, max_body_bytes: int) -> ASGIApp:
    """Return what answers all that has no short way: every route, in one list."""
    return Litestar(
        route_handlers=[
            CustomerController,
            AccountController,
            LicenseController,
            PublicLicenseController,
            OfflineController,
            signing_keys,
            CustomerSessionController,
            PortalController,
            WebhookController,
            PolarCustomerController,
            PolarSubscriptionController,
            PolarOrderController,
            PolarBenefitController,
            PolarGrantController,
            PAGE,
            download,
            OpsController,
            healthz,
            readyz,
            prometheus,
        ],
        exception_handlers={
            kind: page.look.for_people(answer)
            for kind, answer in (
                (ValidationException, errors.on_validation_error),
                (HTTPException, errors.on_http_error),
                *((kind, errors.on_error) for kind in (*errors.DATABASE_ERRORS, Exception)),
            )
        },
        state=state,
        logging_config=None,  # config/logging.py has set it up
        openapi_config=openapi_config(),
        request_max_body_size=max_body_bytes,
    )


def _routed(api: ASGIApp, receiver: ASGIApp, shortcuts: tuple[Shortcut, LicenseShortcut], look: Look) -> ASGIApp:
    """Route by the path as it was sent, so that `%2F` inside an external id does not split it; handlers decode."""
    answered, validated = shortcuts

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == PATH:
            await receiver(scope, receive, send)
            return
        if scope.get("raw_path"):
            scope["path"] = scope["raw_path"].decode("latin-1")
        if scope["type"] == ScopeType.HTTP and scope["path"].startswith("/v1/"):
            version = dict(scope["headers"]).get(VERSION_HEADER, CURRENT.encode())
            if version not in _VERSIONS:
                await _no_such_version(version)(scope, receive, send)
                return
            send = _with_version(send, version)
        if scope["type"] == ScopeType.HTTP and scope["path"].startswith(PREFIX) and await answered(scope, send):
            return
        if scope["type"] == ScopeType.HTTP and scope["path"] in VALIDATING:
            unread = await validated(scope, receive, send)
            if unread is None:
                return
            receive = unread
        await api(scope, receive, look.guarded(send) if is_page(scope["path"]) else send)

    return app


_VERSIONS = frozenset(one.encode() for one in VERSIONS)


def _no_such_version(asked: bytes) -> ASGIResponse:
    """Refuse a version with Polar's status, and say what is wrong: it must not be taken for a missing customer."""
    known = ", ".join(VERSIONS)
    text = f"There is no API version {asked.decode('latin-1')[:20]!r} here; `Polar-Version` can be: {known}"
    document = msgspec.json.encode({"error": "ResourceNotFound", "detail": text})
    return ASGIResponse(body=document, status_code=404, media_type="application/json")


def _with_version(send: Send, version: bytes) -> Send:
    """Say with every answer in which version it is."""

    async def said(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (VERSION_HEADER, version)]
        await send(message)

    return said
