"""What POST /webhooks/polar answers to good and bad input, and what is kept of it."""

import asyncio
import base64
import gzip
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config.catalogue import Catalogue
from tests.conftest import SECRET, Clock, Running, run_service
from worker.http import receiver
from worker.simulate import SimulatedEvent
from worker.store import inbox
from worker.verify import fingerprint


def signed(running: Running, body: bytes, webhook_id: str = "msg_1", **more: str) -> dict[str, str]:
    timestamp = str(int(running.clock.at.timestamp()))
    content = f"{webhook_id}.{timestamp}.".encode() + body
    signature = base64.b64encode(hmac.digest(SECRET.encode(), content, hashlib.sha256)).decode()
    headers = {
        "webhook-id": webhook_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{signature}",
        "content-type": "application/json",
    }
    return headers | more


async def send(running: Running, body: bytes, webhook_id: str = "msg_1", **more: str) -> httpx.Response:
    headers = {name: value for name, value in signed(running, body, webhook_id, **more).items() if value}
    return await running.client.post("/webhooks/polar", content=body, headers=headers)


async def stored(running: Running, webhook_id: str = "msg_1") -> dict[str, Any] | None:
    return await running.service.database.read(lambda connection: inbox.found(connection, webhook_id))


async def refusals(running: Running, *, at_least: int = 0) -> list[dict[str, Any]]:
    for _ in range(500):  # they are written after the answer
        found = await running.service.database.read(lambda connection: inbox.refused(connection, limit=50))
        if len(found) >= at_least:
            break
        await asyncio.sleep(0.01)
    return found


def event(type_: str = "order.paid", **data: Any) -> bytes:
    return json.dumps({"type": type_, "timestamp": "2026-11-01T12:00:00Z", "data": data}).encode()


async def test_an_event_is_answered_with_its_id_and_kept_byte_for_byte(running: Running) -> None:
    first = running.story("purchase")[0]
    answer = await running.post(first)
    assert answer.status_code == 202
    assert answer.json() == {"id": first.webhook_id, "status": "accepted"}
    row = await stored(running, first.webhook_id)
    assert row
    assert row["body"] == first.body
    assert row["digest"] == hashlib.sha256(first.body).hexdigest()
    assert (row["status"], row["type"], row["api_version"]) == ("pending", first.type, "2026-10")
    assert row["secret"] == fingerprint(SECRET)
    await running.service.pipeline.drain()
    assert running.trigger.deliveries == [row["id"]]


async def test_the_same_id_again_is_counted_and_processed_once_for_ever(running: Running) -> None:
    first = running.story("purchase")[0]
    await running.receive([first])
    running.clock.move(days=400)
    for _ in range(2):
        answer = await running.post(first)
        assert answer.json() == {"id": first.webhook_id, "status": "duplicate"}
    row = await stored(running, first.webhook_id)
    assert row
    assert (row["duplicates"], row["conflicts"], row["status"], row["attempts"]) == (2, 0, "done", 1)
    assert row["last_duplicate_at"] == running.clock.at
    assert len(running.trigger.deliveries) == 1


async def test_the_same_id_with_another_body_is_kept_and_flagged_and_not_processed(running: Running) -> None:
    good, other = event(id="a"), event(id="b")
    await send(running, good)
    answer = await send(running, other)
    assert answer.json()["status"] == "duplicate"
    row = await stored(running)
    assert row
    assert (row["body"], row["conflicts"]) == (good, 1)
    kept = await running.service.database.read(lambda connection: inbox.conflicts_of(connection, "msg_1"))
    assert [one["body"] for one in kept] == [other]


async def test_copies_that_arrive_at_the_same_moment_are_one_delivery(running: Running) -> None:
    story = running.story("purchase")[:4]
    answers = await asyncio.gather(*(running.post(one) for one in story * 5))
    assert [answer.json()["status"] for answer in answers].count("duplicate") == 16
    balance = await running.service.database.read(inbox.balance)
    assert balance["received"] == 4
    await running.service.pipeline.drain()


