"""What an app is told: state and entitlements, by every way of asking."""

import dataclasses
import json
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
import sqlalchemy as sa

from config.catalogue import Catalogue
from tests.conftest import POLAR_BENEFIT, Clock, Running, run_service
from worker.http.api import make_api
from worker.http.shortcut import _parts
from worker.simulate import SimulatedEvent
from worker.store import customers
from worker.store.database import Database
from worker.store.ready import Ready, ReadyAnswers


def with_external_id(events: list[SimulatedEvent], external_id: str) -> list[SimulatedEvent]:
    """The same story, of a customer whom the merchant's app knows by another name."""
    written = json.dumps(external_id, ensure_ascii=False)[1:-1].encode()
    old = events[0].external_id.encode()
    return [
        SimulatedEvent(
            one.webhook_id, one.type, one.timestamp, one.customer_id, external_id, one.body.replace(old, written)
        )
        for one in events
    ]


@pytest.mark.parametrize(
    "external_id",
    ["a/b", "a b", "a%2Fb", "über/straße", "state", "a?b=c", "a#b", "日本語", "../../etc", "a+b", "entitlements/key",
     "%", "a;b", "user@example.com", "\u202e", "'; DROP TABLE customers; --", "x" * 200],
)  # fmt: skip
async def test_an_external_id_of_any_characters_is_found(on_sqlite: Running, external_id: str) -> None:
    events = with_external_id(on_sqlite.story("purchase"), external_id)
    await on_sqlite.receive(events)
    name = quote(external_id, safe="")
    state = await on_sqlite.get(f"/v1/customers/external/{name}/state")
    assert state.status_code == 200
    assert state.json()["external_id"] == external_id
    everything = await on_sqlite.get(f"/v1/customers/external/{name}/entitlements")
    assert everything.json()["external_id"] == external_id
    one = await on_sqlite.get(f"/v1/customers/external/{name}/entitlements/key")
    assert one.json()["entitled"] is True


async def test_the_state_is_the_same_by_either_id_and_tells_when_it_was_true(running: Running) -> None:
    events = running.story("subscription")
    await running.receive(events)
    by_id = await running.get(f"/v1/customers/{events[0].customer_id}/state")
    by_name = await running.get(f"/v1/customers/external/{events[0].external_id}/state")
    assert by_id.json() == by_name.json()
    assert by_id.headers["almoner-as-of"] == events[-1].timestamp.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert int(by_id.headers["almoner-version"]) >= 1
    assert by_id.headers["cache-control"] == "private, no-cache"
    document = by_id.json()
    assert len(document["active_subscriptions"]) == 1
    assert document["id"] == events[0].customer_id


