"""Subscriptions and orders, as Polar lists them."""

from typing import Annotated, Any, Literal

import sqlalchemy as sa
from litestar import Controller, Response, get
from litestar.params import FromPath, QueryParameter

from worker.http.auth import app_guard
from worker.http.context import Context
from worker.http.errors import ApiError
from worker.http.polar_api import Asking, Limit, PageNumber, listed, one, version_of, window
from worker.http.polar_lists import (
    CustomerIds,
    DiscountIds,
    ExternalCustomerIds,
    Ids,
    OrganizationIds,
    Page,
    ProductIds,
    answers,
    answers_list,
    embed,
    id_of,
    ids,
    metadata,
    moment,
    read,
    texts,
)
from worker.polar_shapes import Document, order_shown, subscription_shown
from worker.store import lists
from worker.store.lists import Asked

Active = Annotated[bool | None, QueryParameter(name="active", description="trialing or active, or neither")]
SubscriptionStatuses = Annotated[
    list[
        Literal["incomplete", "incomplete_expired", "trialing", "active", "past_due", "canceled", "unpaid", "paused"]
    ]
    | None,
    QueryParameter(name="status"),
]  # fmt: skip
Ending = Annotated[bool | None, QueryParameter(name="cancel_at_period_end")]
Reasons = Annotated[
    list[
        Literal["customer_service", "low_quality", "missing_features", "switched_service", "too_complex",
                "too_expensive", "unused", "other"]
    ]
    | None,
    QueryParameter(name="customer_cancellation_reason"),
]  # fmt: skip
CanceledAfter = Annotated[
    str | None, QueryParameter(name="canceled_at_after", description="then or later; a time, or a date")
]
CanceledBefore = Annotated[
    str | None, QueryParameter(name="canceled_at_before", description="then or earlier; a time, or a date")
]
StartedAfter = Annotated[
    str | None, QueryParameter(name="started_after", description="then or later; a time, or a date")
]
StartedBefore = Annotated[
    str | None, QueryParameter(name="started_before", description="then or earlier; a time, or a date")
]
SubscriptionSorting = Annotated[
    list[
        Literal["customer", "-customer", "status", "-status", "started_at", "-started_at", "current_period_end",
                "-current_period_end", "ended_at", "-ended_at", "ends_at", "-ends_at", "amount", "-amount", "product",
                "-product", "discount", "-discount"]
    ]
    | None,
    QueryParameter(name="sorting", description="one after the other; `-started_at` if none is given"),
]  # fmt: skip

BillingTypes = Annotated[
    list[Literal["one_time", "recurring"]] | None,
    QueryParameter(name="product_billing_type", description="whether the product is paid for again and again"),
]
CheckoutIds = Annotated[Ids, QueryParameter(name="checkout_id")]
SubscriptionIds = Annotated[Ids, QueryParameter(name="subscription_id")]
OrderStatuses = Annotated[
    list[Literal["draft", "pending", "paid", "refunded", "partially_refunded", "void"]] | None,
    QueryParameter(name="status"),
]
CreatedAfter = Annotated[
    str | None, QueryParameter(name="created_after", description="then or later; a time, or a date")
]
CreatedBefore = Annotated[
    str | None, QueryParameter(name="created_before", description="then or earlier; a time, or a date")
]
OrderSorting = Annotated[
    list[
        Literal["created_at", "-created_at", "status", "-status", "invoice_number", "-invoice_number", "amount",
                "-amount", "net_amount", "-net_amount", "customer", "-customer", "product", "-product", "discount",
                "-discount", "subscription", "-subscription"]
    ]
    | None,
    QueryParameter(name="sorting", description="one after the other; `-created_at` if none is given"),
]  # fmt: skip

_PAGE = "One page; also `metadata[key]=value`"
_STARTED = {"has_started": True}
"""Polar shows no subscription that has not started."""


