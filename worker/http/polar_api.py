"""What every route in Polar's shape shares: its API versions, the pages of its lists, and its errors.

Source: Polar's OpenAPI, versions 2026-04, 2026-10 and 2027-01.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from litestar import Request, Response
from litestar.datastructures import State
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import QueryParameter
from msgspec import Struct

T = TypeVar("T")

Version = Literal["2026-04", "2026-10", "2027-01"]
VERSIONS: tuple[Version, ...] = ("2026-04", "2026-10", "2027-01")
CURRENT: Version = "2026-10"
"""What is answered where nothing else is asked for."""
VERSION_HEADER = b"polar-version"

_MOST = 100
_MOST_ROWS = 2**53

Asking = Request[Any, Any, State]

PageNumber = Annotated[int, QueryParameter(name="page", ge=1, description="which page, from 1")]
Limit = Annotated[int, QueryParameter(name="limit", ge=1, description="how many a page; 100 at most")]


def version_of(request: Asking) -> Version:
    """Return the API version that is asked for. One that there is not was refused before (worker/http/api.py)."""
    asked = request.headers.get(VERSION_HEADER.decode())
    return next((one for one in VERSIONS if one == asked), CURRENT)


class Pagination(Struct):
    """How many there are, and on how many pages."""

    total_count: int
    max_page: int


class ListResource(Struct, Generic[T]):
    """One page of a list."""

    items: list[T]
    pagination: Pagination


def window(page: int, limit: int) -> tuple[int, int]:
    """Return offset and limit of a page, which has 100 at most; no database counts further than some offset."""
    limit = min(limit, _MOST)
    return min((page - 1) * limit, _MOST_ROWS), limit


def listed(items: Sequence[Any], total: int, limit: int) -> Response[bytes]:
    """Return a page of a list. Items are structs, dicts, or `msgspec.Raw` where they are encoded already."""
    pages = -(-total // min(limit, _MOST))
    document = {"items": items, "pagination": Pagination(total, pages)}
    return Response(msgspec.json.encode(document), media_type="application/json")


def one(item: Any, status_code: int = 200, headers: dict[str, str] | None = None) -> Response[bytes]:  # noqa: ANN401 - as above
    """Return one object."""
    return Response(msgspec.json.encode(item), media_type="application/json", status_code=status_code, headers=headers)


def iso(at: datetime | None) -> str | None:
    """Write a time as Polar does."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z") if at else None


class Problem(Struct):
    """What was wrong: the class of the error, and a sentence, or for 422 a list of problems."""

    error: str
    detail: Any


_TEXTS = {
    400: "It cannot be done as things stand",
    401: "No token, or an unknown one",
    403: "Not allowed",
    404: "There is no such thing",
    413: "The body is too large",
    422: "The request is malformed",
    429: "Too many calls; come again after `Retry-After` seconds",
    503: "The database cannot be used now",
}


def fails(*statuses: int, **texts: str) -> dict[int, ResponseSpec]:
    """Return the errors of a route for OpenAPI: these statuses, 401, 422 and 503; `s404="..."` says what one means."""
    told = {int(name[1:]): text for name, text in texts.items()}
    known = {status: _TEXTS[status] for status in (401, 422, 503, *statuses)} | told
    return {status: ResponseSpec(Problem, generate_examples=False, description=text) for status, text in known.items()}


def without_body(**texts: str) -> dict[int, ResponseSpec]:
    """Return answers without a body for OpenAPI: `s304="..."` says what one means."""
    return {
        int(name[1:]): ResponseSpec(None, generate_examples=False, description=text) for name, text in texts.items()
    }
