"""A key that is unknown here is looked up at Polar, once: for its owner, and not for whoever invents keys."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from config.catalogue import Catalogue
from connectors.base import Unavailable
from tests.conftest import Clock
from tests.fakes.polar import ORGANIZATION, FakePolar
from tests.fakes.serving import serving
from tests.worker.keys_at_polar import BENEFIT, CUSTOMER, Desk, open_desk
from worker.store import polar_keys

OTHER = "99999999-9999-4999-8999-999999999999"
VALIDATE = "POST /v1/license-keys/validate"


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[FakePolar, str]]:
    fake = FakePolar()
    with serving(fake) as url:
        yield fake, url


@pytest.fixture
async def desk(
    served: tuple[FakePolar, str], database_url: str, tmp_path: Path, catalogue: Catalogue, clock: Clock
) -> AsyncIterator[Desk]:
    """On each kind of database in turn, with looking up switched on."""
    async with open_desk(served, database_url, tmp_path, catalogue, clock, polar_lookup=True) as opened:
        yield opened


@pytest.fixture
async def plain_desk(
    served: tuple[FakePolar, str], sqlite_url: str, tmp_path: Path, catalogue: Catalogue, clock: Clock
) -> AsyncIterator[Desk]:
    """On SQLite, for what does not depend on the kind of database."""
    async with open_desk(served, sqlite_url, tmp_path, catalogue, clock, polar_lookup=True) as opened:
        yield opened


async def cannot(desk: Desk, key: str, *, known: bool = False) -> Unavailable:
    with pytest.raises(Unavailable) as refused:
        await desk.keys.look_up(key, ORGANIZATION, known=known)
    assert refused.value.retry_after is not None
    return refused.value


async def test_a_key_that_no_event_told_of_is_found_at_polar_and_kept(desk: Desk) -> None:
    key = desk.issue(limit_activations=2, usage=3, expires_at="2027-11-01T00:00:00Z")
    device = desk.fake.activate(key, "laptop", conditions={"major": 1})
    shown = await desk.validate(key["key"], activation_id=device["id"])
    assert (shown["id"], shown["activation"]["label"], shown["usage"]) == (key["id"], "laptop", 3)
    row = await desk.row(key)
    assert (row["source"], row["resource"], row["given"]) == ("polar", f"polar:{key['id']}", True)
    assert (row["benefit"], row["customer_id"], row["read_at"]) == (BENEFIT, CUSTOMER, None)
    await desk.validate(key["key"])
    assert desk.fake.lines() == [VALIDATE, f"GET /v1/license-keys/{key['id']}"]


async def test_what_polars_events_say_later_holds_for_a_key_that_was_looked_up(desk: Desk, clock: Clock) -> None:
    key = desk.issue()
    await desk.validate(key["key"])
    clock.move(seconds=1)
    await desk.tell(desk.event(key, "revoked", granted=False, revoked=True))
    await desk.validate(key["key"], 404)
    assert len(desk.fake.log) == 2


async def test_a_key_that_is_told_of_and_not_read_yet_works_at_once(desk: Desk) -> None:
    key = await desk.told()
    await desk.validate(key["key"])
    assert (await desk.row(key))["read_at"] is not None
    assert await desk.keys.read_due() == 1
    assert (await desk.row(key))["read_at"] is None


async def test_a_key_that_is_revoked_here_is_not_revived_by_a_lookup(desk: Desk, clock: Clock) -> None:
    key = await desk.told()
    clock.move(seconds=1)
    await desk.tell(desk.event(key, "revoked", granted=False, revoked=True))
    assert await desk.keys.look_up(key["key"], ORGANIZATION)
    assert (await desk.row(key))["given"] is False
    await desk.validate(key["key"], 404)


async def test_a_key_that_polar_does_not_know_either_is_asked_for_once_a_day(desk: Desk, clock: Clock) -> None:
    for _ in range(3):
        await desk.validate("ACME-INVENTED", 404)
    assert desk.fake.lines() == [VALIDATE]
    clock.move(hours=23, minutes=59)
    await desk.validate("ACME-INVENTED", 404)
    assert len(desk.fake.log) == 1
    clock.move(minutes=2)
    await desk.validate("ACME-INVENTED", 404)
    assert len(desk.fake.log) == 2
    assert await desk.unknown() == 1
    clock.move(days=1, seconds=1)
    await desk.running.service.database.write(lambda connection: polar_keys.prune(connection, clock.at))
    assert await desk.unknown() == 0


@pytest.mark.parametrize(
    "wrong", [{"status": "disabled"}, {"status": "revoked"}, {"expires_at": "2026-10-31T00:00:00Z"}]
)
async def test_a_key_that_is_not_valid_at_polar_is_unknown_here(plain_desk: Desk, wrong: dict[str, Any]) -> None:
    key = plain_desk.issue(**wrong)
    await plain_desk.validate(key["key"], 404)
    await plain_desk.validate(key["key"], 404)
    assert plain_desk.fake.lines() == [VALIDATE]
    assert await plain_desk.row_or_none(key) is None


async def test_many_who_ask_for_one_key_at_once_ask_polar_once(desk: Desk) -> None:
    key = desk.issue()
    desk.fake.fail(VALIDATE, wait=0.2, acts=True)
    found = await asyncio.gather(*(desk.keys.look_up(key["key"], ORGANIZATION) for _ in range(20)))
    assert found == [True] * 20
    assert len(desk.fake.log) == 2


async def test_who_hangs_up_takes_the_answer_from_nobody_else(plain_desk: Desk) -> None:
    key = plain_desk.issue()
    plain_desk.fake.fail(VALIDATE, wait=0.3, acts=True)
    first = asyncio.create_task(plain_desk.keys.look_up(key["key"], ORGANIZATION))
    await plain_desk.asked()
    second = asyncio.create_task(plain_desk.keys.look_up(key["key"], ORGANIZATION))
    await asyncio.sleep(0)
    first.cancel()
    assert await second
    assert len(plain_desk.fake.log) == 2


async def test_two_processes_that_look_up_one_key_keep_it_once(desk: Desk) -> None:
    key = desk.issue()
    desk.fake.fail(VALIDATE, wait=0.1, acts=True, times=2)
    asked = [worker.look_up(key["key"], ORGANIZATION) for worker in (desk.keys, desk.another_worker())]
    assert await asyncio.gather(*asked) == [True, True]
    assert (await desk.validate(key["key"]))["id"] == key["id"]


async def test_while_polar_is_down_they_are_told_to_come_again_and_nothing_is_kept(
    desk: Desk, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    key = desk.issue()
    desk.fake.fail(status=503, times=2)
    answer = await desk.validate(key["key"], 503)
    assert answer["headers"]["retry-after"] == "6"
    for _ in range(5):
        await desk.validate(key["key"], 503)
        assert (await cannot(desk, "ACME-ANOTHER")).retry_after == 5
    assert len(desk.fake.log) == 1, "nobody waits in vain for a moment"
    assert await desk.unknown() == 0
    clock.move(seconds=5)
    await cannot(desk, key["key"])
    assert caplog.text.count("cannot be looked up at Polar") == 1
    clock.move(seconds=5)
    await desk.validate(key["key"])
    assert key["key"] not in caplog.text
    desk.fake.fail(status=503)
    clock.move(minutes=1)
    await cannot(desk, "ACME-ANOTHER")
    assert caplog.text.count("cannot be looked up at Polar") == 2


async def test_a_key_of_which_only_half_is_known_is_not_kept(plain_desk: Desk, clock: Clock) -> None:
    key = plain_desk.issue(limit_activations=1)
    plain_desk.fake.fail("GET .*", status=500)
    await cannot(plain_desk, key["key"])
    assert await plain_desk.row_or_none(key) is None
    clock.move(seconds=6)
    assert await plain_desk.keys.look_up(key["key"], ORGANIZATION)


async def test_a_token_that_may_not_validate_is_our_fault_and_not_the_customers(
    plain_desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    key = plain_desk.issue()
    plain_desk.fake.tokens[plain_desk.token] = ("license_keys:read",)
    assert "license_keys:write" in str(await cannot(plain_desk, key["key"]))
    assert "ALMONER_POLAR_ACCESS_TOKEN needs the scope license_keys:write" in caplog.text
    assert plain_desk.token not in caplog.text


async def test_whoever_invents_keys_leaves_polars_limit_to_the_others(plain_desk: Desk, clock: Clock) -> None:
    told = [await plain_desk.told() for _ in range(5)]
    for number in range(60):
        assert not await plain_desk.keys.look_up(f"ACME-{number}", ORGANIZATION)
    refused = await cannot(plain_desk, "ACME-60", known=True)
    assert refused.retry_after is not None
    assert refused.retry_after <= 60
    assert "polar-lookup" in str(refused)
    await cannot(plain_desk, "ACME-61", known=True)
    assert len(plain_desk.fake.log) == 60
    assert await plain_desk.keys.read_due() == 5
    for key in told:
        assert (await plain_desk.row(key))["digest"]
    assert not await plain_desk.keys.look_up("ACME-1", ORGANIZATION), "what is known to be unknown needs no call"
    clock.move(seconds=62)
    assert not await plain_desk.keys.look_up("ACME-61", ORGANIZATION)


@pytest.mark.parametrize(
    ("key", "organization"),
    [
        ("", ORGANIZATION),
        ("x" * 256, ORGANIZATION),
        ("ACME\x00", ORGANIZATION),
        ("ACME\u2028", ORGANIZATION),
        ("ACME-1", OTHER),
        ("ACME-1", "mine"),
    ],
)
async def test_what_can_be_no_key_of_ours_is_not_sent_to_polar(plain_desk: Desk, key: str, organization: str) -> None:
    assert not await plain_desk.keys.look_up(key, organization)
    assert plain_desk.fake.log == []


async def test_a_wrong_organization_does_not_make_a_key_unknown_for_the_right_one(
    served: tuple[FakePolar, str], sqlite_url: str, tmp_path: Path, catalogue: Catalogue, clock: Clock
) -> None:
    more: dict[str, Any] = {"polar_lookup": True, "polar_organization_id": ""}
    async with open_desk(served, sqlite_url, tmp_path, catalogue, clock, **more) as desk:
        key = desk.issue()
        assert not await desk.keys.look_up(key["key"], OTHER)
        assert await desk.keys.look_up(key["key"], ORGANIZATION)


async def test_nothing_is_looked_up_unless_it_is_switched_on(
    served: tuple[FakePolar, str], sqlite_url: str, tmp_path: Path, catalogue: Catalogue, clock: Clock
) -> None:
    async with open_desk(served, sqlite_url, tmp_path, catalogue, clock) as desk:
        key = desk.issue()
        await desk.validate(key["key"], 404)
        assert desk.fake.log == []


async def test_a_slow_polar_holds_nobody_up_for_ever(
    served: tuple[FakePolar, str], sqlite_url: str, tmp_path: Path, catalogue: Catalogue, clock: Clock
) -> None:
    more: dict[str, Any] = {"polar_lookup": True, "call_timeout": timedelta(seconds=0.3)}
    async with open_desk(served, sqlite_url, tmp_path, catalogue, clock, **more) as desk:
        desk.fake.fail(wait=2)
        assert "did not answer within 0.3 s" in str(await cannot(desk, desk.issue()["key"]))


async def test_a_lookup_that_is_on_its_way_does_not_hold_up_the_end(plain_desk: Desk) -> None:
    plain_desk.fake.fail(wait=1.5)
    asking = asyncio.create_task(plain_desk.keys.look_up("ACME-1", ORGANIZATION))
    await plain_desk.asked()
    await plain_desk.keys.close()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_strangers_shut_nobody_out_who_has_a_token(desk: Desk) -> None:
    """Each address may have ten unknown keys looked up a minute, and all of them together have a share of their own."""
    for number in range(10):
        await desk.validate(f"JUNK-{number}", 404)
    answer = await desk.validate("JUNK-10", 429)
    assert answer["headers"]["retry-after"] == "60"
    for number in range(11, 40):
        with suppress(Unavailable):
            await desk.keys.look_up(f"JUNK-{number}", ORGANIZATION, known=False)
    await cannot(desk, "JUNK-40")
    key = desk.issue()
    body = {"key": key["key"], "organization_id": ORGANIZATION}
    headers = {"authorization": "Bearer app-token-1"}
    for path in ("/v1/license-keys/validate", "/v1/customer-portal/license-keys/validate"):
        assert (await desk.running.client.post(path, json=body, headers=headers)).status_code == 200
