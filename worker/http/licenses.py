"""License keys, as Polar serves them: for apps with a token, and the three calls that devices make with none."""

from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from litestar import Controller, Response, get, patch, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, JSONBody, QueryParameter
from msgspec import UNSET, Struct

from connectors.base import Unavailable
from worker.benefit_ids import keys_meant
from worker.http.auth import Caller, app_guard
from worker.http.context import Context
from worker.http.errors import ApiError
from worker.http.license_forms import Activate, Deactivate, Update, Validate
from worker.http.license_shapes import activation_shown, key_shown, organization_of, shown
from worker.http.polar_api import Asking, Limit, PageNumber, Version, fails, listed, one, version_of, window
from worker.http.public import STRANGER, address_guard, count_address
from worker.license_calls import Device
from worker.licensing import Asked, Key, Refused
from worker.quotas import SPAN_SECONDS
from worker.store import customers, licenses
from worker.store.licenses import Chosen, Found

REASON = "almoner-reason"
"""The header that says why, in one word: `valid`, `expired`, ... (worker/licensing.py, Reason)."""

_LOOKUPS_OF_STRANGERS = 10
"""Of unknown keys, a minute and address."""

_CALL_FAILS = fails(404, s400="More uses are counted than are left", s429="Too many calls with this key")
_ACTIVATE_FAILS = fails(404, s403="The key is not active, or takes no more devices", s429="Too many calls")
_CHANGE_FAILS = fails(404, s403="Polar issued it, and changes it")


class LicenseKeyDocument(Struct, kw_only=True):
    """A license key in Polar's shape; `member_id` and `member` since 2026-10."""

    id: str
    created_at: str
    modified_at: str | None
    organization_id: str
    customer_id: str
    customer: dict[str, Any]
    benefit_id: str
    key: str
    display_key: str
    status: Literal["granted", "revoked", "disabled"]
    limit_activations: int | None
    usage: int
    limit_usage: int | None
    validations: int
    last_validated_at: str | None
    expires_at: str | None
    member_id: str | msgspec.UnsetType | None = UNSET
    member: dict[str, Any] | msgspec.UnsetType | None = UNSET


def _answers(status: int, text: str, more: dict[int, ResponseSpec]) -> dict[int, ResponseSpec]:
    known = ResponseSpec(LicenseKeyDocument, generate_examples=False, description=text)
    return {status: known, **more}


async def validated(context: Context, data: Validate, version: Version, stranger: str | None) -> dict[str, Any]:
    """Return the answer to a validation. `stranger` is the address of a caller without a token. Raises ApiError."""
    activation_id = str(data.activation_id) if data.activation_id else None
    try:
        found = await _found(context, data.key, data.organization_id, activation_id, stranger)
        await _quota(context, found.key)
        asked = Asked(
            activation_id=activation_id,
            is_right_benefit=data.benefit_id is None or _is_of_benefit(context, found.key, str(data.benefit_id)),
            customer_id=str(data.customer_id) if data.customer_id else None,
            increment=data.increment_usage or 0,
            conditions=data.conditions,
        )
        found = await context.license_calls.validate(found, licenses.digest_of(data.key), asked)
    except Refused as refused:
        raise _refusal(refused) from None
    document = key_shown(context, found.key, found.facts, version, whole=data.key, with_purchase=True)
    document["activation"] = activation_shown(found.activation) if found.activation else None
    return document


async def validate(request: Asking, data: Validate) -> Response[bytes]:
    """Answer a validation."""
    document = await validated(request.app.state.context, data, version_of(request), _stranger(request))
    return one(document, headers={REASON: "valid"})


async def activate(request: Asking, data: Activate) -> Response[bytes]:
    """Answer an activation."""
    context: Context = request.app.state.context
    try:
        found = await _found(context, data.key, data.organization_id, None, _stranger(request))
        await _quota(context, found.key)
        device = Device(data.label, data.conditions, data.meta)
        key, activation = await context.license_calls.activate(licenses.digest_of(data.key), device)
    except Refused as refused:
        raise _refusal(refused) from None
    whole = key_shown(context, key, found.facts, version_of(request), whole=data.key, with_purchase=True)
    return one(activation_shown(activation) | {"license_key": whole}, headers={REASON: "valid"})


async def deactivate(request: Asking, data: Deactivate) -> Response[None]:
    """Answer a deactivation."""
    context: Context = request.app.state.context
    try:
        found = await _found(context, data.key, data.organization_id, None, _stranger(request))
        await _quota(context, found.key)
        await context.license_calls.deactivate(found.key, str(data.activation_id))
    except Refused as refused:
        raise _refusal(refused) from None
    return Response(None, status_code=204, headers={REASON: "valid"})