async def test_a_state_that_has_not_changed_is_answered_304_until_it_changes(running: Running) -> None:
    events = running.story("cancel")
    await running.receive(events[:-4])
    path = f"/v1/customers/{events[0].customer_id}/state"
    first = await running.get(path)
    tag = first.headers["etag"]
    again = await running.get(path, **{"if-none-match": f'"other", {tag}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == tag
    await running.receive(events[-4:])
    changed = await running.get(path, **{"if-none-match": tag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != tag


@pytest.mark.parametrize("path", ["/v1/customers/{id}/state", "/v1/customers/{id}/entitlements"])
@pytest.mark.parametrize("name", ["6a2f41a3-c54c-4ce8-9d7f-4b3f0c1f4f10", "external/nobody", "%00", "external/%00"])
async def test_an_unknown_customer_is_404_in_polars_shape(on_sqlite: Running, path: str, name: str) -> None:
    answer = await on_sqlite.get(path.replace("{id}", name))
    assert answer.status_code == 404
    assert answer.json()["error"] == "ResourceNotFound"
    assert "No such customer" in answer.json()["detail"]


async def test_for_one_benefit_an_unknown_customer_simply_is_not_entitled(running: Running) -> None:
    answer = await running.answer("nobody-yet", "key")
    assert (answer["entitled"], answer["status"]) == (False, "none")
    assert answer["reason"] == "No such customer is known here"
    customer = await running.live("refund")
    never = await running.answer(customer, "better")
    assert (never["entitled"], never["status"]) == (False, "none")
    assert never["reason"] == "The customer never had it"
    assert never["as_of"]


async def test_a_benefit_that_nobody_promised_is_a_typo_and_404(running: Running) -> None:
    customer = await running.live("purchase")
    for name in (customer, "nobody"):
        answer = await running.get(f"/v1/customers/external/{name}/entitlements/kye")
        assert answer.status_code == 404
        assert "better, files, key, link" in answer.json()["detail"]


async def test_a_polar_benefit_that_we_never_heard_of_is_not_a_typo(on_sqlite: Running) -> None:
    answer = await on_sqlite.answer("nobody", "7f1d7a52-9e0b-4b86-8c8b-3c1a9a1a7b11")
    assert answer["entitled"] is False


async def test_without_a_token_nothing_is_told(on_sqlite: Running) -> None:
    await on_sqlite.receive(on_sqlite.story("purchase"))
    customer = on_sqlite.story("purchase")[0].external_id
    path = f"/v1/customers/external/{customer}/state"
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic app-token-1"},
                    {"authorization": "app-token-1"}, {"authorization": "Bearer "}):  # fmt: skip
        answer = await on_sqlite.client.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"] == "Unauthorized"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert (await on_sqlite.get(path, token="ops-token-1")).status_code == 200


async def test_whole_keys_are_for_tokens_that_may_read_them(running: Running) -> None:
    customer = await running.live("purchase")
    path = f"/v1/customers/external/{customer}/entitlements"
    refused = await running.get(f"{path}/key?reveal=keys")
    assert refused.status_code == 403
    assert "ALMONER_KEY_READERS" in refused.json()["detail"]
    assert (await running.get(f"{path}?reveal=keys")).status_code == 403
    assert (await running.get(f"{path}/key?reveal=all", token="portal-token-1")).status_code == 422
    for token in ("portal-token-1", "ops-token-1"):
        shown = await running.get(f"{path}/key?reveal=keys", token=token)
        key = shown.json()["gives"]["key"]
        assert key.startswith("ACME-")
        everything = await running.get(f"{path}?reveal=keys", token=token)
        assert key in everything.text
    masked = await running.get(f"{path}/key", token="portal-token-1")
    assert key not in masked.text
    everything = await running.get(path, token="portal-token-1")
    assert key not in everything.text


async def test_a_member_is_answered_for_alone(running: Running) -> None:
    events = running.story("seats")
    for event in events:
        await running.receive([event])
    path = f"/v1/customers/{events[0].customer_id}/entitlements/key"
    whole = (await running.get(path)).json()
    assert whole["entitled"] is True
    members = {grant["member_id"]: grant for grant in whole["grants"]}
    assert len(members) == 3
    for member_id, grant in members.items():
        theirs = (await running.get(f"{path}?member_id={member_id}")).json()
        assert [one["id"] for one in theirs["grants"]] == [grant["id"]]
        assert theirs["entitled"] is grant["entitled"]
    assert sorted(grant["entitled"] for grant in members.values()) == [False, True, True]
    stranger = (await running.get(f"{path}?member_id=nobody")).json()
    assert (stranger["entitled"], stranger["status"], stranger["grants"]) == (False, "none", [])
    by_name = (await running.get(f"{path}?external_member_id=nobody")).json()
    assert by_name["entitled"] is False
    listed = (await running.get(f"/v1/customers/{events[0].customer_id}/entitlements?member_id=nobody")).json()
    assert not any(one["entitled"] for one in listed["entitlements"])


@pytest.mark.parametrize("scenario", ["subscription", "purchase"])
async def test_the_owner_asked_for_as_a_member_has_what_the_customer_has(running: Running, scenario: str) -> None:
    events = running.story(scenario)
    await running.receive(events)
    owner = json.loads(next(event for event in events if event.type == "member.created").body)["data"]
    assert owner["role"] == "owner"
    for benefit in ("key", "files", POLAR_BENEFIT):
        path = f"/v1/customers/{events[0].customer_id}/entitlements/{benefit}"
        assert (await running.get(f"{path}?member_id={owner['id']}")).json()["entitled"] is True
        assert (await running.get(f"{path}?member_id=nobody")).json()["entitled"] is False
        if owner["external_id"]:
            asked = await running.get(f"{path}?external_member_id={quote(owner['external_id'])}")
            assert asked.json()["entitled"] is True
        stranger = await running.get(f"{path}?external_member_id=nobody")
        assert stranger.json()["entitled"] is False


async def test_an_end_that_has_come_is_seen_at_the_question_even_before_the_sweep(running: Running) -> None:
    events = running.story("cancel-scheduled")
    await running.receive(events)
    customer = events[0].external_id
    before = await running.answer(customer, "key")
    assert before["entitled"] is True
    assert before["valid_until"]
    running.clock.move(days=31)
    after = await running.answer(customer, "key")
    assert (after["entitled"], after["status"], after["gives"]) == (False, "expired", None)
    listed = await running.get(f"/v1/customers/external/{customer}/entitlements")
    key = next(one for one in listed.json()["entitlements"] if one["benefit"] == "key")
    assert key["entitled"] is False
    await running.service.pipeline.drain()
    assert (await running.answer(customer, "key"))["status"] == "revoked"


async def test_a_grace_that_ends_is_told_beforehand_and_ends_without_any_event(running: Running) -> None:
    customer = await running.live("past-due")
    held = await running.answer(customer, "key")
    assert (held["entitled"], held["standing"]) == (True, "grace")
    assert held["valid_until"]
    running.clock.move(days=4)
    await running.service.pipeline.drain()
    gone = await running.answer(customer, "key")
    assert (gone["entitled"], gone["status"]) == (False, "revoked")


async def test_a_write_by_another_process_is_seen_by_the_next_read(
    database_url: str, tmp_path: Path, catalogue: Catalogue, clock: Clock
) -> None:
    """Two services on one database: what one commits the other answers with at once, however often it was asked."""
    async with (
        run_service(database_url, tmp_path, catalogue, clock) as writing,
        run_service(database_url, tmp_path, catalogue, clock) as asked,
    ):
        events = writing.story("cancel")
        seen = []
        for one in events:
            await writing.receive([one])
            mine, theirs = [await service.get(f"/v1/customers/{one.customer_id}/state") for service in (writing, asked)]
            assert mine.content == theirs.content
            assert mine.headers.get("etag") == theirs.headers.get("etag")
            mine, theirs = [
                await service.get(f"/v1/customers/{one.customer_id}/entitlements/key") for service in (writing, asked)
            ]
            assert mine.content == theirs.content
            seen.append(theirs.json()["entitled"])
        assert True in seen
        assert seen[-1] is False


@pytest.mark.parametrize("query", ["", "?reveal="])
async def test_the_short_way_and_the_long_way_answer_the_same(running: Running, query: str) -> None:
    """`?` takes a question past the shortcut; apart from that it asks for the same."""
    customer = await running.live("subscription")
    for what in ("state", "entitlements/key", "entitlements/better", "entitlements/files"):
        short = await running.get(f"/v1/customers/external/{customer}/{what}")
        long = await running.get(f"/v1/customers/external/{customer}/{what}?anything=1")
        assert short.json() == long.json()
        assert short.status_code == long.status_code
        for header in ("etag", "almoner-as-of", "almoner-version", "cache-control", "content-type"):
            assert short.headers.get(header) == long.headers.get(header)


@pytest.mark.parametrize(
    ("method", "path", "query"),
    [("POST", "/v1/customers/a/state", b""), ("GET", "/v1/customers/a/state", b"x"), ("GET", "/v1/customers/a", b""),
     ("GET", "/v1/customers//state", b""), ("GET", "/v1/customers/a/entitlements", b""),
     ("GET", "/v1/customers/external/a", b""), ("GET", "/v1/customers/a%00b/state", b"")],
)  # fmt: skip
def test_the_shortcut_takes_plain_questions_alone(method: str, path: str, query: bytes) -> None:
    assert _parts({"method": method, "path": path, "query_string": query}) is None  # type: ignore[typeddict-item]


async def test_what_nobody_serves_is_404_and_a_wrong_method_405_in_the_one_shape(on_sqlite: Running) -> None:
    for path, status, error in (
        ("/nothing/here", 404, "ResourceNotFound"),
        ("/v1/customers/x/nothing", 404, "ResourceNotFound"),
    ):
        answer = await on_sqlite.get(path)
        assert (answer.status_code, answer.json()["error"]) == (status, error)
    answer = await on_sqlite.client.post("/healthz")
    assert (answer.status_code, answer.json()["error"]) == (405, "MethodNotAllowed")


async def test_a_deleted_customer_is_gone_from_the_state_and_holds_nothing(running: Running) -> None:
    events = running.story("delete-customer")
    await running.receive(events)
    customer = events[0].customer_id
    assert (await running.get(f"/v1/customers/{customer}/state")).status_code == 404
    entitlements = await running.get(f"/v1/customers/{customer}/entitlements")
    assert entitlements.json()["entitlements"]
    assert not any(one["entitled"] for one in entitlements.json()["entitlements"])


async def test_only_customer_deleted_is_enough_to_take_everything_back(running: Running) -> None:
    """Polar may send nothing else: no revoked grants, no last state (polar.md 1.5)."""
    events = running.story("delete-customer")
    end = next(number for number, event in enumerate(events) if event.type == "customer.deleted")
    await running.receive([event for event in events[: end + 1] if event.type != "member.deleted"])
    statuses = await running.get(f"/v1/customers/{events[0].customer_id}/entitlements")
    assert {one["status"] for one in statuses.json()["entitlements"]} == {"revoked"}


async def test_an_external_id_that_moves_to_another_customer_answers_for_the_new_one(running: Running) -> None:
    """Deleted at Polar and created anew: the same external id, another customer."""
    old = running.story("delete-customer", seed=1)
    new = with_external_id(running.story("purchase", seed=2), old[0].external_id)
    await running.receive([*old, *new])
    state = await running.get(f"/v1/customers/external/{old[0].external_id}/state")
    assert state.json()["id"] == new[0].customer_id
    assert (await running.answer(old[0].external_id, "key"))["entitled"] is True


@pytest.mark.parametrize("query", ["", "?member_id=1"])
async def test_a_database_that_fails_is_503_without_its_words(on_sqlite: Running, query: str) -> None:
    database = on_sqlite.service.database
    await database.write(lambda connection: connection.execute(sa.text("ALTER TABLE customers RENAME TO hidden")))
    for path in ("/v1/customers/external/x/state", "/v1/customers/x/entitlements/key", "/v1/customers/x/entitlements"):
        answer = await on_sqlite.get(path + query)
        assert (answer.status_code, answer.json()["error"]) == (503, "Unavailable")
        assert answer.headers["retry-after"] == "5"
        assert "hidden" not in answer.text
        assert "customers" not in answer.text
    await database.write(lambda connection: connection.execute(sa.text("ALTER TABLE hidden RENAME TO customers")))


async def test_a_postgresql_that_is_gone_is_503(
    postgres_url: str, tmp_path: Path, catalogue: Catalogue, clock: Clock
) -> None:
    async with run_service(postgres_url, tmp_path, catalogue, clock) as running:
        # A port where nobody listens: what every question meets while the server is down.
        gone = Database("postgresql+asyncpg://postgres@127.0.0.1:1/none")
        context = dataclasses.replace(running.context, database=gone, ready=ReadyAnswers(gone))
        transport = httpx.ASGITransport(make_api(context, clock))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://almoner") as client:
            for path in ("/v1/customers/x/state", "/v1/customers/x/entitlements?member_id=1", "/metrics"):
                answer = await client.get(path, headers={"authorization": "Bearer app-token-1"})
                assert (answer.status_code, answer.json()["error"]) == (503, "Unavailable")
            ready = await client.get("/readyz")
            assert ready.status_code == 503
            assert "cannot be read" in ready.json()["problems"]["database"]
            assert (await client.get("/healthz")).status_code == 200


async def test_a_manual_grant_is_shown_as_such_with_its_reason_and_its_end(running: Running) -> None:
    customer = await running.live("refund")
    customer_id = await running.service.database.read(lambda connection: customers.find(connection, customer))
    now = running.clock.at
    row = {
        "id": "hand-1", "customer_id": customer_id, "benefit": "key", "member_id": None, "reason": "sorry for the wait",
        "given_by": "operator", "created_at": now, "ends_at": now + timedelta(days=7), "withdrawn_at": None,
    }  # fmt: skip
    await running.service.database.write(lambda connection: customers.give_by_hand(connection, row))
    await running.service.pipeline.drain()
    held = await running.answer(customer, "key")
    assert (held["entitled"], held["standing"], held["status"]) == (True, "manual", "granted")
    assert held["because"][0]["note"] == "sorry for the wait (by operator)"
    running.clock.move(days=8)
    await running.service.pipeline.drain()
    assert (await running.answer(customer, "key"))["entitled"] is False
    await running.service.database.write(
        lambda connection: customers.give_by_hand(connection, row | {"id": "hand-2", "ends_at": None})
    )
    await running.service.pipeline.drain()
    assert (await running.answer(customer, "key"))["entitled"] is True
    gone = await running.service.database.write(
        lambda connection: customers.withdraw(connection, str(customer_id), "key", running.clock.at)
    )
    await running.service.pipeline.drain()
    assert gone == 2
    assert (await running.answer(customer, "key"))["entitled"] is False


async def test_the_api_describes_itself(on_sqlite: Running) -> None:
    answer = await on_sqlite.client.get("/schema/openapi.json")
    document = answer.json()
    assert document["openapi"].startswith("3.1")
    paths = document["paths"]
    assert "/v1/customers/external/{external_id}/entitlements/{benefit}" in paths
    assert "/ops/deliveries/{webhook_id}/replay" in paths
    assert set(document["webhooks"]["polar"]["post"]["responses"]) == {
        "202", "400", "403", "405", "408", "413", "415", "503",
    }  # fmt: skip


async def test_a_fault_of_ours_is_500_in_the_one_shape_and_tells_nothing(
    on_sqlite: Running, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(ReadyAnswers):
        async def entitlements(self, key: str, name: str) -> Ready | None:
            raise KeyError("what only the log may know")

    context = dataclasses.replace(on_sqlite.context, ready=Broken(on_sqlite.service.database))
    transport = httpx.ASGITransport(make_api(context, on_sqlite.clock))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://almoner") as client:
        answer = await client.get("/v1/customers/x/entitlements/key", headers={"authorization": "Bearer app-token-1"})
    assert answer.status_code == 500
    assert answer.json() == {"error": "InternalServerError", "detail": "a fault of Almoner's; its log says more"}
    assert "what only the log may know" in caplog.text