class PolarSubscriptionController(Controller):
    """Answers as Polar does, from local data."""

    path = "/v1/subscriptions"
    guards = [app_guard]
    tags = ["purchases"]

    @get("/", summary="Subscriptions, in Polar's shape", responses=answers_list(_PAGE))
    async def list_all(
        self, request: Asking, organization_id: OrganizationIds = None, product_id: ProductIds = None,
        customer_id: CustomerIds = None, external_customer_id: ExternalCustomerIds = None,
        discount_id: DiscountIds = None, active: Active = None, status: SubscriptionStatuses = None,
        cancel_at_period_end: Ending = None, customer_cancellation_reason: Reasons = None,
        canceled_at_after: CanceledAfter = None, canceled_at_before: CanceledBefore = None,
        started_after: StartedAfter = None, started_before: StartedBefore = None,
        sorting: SubscriptionSorting = None, page: PageNumber = 1, limit: Limit = 10,
    ) -> Response[bytes]:  # fmt: skip
        """Return a page of the subscriptions that an event has told of."""
        filters = _STARTED | {
            "organization_id": ids(organization_id),
            "product_id": ids(product_id),
            "customer_id": ids(customer_id),
            "external_customer_id": texts(external_customer_id),
            "discount_id": ids(discount_id),
            "active": active,
            "status": status,
            "cancel_at_period_end": cancel_at_period_end,
            "customer_cancellation_reason": customer_cancellation_reason,
            "canceled_at_after": moment(canceled_at_after, "canceled_at_after"),
            "canceled_at_before": moment(canceled_at_before, "canceled_at_before"),
            "started_after": moment(started_after, "started_after"),
            "started_before": moment(started_before, "started_before"),
            "metadata": metadata(request),
        }
        asked = Asked(filters, sorting or ["-started_at"], *window(page, limit))
        return await _listed(request, "subscription", asked, limit)

    @get("/{subscription_id:str}", summary="A subscription", responses=answers("The subscription", 404))
    async def by_id(self, request: Asking, subscription_id: FromPath[str]) -> Response[bytes]:
        """Return the subscription with this id."""
        return await _one(request, "subscription", subscription_id, _STARTED)


class PolarOrderController(Controller):
    """Answers as Polar does, from local data."""

    path = "/v1/orders"
    guards = [app_guard]
    tags = ["purchases"]

    @get("/", summary="Orders, in Polar's shape", responses=answers_list(_PAGE))
    async def list_all(
        self, request: Asking, organization_id: OrganizationIds = None, product_id: ProductIds = None,
        product_billing_type: BillingTypes = None, discount_id: DiscountIds = None, customer_id: CustomerIds = None,
        external_customer_id: ExternalCustomerIds = None, checkout_id: CheckoutIds = None,
        subscription_id: SubscriptionIds = None, status: OrderStatuses = None, created_after: CreatedAfter = None,
        created_before: CreatedBefore = None, sorting: OrderSorting = None, page: PageNumber = 1, limit: Limit = 10,
    ) -> Response[bytes]:  # fmt: skip
        """Return a page of the orders that an event has told of."""
        types = set(product_billing_type or ())
        filters = {
            "organization_id": ids(organization_id),
            "product_id": ids(product_id),
            "recurring": "recurring" in types if len(types) == 1 else None,
            "discount_id": ids(discount_id),
            "customer_id": ids(customer_id),
            "external_customer_id": texts(external_customer_id),
            "checkout_id": ids(checkout_id),
            "subscription_id": ids(subscription_id),
            "status": status,
            "created_after": moment(created_after, "created_after"),
            "created_before": moment(created_before, "created_before"),
            "metadata": metadata(request),
        }
        asked = Asked(filters, sorting or ["-created_at"], *window(page, limit))
        return await _listed(request, "order", asked, limit)

    @get("/{order_id:str}", summary="An order", responses=answers("The order", 404))
    async def by_id(self, request: Asking, order_id: FromPath[str]) -> Response[bytes]:
        """Return the order with this id."""
        return await _one(request, "order", order_id, {})


async def _listed(request: Asking, kind: str, asked: Asked, limit: int) -> Response[bytes]:
    context: Context = request.app.state.context

    def look(connection: sa.Connection) -> Page:
        bodies, total = lists.page(connection, kind, asked)
        return _shown(connection, request, kind, read(bodies)), total

    items, total = await context.database.read(look)
    return listed(items, total, limit)


async def _one(request: Asking, kind: str, written: str, filters: dict[str, Any]) -> Response[bytes]:
    context: Context = request.app.state.context
    wanted = filters | {"id": [id_of(written)]}

    def look(connection: sa.Connection) -> list[Document]:
        body = lists.first(connection, kind, wanted)
        return _shown(connection, request, kind, read([body] if body else []))

    found = await context.database.peek(look)
    if not found:
        raise ApiError(404, f"No such {kind} is known here: no event has told of it yet.")
    return one(found[0])


def _shown(connection: sa.Connection, request: Asking, kind: str, documents: list[Document]) -> list[Document]:
    if kind == "order":
        return embed(connection, request.app.state.context, documents, order_shown)
    version = version_of(request)
    return embed(connection, request.app.state.context, documents, lambda one: subscription_shown(one, version))