async def test_which_secret_matched_and_when_it_was_last_used_is_kept(running: Running) -> None:
    first, second = running.story("purchase")[:2]
    await running.post(first)
    running.clock.move(days=1)
    await running.post(second)
    await running.service.pipeline.close()
    [use] = await running.service.database.read(inbox.secrets_in_use)
    assert (use["secret"], use["scheme"]) == (fingerprint(SECRET), "standard")
    assert (use["last_used_at"] - use["first_used_at"]).days == 1
    await running.service.pipeline.drain()


WRONG = [
    ({"webhook-signature": "v1,AAAA"}, 403, "WebhookVerificationError", "ALMONER_WEBHOOK_SECRETS"),
    ({"webhook-signature": ""}, 403, "WebhookVerificationError", "are needed"),
    ({"webhook-id": ""}, 403, "WebhookVerificationError", "are needed"),
    ({"content-type": "text/plain"}, 415, "UnsupportedMediaType", "not text/plain"),
    ({"content-type": ""}, 415, "UnsupportedMediaType", "not missing"),
    ({"content-encoding": "gzip"}, 415, "UnsupportedMediaType", "compressed"),
]


@pytest.mark.parametrize(("headers", "status", "error", "says"), WRONG)
async def test_what_is_wrong_is_said_and_kept_for_the_operator(
    on_sqlite: Running, headers: dict[str, str], status: int, error: str, says: str
) -> None:
    answer = await send(on_sqlite, event(), **headers)
    assert answer.status_code == status
    assert answer.json()["error"] == error
    assert says in answer.json()["detail"]
    [kept] = await refusals(on_sqlite, at_least=1)
    assert (kept["status_code"], kept["error"]) == (status, error)
    assert await stored(on_sqlite) is None


async def test_an_old_timestamp_is_refused_with_a_hint_about_clocks(on_sqlite: Running) -> None:
    headers = signed(on_sqlite, event())
    on_sqlite.clock.move(minutes=6)
    answer = await on_sqlite.client.post("/webhooks/polar", content=event(), headers=headers)
    assert answer.status_code == 403
    assert "360 s in the past" in answer.json()["detail"]
    assert "clock" in answer.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [b"{", b"hello", b"[]", b"null", b'"text"', b"17", b"\xff\xfe", b'{"type": "order.paid"}', b'{"data": {}}',
     b'{"type": 5, "data": {}}', b'{"type": "", "data": {}}', b'{"type": "a b", "data": {}}',
     b'{"text": "New order", "blocks": []}', b'{"content": "New order", "embeds": []}', b"[" * 100_000,
     b'{"type": "order.paid", "data": NaN, "type": {}}', gzip.compress(b"{}", mtime=0),
     b'{"type": "order.paid\\u0000", "data": {}}', b"\x00", b'{"type":"x","data":' + b"9" * 10_000],
)  # fmt: skip
async def test_a_signed_body_that_is_no_event_is_refused_with_what_to_change(on_sqlite: Running, body: bytes) -> None:
    answer = await send(on_sqlite, body)
    assert answer.status_code == 400
    assert answer.json()["error"] == "NotAnEvent"
    assert answer.json()["detail"]
    assert await stored(on_sqlite) is None


async def test_slack_and_discord_formats_are_told_to_become_raw(on_sqlite: Running) -> None:
    answer = await send(on_sqlite, b'{"text": "New order"}')
    assert "set the format of this webhook endpoint to Raw" in answer.json()["detail"]


async def test_an_empty_body_is_refused(on_sqlite: Running) -> None:
    answer = await send(on_sqlite, b"")
    assert (answer.status_code, answer.json()["error"]) == (400, "BadRequest")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
async def test_only_post_is_taken(on_sqlite: Running, method: str) -> None:
    answer = await on_sqlite.client.request(method, "/webhooks/polar")
    assert answer.status_code == 405


