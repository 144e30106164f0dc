"""What was received, in the shape of Polar's own webhook deliveries; and processing it again.

Polar lists an attempt with what we answered it. Here one item stands for a delivery, for an operator wants to know what
became of it: `succeeded` is true where it was processed, or ignored as not needed; false where it is dead, or still
pending. `http_code` stays the truth of what Polar was answered, 202 each time, and `response` says the rest in words.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Literal
from uuid import UUID, uuid5

from litestar import Controller, Response, get, post
from litestar.exceptions import ValidationException
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, QueryParameter
from msgspec import Struct

from worker.http.auth import operator_guard
from worker.http.context import Context
from worker.http.customers import name_of
from worker.http.errors import ApiError
from worker.http.polar_api import Asking, Limit, ListResource, PageNumber, fails, iso, listed, window
from worker.http.polar_lists import texts
from worker.redaction import redacted
from worker.replay import replay
from worker.store import delivery_pages
from worker.store.delivery_pages import SUCCEEDED, Chosen
from worker.store.inbox import Filter
from worker.store.models import DeliveryStatus

ENDPOINT_ID = uuid5(UUID("9b2e4d70-6c1f-5a83-b5d9-07f3c8e1a264"), "/webhooks/polar")
"""There is one endpoint here, and no list of them."""
ANSWERED = 202
UNVERSIONED = "2026-04"
"""The version of bodies that name none: they are older than versions of webhooks (polar.md 1.2)."""

_ANSWERED_CLASS = "2xx"


class WebhookEvent(Struct, kw_only=True):
    """The delivery's own event. `succeeded` is null while it is pending."""

    id: str
    created_at: str
    modified_at: str | None
    type: str
    api_version: str
    payload: str
    succeeded: bool | None
    last_http_code: int
    skipped: bool
    is_archived: bool


class WebhookDelivery(Struct, kw_only=True):
    """One delivery, and what became of it."""

    id: str
    created_at: str
    modified_at: str | None
    succeeded: bool
    http_code: int
    response: str
    webhook_event: WebhookEvent


EndpointIds = Annotated[list[UUID] | None, QueryParameter(name="endpoint_id", description="of these endpoints")]
After = Annotated[datetime | None, QueryParameter(name="start_timestamp", description="received after this time")]
Before = Annotated[datetime | None, QueryParameter(name="end_timestamp", description="received before this time")]
Succeeded = Annotated[bool | None, QueryParameter(name="succeeded", description="processed or ignored, or neither")]
Part = Annotated[
    str | None, QueryParameter(name="query", max_length=500, description="a part of the webhook-id, or 202")
]
CodeClass = Annotated[
    Literal["2xx", "3xx", "4xx", "5xx"] | None,
    QueryParameter(name="http_code_class", description="what Polar was answered: all that is kept was taken in by 2xx"),
]
Types = Annotated[list[str] | None, QueryParameter(name="event_type", description="with these types")]

_ANSWERS = {
    200: ResponseSpec(ListResource[WebhookDelivery], generate_examples=False, description="A page of deliveries"),
    **fails(403),
}


class WebhookController(Controller):
    """For operators."""

    path = "/v1/webhooks"
    guards = [operator_guard]
    tags = ["ops"]

    @get("/deliveries", summary="Every delivery, and what became of it, newest first", responses=_ANSWERS)
    async def deliveries(
        self, request: Asking, endpoint_id: EndpointIds = None, start_timestamp: After = None,
        end_timestamp: Before = None, succeeded: Succeeded = None, part: Part = None,
        http_code_class: CodeClass = None, event_type: Types = None, page: PageNumber = 1, limit: Limit = 10,
    ) -> Response[bytes]:  # fmt: skip
        """Return a page of deliveries. In their payloads secrets are hidden."""
        context: Context = request.app.state.context
        chosen = Chosen(
            _time(start_timestamp, "start_timestamp"),
            _time(end_timestamp, "end_timestamp"),
            succeeded,
            _part(part),
            texts(event_type),
        )
        if http_code_class not in {None, _ANSWERED_CLASS} or (
            endpoint_id is not None and ENDPOINT_ID not in endpoint_id
        ):
            return listed([], 0, limit)
        offset, size = window(page, limit)
        rows, total = await context.database.read(
            partial(delivery_pages.page, chosen=chosen, offset=offset, limit=size)
        )
        return listed([delivery_shown(row) for row in rows], total, limit)

    @post("/events/{id:str}/redeliver", status_code=202, summary="Process a stored delivery again",
          responses=fails(403, s404="No delivery has this webhook-id"))  # fmt: skip
    async def redeliver(self, request: Asking, id: FromPath[str]) -> Response[None]:  # noqa: A002 - Polar's name
        """Process the delivery again, now, as a new attempt. It is never refused as a duplicate.

        The body is JSON's `null`, as at Polar: its clients read one.
        """
        context: Context = request.app.state.context
        await context.pipeline.follow()
        done = await replay(context.pipeline, Filter(webhook_ids=(name_of(id),)))
        if not done.deliveries:
            raise ApiError(404, "There is no such delivery; GET /v1/webhooks/deliveries lists them")
        return Response(None, status_code=202)


def delivery_shown(row: Mapping[str, Any]) -> WebhookDelivery:
    """Return one delivery. Its event's id is the webhook-id, and its own too: one item is all that there is of it."""
    received, processed = iso(row["received_at"]) or "", iso(row["processed_at"])
    is_pending = row["status"] == DeliveryStatus.PENDING
    succeeded = row["status"] in SUCCEEDED
    payload = redacted(row["body"])
    return WebhookDelivery(
        id=row["webhook_id"],
        created_at=received,
        modified_at=processed,
        succeeded=succeeded,
        http_code=ANSWERED,
        response=_words(row),
        webhook_event=WebhookEvent(
            id=row["webhook_id"],
            created_at=iso(row["event_at"]) or received,
            modified_at=processed,
            type=row["type"],
            api_version=row["api_version"] or UNVERSIONED,
            payload=payload if isinstance(payload, str) else _compact(payload),
            succeeded=None if is_pending else succeeded,
            last_http_code=ANSWERED,
            skipped=False,
            is_archived=False,
        ),
    )


def _words(row: Mapping[str, Any]) -> str:
    """Return what became of it: its status, and why."""
    return f"{row['status']}: {row['reason']}" if row["reason"] else str(row["status"])


def _compact(payload: Any) -> str:  # noqa: ANN401 - a JSON value
    # A lone surrogate, which JSON may hold, is no UTF-8.
    text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace").decode()


def _part(query: str | None) -> str | None:
    """Return the part of an id that is looked for; what all have is none."""
    if query is None or query in str(ANSWERED):
        return None
    return query.replace("\x00", "\ufffd")


def _time(at: datetime | None, name: str) -> datetime | None:
    """Return a time in UTC, which it is where no zone is told. Raises ValidationException."""
    try:
        return at and (at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC))
    except (OverflowError, ValueError):
        problem = {"source": "query", "key": name, "message": "It is no time that can be looked for"}
        raise ValidationException(extra=[problem]) from None
