"""Benefits and their grants, as Polar lists them: Polar's own, and those of the benefits file among them."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, TypeVar

import sqlalchemy as sa
from litestar import Controller, Response, get
from litestar.params import FromPath, QueryParameter

from worker.benefit_lists import Benefits, Page
from worker.http.auth import app_guard
from worker.http.context import Context
from worker.http.errors import ApiError
from worker.http.polar_api import Asking, Limit, PageNumber, listed, one, window
from worker.http.polar_lists import (
    CustomerIds,
    ExternalCustomerIds,
    Ids,
    IsGranted,
    MemberIds,
    OrganizationIds,
    answers,
    answers_list,
    id_of,
    ids,
    metadata,
    plain,
    texts,
)
from worker.polar_shapes import Document
from worker.store.lists import Asked

T = TypeVar("T")

Types = Annotated[
    list[
        Literal["custom", "discord", "github_repository", "downloadables", "license_keys", "meter_credit",
                "feature_flag", "slack_shared_channel"]
    ]
    | None,
    QueryParameter(name="type"),
]  # fmt: skip
BenefitIds = Annotated[Ids, QueryParameter(name="id", description="only these")]
Excluded = Annotated[Ids, QueryParameter(name="exclude_id", description="not these")]
Query = Annotated[str | None, QueryParameter(name="query", description="a part of the description")]
BenefitSorting = Annotated[
    list[
        Literal["created_at", "-created_at", "description", "-description", "type", "-type", "user_order",
                "-user_order"]
    ]
    | None,
    QueryParameter(
        name="sorting",
        description="one after the other; `user_order` is that of `id`; `-created_at` if none is given",
    ),
]  # fmt: skip
GrantSorting = Annotated[
    list[Literal["created_at", "-created_at", "granted_at", "-granted_at", "revoked_at", "-revoked_at"]] | None,
    QueryParameter(name="sorting", description="one after the other; `-created_at` if none is given"),
]

_NEWEST_FIRST = ("-created_at",)


class PolarBenefitController(Controller):
    """Answers as Polar does, from local data."""

    path = "/v1/benefits"
    guards = [app_guard]
    tags = ["benefits"]

    @get("/", summary="Benefits, in Polar's shape", responses=answers_list("One page; also `metadata[key]=value`"))
    async def list_all(
        self, request: Asking, organization_id: OrganizationIds = None,
        type: Types = None,  # noqa: A002 - the name that a problem is told by
        id: BenefitIds = None,  # noqa: A002 - as above
        exclude_id: Excluded = None, search: Query = None, sorting: BenefitSorting = None, page: PageNumber = 1,
        limit: Limit = 10,
    ) -> Response[bytes]:  # fmt: skip
        """Return a page of the benefits that there are, at Polar or in the benefits file."""
        filters = {
            "organization_id": ids(organization_id),
            "type": type,
            "id": ids(id),
            "exclude_id": ids(exclude_id),
            "description": None if search is None else plain(search),
            "metadata": metadata(request),
        }
        asked = Asked(filters, sorting or _NEWEST_FIRST, *window(page, limit))
        items, total = await _read(request, lambda benefits: benefits.page(asked))
        return listed(items, total, limit)

    @get("/{benefit_id:str}", summary="A benefit, in Polar's shape", responses=answers("The benefit", 404))
    async def by_id(self, request: Asking, benefit_id: FromPath[str]) -> Response[bytes]:
        """Return the benefit with this id."""
        return one(await _read(request, partial(_found, benefit_id=id_of(benefit_id))))

    @get("/{benefit_id:str}/grants", summary="The grants of a benefit", responses=answers_list("One page", 404))
    async def grants(
        self, request: Asking, benefit_id: FromPath[str], is_granted: IsGranted = None, customer_id: CustomerIds = None,
        member_id: MemberIds = None, page: PageNumber = 1, limit: Limit = 10,
    ) -> Response[bytes]:  # fmt: skip
        """Return a page of the grants of this benefit, the newest first."""
        wanted = id_of(benefit_id)
        filters = {
            "benefit_id": [wanted],
            "is_granted": is_granted,
            "customer_id": ids(customer_id),
            "member_id": ids(member_id),
        }
        asked = Asked(filters, _NEWEST_FIRST, *window(page, limit))

        def look(benefits: Benefits) -> Page:
            _found(benefits, wanted)
            return benefits.grants(asked, wanted)

        items, total = await _read(request, look)
        return listed(items, total, limit)


class PolarGrantController(Controller):
    """Answers as Polar does, from local data."""

    path = "/v1/benefit-grants"
    guards = [app_guard]
    tags = ["benefits"]

    @get("/", summary="Grants of all benefits, in Polar's shape", responses=answers_list("One page"))
    async def list_all(
        self, request: Asking, organization_id: OrganizationIds = None, customer_id: CustomerIds = None,
        external_customer_id: ExternalCustomerIds = None, is_granted: IsGranted = None, sorting: GrantSorting = None,
        page: PageNumber = 1, limit: Limit = 10,
    ) -> Response[bytes]:  # fmt: skip
        """Return a page of the grants, Polar's and ours."""
        filters = {
            "organization_id": ids(organization_id),
            "customer_id": ids(customer_id),
            "external_customer_id": texts(external_customer_id),
            "is_granted": is_granted,
        }
        asked = Asked(filters, sorting or _NEWEST_FIRST, *window(page, limit))
        items, total = await _read(request, lambda benefits: benefits.grants(asked))
        return listed(items, total, limit)


def _found(benefits: Benefits, benefit_id: str) -> Document:
    """Return a benefit. Raises ApiError (404)."""
    known = benefits.one(benefit_id)
    if known is None:
        raise ApiError(404, "No such benefit is known here, neither of Polar's nor in the benefits file.")
    return known


async def _read(request: Asking, look: Callable[[Benefits], T]) -> T:
    context: Context = request.app.state.context
    await context.pipeline.follow()  # another process may have put a file in force
    catalogue, settings, now = context.pipeline.catalogue, context.settings, context.now()

    def read(connection: sa.Connection) -> T:
        return look(Benefits(connection, catalogue, settings, now))

    return await context.database.read(read)