async def test_a_body_over_the_limit_is_refused_from_its_length_alone(on_sqlite: Running) -> None:
    class NotRead(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            pytest.fail("the body was read")
            yield b""  # pragma: no cover

    headers = signed(on_sqlite, b"") | {"content-length": str(50 * 1024 * 1024)}
    answer = await on_sqlite.client.post("/webhooks/polar", content=NotRead(), headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (413, "PayloadTooLarge")
    assert "ALMONER_MAX_BODY_BYTES" in answer.json()["detail"]


async def test_a_body_that_hides_its_length_is_read_no_further_than_the_limit(on_sqlite: Running) -> None:
    read = 0

    async def pieces() -> Any:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield b"x" * 1024 * 1024

    answer = await on_sqlite.client.post("/webhooks/polar", content=pieces(), headers=signed(on_sqlite, b""))
    assert answer.status_code == 413
    assert read <= 12


async def test_a_body_that_does_not_come_in_time_is_given_up(
    on_sqlite: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def pieces() -> Any:
        yield b"{"
        await asyncio.sleep(1)
        yield b"}"

    monkeypatch.setattr(receiver, "_READ_SECONDS", 0.05)
    answer = await on_sqlite.client.post("/webhooks/polar", content=pieces(), headers=signed(on_sqlite, b"{}"))
    assert (answer.status_code, answer.json()["error"]) == (408, "RequestTimeout")


async def test_large_bodies_that_nobody_has_verified_share_a_bounded_room(
    sqlite_url: str, tmp_path: Path, catalogue: Catalogue, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver, "_ROOM", 0)
    go = asyncio.Event()

    async def pieces() -> Any:
        yield b"x" * 1000
        await go.wait()
        yield b"x"

    async with run_service(sqlite_url, tmp_path, catalogue, clock, max_body_bytes=1024) as running:
        headers = signed(running, b"")
        asked = [
            asyncio.create_task(running.client.post("/webhooks/polar", content=pieces(), headers=headers))
            for _ in range(10)
        ]
        done, waiting = await asyncio.wait(asked, timeout=0.5)
        assert {task.result().status_code for task in done} == {503}
        assert len(waiting) == 4
        go.set()
        assert {(await task).status_code for task in waiting} == {403}
        story = running.story("purchase")
        assert (await running.post(story[2])).status_code == 202, "the room was given back"
        await running.service.pipeline.drain()


async def test_a_large_event_in_pieces_is_taken_in(on_sqlite: Running) -> None:
    body = event(type_="checkout.created", note="x" * 3_000_000)

    async def pieces() -> Any:
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    answer = await on_sqlite.client.post("/webhooks/polar", content=pieces(), headers=signed(on_sqlite, body))
    assert answer.status_code == 202


async def test_an_unknown_event_type_is_stored_counted_and_acknowledged(running: Running) -> None:
    answer = await send(running, event("sun.risen", id="1"), **{"webhook-api-version": "2031-01"})
    assert answer.status_code == 202
    assert answer.json()["status"] == "ignored"
    row = await stored(running)
    assert row
    assert (row["status"], row["type"], row["api_version"]) == ("ignored", "sun.risen", "2031-01")
    assert "replay after an upgrade" in row["reason"]


UNREADABLE = [
    event(id=5),
    event(),
    b'{"type": "order.paid", "timestamp": "yesterday", "data": {"id": "1", "customer_id": "2"}}',
    b'{"type": "order.paid", "timestamp": "2026-11-01T12:00:00", "data": {"id": "1", "customer_id": "2"}}',
    b'{"type": "order.paid", "data": {"id": "1", "customer_id": "2"}}',
    b'{"type": "order.paid", "timestamp": "2026-11-01T12:00:00Z", "data": null}',
    b'{"type": "order.paid", "timestamp": "2026-11-01T12:00:00Z", "data": NaN}',
    b'{"type": "order.paid", "timestamp": "2026-11-01T12:00:00Z", "data": {"id": "\\ud800", "customer_id": "2"}}',
    b'{"type": "order.paid", "timestamp": "2026-11-01T12:00:00Z", "data": {"id": 1' + b"0" * 5000 + b"}}",
    b'{"type": "order.paid", "timestamp": "2026-11-01T12:00:00Z", "data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"type": "customer.created", "timestamp": "2026-11-01T12:00:00Z", "data": {"id": "\\u0000"}}',
    b'{"type": "benefit.created", "timestamp": "2026-11-01T12:00:00Z", "data": {"id": "1"}}',
]


@pytest.mark.parametrize("number", range(len(UNREADABLE)))
async def test_an_authentic_event_that_we_cannot_read_is_kept_as_dead_with_the_reason(
    running: Running, number: int
) -> None:
    answer = await send(running, UNREADABLE[number])
    assert (answer.status_code, answer.json()["status"]) == (202, "accepted")
    await running.service.pipeline.drain()
    row = await stored(running)
    assert row
    assert row["status"] == "dead"
    assert row["reason"]
    assert row["body"] == UNREADABLE[number]


async def test_nul_inside_an_event_is_stored_and_worked_on_like_any_other_text(running: Running) -> None:
    first = running.story("purchase")[0]
    body = first.body.replace(b'"name":"', b'"name":"\\u0000', 1)
    assert body != first.body
    await running.receive([SimulatedEvent(*(first.webhook_id, first.type, first.timestamp, "", ""), body)])
    row = await stored(running, first.webhook_id)
    assert row
    assert row["status"] == "done", row["reason"]


async def test_when_the_database_is_down_polar_is_told_to_come_again_and_nothing_is_stored(on_sqlite: Running) -> None:
    first = on_sqlite.story("purchase")[0]
    database = on_sqlite.service.database
    await database.write(lambda connection: connection.execute(sa.text("ALTER TABLE deliveries RENAME TO gone")))
    answer = await on_sqlite.post(first)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert answer.json()["error"] == "Unavailable"
    assert "gone" not in answer.text
    await database.write(lambda connection: connection.execute(sa.text("ALTER TABLE gone RENAME TO deliveries")))
    assert await stored(on_sqlite, first.webhook_id) is None
    assert (await on_sqlite.post(first)).json()["status"] == "accepted"
    await on_sqlite.service.pipeline.drain()


async def test_refusals_are_bounded(sqlite_url: str, tmp_path: Path, catalogue: Catalogue, clock: Clock) -> None:
    async with run_service(sqlite_url, tmp_path, catalogue, clock, retain_refusals=3) as running:
        for number in range(10):
            await send(running, event(), f"msg_{number}", **{"webhook-signature": "v1,AAAA"})
            await running.service.database.write(
                lambda connection: inbox.refuse(
                    connection,
                    [{"at": clock.at, "status_code": 403, "error": "e", "detail": "d", "webhook_id": "x", "size": 1}],
                    keep=3,
                )
            )
        assert len(await refusals(running)) <= 3


async def test_refusals_can_be_switched_off(
    sqlite_url: str, tmp_path: Path, catalogue: Catalogue, clock: Clock
) -> None:
    async with run_service(sqlite_url, tmp_path, catalogue, clock, retain_refusals=0) as running:
        await send(running, event(), **{"webhook-signature": "v1,AAAA"})
        assert await refusals(running) == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.one_of(
        st.binary(max_size=300),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(max_size=20) | st.integers(),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
            max_leaves=8,
        ).map(lambda data: json.dumps({"type": "subscription.updated", "timestamp": "2026-11-01T12:00:00Z",
                                       "data": data}).encode()),
    )
)  # fmt: skip
async def test_no_signed_body_makes_a_fault_of_ours(on_sqlite: Running, body: bytes) -> None:
    answer = await send(on_sqlite, body, hashlib.sha256(body).hexdigest())
    assert answer.status_code in {202, 400}
    await on_sqlite.service.pipeline.drain()
