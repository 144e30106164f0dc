"""Keys that Polar issued keep working here: read when events tell of them, revoked at once, never lost by a failure."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from config.catalogue import Catalogue
from connectors.base import ActionRequired, Rejected, Unavailable
from tests.conftest import Clock, settings_for
from tests.fakes.polar import FakePolar
from tests.fakes.serving import serving
from tests.worker.keys_at_polar import BENEFIT, CUSTOMER, MEMBER, ORDER, Desk, open_desk
from worker.polar import NotFound
from worker.polar_keys import PolarKeys, after
from worker.store import grants, licenses
from worker.store.database import Database
from worker.store.polar_keys import NO_TOKEN, SameKey


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[FakePolar, str]]:
    fake = FakePolar()
    with serving(fake) as url:
        yield fake, url


@pytest.fixture
async def desk(
    served: tuple[FakePolar, str], database_url: str, tmp_path: Path, catalogue: Catalogue, clock: Clock
) -> AsyncIterator[Desk]:
    """On each kind of database in turn."""
    async with open_desk(served, database_url, tmp_path, catalogue, clock) as opened:
        yield opened


@pytest.fixture
async def plain_desk(
    served: tuple[FakePolar, str], sqlite_url: str, tmp_path: Path, catalogue: Catalogue, clock: Clock
) -> AsyncIterator[Desk]:
    """On SQLite, for what does not depend on the kind of database."""
    async with open_desk(served, sqlite_url, tmp_path, catalogue, clock) as opened:
        yield opened


# Reading.


async def test_a_key_that_an_event_tells_of_is_read_and_works_here(desk: Desk) -> None:
    key = await desk.told(limit_usage=10, usage=4, validations=7, expires_at="2027-11-01T00:00:00Z")
    row = await desk.row(key)
    assert (row["digest"], row["key"], row["given"]) == (None, None, True)
    await desk.validate(key["key"], 404)
    assert await desk.keys.read_due() == 1
    row = await desk.row(key)
    assert (row["source"], row["resource"], row["benefit"]) == ("polar", f"polar:{key['id']}", BENEFIT)
    assert (row["customer_id"], row["member_id"], row["purchase"]) == (CUSTOMER, MEMBER, ORDER)
    assert (row["digest"], row["key"]) == (licenses.digest_of(key["key"]), key["key"])
    assert (row["limit_usage"], row["usage"], row["validations"]) == (10, 4, 7)
    assert (row["read_at"], row["read_attempts"], row["problem"]) == (None, 0, None)
    shown = await desk.validate(key["key"])
    assert (shown["id"], shown["benefit_id"], shown["status"]) == (key["id"], BENEFIT, "granted")
    assert await desk.keys.read_due() == 0
    assert desk.reads() == 1


async def test_a_key_that_was_revoked_before_it_was_read_is_never_asked_for(desk: Desk, clock: Clock) -> None:
    key = await desk.told()
    clock.move(seconds=1)
    await desk.tell(desk.event(key, "revoked", granted=False, revoked=True))
    assert await desk.keys.read_due() == 0
    row = await desk.row(key)
    assert (row["given"], row["read_at"], desk.reads()) == (False, None, 0)


async def test_a_revocation_counts_at_once_also_while_polar_is_down(desk: Desk, clock: Clock) -> None:
    key = await desk.had()
    clock.move(seconds=1)
    desk.fake.fail(status=503, times=100)
    await desk.tell(desk.event(key, "revoked", granted=False, revoked=True))
    assert (await desk.validate(key["key"], 404))["detail"] == "License key is no longer active"
    assert desk.reads() == 1


async def test_granted_again_it_works_at_once_and_is_read_again(desk: Desk, clock: Clock) -> None:
    key = await desk.had()
    clock.move(seconds=1)
    await desk.tell(desk.event(key, "revoked", granted=False, revoked=True))
    clock.move(seconds=1)
    await desk.tell(desk.event(key))
    await desk.validate(key["key"])
    desk.fake.change(key, limit_usage=5)
    assert await desk.keys.read_due() == 1
    assert (await desk.row(key))["limit_usage"] == 5


async def test_a_revocation_while_the_key_is_being_read_stays(desk: Desk, clock: Clock) -> None:
    key = await desk.told()
    clock.move(seconds=1)
    desk.fake.fail(wait=0.5)
    reading = asyncio.create_task(desk.keys.read_due())
    await desk.asked()
    await desk.tell(desk.event(key, "revoked", granted=False, revoked=True))
    assert await reading == 1
    row = await desk.row(key)
    assert (row["given"], row["read_at"]) == (False, None)
    await desk.validate(key["key"], 404)


async def test_what_is_told_while_the_key_is_being_read_has_it_read_again(desk: Desk, clock: Clock) -> None:
    key = await desk.told()
    clock.move(seconds=1)
    desk.fake.fail(wait=0.5, acts=True)
    reading = asyncio.create_task(desk.keys.read_due())
    await desk.asked()
    await desk.tell(desk.event(key, "updated"))
    await reading
    assert (await desk.row(key))["digest"] is None, "what was read may be old"
    assert await desk.keys.read_due() == 1
    assert (await desk.row(key))["digest"] == licenses.digest_of(key["key"])


async def test_a_rotated_key_replaces_the_string_and_keeps_the_rest(desk: Desk, clock: Clock) -> None:
    key = await desk.had()
    old = key["key"]
    clock.move(seconds=1)
    desk.fake.change(key, key="ACME-NEW-STRING")
    await desk.tell(desk.event(key, "updated"))
    await desk.validate(old)  # until the new one is known
    assert (await desk.row(key))["display_key"] == f"****-{old[-6:]}"
    assert await desk.keys.read_due() == 1
    await desk.validate(old, 404)
    assert (await desk.validate("ACME-NEW-STRING"))["id"] == key["id"]
    assert (await desk.row(key))["display_key"] == "****-STRING"


async def test_an_event_that_comes_twice_has_nothing_read_twice(desk: Desk) -> None:
    key = desk.issue()
    event = desk.event(key)
    await desk.tell(event)
    await desk.keys.read_due()
    await desk.tell(desk.state(key), desk.state(key))
    answer = await desk.running.post(event)
    assert answer.json()["status"] == "duplicate"
    await desk.keys.read_due()
    await desk.running.service.pipeline.refresh([CUSTOMER])
    assert await desk.keys.read_due() == 0


async def test_a_disabled_key_stays_disabled_however_the_grant_comes_and_goes(desk: Desk, clock: Clock) -> None:
    key = await desk.had(status="disabled")
    for _ in range(2):
        clock.move(seconds=1)
        await desk.tell(desk.event(key, "revoked", granted=False, revoked=True))
        clock.move(seconds=1)
        await desk.tell(desk.event(key))
    row = await desk.row(key)
    assert (row["given"], row["status"]) == (True, "disabled")
    await desk.validate(key["key"], 404)
    desk.fake.change(key, status="granted")
    await desk.keys.read_due()
    await desk.validate(key["key"])


async def test_a_key_that_polar_calls_revoked_is_so_until_it_is_granted_again(desk: Desk, clock: Clock) -> None:
    key = await desk.had(status="revoked")
    await desk.validate(key["key"], 404)
    clock.move(seconds=1)
    await desk.tell(desk.event(key, "cycled"))
    await desk.validate(key["key"], 404)
    desk.fake.change(key, status="granted")
    await desk.keys.read_due()
    await desk.validate(key["key"])
    await desk.tell(desk.event(key, "revoked", granted=False, revoked=True))
    clock.move(seconds=1)
    await desk.tell(desk.event(key))
    await desk.validate(key["key"])


async def test_events_in_any_order_come_to_the_same(plain_desk: Desk, clock: Clock) -> None:
    verbs = [("created", True, False), ("updated", True, False), ("revoked", False, True), ("created", True, False)]
    for ends_granted, told in ((False, verbs[:3]), (True, verbs)):
        for order in itertools.permutations(range(len(told))):
            key = plain_desk.issue()
            events = []
            for verb, granted, revoked in told:
                clock.move(seconds=1)
                events.append(plain_desk.event(key, verb, granted=granted, revoked=revoked))
            await plain_desk.tell(*(events[number] for number in order))
            row = await plain_desk.row(key)
            assert row["given"] is ends_granted, order
            assert (row["read_at"] is not None) is ends_granted, order


async def test_a_grant_that_waits_for_somebody_gives_no_key(plain_desk: Desk) -> None:
    key = plain_desk.issue()
    await plain_desk.tell(plain_desk.event(key, granted=False))
    assert (await plain_desk.row(key))["given"] is False


async def test_a_snapshot_alone_tells_of_keys_and_takes_them_back(desk: Desk, clock: Clock) -> None:
    key = desk.issue()
    await desk.tell(desk.state(key))
    await desk.keys.read_due()
    row = await desk.row(key)
    assert (row["given"], row["purchase"], row["member_id"]) == (True, None, None)
    await desk.validate(key["key"])
    clock.move(seconds=1)
    await desk.tell(desk.event(key))
    assert (await desk.row(key))["purchase"] == ORDER
    clock.move(seconds=1)
    await desk.tell(desk.state(key))
    assert (await desk.row(key))["purchase"] == ORDER
    clock.move(seconds=1)
    await desk.tell(desk.state())
    await desk.validate(key["key"], 404)


async def test_a_key_known_only_from_a_snapshot_is_gone_with_the_next(plain_desk: Desk, clock: Clock) -> None:
    key = plain_desk.issue()
    await plain_desk.tell(plain_desk.state(key))
    clock.move(seconds=1)
    await plain_desk.tell(plain_desk.state())
    assert (await plain_desk.row(key))["given"] is False


async def test_the_keys_of_a_deleted_customer_are_revoked(plain_desk: Desk, clock: Clock) -> None:
    key = await plain_desk.had()
    clock.move(seconds=1)
    at = clock.at.isoformat()
    gone = {"id": CUSTOMER, "created_at": at, "modified_at": at, "deleted_at": at}
    await plain_desk.tell(plain_desk.signed("customer.deleted", gone, CUSTOMER))
    await plain_desk.validate(key["key"], 404)


# What was used here.


async def test_uses_and_validations_that_were_counted_here_are_not_lost(desk: Desk, clock: Clock) -> None:
    key = await desk.had(limit_usage=10, usage=2, validations=3)
    await desk.validate(key["key"], increment_usage=5)
    clock.move(seconds=1)
    desk.fake.change(key, limit_usage=20, validations=100)
    await desk.tell(desk.event(key, "updated"))
    await desk.keys.read_due()
    row = await desk.row(key)
    assert (row["limit_usage"], row["usage"], row["validations"]) == (20, 7, 100)
    assert row["last_validated_at"] == clock.at - timedelta(seconds=1)
    clock.move(seconds=1)
    desk.fake.change(key, usage=15)
    await desk.tell(desk.event(key, "updated"))
    await desk.keys.read_due()
    assert (await desk.row(key))["usage"] == 15


async def test_devices_come_and_go_with_polars_and_those_that_were_added_here_stay(desk: Desk, clock: Clock) -> None:
    key = desk.issue(limit_activations=5)
    first, second = desk.fake.activate(key, "first", meta={"os": "linux"}), desk.fake.activate(key, "second")
    await desk.tell(desk.event(key))
    await desk.keys.read_due()
    assert sorted(await desk.devices(key)) == sorted([first["id"], second["id"]])
    shown = await desk.validate(key["key"], activation_id=first["id"], conditions={"what": "ever"})
    assert (shown["activation"]["label"], shown["activation"]["meta"]) == ("first", {"os": "linux"})

    base = "/v1/customer-portal/license-keys"
    body = {"key": key["key"], "organization_id": key["organization_id"]}
    made = await desk.running.client.post(f"{base}/activate", json=body | {"label": "here"})
    here = made.json()["id"]
    ended = await desk.running.client.post(f"{base}/deactivate", json=body | {"activation_id": second["id"]})
    assert ended.status_code == 204
    clock.move(seconds=1)
    third = desk.fake.activate(key, "third")
    first["label"] = "renamed"
    await desk.tell(desk.event(key, "updated"))
    await desk.keys.read_due()
    assert sorted(await desk.devices(key)) == sorted([first["id"], here, third["id"]]), "ended here is ended"
    assert (await desk.validate(key["key"], activation_id=first["id"]))["activation"]["label"] == "renamed"

    clock.move(seconds=1)
    key["activations"].clear()
    await desk.tell(desk.event(key, "updated"))
    await desk.keys.read_due()
    assert await desk.devices(key) == [here]


# Failures.


async def test_a_failure_is_told_once_retried_later_and_forgotten_when_it_is_over(
    desk: Desk, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    key = await desk.told()
    desk.fake.fail(status=502, times=2)
    for attempt in (1, 2):
        assert await desk.keys.read_due() == 1
        row = await desk.row(key)
        assert (row["read_attempts"], row["problem"]) == (attempt, "Polar answers 502")
        assert clock.at < row["read_at"] <= clock.at + timedelta(seconds=4)
        assert await desk.keys.read_due() == 0
        clock.at = row["read_at"]
    assert caplog.text.count("could not be read there") == 1
    assert f"customer='{CUSTOMER}'" in caplog.text
    assert f"license_key_id='{key['id']}'" in caplog.text
    assert await desk.keys.read_due() == 1
    row = await desk.row(key)
    assert (row["read_at"], row["read_attempts"], row["problem"]) == (None, 0, None)
    await desk.validate(key["key"])
    assert key["key"] not in caplog.text
    assert desk.token not in caplog.text


async def test_being_asked_to_wait_uses_up_no_attempt_and_is_obeyed(desk: Desk, clock: Clock) -> None:
    keys = [await desk.told() for _ in range(3)]
    desk.fake.fail(status=429, headers={"retry-after": "20"}, times=3)
    assert await desk.keys.read_due() == 3
    row = await desk.row(keys[0])
    assert (row["read_attempts"], row["read_at"]) == (0, clock.at + timedelta(seconds=20))
    clock.move(seconds=19)
    assert await desk.keys.read_due() == 0
    clock.move(seconds=2)
    desk.fake.faults.clear()
    assert await desk.keys.read_due() == 3
    for key in keys:
        assert (await desk.row(key))["digest"]


@pytest.mark.slow
async def test_more_keys_than_polar_allows_calls_all_get_their_turn(plain_desk: Desk, clock: Clock) -> None:
    plain_desk.fake.limit = 500
    keys = [plain_desk.issue() for _ in range(450)]
    for start in range(0, len(keys), 50):
        await plain_desk.tell(*(plain_desk.event(key) for key in keys[start : start + 50]))
    for _ in range(3):
        while await plain_desk.keys.read_due(50):
            pass
        clock.move(seconds=62)
    table = licenses.license_keys
    count = table.select().where(table.c.digest.is_(None))
    left = await plain_desk.running.service.database.read(lambda connection: connection.execute(count).all())
    assert left == []
    assert plain_desk.fake.counts() == {200: 450}, "Polar had to refuse none"


@pytest.mark.parametrize(("scopes", "said"), [(("products:read",), "needs the scope license_keys:read"), ((), "401")])
async def test_a_token_that_may_not_is_named_and_tried_again(
    plain_desk: Desk, clock: Clock, caplog: pytest.LogCaptureFixture, scopes: tuple[str, ...], said: str
) -> None:
    key = await plain_desk.told()
    plain_desk.fake.tokens = {plain_desk.token: scopes} if scopes else {}
    await plain_desk.keys.read_due()
    row = await plain_desk.row(key)
    assert said in row["problem"]
    assert row["read_at"] == clock.at + plain_desk.running.service.settings.recheck_every
    assert "ALMONER_POLAR_ACCESS_TOKEN" in caplog.text
    plain_desk.fake.tokens = {plain_desk.token: ("license_keys:read",)}
    clock.move(minutes=10)
    assert await plain_desk.keys.read_due() == 1
    await plain_desk.validate(key["key"])


async def test_a_key_that_polar_does_not_have_is_asked_for_once_more_by_the_next_worker(desk: Desk) -> None:
    key = await desk.told()
    gone = desk.fake.keys.pop(key["id"])
    await desk.keys.read_due()
    row = await desk.row(key)
    assert row["read_at"] is None
    assert "no such object" in row["problem"]
    assert await desk.keys.read_due() == 0
    desk.fake.keys[key["id"]] = gone  # the token was of another organization
    await run_for_a_while(desk, lambda row: row["digest"] is not None, key)
    await desk.validate(key["key"])


async def test_a_key_with_the_string_of_another_is_a_problem_and_not_a_crash(desk: Desk) -> None:
    key = await desk.told()
    await desk.own(key["key"])
    assert await desk.keys.read_due() == 1
    row = await desk.row(key)
    assert (row["digest"], row["read_at"]) == (None, None)
    assert "has the same string" in row["problem"]


async def test_an_answer_that_is_no_key_is_asked_for_again(plain_desk: Desk, clock: Clock) -> None:
    key = await plain_desk.told()
    plain_desk.fake.fail(status=200, body=b'{"id": "x", "status": "strange"}')
    await plain_desk.keys.read_due()
    assert (await plain_desk.row(key))["problem"] == "Polar's answer cannot be read"
    clock.move(seconds=5)
    await plain_desk.keys.read_due()
    await plain_desk.validate(key["key"])


def test_what_follows_a_failure_is_named_by_its_kind(tmp_path: Path, clock: Clock) -> None:
    settings = settings_for("", tmp_path)
    cases: list[tuple[Exception, timedelta | None, int]] = [
        (NotFound("x"), None, 4),
        (SameKey("k"), None, 4),
        (Unavailable("x", retry_after=30), timedelta(seconds=30), 3),
        (Unavailable("x", retry_after=0), timedelta(seconds=1), 3),
        (ActionRequired("x", who="merchant"), settings.recheck_every, 4),
    ]
    for error, wait, attempts in cases:
        found = after(error, 3, settings, clock.at)
        assert (found.at, found.attempts) == (None if wait is None else clock.at + wait, attempts), error
    for error in (Unavailable("x"), Rejected("x")):
        found = after(error, 3, settings, clock.at)
        assert found.at is not None
        assert timedelta(seconds=8) <= found.at - clock.at <= timedelta(seconds=16)
        assert found.attempts == 4
    assert after(Rejected("x"), 10_000, settings, clock.at).at is not None, "it is never given up"


# Several workers, and a worker's life.


async def test_two_workers_at_once_read_each_key_once(desk: Desk) -> None:
    keys = [await desk.told() for _ in range(6)]
    counts = await asyncio.gather(desk.keys.read_due(4), desk.another_worker().read_due(4))
    assert sum(counts) <= 6
    while await desk.keys.read_due():
        pass
    assert desk.reads() == 6
    for key in keys:
        assert (await desk.row(key))["digest"]


async def test_what_a_dead_worker_had_begun_is_read_by_another_in_a_while(desk: Desk, clock: Clock) -> None:
    key = await desk.told()
    desk.fake.fail(wait=5)
    dies = asyncio.create_task(desk.keys.read_due())
    await desk.asked()
    dies.cancel()
    await asyncio.gather(dies, return_exceptions=True)
    assert await desk.another_worker().read_due() == 0
    clock.move(minutes=1)
    assert await desk.another_worker().read_due() == 1
    assert (await desk.row(key))["digest"]


async def run_for_a_while(desk: Desk, until: Any, key: dict[str, Any]) -> None:
    """Let a worker start, and run until the key's row is as it should be."""
    stopping = asyncio.Event()
    worker = asyncio.create_task(desk.another_worker().read_for_ever(stopping))
    async with asyncio.timeout(10):
        while not until(await desk.row(key)):  # noqa: ASYNC110 - the database tells nobody
            await asyncio.sleep(0.02)
    stopping.set()
    await worker


