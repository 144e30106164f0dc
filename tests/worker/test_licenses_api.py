"""License keys over HTTP: Polar's checks in Polar's order, and no limit passed by calls at the same time."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from config.catalogue import Catalogue, parse_catalogue
from connectors import TERMS
from tests.conftest import ORGANIZATION, POLAR_BENEFIT, PRODUCT, Clock, Running, run_service
from worker.http import license_forms, license_shortcut
from worker.http import licenses as licenses_api
from worker.license_keys import StoredLicenseKeys, hashed
from worker.licensing import Key, Policy, most
from worker.sealing import Seal
from worker.simulate import SimulatedEvent

PUBLIC = "/v1/customer-portal/license-keys"
MERCHANT = "/v1/license-keys"
LAPTOP = {"fingerprint": "laptop-1"}


def shop(**terms: Any) -> Catalogue:
    """A catalogue of one kind of key, with these terms."""
    own = {"prefix": "ACME", "limit_activations": 3, "limit_usage": 10} | terms
    lines = [f"{name} = {_toml(value)}" for name, value in own.items() if value is not None]
    table = ["[benefits.key]", 'connector = "license_key"', f'for = {{ products = ["{PRODUCT}"] }}', *lines]
    from datetime import timedelta

    return parse_catalogue("\n".join(table), TERMS, timedelta())


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)


class Desk:
    """A running service with one customer who has a key, and the calls about it."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.customer = self.key = self.id = ""

    async def buy(self, seed: int = 1) -> str:
        return await self.receive(self.running.story("purchase", seed))

    async def receive(self, events: Sequence[SimulatedEvent]) -> str:
        """Receive events of one customer, whose key this is about from then on."""
        await self.running.receive(events)
        self.customer = events[0].customer_id
        answer = await self.running.answer(events[0].external_id, "key")
        self.id = answer["gives"]["license_key_id"]
        self.key = (await self.running.get(f"{MERCHANT}/{self.id}", "portal-token-1")).json()["key"]
        return self.key

    async def call(self, what: str, *, base: str = PUBLIC, **more: Any) -> httpx.Response:
        body = {"key": self.key, "organization_id": ORGANIZATION} | more
        headers = {"authorization": "Bearer app-token-1"} if base == MERCHANT else {}
        version = {"polar-version": more.pop("version")} if "version" in more else {}
        body.pop("version", None)
        return await self.running.client.post(f"{base}/{what}", json=body, headers=headers | version)

    async def change(self, **what: Any) -> dict[str, Any]:
        answer = await self.running.client.patch(
            f"{MERCHANT}/{self.id}", json=what, headers={"authorization": "Bearer portal-token-1"}
        )
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json()
        return document

    async def activated(self, label: str = "laptop", **more: Any) -> str:
        answer = await self.call("activate", label=label, **more)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])


Open = Callable[..., Any]


@pytest.fixture
async def desk(database_url: str, tmp_path: Path, clock: Clock) -> AsyncIterator[Desk]:
    async with run_service(database_url, tmp_path, shop(), clock) as running:
        made = Desk(running)
        await made.buy()
        yield made


@pytest.fixture
def desk_with(sqlite_url: str, tmp_path: Path, clock: Clock) -> Open:
    """A desk with other terms of the key, or other settings."""
    from contextlib import asynccontextmanager

    @asynccontextmanager
    async def opened(settings: dict[str, Any] | None = None, **terms: Any) -> AsyncIterator[Desk]:
        async with run_service(sqlite_url, tmp_path, shop(**terms), clock, **(settings or {})) as running:
            made = Desk(running)
            await made.buy()
            yield made

    return opened


def is_error(answer: httpx.Response, status: int, error: str, reason: str | None) -> bool:
    assert (answer.status_code, answer.json()["error"]) == (status, error), answer.text
    assert set(answer.json()) == {"error", "detail"}
    assert answer.headers.get("almoner-reason") == reason
    return True


