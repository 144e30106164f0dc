"""Audits: what platforms hold against what grants say, both ways, and what is mended."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from connectors.base import ActionRequired, Rejected, Unavailable
from tests.conftest import Clock, Running
from tests.worker.test_platforms import ONE, SHARED, House, open_house
from worker.audit import Audit, Report
from worker.store import audits, grants


@pytest.fixture
async def house(database_url: str, tmp_path: Path, clock: Clock) -> AsyncIterator[House]:
    async with open_house(database_url, tmp_path, clock, ONE) as opened:
        yield opened


def auditor(house: House) -> Audit:
    async def sleep(seconds: float) -> None:
        house.running.clock.move(seconds=seconds)

    return Audit(house.running.service.pipeline, sleep=sleep)


def kinds(report: Report) -> list[tuple[str, str]]:
    return [(one.kind, one.resource) for one in report.findings]


async def test_where_everything_is_as_it_should_be_nothing_is_found(house: House) -> None:
    await house.bought("42")
    report = await auditor(house).look()
    assert (report.checked, report.findings) == (1, [])


async def test_who_should_have_it_and_has_not_gets_it_again(house: House) -> None:
    customer = await house.bought("42")
    house.club.inside.clear()  # they left, or somebody threw them out
    audit = auditor(house)
    report = await audit.look()
    assert kinds(report) == [("missing", "club:house:42:bar")]
    assert report.findings[0].customer_id == customer
    assert house.club.inside == set(), "looking changes nothing"
    assert await audit.mend(report, "missing") == 1
    await house.drain()
    assert house.club.inside == {"club:house:42:bar"}
    assert (await audit.look()).findings == []


async def test_what_we_gave_and_is_there_again_after_it_was_taken_is_taken_back(house: House) -> None:
    """A call of a worker that had lost its lease, say: its result was dropped, its effect was not."""
    await house.bought("42")
    await house.refund()
    house.club.inside.add("club:house:42:bar")
    house.club.calls.clear()
    audit = auditor(house)
    report = await audit.look()
    assert kinds(report) == [("left", "club:house:42:bar")]
    assert await audit.mend(report, "missing") == 0
    assert await audit.mend(report, "left") == 1
    assert (await house.row())["status"] == "revoking"
    await house.drain()
    assert house.club.inside == set()
    assert (await house.row())["status"] == "revoked"


async def test_what_came_back_after_unlinking_is_ours_too(house: House) -> None:
    customer = await house.bought("42")
    await house.running.service.accounts.unlink(customer, None, "github", source="linked")
    await house.drain()
    house.club.inside.add("club:house:42:bar")
    audit = auditor(house)
    report = await audit.look()
    assert kinds(report) == [("left", "club:house:42:bar")]
    assert await audit.mend(report, "left") == 1
    await house.drain()
    assert house.club.inside == set()
    assert (await house.row())["status"] == "action_required", "it is still theirs, once they link an account"


async def test_what_others_gave_and_what_was_there_before_us_is_told_and_left_alone(house: House) -> None:
    house.club.inside |= {"club:house:1:bar", "club:house:42:bar"}
    await house.bought("42")
    await house.refund()
    audit = auditor(house)
    report = await audit.look()
    assert kinds(report) == [("foreign", "club:house:1:bar"), ("foreign", "club:house:42:bar")]
    assert await audit.mend(report, "missing", "left") == 0


async def test_what_is_taken_back_while_an_audit_looks_is_no_finding(house: House) -> None:
    await house.bought("42")
    listed = house.club.survey

    async def survey(config: Any) -> Any:
        found = await listed(config)
        await house.refund()
        return found

    house.club.survey = survey  # type: ignore[method-assign]
    assert (await auditor(house).look()).findings == []


async def test_what_they_had_before_us_is_not_ours_after_unlinking_either(house: House) -> None:
    house.club.inside.add("club:house:42:bar")
    customer = await house.bought("42")
    await house.running.service.accounts.unlink(customer, None, "github", source="linked")
    await house.drain()
    await house.refund()
    audit = auditor(house)
    report = await audit.look()
    assert kinds(report) == [("foreign", "club:house:42:bar")]
    assert await audit.mend(report, "left") == 0


async def test_a_door_that_a_grant_has_come_to_stand_behind_since_is_left_open(running: Running) -> None:
    audit = Audit(running.service.pipeline)
    customer = running.story("purchase")[0].customer_id
    resource = f"custom_link:link:{customer}::"
    await running.service.database.write(partial(grants.set_pass, resource=resource, is_open=True))
    report = await audit.look()
    assert kinds(report) == [("left", resource)]
    external_id = await running.live("purchase")
    assert await audit.mend(report, "left") == 0
    assert report.mended == 0
    assert (await running.answer(external_id, "link"))["status"] == "granted"
    assert (await audit.look()).findings == []


async def test_access_that_two_benefits_share_is_found_once(sqlite_url: str, tmp_path: Path, clock: Clock) -> None:
    async with open_house(sqlite_url, tmp_path, clock, SHARED) as house:
        house.club.inside.add("club:house:1:bar")
        await house.bought("42")
        report = await auditor(house).look()
        assert kinds(report) == [("foreign", "club:house:1:bar")]
        assert report.checked == 2
        assert (await auditor(house).look("lounge")).checked == 1


async def test_a_platform_that_cannot_be_asked_is_named_with_who_must_act(house: House) -> None:
    await house.bought("42")
    house.club.fails = [ActionRequired("the App is suspended", who="merchant")]
    [finding] = (await auditor(house).look()).findings
    assert (finding.kind, finding.who, finding.detail) == ("unknown", "merchant", "the App is suspended")
    house.club.fails = [Rejected("it is no more")]
    [finding] = (await auditor(house).look()).findings
    assert (finding.kind, finding.who) == ("unknown", None)


async def test_an_audit_waits_when_a_platform_asks_it_to(house: House) -> None:
    await house.bought("42")
    began = house.running.clock.at
    house.club.fails = [Unavailable("rate limit", retry_after=30), Unavailable("rate limit", retry_after=20)]
    assert (await auditor(house).look()).findings == []
    assert house.running.clock.at == began + timedelta(seconds=50)
    house.club.fails = [Unavailable("rate limit", retry_after=3600)]
    assert [one.kind for one in (await auditor(house).look()).findings] == ["unknown"]


async def test_a_revocation_that_the_platform_refuses_stays_and_has_an_age(house: House) -> None:
    await house.bought("42")
    house.club.fails = [ActionRequired("the bot may not", who="merchant")] * 3
    await house.refund()
    asked = house.running.clock.at
    for _ in range(2):
        await house.later(hours=1)
    row = await house.row()
    assert (row["status"], row["who"]) == ("revoking", "merchant")
    metrics = (await house.running.get("/metrics")).text
    assert "almoner_revoking_age_seconds 7200.0" in metrics
    assert await house.running.service.database.read(grants.oldest_revoking) == asked
    await house.later(hours=1)
    assert (await house.row())["status"] == "revoked"
    assert "almoner_revoking_age_seconds 0.0" in (await house.running.get("/metrics")).text


async def test_our_own_doors_that_stand_open_without_a_grant_are_closed(running: Running) -> None:
    customer = await running.live("purchase")
    pipeline = running.service.pipeline
    audit = Audit(pipeline)
    assert (await audit.look()).findings == []
    resource = "custom_link:link:somebody::"
    await pipeline.database.write(partial(grants.set_pass, resource=resource, is_open=True))
    report = await audit.look()
    assert kinds(report) == [("left", resource)]
    await audit.mend(report, "left")
    assert (await audit.look()).findings == []
    assert set((await running.statuses(customer)).values()) == {"granted"}


async def test_a_pass_that_was_lost_is_missing(running: Running) -> None:
    customer = await running.live("purchase")
    pipeline = running.service.pipeline
    found = await pipeline.database.read(lambda connection: grants.listed(connection, {"benefit": "link"}, limit=1))
    await pipeline.database.write(partial(grants.set_pass, resource=found[0]["held"], is_open=False))
    audit = Audit(pipeline)
    report = await audit.look()
    assert [(one.kind, one.benefit) for one in report.findings] == [("missing", "link")]
    await audit.mend(report, "missing")
    await pipeline.drain()
    assert (await running.answer(customer, "link"))["status"] == "granted"
    assert (await audit.look()).findings == []


@pytest.mark.parametrize(("repairs", "inside"), [("nothing", set()), ("missing", {"club:house:42:bar"})])
async def test_the_nightly_run_keeps_its_report_and_mends_what_the_setting_says(
    sqlite_url: str, tmp_path: Path, clock: Clock, repairs: str, inside: set[str]
) -> None:
    async with open_house(sqlite_url, tmp_path, clock, ONE, audit_repairs=repairs) as house:
        await house.bought("42")
        house.club.inside.clear()
        report = await auditor(house).run()
        await house.drain()
        assert house.club.inside == inside
        kept = await house.running.service.database.read(audits.last)
        assert kept
        assert msgspec.json.decode(kept, type=Report) == report
        assert report.mended == bool(inside)


async def test_it_runs_once_for_all_workers_and_not_before_its_time(house: House) -> None:
    one, other = auditor(house), auditor(house)
    assert [await one._is_due(), await other._is_due()] == [False, False], "the first waits for a whole interval"
    house.running.clock.move(days=1)
    assert sorted(await asyncio.gather(one._is_due(), other._is_due())) == [False, True]
    house.running.clock.move(hours=23)
    assert not await other._is_due()
    house.running.clock.move(hours=1)
    assert await other._is_due()


async def test_it_goes_on_through_failures_until_it_is_stopped(house: House) -> None:
    stopping = asyncio.Event()
    running = asyncio.create_task(auditor(house).audit_for_ever(stopping))
    await asyncio.sleep(0.01)
    stopping.set()
    await asyncio.wait_for(running, 5)


async def test_a_pass_of_zero_never_runs(sqlite_url: str, tmp_path: Path, clock: Clock) -> None:
    async with open_house(sqlite_url, tmp_path, clock, ONE, audit_every=timedelta()) as house:
        house.running.clock.move(days=9)
        assert not await auditor(house)._is_due()