async def test_a_worker_reads_by_itself_and_stops_when_told(plain_desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    key = await plain_desk.told()
    await run_for_a_while(plain_desk, lambda row: row["digest"] is not None, key)
    assert "it goes on" not in caplog.text


async def test_a_worker_survives_a_database_that_fails(plain_desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    service, stopping = plain_desk.running.service, asyncio.Event()
    closed = Database(service.database.url)
    await closed.close()
    worker = asyncio.create_task(
        PolarKeys(closed, service.polar, service.settings, plain_desk.running.clock).read_for_ever(stopping)
    )
    await asyncio.sleep(0.05)
    assert not worker.done()
    assert "it goes on" in caplog.text
    stopping.set()
    await worker


async def test_without_a_token_nothing_is_asked_and_with_one_later_all_is_read(
    served: tuple[FakePolar, str], database_url: str, tmp_path: Path, catalogue: Catalogue, clock: Clock
) -> None:
    async with open_desk(served, database_url, tmp_path, catalogue, clock, polar_access_token="") as desk:
        key = await desk.told()
        assert (await desk.row(key))["read_at"] is None
        assert (await desk.row(key))["problem"] == NO_TOKEN
        assert await desk.keys.read_due() == 0
        assert not await desk.keys.look_up(key["key"], key["organization_id"])
        await desk.keys.read_for_ever(asyncio.Event())  # returns at once
        assert desk.fake.log == []
        clock.move(seconds=1)
        await desk.tell(desk.event(key, "revoked", granted=False, revoked=True))
        assert (await desk.row(key))["given"] is False
        clock.move(seconds=1)
        await desk.tell(desk.event(key))
    async with open_desk(served, database_url, tmp_path, catalogue, clock) as desk:
        desk.fake.keys[key["id"]] = key
        await run_for_a_while(desk, lambda row: row["digest"] is not None, key)
        await desk.validate(key["key"])


async def test_an_audit_has_nothing_to_say_of_keys_that_polar_issued(plain_desk: Desk) -> None:
    await plain_desk.had()
    look = plain_desk.running.service.database.read
    assert await look(lambda connection: grants.left_open(connection, "keys", after="", limit=10)) == []


async def test_no_key_and_no_token_is_ever_logged(plain_desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key = await plain_desk.had()
    plain_desk.fake.fail(status=422, body=b'{"detail":[{"input":"' + key["key"].encode() + b'"}]}')
    await plain_desk.tell(plain_desk.event(key, "updated"))
    await plain_desk.keys.read_due()
    assert key["key"] not in caplog.text
    assert plain_desk.token not in caplog.text