def _stranger(request: Asking) -> str | None:
    address: str | None = request.scope["state"].get(STRANGER)
    return address


async def _found(
    context: Context, key: str, organization_id: UUID, activation_id: str | None, stranger: str | None
) -> Found:
    organization = str(organization_id)

    async def look_up() -> bool:
        """Ask Polar for a key that is unknown here. Strangers cost little of what Polar allows."""
        if not context.polar_keys.looks_up:
            return False
        if stranger is not None:
            await count_address(context, stranger, what="lookup", most=_LOOKUPS_OF_STRANGERS)
        return await context.polar_keys.look_up(key, organization, known=stranger is None)

    def is_of(found: Found) -> bool:
        return organization_of(context, found.facts) in {"", organization}

    try:
        return await context.license_calls.find(key, activation_id, is_of, look_up)
    except Unavailable as error:
        seconds = str(int(error.retry_after or 5) + 1)
        text = "The key is not known here, and Polar, who may know it, cannot be asked now"
        raise ApiError(503, text, **{"retry-after": seconds}) from None


async def _quota(context: Context, key: Key) -> None:
    """Count a call with a key. Raises ApiError (429)."""
    most = context.settings.license_calls_per_key
    wait = await context.quotas.take(f"key:{key.id}", most)
    if wait is not None:
        text = f"More than {most} calls in {SPAN_SECONDS} s with this license key; come again in {wait} s"
        raise ApiError(429, text, **{"retry-after": str(wait)})


def _refusal(refused: Refused) -> ApiError:
    return ApiError(refused.status, refused.detail, **{REASON: refused.reason.value})


def _is_of_benefit(context: Context, key: Key, asked: str) -> bool:
    if key.source != "own":
        return key.benefit == asked
    return key.benefit in keys_meant(context.pipeline.catalogue, asked)


class PublicLicenseController(Controller):
    """For devices: no token, but so many calls a minute from an address and with a key."""

    path = "/v1/customer-portal/license-keys"
    guards = [address_guard]
    tags = ["license keys"]
    security = [{}]

    @post("/validate", status_code=200, summary="Is a license key valid? Without a token",
          responses=_answers(200, "It is; `almoner-reason` says why not, else", _CALL_FAILS))  # fmt: skip
    async def validate(self, request: Asking, data: JSONBody[Validate]) -> Response[bytes]:
        """Validate a key, and count uses."""
        return await validate(request, data)

    @post("/activate", status_code=200, summary="Let a device use a license key", responses=_ACTIVATE_FAILS)
    async def activate(self, request: Asking, data: JSONBody[Activate]) -> Response[bytes]:
        """Activate a device."""
        return await activate(request, data)

    @post("/deactivate", status_code=204, summary="Let a device use it no more", responses=_CALL_FAILS)
    async def deactivate(self, request: Asking, data: JSONBody[Deactivate]) -> Response[None]:
        """Deactivate a device."""
        return await deactivate(request, data)


BenefitIds = Annotated[list[UUID] | None, QueryParameter(name="benefit_id", description="of these benefits")]
OrganizationIds = Annotated[list[UUID] | None, QueryParameter(name="organization_id", description="of these")]
Statuses = Annotated[
    list[Literal["granted", "revoked", "disabled"]] | None, QueryParameter(name="status", description="with these")
]


