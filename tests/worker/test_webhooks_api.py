"""Deliveries in the shape of Polar's: what became of each, found by every filter of Polar's, and processed again."""

import dataclasses
import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from handlers import HANDLERS
from handlers.events import Event, MalformedEvent
from handlers.state import CustomerState
from tests.conftest import Running
from worker.http.webhooks import ENDPOINT_ID
from worker.simulate import SimulatedEvent

DELIVERIES = "/v1/webhooks/deliveries"
NOBODY = "00000000-0000-4000-8000-000000000000"


async def ask(running: Running, query: str = "", token: str = "ops-token-1") -> httpx.Response:
    return await running.get(f"{DELIVERIES}{query}", token)


async def listed(running: Running, query: str = "") -> list[dict[str, Any]]:
    answer = await ask(running, query)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert document["pagination"]["total_count"] == len(document["items"])
    items: list[dict[str, Any]] = document["items"]
    return items


async def redeliver(running: Running, webhook_id: str, token: str = "ops-token-1") -> httpx.Response:
    path = f"/v1/webhooks/events/{quote(webhook_id, safe='')}/redeliver"
    return await running.client.post(path, headers={"authorization": f"Bearer {token}"})


def too_old(state: CustomerState, event: Event) -> CustomerState:
    raise MalformedEvent("this version cannot read it")


async def with_a_dead_one(running: Running, monkeypatch: pytest.MonkeyPatch) -> SimulatedEvent:
    paid = next(event for event in running.story("purchase") if event.type == "order.paid")
    with monkeypatch.context() as patched:
        patched.setitem(HANDLERS, "order.paid", too_old)
        await running.receive([paid])
    return paid


async def test_deliveries_are_listed_newest_first_with_what_became_of_them(running: Running) -> None:
    events = running.story("purchase")
    await running.receive(events)
    items = await listed(running, "?limit=100")
    assert [item["webhook_event"]["id"] for item in items] == [event.webhook_id for event in reversed(events)]
    paid = next(item for item in items if item["webhook_event"]["type"] == "order.paid")
    assert (paid["succeeded"], paid["http_code"], paid["response"]) == (True, 202, "done")
    event = paid["webhook_event"]
    assert (event["succeeded"], event["last_http_code"], event["skipped"], event["is_archived"]) == (
        True, 202, False, False,
    )  # fmt: skip
    assert event["api_version"] == "2026-10"
    sent = next(one for one in events if one.type == "order.paid")
    assert json.loads(event["payload"]) == json.loads(sent.body)
    ignored = next(item for item in items if item["response"].startswith("ignored: "))
    assert ignored["succeeded"]


