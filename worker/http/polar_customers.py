"""Customers, as Polar lists them; the rest of what is asked of them is in worker/http/customers.py."""

from typing import Annotated, Any, Literal

import sqlalchemy as sa
from litestar import Controller, Response, get
from litestar.params import FromPath, QueryParameter

from worker.http.auth import app_guard
from worker.http.context import Context
from worker.http.customers import name_of
from worker.http.errors import ApiError
from worker.http.polar_api import Asking, Limit, PageNumber, listed, one, window
from worker.http.polar_lists import (
    OrganizationIds,
    Page,
    answers,
    answers_list,
    id_of,
    ids,
    metadata,
    organization_of,
    plain,
    read,
)
from worker.polar_shapes import customer_shown
from worker.store import lists
from worker.store.lists import Asked

Sorting = Annotated[
    list[Literal["created_at", "-created_at", "email", "-email", "name", "-name"]] | None,
    QueryParameter(name="sorting", description="one after the other; `-created_at` if none is given"),
]
Email = Annotated[str | None, QueryParameter(name="email", description="exactly this, whatever the case")]
Query = Annotated[str | None, QueryParameter(name="query", max_length=500, description="a part of the name or email, or how the external id begins")]  # fmt: skip # noqa: E501
Active = Annotated[
    bool | None, QueryParameter(name="active", description="has a trialing, active or past_due subscription")
]

_UNKNOWN = "No such customer is known here: no event has told of them yet."


class PolarCustomerController(Controller):
    """Answers as Polar does, from local data."""

    path = "/v1/customers"
    guards = [app_guard]
    tags = ["customers"]

    @get("/", summary="Customers, in Polar's shape", responses=answers_list("One page; also `metadata[key]=value`"))
    async def list_all(
        self, request: Asking, organization_id: OrganizationIds = None, email: Email = None, search: Query = None,
        active: Active = None, sorting: Sorting = None, page: PageNumber = 1, limit: Limit = 10,
    ) -> Response[bytes]:  # fmt: skip
        """Return a page of the customers; those whom Polar has deleted are left out."""
        filters = {
            "organization_id": ids(organization_id),
            "email": None if email is None else plain(email),
            "query": None if search is None else plain(search),
            "has_active": active,
            "metadata": metadata(request),
        }
        context: Context = request.app.state.context
        asked = Asked(filters, sorting or ["-created_at"], *window(page, limit))
        items, total = await context.database.read(lambda connection: _page(connection, context, asked))
        return listed(items, total, limit)

    @get("/{customer_id:str}", summary="A customer, in Polar's shape", responses=answers("The customer", 404))
    async def by_id(self, request: Asking, customer_id: FromPath[str]) -> Response[bytes]:
        """Return the customer with this id."""
        wanted = id_of(customer_id)
        return await _one(request, lambda connection: lists.first(connection, "customer", {"id": [wanted]}))

    @get("/external/{external_id:str}", summary="The same, by your own id", responses=answers("The customer", 404))
    async def by_external_id(self, request: Asking, external_id: FromPath[str]) -> Response[bytes]:
        """Return the customer with this external id, percent-encoded where it needs to be."""
        name = name_of(external_id)
        return await _one(request, lambda connection: lists.by_external_id(connection, name))


def _page(connection: sa.Connection, context: Context, asked: Asked) -> Page:
    bodies, total = lists.page(connection, "customer", asked)
    organization = organization_of(context, connection)
    return [customer_shown(customer, organization) for customer in read(bodies)], total


async def _one(request: Asking, find: Any) -> Response[bytes]:  # noqa: ANN401 - a query
    context: Context = request.app.state.context

    def look(connection: sa.Connection) -> Any:  # noqa: ANN401 - a document, or None
        body = find(connection)
        return customer_shown(read([body])[0], organization_of(context, connection)) if body else None

    found = await context.database.peek(look)
    if found is None:
        raise ApiError(404, _UNKNOWN)
    return one(found)
