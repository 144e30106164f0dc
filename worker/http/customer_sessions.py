"""POST /v1/customer-sessions/: an app opens a session for a customer, as at Polar."""

from functools import partial
from typing import Annotated, Any
from urllib.parse import urlsplit
from uuid import UUID

from litestar import Controller, Response, post
from litestar.exceptions import ValidationException
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody
from msgspec import Meta, Struct

from handlers import state as facts
from handlers.state import CustomerState
from worker.http.auth import app_guard
from worker.http.context import Context
from worker.http.customers import ByExternalId, ById
from worker.http.page_session import PageTokens
from worker.http.page_visitor import is_there
from worker.http.polar_api import Asking, fails, iso, one
from worker.http.portal_session import PortalTokens
from worker.http.portal_shapes import customer_shown
from worker.store import customers

Text = Annotated[str, Meta(pattern=r"^[^\x00]*$")]
"""No database keeps NUL."""
Address = Annotated[str, Meta(max_length=2083)]
"""As long as Polar takes them: the token carries it."""


class NewSession(Struct, kw_only=True):
    """For whom: exactly as Polar's two forms, one with `customer_id` and one with `external_customer_id`.

    `customer_id` counts where both are there, and `member_id` before `external_member_id`.
    """

    customer_id: UUID | None = None
    external_customer_id: Text | None = None
    member_id: UUID | None = None
    external_member_id: Text | None = None
    return_url: Address | None = None


class CustomerSession(Struct, kw_only=True):
    """An open session. `token` is the bearer token of `/v1/customer-portal/`, `customer_portal_url` opens the page."""

    id: str
    created_at: str
    modified_at: None
    token: str
    expires_at: str
    return_url: str | None
    customer_portal_url: str
    customer_id: str
    customer: dict[str, Any]


_ANSWERS = {
    201: ResponseSpec(CustomerSession, generate_examples=False, description="The session is open"),
    **fails(s422="No such customer or member, or a team without one of its members"),
}


class CustomerSessionController(Controller):
    """For apps."""

    path = "/v1/customer-sessions"
    guards = [app_guard]
    tags = ["customer portal"]

    @post("/", summary="Open a session for a customer", responses=_ANSWERS)
    async def open(self, request: Asking, data: JSONBody[NewSession]) -> Response[bytes]:
        """Return the token of a session, and an address that opens the customer's page.

        Whoever has one of them sees what the customer sees.
        """
        context: Context = request.app.state.context
        _check_address(data.return_url)
        state = await _customer(context, data)
        member_id = _member(state, data)
        now = context.now()
        session, token = PortalTokens(context.settings).open(state.id, member_id, data.return_url, now)
        page, _ = PageTokens(context.settings).make_link(state.id, member_id, now)
        document = {
            "id": session.id,
            "created_at": iso(now),
            "modified_at": None,
            "token": token,
            "expires_at": iso(session.ends),
            "return_url": session.return_url,
            "customer_portal_url": page,
            "customer_id": state.id,
            "customer": customer_shown(context, state),
        }
        return one(document, 201, {"cache-control": "no-store"})


async def _customer(context: Context, data: NewSession) -> CustomerState:
    """Return the customer's facts. Raises ValidationException, as Polar does, where there is no such customer."""
    key, name, field = ByExternalId, data.external_customer_id, "external_customer_id"
    if data.customer_id is not None:
        key, name, field = ById, str(data.customer_id), "customer_id"
    if name is None:
        raise _problem("customer_id", "Name the customer by `customer_id` or by `external_customer_id`")
    ready = await context.ready.state(key, name)
    found = await context.database.read(partial(customers.facts, ids=[ready.customer_id])) if ready else {}
    state = facts.decode(next(iter(found.values()))) if found else None
    if state is None or not is_there(state, None):
        raise _problem(field, "No such customer is known here: no event has told of them yet, or they are deleted")
    return state


def _member(state: CustomerState, data: NewSession) -> str | None:
    """Return the member whose session it is; None is the customer in person. Raises ValidationException."""
    if data.member_id is None and data.external_member_id is None:
        customer = facts.customer_of(state)
        if customer and customer.type == "team":
            raise _problem("member_id", "A team's session is one of its members': send `member_id`")
        return None
    field, member_id = "member_id", str(data.member_id)
    if data.member_id is None:
        named = (one.data for one in state.members.values() if one.data.external_id == data.external_member_id)
        field, member_id = "external_member_id", next((one.id for one in named if not one.deleted), "")
    if not member_id or not is_there(state, member_id):
        raise _problem(field, "The customer has no such member, or not any more")
    return member_id


def _check_address(address: str | None) -> None:
    try:
        parts = urlsplit(address) if address is not None else None
    except ValueError:
        raise _problem("return_url", "It is no address") from None
    if parts and (parts.scheme not in {"http", "https"} or not parts.netloc):
        raise _problem("return_url", "Write an address like https://example.com/account")


def _problem(field: str, text: str) -> ValidationException:
    return ValidationException(extra=[{"source": "body", "key": field, "message": text}])