async def test_what_is_pending_or_dead_has_not_succeeded_and_says_why(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await with_a_dead_one(running, monkeypatch)
    waiting = running.story("subscription", 2)[0]
    await running.post(waiting)
    pending, dead = await listed(running, "?succeeded=false")
    assert (pending["succeeded"], pending["response"], pending["modified_at"]) == (False, "pending", None)
    assert pending["webhook_event"]["succeeded"] is None
    assert (dead["succeeded"], dead["http_code"]) == (False, 202)
    assert dead["response"] == "dead: this version cannot read it"
    assert dead["webhook_event"]["succeeded"] is False
    assert await listed(running, "?succeeded=true") == []
    await running.service.pipeline.drain()


async def test_secrets_in_payloads_are_hidden(running: Running) -> None:
    opened = next(event for event in running.story("purchase") if event.type == "checkout.created")
    assert b"client_secret" in opened.body
    body = opened.body.replace(b'"data":{', '"data":{"note":"für Zoë \\ud800",'.encode(), 1)
    await running.receive([dataclasses.replace(opened, body=body)])
    [item] = await listed(running)
    payload = json.loads(item["webhook_event"]["payload"])
    assert payload["data"]["client_secret"] == "[hidden]"
    assert payload["data"]["note"] == "für Zoë ?"


async def test_each_filter_of_polars_is_heeded(running: Running) -> None:
    events = running.story("purchase")
    await running.receive(events[:4])
    running.clock.move(seconds=60)
    middle = quote(running.clock.at.isoformat())
    running.clock.move(seconds=60)
    await running.receive(events[4:])

    async def found(query: str) -> int:
        return len(await listed(running, f"?limit=100&{query}"))

    everything = len(events)
    paid = sum(event.type == "order.paid" for event in events)
    created = sum(event.type == "order.created" for event in events)
    assert await found(f"start_timestamp={middle}") == everything - 4
    assert await found(f"end_timestamp={middle}") == 4
    assert await found("start_timestamp=2026-11-01T12:01:00") == everything - 4
    assert await found("event_type=order.paid") == paid
    assert await found("event_type=order.paid&event_type=order.created") == paid + created
    assert await found("event_type=never.heard") == 0
    assert await found(f"query={events[2].webhook_id[3:20].upper()}") == 1
    assert await found("query=%25") == 0
    assert await found("query=%00") == 0
    assert await found("query=202") == everything
    assert await found("query=") == everything
    assert await found("http_code_class=2xx") == everything
    assert await found("http_code_class=5xx") == 0
    assert await found(f"endpoint_id={ENDPOINT_ID}") == everything
    assert await found(f"endpoint_id={NOBODY}&endpoint_id={ENDPOINT_ID}") == everything
    assert await found(f"endpoint_id={NOBODY}") == 0
    assert await found(f"succeeded=true&event_type=order.paid&end_timestamp={middle}") == sum(
        event.type == "order.paid" for event in events[:4]
    )


async def test_the_list_has_pages_counted_by_the_ledger(running: Running) -> None:
    events = running.story("purchase")
    await running.receive(events)
    pages = -(-len(events) // 3)
    for query in ("", "&succeeded=true", f"&start_timestamp={quote('2026-10-01T00:00:00Z')}"):
        first = (await ask(running, f"?limit=3{query}")).json()
        last = (await ask(running, f"?limit=3&page={pages}{query}")).json()
        assert first["pagination"] == last["pagination"] == {"total_count": len(events), "max_page": pages}
        assert len(first["items"]) == 3
        assert last["items"][-1]["id"] == events[0].webhook_id


@pytest.mark.parametrize(
    "query",
    ["?succeeded=x", "?http_code_class=200", "?endpoint_id=x", "?start_timestamp=x", "?page=0", "?limit=0",
     f"?end_timestamp={quote('0001-01-01T00:00:00+23:59')}"],
)  # fmt: skip
async def test_what_is_malformed_is_answered_422(on_sqlite: Running, query: str) -> None:
    answer = await ask(on_sqlite, query)
    assert (answer.status_code, answer.json()["error"]) == (422, "RequestValidationError")


async def test_only_operators_see_deliveries_and_redeliver(on_sqlite: Running) -> None:
    for token, status in (("app-token-1", 403), ("wrong", 401)):
        assert (await ask(on_sqlite, "", token)).status_code == status
        assert (await redeliver(on_sqlite, NOBODY, token)).status_code == status


async def test_a_dead_delivery_is_redelivered_after_an_upgrade(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    paid = await with_a_dead_one(running, monkeypatch)
    answer = await redeliver(running, paid.webhook_id)
    assert (answer.status_code, answer.content) == (202, b"null")
    [item] = await listed(running)
    assert (item["succeeded"], item["response"]) == (True, "done")
    await running.service.pipeline.drain()
    held = await running.get(f"/v1/customers/{paid.customer_id}/entitlements/key")
    assert held.json()["status"] == "granted"


async def test_what_succeeded_is_redelivered_too_and_changes_nothing(running: Running) -> None:
    events = running.story("purchase")
    await running.receive(events)
    before = await running.statuses(events[0].external_id)
    for _ in range(2):
        assert (await redeliver(running, events[3].webhook_id)).status_code == 202
    await running.service.pipeline.drain()
    assert await running.statuses(events[0].external_id) == before
    assert len(await listed(running, "?limit=100")) == len(events)


@pytest.mark.parametrize("webhook_id", [NOBODY, "nothing", "a/b", "ü", "\x00"])
async def test_what_was_never_received_cannot_be_redelivered(running: Running, webhook_id: str) -> None:
    answer = await redeliver(running, webhook_id)
    assert (answer.status_code, answer.json()["error"]) == (404, "ResourceNotFound")


async def test_the_beginning_is_shown_of_a_body_that_cannot_be_read(on_sqlite: Running) -> None:
    body = b'{"type":"order.paid","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    nested = dataclasses.replace(on_sqlite.story("purchase")[0], type="order.paid", body=body)
    await on_sqlite.receive([nested])
    [item] = await listed(on_sqlite)
    assert item["response"].startswith("dead: ")
    assert item["webhook_event"]["payload"] == body[:2000].decode()
