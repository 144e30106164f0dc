"""What becomes of a grant when its platform says no, not yet, or nothing: by a connector that does as it is told."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from config.catalogue import BenefitConfig, Per, parse_catalogue
from config.settings import Settings
from connectors import TERMS
from connectors.base import (
    ActionRequired,
    ConnectorError,
    Holding,
    Receipt,
    Recipient,
    Rejected,
    Serving,
    Unavailable,
)
from connectors.custom_link import Terms
from tests.conftest import PRODUCT, SECOND_PRODUCT, Clock, Running, run_service
from worker import metrics
from worker.store import grants, inbox, licenses

ROOM = f"""
[benefits.room]
connector = "custom_link"
for = {{ products = ["{PRODUCT}"] }}
url = "https://example.com/room"

[benefits.lounge]
connector = "custom_link"
for = {{ products = ["{PRODUCT}", "{SECOND_PRODUCT}"] }}
url = "https://example.com/room"
"""


@dataclass
class Platform(Serving):
    """A platform outside: who is in which room. What it is told to fail with, it raises once for each in `fails`."""

    Config: ClassVar[type[BenefitConfig]] = Terms
    per: ClassVar[Per] = "customer"
    dynamic: ClassVar[bool] = False

    inside: set[str] = field(default_factory=set)
    fails: list[Exception] = field(default_factory=list)
    forgets: bool = False
    """Says that it gave or took, and did not."""
    pending: bool = False
    calls: list[tuple[str, str]] = field(default_factory=list)
    before: Callable[[], Any] | None = None

    @staticmethod
    def missing(config: Any, settings: Settings) -> list[str]:
        return []

    def resource(self, to: Recipient, config: Any) -> str:
        return f"room:{config.url}:{to.customer_id}"

    async def grant(self, to: Recipient, config: Any, held: Receipt | None) -> Receipt:
        assert held is None or not held.intended
        resource = self.resource(to, config)
        await self._called("grant", resource)
        if not self.forgets:
            self.inside.add(resource)
        return Receipt(resource, {"url": config.url})

    async def revoke(self, held: Receipt, *, last: bool = True) -> None:
        await self._called("revoke", held.resource)
        if not self.forgets:
            self.inside.discard(held.resource)

    async def holds(self, held: Receipt) -> Holding:
        if held.resource not in self.inside:
            return Holding.GONE
        return Holding.PENDING if self.pending else Holding.HELD

    def offer(self, held: Receipt) -> dict[str, Any]:
        return {"kind": "link", **held.data}

    @staticmethod
    def present(offer: dict[str, Any], grant_id: str, at: Any) -> dict[str, Any]:
        return offer

    async def _called(self, what: str, resource: str) -> None:
        self.calls.append((what, resource))
        if self.before:
            await self.before()
        if self.fails:
            raise self.fails.pop(0)


@dataclass
class Shop:
    running: Running
    platform: Platform

    async def grants(self) -> dict[str, dict[str, Any]]:
        rows = await self.running.service.database.read(
            lambda connection: grants.listed(connection, {}, limit=100)
        )  # fmt: skip
        return {row["benefit"]: row for row in rows}

    async def drain(self) -> None:
        await self.running.service.pipeline.drain()

    async def later(self, **by: float) -> None:
        self.running.clock.move(**by)
        await self.drain()


async def open_shop(database_url: str, folder: Path, clock: Clock, text: str, **more: Any) -> AsyncIterator[Shop]:
    catalogue = parse_catalogue(text, TERMS, timedelta())
    async with run_service(database_url, folder, catalogue, clock, **more) as running:
        platform = Platform()
        running.service.pipeline.connectors = dict(running.service.pipeline.connectors) | {"custom_link": platform}
        yield Shop(running, platform)


@pytest.fixture
async def shop(database_url: str, tmp_path: Path, clock: Clock) -> AsyncIterator[Shop]:
    async for one in open_shop(database_url, tmp_path, clock, ROOM.split("[benefits.lounge]")[0], max_attempts=4):
        yield one


@pytest.fixture
async def two_doors(database_url: str, tmp_path: Path, clock: Clock) -> AsyncIterator[Shop]:
    async for one in open_shop(database_url, tmp_path, clock, ROOM):
        yield one


async def test_unavailable_is_tried_again_later_and_in_the_end_succeeds(shop: Shop) -> None:
    shop.platform.fails = [Unavailable("HTTP 502"), Unavailable("HTTP 503")]
    await shop.running.live("purchase")
    row = (await shop.grants())["room"]
    assert (row["status"], row["attempts"], row["reason"]) == ("granting", 1, "HTTP 502")
    assert timedelta(seconds=1) <= row["next_attempt_at"] - shop.running.clock.at <= timedelta(seconds=2)
    await shop.drain()
    assert len(shop.platform.calls) == 1, "not before its time"
    await shop.later(seconds=2)
    row = (await shop.grants())["room"]
    assert (row["attempts"], row["reason"]) == (2, "HTTP 503")
    assert timedelta(seconds=2) <= row["next_attempt_at"] - shop.running.clock.at <= timedelta(seconds=4)
    await shop.later(seconds=4)
    row = (await shop.grants())["room"]
    assert (row["status"], row["attempts"], row["reason"], row["next_attempt_at"]) == ("granted", 0, None, None)


async def test_being_asked_to_wait_uses_up_no_attempt(shop: Shop) -> None:
    shop.platform.fails = [Unavailable("rate limit", retry_after=90) for _ in range(6)]
    await shop.running.live("purchase")
    for _ in range(6):
        row = (await shop.grants())["room"]
        assert (row["attempts"], row["status"]) == (0, "granting")
        assert row["next_attempt_at"] == shop.running.clock.at + timedelta(seconds=90)
        await shop.later(seconds=90)
    assert (await shop.grants())["room"]["status"] == "granted"


async def test_after_the_last_attempt_a_person_must_look_and_can_have_it_tried_again(shop: Shop) -> None:
    shop.platform.fails = [Unavailable("HTTP 500") for _ in range(4)]
    customer = await shop.running.live("purchase")
    for _ in range(3):
        await shop.later(hours=1)
    row = (await shop.grants())["room"]
    assert (row["status"], row["who"], row["attempts"], row["next_attempt_at"]) == ("failed", "operator", 4, None)
    answer = await shop.running.answer(customer, "room")
    assert (answer["entitled"], answer["status"]) == (True, "failed")
    assert answer["problem"] == {"who": "operator", "message": "HTTP 500"}
    await shop.later(days=1)
    assert len(shop.platform.calls) == 4
    database, now = shop.running.service.database, shop.running.clock.at
    assert await database.write(lambda connection: grants.retry(connection, [row["id"]], now)) == 1
    await shop.drain()
    assert (await shop.grants())["room"]["status"] == "granted"


async def test_what_the_customer_must_do_is_said_and_looked_at_again_without_end(shop: Shop) -> None:
    shop.platform.fails = [ActionRequired("link your account", who="customer") for _ in range(20)]
    customer = await shop.running.live("purchase")
    answer = await shop.running.answer(customer, "room")
    assert (answer["status"], answer["problem"]) == (
        "action_required", {"who": "customer", "message": "link your account"}
    )  # fmt: skip
    for _ in range(20):
        assert (await shop.grants())["room"]["status"] == "action_required"
        await shop.later(minutes=10)
    assert (await shop.grants())["room"]["status"] == "granted"


async def test_rejected_is_not_tried_again(shop: Shop) -> None:
    shop.platform.fails = [Rejected("this account is banned")]
    await shop.running.live("purchase")
    row = (await shop.grants())["room"]
    assert (row["status"], row["who"], row["reason"]) == ("failed", "operator", "this account is banned")
    await shop.later(days=30)
    assert len(shop.platform.calls) == 1


@pytest.mark.parametrize(
    "error",
    [Unavailable("HTTP 500"), Rejected("403: not allowed"), ActionRequired("no right", who="merchant"),
     ValueError("a bug of ours")],
)  # fmt: skip
async def test_a_refused_revocation_is_never_recorded_as_done(shop: Shop, error: Exception) -> None:
    """polarsource/polar: the record said revoked while the role stayed (peers.md 0 a)."""
    events = shop.running.story("refund")
    paid = next(number for number, event in enumerate(events) if event.type == "refund.created")
    await shop.running.receive(events[:paid])
    assert shop.platform.inside
    shop.platform.fails = [error for _ in range(10)]
    await shop.running.receive(events[paid:])
    customer = events[0].external_id
    for _ in range(9):
        row = (await shop.grants())["room"]
        assert row["status"] == "revoking"
        assert row["reason"]
        assert row["next_attempt_at"]
        assert (await shop.running.answer(customer, "room"))["entitled"] is False
        await shop.later(hours=1)
    assert shop.platform.inside
    await shop.later(hours=1)
    assert (await shop.grants())["room"]["status"] == "revoked"
    assert not shop.platform.inside


async def test_what_cannot_be_read_back_does_not_count_as_given_or_as_taken(shop: Shop) -> None:
    shop.platform.forgets = True
    events = shop.running.story("refund")
    paid = next(number for number, event in enumerate(events) if event.type == "refund.created")
    await shop.running.receive(events[:paid])
    row = (await shop.grants())["room"]
    assert (row["status"], row["reason"]) == ("granting", "it was given, but is not there when read back")
    shop.platform.forgets = False
    await shop.later(seconds=2)
    assert (await shop.grants())["room"]["status"] == "granted"
    shop.platform.forgets = True
    await shop.running.receive(events[paid:])
    row = (await shop.grants())["room"]
    assert (row["status"], row["reason"]) == ("revoking", "it was taken back, but is still there when read back")
    shop.platform.forgets = False
    await shop.later(seconds=2)
    assert (await shop.grants())["room"]["status"] == "revoked"


async def test_a_call_that_does_not_end_is_given_up_and_tried_again(
    sqlite_url: str, tmp_path: Path, clock: Clock
) -> None:
    text = ROOM.split("[benefits.lounge]")[0]
    async for shop in open_shop(sqlite_url, tmp_path, clock, text, call_timeout=timedelta(milliseconds=20)):
        shop.platform.before = lambda: asyncio.sleep(5)
        await shop.running.live("purchase")
        row = (await shop.grants())["room"]
        assert (row["status"], row["reason"]) == ("granting", "no answer within 0.02 s")
        shop.platform.before = None
        await shop.later(seconds=2)
        assert (await shop.grants())["room"]["status"] == "granted"


async def test_given_but_not_yet_accepted_is_pending_and_looked_at_again(shop: Shop) -> None:
    shop.platform.pending = True
    customer = await shop.running.live("purchase")
    answer = await shop.running.answer(customer, "room")
    assert (answer["entitled"], answer["status"]) == (True, "pending")
    shop.platform.pending = False
    await shop.later(minutes=10)
    assert (await shop.running.answer(customer, "room"))["status"] == "granted"


async def test_two_benefits_that_open_the_same_door_close_it_when_the_last_one_ends(two_doors: Shop) -> None:
    """Polar counts by benefit, so that two of them take the same thing from each other (peers.md 0 b)."""
    for event in two_doors.running.story("upgrade"):
        await two_doors.running.receive([event])
    rows = await two_doors.grants()
    assert (rows["room"]["status"], rows["lounge"]["status"]) == ("revoked", "granted")
    assert [what for what, _ in two_doors.platform.calls if what == "revoke"] == []
    assert len(two_doors.platform.inside) == 1


async def test_a_shared_door_is_closed_when_both_end_together(two_doors: Shop) -> None:
    for event in two_doors.running.story("refund"):
        await two_doors.running.receive([event])
    rows = await two_doors.grants()
    assert {row["status"] for row in rows.values()} == {"revoked"}
    assert not two_doors.platform.inside


async def test_a_changed_address_moves_the_grant_the_old_goes_by_its_receipt(shop: Shop) -> None:
    await shop.running.live("purchase")
    [old] = shop.platform.inside
    moved = ROOM.split("[benefits.lounge]")[0].replace("/room", "/hall")
    pipeline = shop.running.service.pipeline
    assert await pipeline.propose(parse_catalogue(moved, TERMS, timedelta())) is None
    await shop.drain()
    [new] = shop.platform.inside
    assert "/hall" in new
    assert ("revoke", old) in shop.platform.calls
    row = (await shop.grants())["room"]
    assert (row["status"], row["held"]) == ("granted", new)


async def test_a_will_that_changes_while_the_platform_is_asked_is_settled_again(shop: Shop) -> None:
    events = shop.running.story("refund")
    paid = next(number for number, event in enumerate(events) if event.type == "refund.created")
    rest = events[paid:]
    pipeline = shop.running.service.pipeline

    async def meanwhile() -> None:
        shop.platform.before = None
        for event in rest:
            assert (await shop.running.post(event)).status_code == 202
        found = await shop.running.service.database.read(
            lambda connection: inbox.due(
                connection, shop.running.clock.at, untouched_since=shop.running.clock.at, limit=100
            )
        )
        await pipeline.process(found)

    shop.platform.before = meanwhile
    await shop.running.receive(events[:paid])
    assert (await shop.grants())["room"]["status"] == "revoked"
    assert not shop.platform.inside
    assert [what for what, _ in shop.platform.calls] == ["grant", "revoke"]


async def test_dying_between_the_act_and_its_note_leaves_nothing_that_cannot_be_taken_back(shop: Shop) -> None:
    """The intended receipt is written first: the access goes even though nobody ever noted that it was given."""
    events = shop.running.story("refund")
    paid = next(number for number, event in enumerate(events) if event.type == "refund.created")
    pipeline = shop.running.service.pipeline

    async def die() -> None:
        shop.platform.before = None
        shop.platform.inside.add(shop.platform.calls[-1][1])
        raise asyncio.CancelledError

    shop.platform.before = die
    for event in events[:paid]:
        await shop.running.post(event)
    with pytest.raises(asyncio.CancelledError):
        await pipeline.drain()
    row = (await shop.grants())["room"]
    assert row["status"] == "granting"
    assert row["held"] in shop.platform.inside
    for event in events[paid:]:
        await shop.running.post(event)
    await shop.later(seconds=30)  # the dead worker's lease runs out
    assert not shop.platform.inside
    assert (await shop.grants())["room"]["status"] == "revoked"


async def test_a_bug_in_a_connector_is_logged_and_tried_again(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    shop.platform.fails = [KeyError("whatever")]
    await shop.running.live("purchase")
    row = (await shop.grants())["room"]
    assert (row["status"], row["reason"]) == ("granting", "our connector failed: KeyError")
    await shop.later(seconds=2)
    assert (await shop.grants())["room"]["status"] == "granted"


async def test_a_connector_that_cannot_even_name_its_resource_says_who_must_act(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(self: Platform, to: Recipient, config: Any) -> str:
        raise ActionRequired("link your account first", who="customer")

    with monkeypatch.context() as patched:
        patched.setattr(Platform, "resource", nowhere)
        await shop.running.live("purchase")
        row = (await shop.grants())["room"]
        assert (row["status"], row["who"]) == ("action_required", "customer")
    await shop.later(minutes=10)
    assert (await shop.grants())["room"]["status"] == "granted"


async def test_a_grant_whose_connector_is_gone_waits_for_the_merchant(shop: Shop) -> None:
    await shop.running.live("purchase", seed=1)
    pipeline = shop.running.service.pipeline
    mine = pipeline.connectors
    pipeline.connectors = {name: one for name, one in mine.items() if name != "custom_link"}
    await shop.running.live("purchase", seed=2)
    rows = await shop.running.service.database.read(lambda connection: grants.listed(connection, {}, limit=10))
    assert sorted(row["status"] for row in rows) == ["action_required", "granted"]
    waiting = next(row for row in rows if row["status"] == "action_required")
    assert waiting["who"] == "merchant"
    assert "custom_link" in waiting["reason"]
    pipeline.connectors = mine
    await shop.later(minutes=10)
    rows = await shop.running.service.database.read(lambda connection: grants.listed(connection, {}, limit=10))
    assert {row["status"] for row in rows} == {"granted"}


async def test_failures_and_outcomes_are_counted_by_connector(shop: Shop) -> None:
    def counted(name: str, **labels: str) -> float:
        return metrics.REGISTRY.get_sample_value(name, {"connector": "custom_link", **labels}) or 0.0

    before = (
        counted("almoner_connector_failures_total", error="Unavailable"),
        counted("almoner_settled_total", outcome="granted"),
        counted("almoner_time_to_grant_seconds_count"),
    )
    shop.platform.fails = [Unavailable("HTTP 502")]
    await shop.running.live("purchase")
    await shop.later(seconds=2)
    assert counted("almoner_connector_failures_total", error="Unavailable") == before[0] + 1
    assert counted("almoner_settled_total", outcome="granted") == before[1] + 1
    assert counted("almoner_time_to_grant_seconds_count") == before[2] + 1


def test_every_failure_says_what_happens_next() -> None:
    assert {kind.__name__ for kind in ConnectorError.__subclasses__()} == {"Unavailable", "ActionRequired", "Rejected"}


MOVE = f"""
[benefits.room]
connector = "custom_link"
for = {{ products = ["{PRODUCT}"] }}
url = "https://example.com/room"

