"""The part of Polar's customer portal that is about what was bought: for customers, by the token of their session."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal
from uuid import UUID

import sqlalchemy as sa
from litestar import Controller, Response, get
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, QueryParameter
from msgspec import Struct

from handlers.state import KnownAccount
from worker import portal_grants
from worker.benefit_ids import keys_meant, own_id
from worker.benefit_lists import Benefits
from worker.http.context import Context
from worker.http.errors import ApiError
from worker.http.license_shapes import shown
from worker.http.licenses import LicenseKeyDocument
from worker.http.polar_api import Asking, Limit, ListResource, PageNumber, fails, iso, listed, one, version_of, window
from worker.http.polar_benefits import Types
from worker.http.polar_lists import Ids, MemberIds, ids, plain, read
from worker.http.portal_session import PortalVisitor, portal_guard
from worker.http.portal_shapes import downloadables, user_shown, written
from worker.licensing import Key
from worker.portal_grants import Around, Wanted
from worker.store import grants, licenses, lists
from worker.store.licenses import Chosen
from worker.store.lists import Asked

_ALL = 2**31 - 1

BenefitIds = Annotated[Ids, QueryParameter(name="benefit_id", description="of these benefits")]
CheckoutIds = Annotated[Ids, QueryParameter(name="checkout_id", description="bought at these checkouts")]
OrderIds = Annotated[Ids, QueryParameter(name="order_id", description="of these orders")]
SubscriptionIds = Annotated[Ids, QueryParameter(name="subscription_id", description="of these subscriptions")]
Query = Annotated[
    str | None, QueryParameter(name="query", max_length=500, description="a part of the benefit's description")
]
Sorting = Annotated[
    list[
        Literal["granted_at", "-granted_at", "type", "-type", "organization", "-organization", "product_benefit",
                "-product_benefit"]
    ]
    | None,
    QueryParameter(name="sorting", description="one after the other; if none is given, benefits by age, then newest"),
]  # fmt: skip
_SORTING = ("product_benefit", "-granted_at")


class Introspected(Struct):
    """When the session ends, and where the app would have the customer back."""

    expires_at: str
    return_url: str | None


class PortalUser(Struct):
    """Who has the session."""

    type: str
    name: str | None
    email: str
    customer_id: str
    member_id: str | None
    role: str | None


class OwnLicenseKey(LicenseKeyDocument, kw_only=True):
    """A license key of the customer's. Their devices are not shown here: the list is empty."""

    activations: list[dict[str, Any]]


def _answers(form: Any, text: str, *statuses: int) -> dict[int, ResponseSpec]:  # noqa: ANN401 - a form, or a list of one
    return {200: ResponseSpec(form, generate_examples=False, description=text), **fails(*statuses)}


class PortalController(Controller):
    """A member sees what is theirs, a customer what is theirs in person."""

    path = "/v1/customer-portal"
    guards = [portal_guard]
    tags = ["customer portal"]

    @get("/customer-session/introspect", summary="Until when is the session open?",
         responses=_answers(Introspected, "It is open"))  # fmt: skip
    async def introspect(self, request: Asking) -> Response[bytes]:
        """Return when the session ends."""
        session = visitor_of(request).session
        return one({"expires_at": iso(session.ends), "return_url": session.return_url})

    @get("/customer-session/user", summary="Whose session is it?", responses=_answers(PortalUser, "The person"))
    async def user(self, request: Asking) -> Response[bytes]:
        """Return the customer or member."""
        return one(user_shown(visitor_of(request)))

    @get("/license-keys", summary="The person's license keys, newest first",
         responses=_answers(ListResource[LicenseKeyDocument], "A page of keys"))  # fmt: skip
    async def license_keys(
        self, request: Asking, benefit_id: BenefitIds = None, page: PageNumber = 1, limit: Limit = 10
    ) -> Response[bytes]:
        """Return a page of keys; whole, where they are kept whole."""
        context: Context = request.app.state.context
        keys = await _keys(context, visitor_of(request), benefits=_meant(context, benefit_id))
        return listed(await shown(context, _paged(keys, page, limit), version_of(request)), len(keys), limit)

    @get("/license-keys/{id:str}", summary="One of them", responses=_answers(OwnLicenseKey, "The key", 404))
    async def license_key(self, request: Asking, id: FromPath[UUID]) -> Response[bytes]:  # noqa: A002 - Polar's name
        """Return a key; whole, where it is kept whole."""
        context: Context = request.app.state.context
        keys = await _keys(context, visitor_of(request), ids={str(id)})
        if not keys:
            raise ApiError(404, "You have no such license key")
        [document] = await shown(context, keys, version_of(request))
        return one(document | {"activations": []})

    @get("/downloadables", summary="The person's files", responses=_answers(ListResource[dict[str, Any]], "A page"))
    async def downloadables(
        self, request: Asking, benefit_id: BenefitIds = None, page: PageNumber = 1, limit: Limit = 10
    ) -> Response[bytes]:
        """Return a page of files with links that are checked at every click."""
        context: Context = request.app.state.context
        visitor = visitor_of(request)
        rows = await context.database.read(partial(grants.of_customers, ids=[visitor.session.customer_id]))
        own = rows.get(visitor.session.customer_id, [])
        files = downloadables(context, visitor, own, _meant(context, benefit_id))
        return listed(_paged(files, page, limit), len(files), limit)

    @get("/benefit-grants", summary="What was given, by Polar and by us",
         responses=_answers(ListResource[dict[str, Any]], "A page"))  # fmt: skip
    async def benefit_grants(
        self, request: Asking, search: Query = None,
        type: Types = None,  # noqa: A002 - the name that a problem is told by
        benefit_id: BenefitIds = None, checkout_id: CheckoutIds = None, order_id: OrderIds = None,
        subscription_id: SubscriptionIds = None, member_id: MemberIds = None, sorting: Sorting = None,
        page: PageNumber = 1, limit: Limit = 10,
    ) -> Response[bytes]:  # fmt: skip
        """Return a page of grants: a member's own, or all of a customer's; without those that were taken back."""
        context: Context = request.app.state.context
        await context.pipeline.follow()  # another process may have put a file in force
        visitor = visitor_of(request)
        wanted = Wanted(
            query=None if search is None else plain(search),
            types=type,
            benefit_ids=_shown_ids(context, benefit_id),
            order_ids=ids(order_id),
            subscription_ids=ids(subscription_id),
            member_ids=ids(member_id),
        )
        accounts = await context.accounts.known(visitor.session.customer_id, visitor.member_id)
        look = partial(_grants, context=context, visitor=visitor, checkouts=ids(checkout_id), accounts=accounts)
        found = await context.database.read(partial(look, wanted=wanted))
        return listed(_paged(portal_grants.ordered(found, sorting or _SORTING), page, limit), len(found), limit)


