"""What an app asks: the state of a customer, in Polar's own shape, and what they may use."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import unquote
from uuid import UUID

import msgspec
from litestar import Controller, Request, Response, get
from litestar.datastructures import State
from litestar.openapi.spec import Example
from litestar.params import FromPath, QueryParameter
from msgspec import Raw

from worker.answers import Edges
from worker.http.auth import Caller, app_guard
from worker.http.context import Context
from worker.http.errors import ApiError
from worker.http.polar_api import fails, without_body
from worker.http.present import NOTHING, At, complete, key_offers, needs_completing, split
from worker.store.ready import Ready

_encode = msgspec.json.Encoder().encode
_JSON = "application/json"

ById = "id"
ByExternalId = "external_id"

MemberId = Annotated[str | None, QueryParameter(name="member_id", description="only what this member has")]
ExternalMemberId = Annotated[
    str | None, QueryParameter(name="external_member_id", description="only what the member with this external id has")
]
Reveal = Annotated[
    str | None,
    QueryParameter(
        name="reveal",
        description="`keys`: whole license keys, for tokens that may read them",
        examples=[Example(value="keys")],
    ),
]

_UNCHANGED = without_body(s304="As the `If-None-Match` names it")
_MAY_NOT_READ = fails(s403="The token may not read whole keys")


class CustomerController(Controller):
    """Answers from local data, also while Polar is down."""

    path = "/v1/customers"
    guards = [app_guard]
    tags = ["customers"]

    @get("/{customer_id:str}/state", summary="A customer's state, in Polar's shape (2026-10)", media_type=_JSON,
         responses=_UNCHANGED)  # fmt: skip
    async def state(self, request: Request[Any, Any, State], customer_id: FromPath[str]) -> Response[bytes]:
        """Return what Polar's own `GET /v1/customers/{id}/state` returns, kept fresh by every event."""
        return await _state(request, ById, customer_id)

    @get("/external/{external_id:str}/state", summary="The same, by your own id of the customer", media_type=_JSON,
         responses=_UNCHANGED)  # fmt: skip
    async def state_external(self, request: Request[Any, Any, State], external_id: FromPath[str]) -> Response[bytes]:
        """Return the state of the customer with this external id, percent-encoded where it needs to be."""
        return await _state(request, ByExternalId, external_id)

    @get("/{customer_id:str}/entitlements", summary="All that a customer may use", media_type=_JSON,
         responses=_MAY_NOT_READ)  # fmt: skip
    async def entitlements(
        self, request: Request[Any, Any, State], customer_id: FromPath[str], member_id: MemberId = None,
        external_member_id: ExternalMemberId = None, reveal: Reveal = None,
    ) -> Response[bytes]:  # fmt: skip
        """Return one answer for each benefit that the customer has or had."""
        return await _all(request, ById, customer_id, _Asked(member_id, external_member_id, reveal))

    @get("/external/{external_id:str}/entitlements", summary="The same, by your own id", media_type=_JSON,
         responses=_MAY_NOT_READ)  # fmt: skip
    async def entitlements_external(
        self, request: Request[Any, Any, State], external_id: FromPath[str], member_id: MemberId = None,
        external_member_id: ExternalMemberId = None, reveal: Reveal = None,
    ) -> Response[bytes]:  # fmt: skip
        """Return one answer for each benefit that the customer with this external id has or had."""
        return await _all(request, ByExternalId, external_id, _Asked(member_id, external_member_id, reveal))

    @get("/{customer_id:str}/entitlements/{benefit:str}", summary="May this customer use this?", media_type=_JSON,
         responses=_MAY_NOT_READ)  # fmt: skip
    async def entitlement(
        self, request: Request[Any, Any, State], customer_id: FromPath[str], benefit: FromPath[str],
        member_id: MemberId = None, external_member_id: ExternalMemberId = None, reveal: Reveal = None,
    ) -> Response[bytes]:  # fmt: skip
        """Return the answer for a benefit: a key of the catalogue, or the id of a benefit at Polar."""
        return await _one(request, ById, customer_id, benefit, _Asked(member_id, external_member_id, reveal))

    @get("/external/{external_id:str}/entitlements/{benefit:str}", summary="The same, by your own id", media_type=_JSON,
         responses=_MAY_NOT_READ)  # fmt: skip
    async def entitlement_external(
        self, request: Request[Any, Any, State], external_id: FromPath[str], benefit: FromPath[str],
        member_id: MemberId = None, external_member_id: ExternalMemberId = None, reveal: Reveal = None,
    ) -> Response[bytes]:  # fmt: skip
        """Return the answer for a benefit and the customer with this external id."""
        return await _one(request, ByExternalId, external_id, benefit, _Asked(member_id, external_member_id, reveal))


