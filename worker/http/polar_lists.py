"""What the lists in Polar's shape share: their parameters, and how a page is made of rows."""

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
import sqlalchemy as sa
from litestar.exceptions import ValidationException
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import QueryParameter

from worker.http.context import Context
from worker.http.polar_api import Asking, ListResource, fails
from worker.polar_shapes import Document, customer_shown
from worker.store import lists, objects

Ids = list[UUID] | None
Texts = list[str] | None

OrganizationIds = Annotated[Ids, QueryParameter(name="organization_id", description="of these organizations")]
CustomerIds = Annotated[Ids, QueryParameter(name="customer_id", description="of these customers")]
ExternalCustomerIds = Annotated[
    Texts, QueryParameter(name="external_customer_id", description="of customers with these ids of your own")
]
ProductIds = Annotated[Ids, QueryParameter(name="product_id", description="of these products")]
DiscountIds = Annotated[Ids, QueryParameter(name="discount_id", description="with these discounts")]
MemberIds = Annotated[Ids, QueryParameter(name="member_id", description="of these members")]
IsGranted = Annotated[bool | None, QueryParameter(name="is_granted", description="whether it is granted now")]

Page = tuple[Sequence[Document], int]
"""The objects of one page, and how many there are on all."""

_decode = msgspec.json.Decoder().decode
_MOST_METADATA = 50
_METADATUM = re.compile(r"metadata\[([^\]]+)\]")


def answers(text: str, *statuses: int) -> dict[int, ResponseSpec]:
    """Return what a route answers for OpenAPI: one of Polar's objects, or an error."""
    return {200: ResponseSpec(dict[str, Any], generate_examples=False, description=text), **fails(*statuses)}


def answers_list(text: str, *statuses: int) -> dict[int, ResponseSpec]:
    """Return the same for a page of a list."""
    form = ListResource[dict[str, Any]]
    return {200: ResponseSpec(form, generate_examples=False, description=text), **fails(*statuses)}


def id_of(written: str) -> str:
    """Return an id of a path as Polar writes it. Raises ValidationException, which is answered 422."""
    try:
        return str(UUID(written))
    except ValueError:
        problem = {"message": "this is not a UUID", "key": "id", "source": "path"}
        raise ValidationException(detail="Malformed", extra=[problem]) from None


def ids(asked: Ids) -> list[str] | None:
    """Return ids as Polar writes them."""
    return None if asked is None else [str(one) for one in asked]


def texts(asked: Texts) -> list[str] | None:
    """Return texts as they are stored."""
    return None if asked is None else [plain(one) for one in asked]


def plain(text: str) -> str:
    """Return a text as it is stored: without NUL, which PostgreSQL takes nowhere."""
    return text.replace("\x00", "\ufffd")


def moment(written: str | None, name: str) -> datetime | None:
    """Return a time in UTC; one without a zone is in UTC, and a date is its midnight. Raises ValidationException."""
    if written is None:
        return None
    try:
        at = datetime.fromisoformat(written)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        problem = {"message": "this is not a time, like 2026-01-31T12:00:00Z", "key": name, "source": "query"}
        raise ValidationException(detail="Malformed", extra=[problem]) from None


def metadata(request: Asking) -> dict[str, list[str]] | None:
    """Return what is asked of metadata, `metadata[key]=value`: of each key all values. Raises ValidationException."""
    found: dict[str, list[str]] = {}
    for name, value in request.query_params.multi_items():
        match = _METADATUM.fullmatch(name)
        if match:
            found.setdefault(plain(match[1]), []).append(plain(value))
    if len(found) > _MOST_METADATA:  # as many as an object of Polar's can have
        problem = {"message": f"at most {_MOST_METADATA} fields", "key": "metadata", "source": "query"}
        raise ValidationException(detail="Malformed", extra=[problem])
    return found or None


def organization_of(context: Context, connection: sa.Connection) -> str:
    """Return the organization that is served: as set, or else as Polar's objects say; empty while none is known."""
    return context.settings.polar_organization_id or lists.organization(connection) or ""


def read(bodies: Iterable[str]) -> list[Document]:
    """Return objects from their JSON."""
    return [_decode(body) for body in bodies]


def embed(
    connection: sa.Connection, context: Context, documents: Sequence[Document], show: Callable[[Document], Document]
) -> list[Document]:
    """Return objects with the customers that are embedded in them as they are now."""
    wanted = {one["customer_id"] for one in documents if one.get("customer_id")}
    known = {one: _decode(body) for one, body in objects.bodies(connection, "customer", wanted).items()}
    organization = organization_of(context, connection) if documents else ""
    shown = []
    for one in documents:
        customer = known.get(one.get("customer_id") or "") or one.get("customer")
        shown.append(show(one) | {"customer": customer_shown(customer, organization) if customer else None})
    return shown
