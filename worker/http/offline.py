"""Offline licences: a license key as a signed text, and the keys that it is verified with."""

from typing import Annotated, Any
from uuid import uuid4

import sqlalchemy as sa
import structlog
from litestar import Controller, Response, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, JSONBody
from msgspec import Meta, Struct

from handlers import state as facts
from worker import keyring
from worker.http.auth import app_guard
from worker.http.context import Context
from worker.http.customers import name_of
from worker.http.errors import ApiError
from worker.http.polar_api import Asking, Problem, fails, iso, one
from worker.licensing import Refused
from worker.offline import Asked, Known, NotOffered, Signed, draft
from worker.sealing import NotSealed
from worker.signing_keys import SigningKeys
from worker.states import with_grants_by_hand
from worker.store import customers, licenses

log = structlog.get_logger()

KEYS_PATH = "/.well-known/almoner-keys.json"
_LASTS = "public, max-age=3600"


class ListedKey(Struct):
    """A key that licences are verified with."""

    kid: str
    alg: str
    public_key: str
    """32 bytes, base64url without padding."""
    signs_from: str
    retired_at: str | None
    """When another takes its place, or has."""
    until: str | None
    """No licence that a replaced key has signed lasts longer."""


class ListedKeys(Struct):
    """All keys that an app must know."""

    keys: list[ListedKey]


@get(
    KEYS_PATH, tags=["offline licences"], summary="The keys that offline licences are verified with", security=[{}],
    responses={200: ResponseSpec(ListedKeys, description="For everybody, without a token"),
               503: ResponseSpec(Problem, generate_examples=False, description="The database cannot be used now")},
)  # fmt: skip
async def signing_keys(request: Asking) -> Response[bytes]:
    """Return each key that may verify a licence. Good for an hour; a new key is listed a day before it signs."""
    context: Context = request.app.state.context
    keys: SigningKeys = request.app.state.signing_keys
    found = keyring.listed(await keys.all(), context.now())
    # The first key signs at once: nobody shall remember that there was none.
    headers = {"cache-control": _LASTS if found else "no-store", "access-control-allow-origin": "*"}
    return one({"keys": found}, headers=headers)


_Text = Annotated[str, Meta(min_length=1, max_length=500)]


class AskedLicence(Struct, forbid_unknown_fields=True):
    """For which device: needed where the key has an activation limit."""

    activation_id: _Text | None = None
    fingerprint: _Text | None = None


class OfflineLicence(Struct):
    """A licence, when it ends, and the key that signed it."""

    license: str
    valid_until: str
    kid: str


class OfflineController(Controller):
    """What an app asks for while it is online."""

    path = "/v1/license-keys"
    guards = [app_guard]
    tags = ["offline licences"]

    @post(
        "/{key_id:str}/offline", status_code=200, summary="A license key as a signed text that needs no network",
        responses={200: ResponseSpec(OfflineLicence, description="The licence"), **fails(
            403, s403="None is offered, or the key is not good: `almoner-reason` says revoked, disabled or expired",
            s404="There is no such key, or it has no such activation",
            s422="The body is malformed, or lacks the `activation_id` that a key with an activation limit needs",
            s503="The database cannot be used now, or ALMONER_ENCRYPTION_KEYS lacks the key to sign with",
        )},
    )  # fmt: skip
    async def offline(
        self, request: Asking, key_id: FromPath[str], data: JSONBody[AskedLicence | None] = None
    ) -> Response[Any]:
        """Return a licence, good until the time that is paid for and no longer than the benefit's `offline`.

        Ask again for a newer one. With `Accept: text/plain` the answer is the file itself.
        """
        keys: SigningKeys = request.app.state.signing_keys
        asked = Asked(data.activation_id, data.fingerprint) if data else Asked()
        made = await issue(request.app.state.context, keys, name_of(key_id), asked)
        if request.headers.get("accept", "").startswith("text/plain"):
            return as_file(made)
        return one(OfflineLicence(made.text, iso(made.licence.valid_until) or "", made.licence.kid))


async def issue(context: Context, keys: SigningKeys, key_id: str, asked: Asked) -> Signed:
    """Return a licence of this key. Raises ApiError (403, 404, 422, 503)."""
    known = await known_of(context, key_id)
    if known is None:
        raise ApiError(404, "There is no such license key")
    try:
        return await keys.sign(draft(known, asked, str(uuid4()), context.now()))
    except Refused as refused:
        raise ApiError(refused.status, refused.detail, **{"almoner-reason": refused.reason}) from None
    except NotOffered as refused:
        raise ApiError(refused.status, refused.detail) from None
    except NotSealed as error:
        log.error("an offline licence cannot be signed", reason=str(error))
        raise ApiError(503, "Licences cannot be signed now; the log says why") from None


async def known_of(context: Context, key_id: str) -> Known | None:
    """Return all that decides over a licence of this key; None where there is no such key."""
    await context.pipeline.follow()

    def read(connection: sa.Connection) -> Known | None:
        key = licenses.by_id(connection, key_id)
        if key is None:
            return None
        encoded = customers.facts(connection, [key.customer_id])
        states = {name: facts.decode(state) for name, state in encoded.items()}
        state = with_grants_by_hand(states, connection).get(key.customer_id)
        organization = context.settings.polar_organization_id
        return Known(key, licenses.live(connection, key_id), state, context.pipeline.catalogue, organization)

    return await context.database.peek(read)


def as_file(made: Signed) -> Response[str]:
    """Return a licence as a file to keep."""
    shown = "".join(letter for letter in made.licence.display_key if letter.isascii() and letter.isalnum())
    headers = {"content-disposition": f'attachment; filename="{shown or made.licence.benefit}.license"'}
    return Response(f"{made.text}\n", media_type="text/plain", headers=headers)