def visitor_of(request: Asking) -> PortalVisitor:
    """Return who has the session that the guard has let pass."""
    visitor: PortalVisitor = request.scope["state"]["visitor"]
    return visitor


async def _keys(
    context: Context, visitor: PortalVisitor, *, benefits: set[str] | None = None, ids: set[str] | None = None
) -> list[Key]:
    chosen = Chosen(customer_ids=[visitor.session.customer_id], benefits=benefits, ids=ids)
    keys, _ = await context.database.read(partial(licenses.listed, chosen=chosen, offset=0, limit=_ALL))
    return [key for key in keys if visitor.is_theirs({"member_id": key.member_id})]


def _meant(context: Context, ids: list[UUID] | None) -> set[str] | None:
    """Return what grants and keys name the benefits by: keys of the catalogue, and Polar's ids."""
    if ids is None:
        return None
    catalogue = context.pipeline.catalogue
    return {str(one) for one in ids} | {key for one in ids for key in keys_meant(catalogue, str(one))}


def _shown_ids(context: Context, asked: Ids) -> list[str] | None:
    """Return the ids under which benefits are listed: those of Polar's, and of ours that entitle by them."""
    meant = _meant(context, asked)
    return None if meant is None else [*meant, *map(own_id, meant)]


def _grants(
    connection: sa.Connection, context: Context, visitor: PortalVisitor, wanted: Wanted, checkouts: list[str] | None,
    accounts: Sequence[KnownAccount],
) -> list[dict[str, Any]]:  # fmt: skip
    customer_id = visitor.session.customer_id
    if checkouts is not None:
        wanted = replace(wanted, purchases=_bought_at(connection, customer_id, checkouts))
    now = context.now()
    benefits = Benefits(connection, context.pipeline.catalogue, context.settings, now)
    merchants, _ = benefits.grants(Asked({"customer_id": [customer_id]}, ("-created_at",), 0, _ALL))
    rows = grants.of_customers(connection, [customer_id]).get(customer_id, [])
    ours: dict[str, Mapping[str, Any]] = {row["id"]: row for row in rows}
    around = Around.of(context.settings, visitor.since, accounts)
    return [
        portal_grants.grant_shown(grant, row, written(context, row) if visitor.is_theirs(grant) else None, around)
        for grant, row in ((one, ours.get(one["id"])) for one in merchants)
        if (visitor.member_id is None or visitor.is_theirs(grant))
        and portal_grants.is_shown(grant, row, now)
        and wanted.lets_through(grant)
    ]


def _bought_at(connection: sa.Connection, customer_id: str, checkouts: list[str]) -> list[str]:
    """Return the orders and subscriptions that came of these checkouts."""
    asked = Asked({"customer_id": [customer_id], "checkout_id": checkouts}, ("-created_at",), 0, _ALL)
    bodies = [body for kind in ("order", "subscription") for body in lists.page(connection, kind, asked)[0]]
    return [str(one["id"]) for one in read(bodies)]


def _paged(items: Sequence[Any], page: int, limit: int) -> Sequence[Any]:
    offset, size = window(page, limit)
    return items[offset : offset + size]