@pytest.mark.parametrize("base", [PUBLIC, MERCHANT])
async def test_a_valid_key_is_answered_in_polars_shape_and_counted(desk: Desk, base: str) -> None:
    answer = await desk.call("validate", base=base)
    document = answer.json()
    assert (answer.status_code, answer.headers["almoner-reason"]) == (200, "valid")
    assert (document["key"], document["status"], document["validations"]) == (desk.key, "granted", 1)
    assert document["customer"]["id"] == desk.customer
    assert (document["usage"], document["limit_usage"], document["activation"]) == (0, 10, None)
    assert (await desk.call("validate", base=base)).json()["validations"] == 2


def _noted(way: str, call: Callable[..., Any], ways: list[str]) -> Callable[..., Any]:
    async def noted(*arguments: Any) -> Any:
        ways.append(way)
        return await call(*arguments)

    return noted


async def test_the_short_way_and_the_long_way_answer_alike(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a query the question is not plain, and Litestar answers it."""
    ways: list[str] = []
    monkeypatch.setattr(license_shortcut, "validated", _noted("short", licenses_api.validated, ways))
    monkeypatch.setattr(licenses_api, "validated", _noted("long", licenses_api.validated, ways))
    bound = await desk.activated(conditions=LAPTOP)
    for asked in (
        {}, {"increment_usage": 11}, {"key": "no"}, {"activation_id": bound, "conditions": LAPTOP},
        {"organization_id": 1}, {"benefit_id": str(uuid4())},
    ):  # fmt: skip
        for base in (PUBLIC, MERCHANT):
            short = await desk.call("validate", base=base, **asked)
            long = await desk.call("validate?x=1", base=base, **asked)
            assert short.status_code == long.status_code
            assert short.headers.get("almoner-reason") == long.headers.get("almoner-reason")
            bodies = [one.json() for one in (short, long)]
            for body in bodies:
                body.pop("validations", None)
            assert bodies[0] == bodies[1]
            assert ways == ([] if short.status_code == 422 else ["short", "long"])
            ways.clear()
    for path in (f"{MERCHANT}/validate", f"{MERCHANT}/validate?x=1"):
        assert (await desk.running.client.post(path, json={})).status_code == 401


async def test_what_was_counted_in_memory_is_written_when_the_service_ends_or_a_second_later(desk: Desk) -> None:
    for _ in range(3):
        await desk.call("validate")
    await asyncio.sleep(1.2)
    shown = (await desk.running.get(f"{MERCHANT}/{desk.id}")).json()
    assert shown["validations"] == 3
    assert shown["last_validated_at"] == "2026-11-01T12:00:00Z"


async def test_two_hundred_validations_at_once_never_pass_the_limit(desk: Desk) -> None:
    desk.running.context.settings.__dict__["license_calls_per_key"] = 0
    answers = await asyncio.gather(*(desk.call("validate", base=MERCHANT, increment_usage=1) for _ in range(200)))
    assert sorted(one.status_code for one in answers) == [200] * 10 + [400] * 190
    refused = next(one for one in answers if one.status_code == 400)
    assert is_error(refused, 400, "BadRequest", "usage_exceeded")
    assert "0 more" in refused.json()["detail"]
    assert sorted(one.json()["usage"] for one in answers if one.status_code == 200) == list(range(1, 11))
    assert (await desk.running.get(f"{MERCHANT}/{desk.id}")).json()["usage"] == 10
    assert (await desk.call("validate")).status_code == 200, "a used-up key is valid while nothing is counted"


async def test_two_hundred_activations_at_once_never_pass_the_limit(desk: Desk) -> None:
    desk.running.context.settings.__dict__["license_calls_per_key"] = 0
    answers = await asyncio.gather(*(desk.call("activate", base=MERCHANT, label=str(n)) for n in range(200)))
    assert sorted(one.status_code for one in answers) == [200] * 3 + [403] * 197
    assert is_error(next(one for one in answers if one.status_code == 403), 403, "NotPermitted", "activation_limit")
    shown = (await desk.running.get(f"{MERCHANT}/{desk.id}")).json()
    assert len(shown["activations"]) == 3


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"key": "ACME-NONE"}, "not_found"),
        ({"organization_id": str(uuid4())}, "not_found"),
        ({"activation_id": str(uuid4())}, "not_found"),
        ({"benefit_id": str(uuid4())}, "not_found"),
        ({"customer_id": str(uuid4())}, "not_found"),
    ],
)
async def test_what_is_not_there_is_404(desk: Desk, asked: dict[str, str], reason: str) -> None:
    assert is_error(await desk.call("validate", **asked), 404, "ResourceNotFound", reason)


async def test_the_checks_come_in_polars_order(desk: Desk, clock: Clock) -> None:
    everything_wrong: dict[str, Any] = {
        "activation_id": str(uuid4()), "benefit_id": str(uuid4()), "customer_id": str(uuid4()), "increment_usage": 11
    }  # fmt: skip
    await desk.change(status="disabled", expires_at="2026-11-01T11:00:00Z")
    assert is_error(await desk.call("validate", **everything_wrong), 404, "ResourceNotFound", "disabled")
    await desk.change(status="granted")
    assert is_error(await desk.call("validate", **everything_wrong), 404, "ResourceNotFound", "expired")
    await desk.change(expires_at=None)
    answer = await desk.call("validate", **everything_wrong)
    assert is_error(answer, 404, "ResourceNotFound", "not_found")
    assert "activation" in answer.json()["detail"]
    del everything_wrong["activation_id"]
    assert "benefit" in (await desk.call("validate", **everything_wrong)).json()["detail"]
    del everything_wrong["benefit_id"]
    assert "customer" in (await desk.call("validate", **everything_wrong)).json()["detail"]
    del everything_wrong["customer_id"]
    assert is_error(await desk.call("validate", **everything_wrong), 400, "BadRequest", "usage_exceeded")


async def test_an_activation_must_be_validated_under_its_own_conditions(desk: Desk) -> None:
    bound = await desk.activated(conditions=LAPTOP)
    free = await desk.activated()
    assert (await desk.call("validate", activation_id=bound, conditions=LAPTOP)).status_code == 200
    answer = await desk.call("validate", activation_id=bound, conditions={"fingerprint": "another"})
    assert is_error(answer, 404, "ResourceNotFound", "fingerprint_mismatch")
    more = await desk.call("validate", activation_id=bound, conditions=LAPTOP | {"more": 1})
    assert is_error(more, 404, "ResourceNotFound", "fingerprint_mismatch")
    assert (await desk.call("validate", activation_id=free, conditions={"any": "thing"})).status_code == 200
    shown = (await desk.call("validate", activation_id=bound, conditions=LAPTOP)).json()["activation"]
    assert set(shown) == {"id", "license_key_id", "label", "meta", "created_at", "modified_at"}


async def test_deactivating_frees_a_place_once(desk: Desk) -> None:
    first, *_ = [await desk.activated() for _ in range(3)]
    assert (await desk.call("activate", label="fourth")).status_code == 403
    assert (await desk.call("deactivate", activation_id=first)).status_code == 204
    assert is_error(await desk.call("deactivate", activation_id=first), 404, "ResourceNotFound", "not_found")
    assert (await desk.call("activate", label="fourth")).status_code == 200
    await desk.change(status="disabled")
    second = (await desk.running.get(f"{MERCHANT}/{desk.id}")).json()["activations"][0]["id"]
    assert (await desk.call("deactivate", activation_id=second)).status_code == 204, "also of a key that is off"


async def test_activating_is_403_for_a_key_that_is_off_or_has_ended(desk: Desk) -> None:
    await desk.change(status="disabled")
    assert is_error(await desk.call("activate", label="x"), 403, "NotPermitted", "disabled")
    await desk.change(status="granted", expires_at="2026-11-01T12:00:00Z")
    assert is_error(await desk.call("activate", label="x"), 403, "NotPermitted", "expired")
    await desk.change(expires_at=None, limit_activations=None)
    answer = await desk.call("activate", label="x")
    assert is_error(answer, 403, "NotPermitted", "activation_limit")
    assert "validate" in answer.json()["detail"]
    assert is_error(await desk.call("activate", key="no", label="x"), 404, "ResourceNotFound", "not_found")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b'{"key": "k"}', b'{"key": "k", "organization_id": "x"}',
        b'{"key": 1, "organization_id": "6513270e-269e-4d37-b2a7-4de452e6b438"}',
        b'{"key": "k", "organization_id": "6513270e-269e-4d37-b2a7-4de452e6b438", "increment_usage": -1}',
        b'{"key": "k\\u0000", "organization_id": "6513270e-269e-4d37-b2a7-4de452e6b438"}',
        b'{"key": "k", "organization_id": "6513270e-269e-4d37-b2a7-4de452e6b438", "conditions": {"a": {}}}',
    ],
)  # fmt: skip
async def test_a_malformed_body_is_422_with_a_list_of_problems(on_sqlite: Running, body: bytes) -> None:
    answer = await on_sqlite.client.post(
        f"{PUBLIC}/validate", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"] == "RequestValidationError"
    assert all({"type", "loc", "msg"} <= set(problem) for problem in answer.json()["detail"])
    assert answer.json()["detail"]


async def test_each_version_of_polars_api_has_its_own_fields(desk: Desk) -> None:
    for version, more in (("2026-04", set()), ("2026-10", {"member", "member_id"}),
                          ("2027-01", {"member", "member_id", "order", "order_id", "subscription",
                                       "subscription_id"})):  # fmt: skip
        answer = await desk.call("validate", version=version)
        assert answer.headers["polar-version"] == version
        every = {"member", "member_id", "order", "order_id", "subscription", "subscription_id"}
        assert every & set(answer.json()) == more
    assert answer.json()["order"]["status"] == "paid"
    wrong = await desk.call("validate", version="2020-01")
    assert (wrong.status_code, wrong.json()["error"]) == (404, "ResourceNotFound")
    assert "no API version '2020-01'" in wrong.json()["detail"]
    not_served = await desk.running.get("/v1/products/")
    assert (not_served.status_code, "does not serve /v1/products/" in not_served.json()["detail"]) == (404, True)


async def test_a_rotated_key_is_another_string_under_the_same_id(desk: Desk) -> None:
    old = desk.key
    headers = {"authorization": "Bearer app-token-1"}
    answer = await desk.running.client.post(f"{MERCHANT}/{desk.id}/rotate", headers=headers)
    assert is_error(answer, 403, "NotPermitted", None), "it would give the whole key to a token that may not read it"
    headers = {"authorization": "Bearer portal-token-1"}
    answer = await desk.running.client.post(f"{MERCHANT}/{desk.id}/rotate", headers=headers)
    assert (answer.status_code, answer.json()["id"]) == (200, desk.id)
    assert answer.json()["key"].startswith("ACME-")
    assert is_error(await desk.call("validate"), 404, "ResourceNotFound", "not_found")
    desk.key = answer.json()["key"]
    assert desk.key != old
    assert (await desk.call("validate")).status_code == 200
    [shown] = (await desk.running.get(f"/v1/customers/{desk.customer}/entitlements")).json()["entitlements"][:1]
    assert shown["gives"]["display_key"] == f"****-{desk.key[-6:]}", "the app is told of the new one"
    await desk.change(status="revoked")
    refused = await desk.running.client.post(f"{MERCHANT}/{desk.id}/rotate", headers=headers)
    assert is_error(refused, 400, "RotateNotPermitted", "revoked")


async def test_what_the_merchant_revokes_stays_revoked_until_they_say_otherwise(desk: Desk) -> None:
    assert (await desk.change(status="revoked"))["status"] == "revoked"
    await desk.running.service.pipeline.drain()
    assert is_error(await desk.call("validate"), 404, "ResourceNotFound", "revoked")
    assert (await desk.change(status="granted"))["status"] == "granted"
    assert (await desk.call("validate")).status_code == 200


async def test_a_refund_revokes_the_key(desk: Desk) -> None:
    events = desk.running.story("refund", 5)
    refund = next(n for n, event in enumerate(events) if event.type.startswith("refund."))
    await desk.receive(events[:refund])
    assert (await desk.call("validate")).status_code == 200
    await desk.running.receive(events[refund:])
    assert is_error(await desk.call("validate"), 404, "ResourceNotFound", "revoked")
    assert is_error(await desk.call("activate", label="x"), 403, "NotPermitted", "revoked")


async def test_a_short_way_that_fails_is_not_tried_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The use may have been counted before the connection was lost: a second try would count it twice."""
    calls = desk.running.context.license_calls
    validate, tries = calls.validate, []

    async def lost(*arguments: Any) -> Any:
        tries.append(await validate(*arguments))
        raise OSError("the connection was lost after the commit")

    monkeypatch.setattr(calls, "validate", lost)
    answer = await desk.call("validate", increment_usage=1)
    assert (answer.status_code, answer.json()["error"], len(tries)) == (503, "Unavailable", 1)
    assert answer.headers["retry-after"] == "5"

    async def broken(*_: Any) -> Any:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(calls, "validate", broken)
    answer = await desk.call("validate")
    assert (answer.status_code, answer.json()["error"]) == (500, "InternalServerError")
    assert "ours" not in answer.json()["detail"]
    monkeypatch.undo()
    assert (await desk.call("validate")).json()["usage"] == 1


async def test_a_body_that_is_too_large_for_the_short_way_takes_the_long_one(desk: Desk) -> None:
    answer = await desk.call("validate", ignored="x" * 20_000)
    assert answer.status_code == 200


async def test_only_what_is_sent_is_changed(desk: Desk) -> None:
    await desk.call("validate", increment_usage=4)
    changed = await desk.change(limit_usage=None)
    assert (changed["limit_usage"], changed["usage"], changed["limit_activations"]) == (None, 4, 3)
    changed = await desk.change(usage=0, limit_activations=1, expires_at="2027-01-01T00:00:00+01:00")
    assert (changed["usage"], changed["limit_activations"], changed["expires_at"]) == (0, 1, "2026-12-31T23:00:00Z")


async def test_keys_are_listed_newest_first_with_filters_and_pages(desk: Desk, clock: Clock) -> None:
    clock.move(seconds=5)
    await desk.buy(seed=2)
    headers = {"authorization": "Bearer portal-token-1"}

    async def ids(query: str) -> list[str]:
        answer = await desk.running.client.get(f"{MERCHANT}/{query}", headers=headers)
        assert answer.status_code == 200, answer.text
        return [one["id"] for one in answer.json()["items"]]

    both = await ids("")
    assert len(both) == 2
    assert both[0] == desk.id
    assert await ids("?limit=1") == both[:1]
    assert await ids("?limit=1&page=2") == both[1:]
    assert await ids("?page=3") == []
    assert await ids(f"?organization_id={uuid4()}") in ([], both)
    assert await ids("?status=disabled&status=revoked") == []
    await desk.change(status="disabled")
    assert await ids("?status=disabled") == [desk.id]
    assert await ids(f"?benefit_id={uuid4()}") == []
    own = (await desk.running.get(f"{MERCHANT}/{desk.id}")).json()["benefit_id"]
    assert await ids(f"?benefit_id={own}") == both
    for wrong in ("?page=0", "?limit=0", "?status=odd", "?benefit_id=x", "?page=a"):
        assert (await desk.running.client.get(f"{MERCHANT}/{wrong}", headers=headers)).status_code == 422


async def test_whole_keys_are_shown_to_tokens_that_may_read_them(desk: Desk) -> None:
    for token, is_whole in (("app-token-1", False), ("portal-token-1", True), ("ops-token-1", True)):
        one = (await desk.running.get(f"{MERCHANT}/{desk.id}", token)).json()
        [listed] = (await desk.running.get(f"{MERCHANT}/", token)).json()["items"]
        assert one["key"] == listed["key"] == (desk.key if is_whole else one["display_key"])
    for path in ("", f"/{desk.id}", f"/{desk.id}/activations/{uuid4()}"):
        assert (await desk.running.client.get(f"{MERCHANT}{path}")).status_code == 401


async def test_an_activation_is_read_with_its_key(desk: Desk) -> None:
    made = await desk.activated(meta={"os": "linux", "cores": 8})
    answer = await desk.running.get(f"{MERCHANT}/{desk.id}/activations/{made}")
    assert (answer.json()["id"], answer.json()["meta"]) == (made, {"os": "linux", "cores": 8})
    assert answer.json()["license_key"]["id"] == desk.id
    assert (await desk.running.get(f"{MERCHANT}/{desk.id}/activations/{uuid4()}")).status_code == 404
    assert (await desk.running.get(f"{MERCHANT}/{uuid4()}")).status_code == 404
    assert (await desk.running.get(f"{MERCHANT}/not-an-id")).status_code == 422


# Better than Polar's.


@pytest.mark.parametrize(("limit", "overage", "allowed"), [(100, 0.29, 129), (100, 0.57, 157), (3, 0.5, 4), (7, 0, 7)])
def test_overage_is_a_share_of_the_limit_in_whole_uses(limit: int, overage: float, allowed: int) -> None:
    assert most(limit, Policy(overage=overage)) == allowed


def test_the_key_itself_stands_in_no_repr() -> None:
    form = license_forms.Validate(key="ACME-SECRET", organization_id=uuid4())
    assert "SECRET" not in repr(form)
    assert next(one for one in fields(Key) if one.name == "key").repr is False


async def test_overage_lets_a_share_more_be_used(desk_with: Open) -> None:
    async with desk_with(overage=0.5, limit_usage=10, limit_activations=2) as desk:
        assert (await desk.call("validate", increment_usage=15)).status_code == 200
        assert (await desk.call("validate", increment_usage=1)).status_code == 400
        for _ in range(3):
            await desk.activated()
        assert (await desk.call("activate", label="x")).status_code == 403


async def test_a_key_may_begin_to_end_with_its_first_activation(desk_with: Open, clock: Clock) -> None:
    async with desk_with(expires="30d", expires_from="activation") as desk:
        clock.move(days=100)
        assert (await desk.call("validate")).json()["expires_at"] is None
        await desk.activated()
        assert (await desk.call("validate")).json()["expires_at"] == "2027-03-11T12:00:00Z"
        answer = (await desk.running.get(f"/v1/customers/{desk.customer}/entitlements/key")).json()
        assert answer["gives"]["expires_at"] == "2027-03-11T12:00:00+00:00", "apps are told at once"
        clock.move(days=10)
        await desk.activated()
        assert (await desk.call("validate")).json()["expires_at"] == "2027-03-11T12:00:00Z", "only the first counts"
        clock.move(days=20)
        assert is_error(await desk.call("validate"), 404, "ResourceNotFound", "expired")


async def test_an_activation_that_is_not_heard_of_is_released(desk_with: Open, clock: Clock) -> None:
    async with desk_with(heartbeat="1d", limit_activations=2) as desk:
        alive, dead = await desk.activated("alive"), await desk.activated("dead")
        clock.move(hours=20)
        assert (await desk.call("validate", activation_id=alive)).status_code == 200
        clock.move(hours=20)
        assert is_error(await desk.call("validate", activation_id=dead), 404, "ResourceNotFound", "not_found")
        assert (await desk.call("validate", activation_id=alive)).status_code == 200
        shown = (await desk.running.get(f"{MERCHANT}/{desk.id}")).json()["activations"]
        assert [one["id"] for one in shown] == [alive]
        await desk.activated("new")
        assert (await desk.call("activate", label="another")).status_code == 403
        assert (await desk.call("validate", activation_id=alive)).status_code == 200


async def test_a_device_that_counts_uses_is_heard_of(desk_with: Open, clock: Clock) -> None:
    async with desk_with(heartbeat="1h") as desk:
        device = await desk.activated()
        for _ in range(4):
            clock.move(minutes=40)
            assert (await desk.call("validate", activation_id=device, increment_usage=1)).status_code == 200
        clock.move(minutes=40)
        assert (await desk.call("validate", activation_id=device)).status_code == 200, "not written yet, but counted"
        clock.move(minutes=40)
        assert (await desk.call("validate", activation_id=device, increment_usage=1)).status_code == 200


async def test_each_device_may_have_one_activation(desk_with: Open) -> None:
    async with desk_with(one_per_fingerprint=True, limit_activations=1) as desk:
        first = await desk.activated("old name", conditions=LAPTOP)
        again = await desk.activated("new name", conditions=LAPTOP, meta={"v": 2})
        assert first == again
        shown = (await desk.running.get(f"{MERCHANT}/{desk.id}")).json()["activations"]
        assert [(one["label"], one["meta"]) for one in shown] == [("new name", {"v": 2})]
        assert is_error(await desk.call("activate", label="x", conditions={"fingerprint": "desktop"}), 403,
                        "NotPermitted", "activation_limit")  # fmt: skip
        assert is_error(await desk.call("activate", label="x"), 403, "NotPermitted", "fingerprint_mismatch")
        await desk.call("deactivate", activation_id=first)
        assert await desk.activated(conditions=LAPTOP) != first


async def test_a_key_that_is_kept_as_a_hash_is_shown_once(desk_with: Open, sqlite_url: str) -> None:
    async with desk_with(storage="hash") as desk:
        running = desk.running
        masked = (await running.get(f"{MERCHANT}/{desk.id}", "portal-token-1")).json()
        assert masked["key"] == masked["display_key"]
        path = f"/v1/customers/{desk.customer}/entitlements/key?reveal=keys"
        whole = (await running.get(path, "portal-token-1")).json()["gives"]["key"]
        assert whole.startswith("ACME-")
        assert "key" not in (await running.get(path, "portal-token-1")).json()["gives"]
        desk.key = whole
        assert (await desk.call("validate")).json()["key"] == whole
        raw = Path(sqlite_url.removeprefix("sqlite:///")).parent
        stored = b"".join(one.read_bytes() for one in raw.glob("almoner.db*"))
        assert whole.encode() not in stored
        headers = {"authorization": "Bearer portal-token-1"}
        rotated = (await running.client.post(f"{MERCHANT}/{desk.id}/rotate", headers=headers)).json()["key"]
        desk.key = rotated
        assert (await desk.call("validate")).status_code == 200
        assert (await running.get(f"{MERCHANT}/{desk.id}", "portal-token-1")).json()["key"] == f"****-{rotated[-6:]}"


async def test_a_benefit_that_turns_to_hashes_hides_every_key_and_each_can_be_shown_once(
    desk: Desk, database_url: str, tmp_path: Path, clock: Clock
) -> None:
    """Also of keys that have been revoked, and are settled no more."""
    live, live_id = desk.key, desk.id
    events = desk.running.story("refund", 5)
    refund = next(n for n, event in enumerate(events) if event.type.startswith("refund."))
    gone = await desk.receive(events[:refund])
    await desk.running.receive(events[refund:])
    pipeline, keys = desk.running.service.pipeline, desk.running.service.license_keys
    assert await pipeline.propose(shop(storage="hash"), accept=True) is None
    await pipeline.drain()
    assert await keys.whole(live_id) is None, "settled again, it is hidden"
    assert await keys.hide(hashed(pipeline.catalogue)) == 1
    assert await keys.hide(hashed(pipeline.catalogue)) == 0
    assert await keys.whole(desk.id) is None
    for key_id, key in ((live_id, live), (desk.id, gone)):
        assert await keys.is_unshown(key_id)
        assert await keys.show(key_id) == key
        assert await keys.show(key_id) is None


async def test_a_start_with_another_encryption_key_destroys_no_key(desk_with: Open, clock: Clock) -> None:
    async with desk_with(storage="hash") as desk:
        database = desk.running.service.database
        wrong = StoredLicenseKeys(database, Seal(["another-encryption-key"]), clock)
        assert await wrong.reseal() == 0
        both = StoredLicenseKeys(database, Seal(["another-encryption-key", "encryption-key-1"]), clock)
        assert await both.reseal() == 1
        assert await wrong.show(desk.id) is not None


async def test_asking_for_one_member_shows_nobody_elses_key(desk_with: Open, clock: Clock) -> None:
    async with desk_with(storage="hash") as desk:
        running = desk.running
        events = running.story("seats", 3)
        await running.receive(events)
        base = f"/v1/customers/{events[0].customer_id}/entitlements/key"
        grants = [one for one in (await running.get(base)).json()["grants"] if one["gives"]]
        assert len(grants) > 1
        nobody = await running.get(f"{base}?reveal=keys&member_id={uuid4()}", "portal-token-1")
        assert nobody.json()["grants"] == []
        for grant in grants:
            path = f"{base}?reveal=keys&member_id={grant['member_id']}"
            [shown] = (await running.get(path, "portal-token-1")).json()["grants"]
            assert shown["gives"]["key"].startswith("ACME-")


async def test_an_address_may_call_so_often_a_minute_and_apps_as_they_like(desk_with: Open, clock: Clock) -> None:
    async with desk_with({"license_calls_per_address": 5, "license_calls_per_key": 0}) as desk:
        answers = [await desk.call("validate") for _ in range(7)]
        assert [one.status_code for one in answers] == [200] * 5 + [429] * 2
        assert answers[-1].headers["retry-after"] == "60"
        assert answers[-1].json()["error"] == "RateLimitExceeded"
        assert (await desk.call("validate", base=MERCHANT)).status_code == 200
        sent = {"authorization": "Bearer app-token-1"}
        body = {"key": desk.key, "organization_id": ORGANIZATION}
        assert (await desk.running.client.post(f"{PUBLIC}/validate", json=body, headers=sent)).status_code == 200
        wrong = {"authorization": "Bearer polar_oat_unknown"}
        assert (await desk.running.client.post(f"{PUBLIC}/validate", json=body, headers=wrong)).status_code == 429
        clock.move(seconds=60)
        assert (await desk.call("validate")).status_code == 200


async def test_a_key_may_be_called_with_so_often_a_minute_by_all_together(desk_with: Open) -> None:
    async with desk_with({"license_calls_per_key": 4}) as desk:
        answers = [await desk.call("validate", base=base) for base in (PUBLIC, MERCHANT) * 3]
        assert [one.status_code for one in answers] == [200] * 4 + [429] * 2


async def test_the_own_id_of_a_benefit_and_polars_both_mean_it(desk: Desk) -> None:
    own = (await desk.call("validate")).json()["benefit_id"]
    assert (await desk.call("validate", benefit_id=own)).status_code == 200
    assert (await desk.call("validate", benefit_id=POLAR_BENEFIT)).status_code == 404