[benefits.annex]
connector = "custom_link"
for = {{ products = ["{SECOND_PRODUCT}"] }}
url = "https://example.com/room"
"""


async def test_what_an_upgrade_gives_and_takes_at_once_is_not_taken_away_in_between(
    database_url: str, tmp_path: Path, clock: Clock
) -> None:
    """Two benefits, one room: leaving it and coming again would be an invitation lost, or a member alarmed."""
    async for shop in open_shop(database_url, tmp_path, clock, MOVE):
        for event in shop.running.story("upgrade"):
            await shop.running.receive([event])
        rows = await shop.grants()
        assert (rows["room"]["status"], rows["annex"]["status"]) == ("revoked", "granted")
        assert [what for what, _ in shop.platform.calls if what == "revoke"] == []
        assert len(shop.platform.inside) == 1


async def test_two_new_benefits_of_one_room_are_both_given_at_once(two_doors: Shop) -> None:
    """The second waits for the lease of the first, and is triggered again as soon as that is saved."""
    two_doors.running.trigger.grants.clear()
    for event in two_doors.running.story("purchase"):
        await two_doors.running.post(event)
    pipeline = two_doors.running.service.pipeline
    await pipeline.close()  # has triggered all that was accepted
    await pipeline.process(two_doors.running.trigger.deliveries)
    planned = list(two_doors.running.trigger.grants)
    assert len(planned) == 2
    two_doors.running.trigger.grants.clear()
    assert await pipeline.settle(planned) == 1
    [left] = set(two_doors.running.trigger.grants)
    assert await pipeline.settle([left]) == 1
    assert {row["status"] for row in (await two_doors.grants()).values()} == {"granted"}
    await two_doors.drain()


async def test_a_renewal_that_fails_takes_nothing_away_that_is_there(shop: Shop) -> None:
    customer = await shop.running.live("purchase")
    pipeline = shop.running.service.pipeline
    longer = ROOM.split("[benefits.lounge]")[0].replace('url = "', 'expires = "1h"\nsign = true\nurl = "')
    shop.platform.fails = [Unavailable("HTTP 500"), ActionRequired("upload it", who="merchant"), Rejected("no")]
    assert await pipeline.propose(parse_catalogue(longer, TERMS, timedelta())) is None
    await shop.drain()
    for reason, who in (("HTTP 500", None), ("upload it", "merchant"), ("no", "operator")):
        answer = await shop.running.answer(customer, "room")
        assert (answer["entitled"], answer["status"]) == (True, "granted")
        assert answer["gives"]
        assert answer["problem"] == {"who": who, "message": reason}
        await shop.later(minutes=10)
    assert shop.platform.inside


async def test_a_benefit_that_changes_its_connector_takes_the_old_back_by_the_connector_that_gave_it(
    running: Running,
) -> None:
    customer = await running.live("purchase")
    before = running.service.pipeline.catalogue
    key = (await running.answer(customer, "key"))["gives"]["license_key_id"]
    [given] = await running.service.database.read(
        lambda connection: grants.listed(connection, {"benefit": "key"}, limit=9)
    )
    text = before.text.replace(
        'connector = "license_key"', 'connector = "custom_link"\nper = "purchase"\nnote = "hello"'
    )
    text = "\n".join(line for line in text.splitlines() if not line.startswith(("prefix", "limit_")))
    assert await running.service.pipeline.propose(parse_catalogue(text, TERMS, timedelta()), accept=True) is None
    await running.service.pipeline.drain()
    answer = await running.answer(customer, "key")
    assert (answer["status"], answer["connector"], answer["gives"]["kind"]) == ("granted", "custom_link", "note")
    held = await running.service.database.read(lambda connection: licenses.of_resource(connection, given["held"]))
    assert held
    assert (held.id, held.given) == (key, False)


async def test_what_waited_too_long_for_its_turn_is_not_begun_after_its_lease(
    sqlite_url: str, tmp_path: Path, clock: Clock
) -> None:
    """Beginning it then could give what another worker has just taken back."""
    text = ROOM.split("[benefits.lounge]")[0]
    async for shop in open_shop(sqlite_url, tmp_path, clock, text, connector_calls=1):
        for seed in (1, 2):
            for event in shop.running.story("purchase", seed):
                await shop.running.post(event)
        pipeline = shop.running.service.pipeline
        await pipeline.process(shop.running.trigger.deliveries)

        async def slow(platform: Platform = shop.platform) -> None:
            platform.before = None
            clock.move(seconds=12)

        shop.platform.before = slow
        await pipeline.settle(shop.running.trigger.grants)
        assert len(shop.platform.calls) == 1
        await shop.drain()
        rows = await shop.running.service.database.read(lambda connection: grants.listed(connection, {}, limit=9))
        assert [(row["status"], row["attempts"]) for row in rows] == [("granted", 0)] * 2
