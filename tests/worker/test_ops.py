"""What operators and monitoring ask: replay over HTTP, health, readiness, metrics."""

import dataclasses
from urllib.parse import quote

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from handlers import HANDLERS
from handlers.events import Event, MalformedEvent
from handlers.state import CustomerState
from tests.conftest import Running
from worker.http.api import make_api
from worker.pipeline import SWEEP_PULSE
from worker.store import grants, inbox


async def beat(running: Running) -> None:
    now = running.clock.at
    await running.service.database.write(lambda connection: grants.beat(connection, SWEEP_PULSE, now))


async def post(running: Running, path: str, token: str = "ops-token-1") -> httpx.Response:
    return await running.client.post(path, headers={"authorization": f"Bearer {token}"})


async def test_a_delivery_is_replayed_over_http_and_what_changed_is_counted(running: Running) -> None:
    events = running.story("purchase")
    await running.receive(events)
    answer = await post(running, f"/ops/deliveries/{events[0].webhook_id}/replay")
    assert answer.status_code == 200
    assert answer.json() == {
        "id": events[0].webhook_id, "status": "done", "reason": None, "grants_given": 0, "grants_taken": 0,
    }  # fmt: skip


async def test_a_dead_delivery_replayed_after_an_upgrade_gives_what_is_owed(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_old(state: CustomerState, event: Event) -> CustomerState:
        raise MalformedEvent("this version cannot read it")

    paid = next(event for event in running.story("purchase") if event.type == "order.paid")
    with monkeypatch.context() as patched:
        patched.setitem(HANDLERS, "order.paid", too_old)
        await running.receive([paid])
    dead = await running.service.database.read(lambda connection: inbox.found(connection, paid.webhook_id))
    assert dead
    assert (dead["status"], dead["reason"]) == ("dead", "this version cannot read it")
    answer = await post(running, f"/ops/deliveries/{paid.webhook_id}/replay")
    assert (answer.json()["status"], answer.json()["grants_given"]) == ("done", 2)
    await running.service.pipeline.drain()
    held = await running.get(f"/v1/customers/{paid.customer_id}/entitlements/key")
    assert held.json()["status"] == "granted"


@pytest.mark.parametrize("webhook_id", ["nothing", "a/b", "ü", "%00"])
async def test_replaying_what_there_is_not_says_where_to_look(on_sqlite: Running, webhook_id: str) -> None:
    answer = await post(on_sqlite, f"/ops/deliveries/{quote(webhook_id, safe='%')}/replay")
    assert (answer.status_code, answer.json()["error"]) == (404, "ResourceNotFound")
    if "/" not in webhook_id:
        assert "almoner deliveries list" in answer.json()["detail"]


async def test_replay_is_for_operators_alone(on_sqlite: Running) -> None:
    for token, status, error in (("app-token-1", 403, "NotPermitted"), ("wrong", 401, "Unauthorized")):
        answer = await post(on_sqlite, "/ops/deliveries/x/replay", token)
        assert (answer.status_code, answer.json()["error"]) == (status, error)


async def test_ready_names_what_is_wrong(running: Running) -> None:
    never = await running.client.get("/readyz")
    assert never.status_code == 503
    assert "has never run" in never.json()["problems"]["sweep"]
    await beat(running)
    assert (await running.client.get("/readyz")).json() == {"status": "ready", "problems": {}}
    running.clock.move(seconds=31)
    stale = await running.client.get("/readyz")
    assert stale.status_code == 503
    assert stale.json()["problems"] == {"sweep": "last ran 31 s ago; is a worker running?"}
    assert (await running.client.get("/healthz")).json() == {"status": "alive"}


async def test_a_queue_that_is_down_is_named_but_webhooks_are_still_welcome(on_sqlite: Running) -> None:
    class Down:
        async def is_up(self) -> bool:
            return False

    await beat(on_sqlite)
    context = dataclasses.replace(on_sqlite.context, queue=Down())
    transport = httpx.ASGITransport(make_api(context, on_sqlite.clock))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://almoner") as client:
        answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    assert "queue" in answer.json()["problems"]


async def test_metrics_tell_ledger_backlog_grants_and_times(running: Running) -> None:
    await running.live("purchase")
    await running.post(running.story("purchase", 2)[0])
    running.clock.move(seconds=42)
    answer = await running.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    balance = await running.service.database.read(inbox.balance)
    for account, amount in balance.items():
        assert samples["almoner_ledger", ("account", account)] == amount
    assert samples["almoner_ledger_balanced",] == 1
    assert samples["almoner_backlog_age_seconds",] == 42
    assert samples["almoner_grants", ("connector", "license_key"), ("status", "granted")] == 1
    assert samples["almoner_webhooks_total", ("answer", "accepted")] >= 1
    assert samples["almoner_time_to_grant_seconds_count", ("connector", "license_key")] >= 1
    assert samples["almoner_sweep_age_seconds",] == float("inf")
    await running.service.pipeline.drain()


async def test_metrics_need_a_token(on_sqlite: Running) -> None:
    assert (await on_sqlite.client.get("/metrics")).status_code == 401
    await beat(on_sqlite)
    assert "almoner_sweep_age_seconds 0.0" in (await on_sqlite.get("/metrics", token="ops-token-1")).text