class _Asked(msgspec.Struct, frozen=True):
    member_id: str | None
    external_member_id: str | None
    reveal: str | None

    @property
    def is_plain(self) -> bool:
        return self.member_id is None and self.external_member_id is None and self.reveal is None

    def of_member(self, edges: Edges) -> Callable[[Mapping[str, Any]], bool] | None:
        """Return which grants are the member's; those of no member are the owner's."""
        if self.member_id is not None:
            return lambda grant: (grant["member_id"] or edges.owner) == self.member_id
        if self.external_member_id is not None:
            return lambda grant: (
                (grant["member_external_id"] if grant["member_id"] else edges.owner_external_id)
                == self.external_member_id
            )
        return None


def name_of(written: str) -> str:
    """Decode a path segment. NUL can stand in no id, and PostgreSQL takes none."""
    return unquote(written, errors="replace").replace("\x00", "\ufffd")


async def _state(request: Request[Any, Any, State], key: str, written: str) -> Response[bytes]:
    context: Context = request.app.state.context
    ready = await context.ready.state(key, name_of(written))
    if ready is None or ready.document is None:
        raise ApiError(404, "No such customer is known here: no event has told of them yet.")
    tag = f'"{ready.customer_id}-{ready.version}"'
    headers = _headers(ready) | {"etag": tag, "cache-control": "private, no-cache"}
    if tag in [one.strip() for one in request.headers.get("if-none-match", "").split(",")]:
        return Response(b"", status_code=304, headers=headers)
    return Response(ready.document, media_type=_JSON, headers=headers)


def _headers(ready: Ready) -> dict[str, str]:
    headers = {"almoner-version": str(ready.version)}
    return headers | {"almoner-as-of": ready.as_of} if ready.as_of else headers


async def _one(
    request: Request[Any, Any, State], key: str, written: str, benefit: str, asked: _Asked
) -> Response[bytes]:
    context: Context = request.app.state.context
    benefit = name_of(benefit)
    if asked.reveal:
        _may_reveal(request, asked)
    ready = await context.ready.entitlements(key, name_of(written))
    if ready is None or ready.document is None:
        await _known_benefit(context, benefit)
        return _answer(_nothing(benefit, "No such customer is known here"), {})
    answers, edges = split(ready.document)
    raw = answers.get(benefit)
    if raw is None:
        await _known_benefit(context, benefit)
        nothing = _nothing(benefit, "The customer never had it") | {"as_of": ready.as_of}
        return _answer(nothing, _headers(ready))
    now = context.now()
    if asked.is_plain and not needs_completing(benefit, edges, now):
        return Response(bytes(raw), media_type=_JSON, headers=_headers(ready))
    return _answer(await _completed(context, raw, asked, edges, now), _headers(ready))


async def _all(request: Request[Any, Any, State], key: str, written: str, asked: _Asked) -> Response[bytes]:
    context: Context = request.app.state.context
    if asked.reveal:
        _may_reveal(request, asked)
    ready = await context.ready.entitlements(key, name_of(written))
    if ready is None or ready.document is None:
        raise ApiError(404, "No such customer is known here: no event has told of them yet.")
    answers, edges = split(ready.document)
    now = context.now()
    shown: list[Any] = [
        raw
        if asked.is_plain and not needs_completing(benefit, edges, now)
        else await _completed(context, raw, asked, edges, now)
        for benefit, raw in answers.items()
    ]
    document = {
        "customer_id": ready.customer_id,
        "external_id": ready.external_id,
        "as_of": ready.as_of,
        "entitlements": shown,
    }
    return _answer(document, _headers(ready))


async def _completed(context: Context, raw: Raw, asked: _Asked, edges: Edges, now: datetime) -> dict[str, Any]:
    at = At(now, context.settings, context.tokens)
    answer = complete(raw, at, context.connectors, of_member=asked.of_member(edges))
    if asked.reveal:
        for gives in key_offers(answer):  # of whoever was asked for alone: some are shown only once
            found = await context.license_keys.show(gives["license_key_id"])
            if found:
                gives["key"] = found
    return answer


def _may_reveal(request: Request[Any, Any, State], asked: _Asked) -> None:
    caller: Caller = request.scope["state"]["caller"]
    if asked.reveal != "keys":
        raise ApiError(422, "`reveal` can only be `keys`")
    if not caller.reads_keys:
        raise ApiError(403, f"The token {caller.name} may not read whole keys; name it in ALMONER_KEY_READERS")


async def _known_benefit(context: Context, benefit: str) -> None:
    """Tell a typo from a benefit that the customer does not have. Raises ApiError (404)."""
    if benefit not in context.pipeline.catalogue.benefits:
        await context.pipeline.follow()  # it may be new
    if benefit in context.pipeline.catalogue.benefits:
        return
    try:
        UUID(benefit)
    except ValueError:
        known = ", ".join(sorted(context.pipeline.catalogue.benefits)) or "none"
        raise ApiError(404, f"There is no benefit {benefit!r} in the benefits file; there are: {known}") from None


def _nothing(benefit: str, reason: str) -> dict[str, Any]:
    return {"benefit": benefit, **NOTHING, "as_of": None, "reason": reason, "grants": []}


def _answer(document: dict[str, Any], headers: dict[str, str]) -> Response[bytes]:
    return Response(_encode(document), media_type=_JSON, headers=headers)