class LicenseController(Controller):
    """For apps: whole keys only for tokens that may read them."""

    path = "/v1/license-keys"
    guards = [app_guard]
    tags = ["license keys"]

    @get("/", summary="All license keys, newest first", responses=fails())
    async def list_keys(
        self, request: Asking, organization_ids: OrganizationIds = None, benefit_ids: BenefitIds = None,
        statuses: Statuses = None, page: PageNumber = 1, limit: Limit = 10,
    ) -> Response[bytes]:  # fmt: skip
        """Return a page of keys."""
        context: Context = request.app.state.context
        offset, size = window(page, limit)
        chosen = Chosen(benefits=_benefits(context, benefit_ids), statuses=statuses)
        rows, total = await context.database.read(partial(licenses.listed, chosen=chosen, offset=offset, limit=size))
        if _is_foreign(context, organization_ids):
            rows, total = [], 0
        return listed(
            await shown(context, rows, version_of(request), may_read=_may_read(request)), total, limit
        )  # fmt: skip

    @post(
        "/validate", status_code=200, summary="Is a license key valid?", responses=_answers(200, "It is", _CALL_FAILS)
    )
    async def validate(self, request: Asking, data: JSONBody[Validate]) -> Response[bytes]:
        """Validate a key, and count uses."""
        return await validate(request, data)

    @post("/activate", status_code=200, summary="Let a device use a license key", responses=_ACTIVATE_FAILS)
    async def activate(self, request: Asking, data: JSONBody[Activate]) -> Response[bytes]:
        """Activate a device."""
        return await activate(request, data)

    @post("/deactivate", status_code=204, summary="Let a device use it no more", responses=_CALL_FAILS)
    async def deactivate(self, request: Asking, data: JSONBody[Deactivate]) -> Response[None]:
        """Deactivate a device."""
        return await deactivate(request, data)

    @get("/{id:str}", summary="One license key, with its activations", responses=_answers(200, "The key", fails(404)))
    async def get_key(self, request: Asking, id: FromPath[UUID]) -> Response[bytes]:  # noqa: A002 - Polar's name
        """Return a key with the devices that use it."""
        context: Context = request.app.state.context
        key = await _by_id(context, id)
        [document] = await shown(context, [key], version_of(request), may_read=_may_read(request))
        live = await context.license_calls.live(key)
        return one(document | {"activations": [activation_shown(each) for each in live]})

    @patch("/{id:str}", summary="Change a license key", responses=_answers(200, "As it is now", _CHANGE_FAILS))
    async def update(self, request: Asking, id: FromPath[UUID], data: JSONBody[Update]) -> Response[bytes]:  # noqa: A002
        """Change status, usage, limits or the end of a key."""
        context: Context = request.app.state.context
        try:
            key = await context.license_calls.change(str(id), _changes(data))
        except Refused as refused:
            raise _refusal(refused) from None
        [document] = await shown(context, [key], version_of(request), may_read=_may_read(request))
        return one(document)

    @post("/{id:str}/rotate", status_code=200, summary="Put another key in its place",
          responses=_answers(200, "With the new key, whole", fails(400, 404, s403="Not for this token")))  # fmt: skip
    async def rotate(self, request: Asking, id: FromPath[UUID]) -> Response[bytes]:  # noqa: A002
        """Issue another string under the same id; the one before is unknown from now on."""
        context: Context = request.app.state.context
        if not _may_read(request):
            raise ApiError(403, "The token may not read whole keys, and this gives one; name it in ALMONER_KEY_READERS")
        try:
            key, whole = await context.license_calls.rotate(str(id))
        except Refused as refused:
            name = "RotateNotPermitted" if refused.status == 400 else None
            raise ApiError(refused.status, refused.detail, name=name, **{REASON: refused.reason.value}) from None
        facts = await context.database.read(partial(customers.facts, ids=[key.customer_id]))
        return one(key_shown(context, key, facts.get(key.customer_id), version_of(request), whole=whole))

    @get("/{id:str}/activations/{activation_id:str}", summary="One device that uses a license key",
         responses=fails(404))  # fmt: skip
    async def get_activation(
        self, request: Asking, id: FromPath[UUID], activation_id: FromPath[UUID]  # noqa: A002
    ) -> Response[bytes]:  # fmt: skip
        """Return an activation with its key."""
        context: Context = request.app.state.context
        key = await _by_id(context, id)
        found = [each for each in await context.license_calls.live(key) if each.id == str(activation_id)]
        if not found:
            raise ApiError(404, "This license key has no such activation")
        [document] = await shown(context, [key], version_of(request), may_read=_may_read(request))
        return one(activation_shown(found[0]) | {"license_key": document})


async def _by_id(context: Context, key_id: UUID) -> Key:
    key = await context.database.read(partial(licenses.by_id, key_id=str(key_id)))
    if key is None:
        raise ApiError(404, "There is no such license key")
    return key


def _benefits(context: Context, ids: list[UUID] | None) -> set[str] | None:
    if ids is None:
        return None
    catalogue = context.pipeline.catalogue
    return {str(one) for one in ids} | {key for one in ids for key in keys_meant(catalogue, str(one))}


def _is_foreign(context: Context, ids: list[UUID] | None) -> bool:
    """Whether only other organizations' keys are asked for."""
    mine = context.settings.polar_organization_id
    return ids is not None and bool(mine) and mine not in {str(one) for one in ids}


def _may_read(request: Asking) -> bool:
    caller: Caller = request.scope["state"]["caller"]
    return caller.reads_keys


def _changes(data: Update) -> dict[str, Any]:
    """Return the columns to write. Raises ApiError (422)."""
    changes = {name: value for name, value in msgspec.structs.asdict(data).items() if value is not UNSET}
    if changes.get("status", "") is None:
        del changes["status"]
    ends = changes.get("expires_at")
    if isinstance(ends, datetime):
        try:
            changes["expires_at"] = ends.astimezone(UTC) if ends.tzinfo else ends.replace(tzinfo=UTC)
        except (OverflowError, ValueError):
            raise ApiError(422, "`expires_at` is no time that can be kept") from None
    return changes
