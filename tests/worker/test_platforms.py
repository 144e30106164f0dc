"""What settling promises about access at platforms: whose it is, who gave it, and what several benefits share."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from config.catalogue import parse_catalogue
from connectors.base import Account, ActionRequired, ConnectorError, Rejected, Unavailable
from tests.conftest import PRODUCT, SECOND_PRODUCT, Clock, Running, run_service
from tests.worker.club import CLUB_TERMS, Club
from worker import settling
from worker.simulate import SimulatedEvent
from worker.store import grants

ONE = f"""
[benefits.bar]
connector = "club"
for = {{ products = ["{PRODUCT}"] }}
room = "bar"
"""

SHARED = (
    ONE
    + f"""
[benefits.lounge]
connector = "club"
for = {{ products = ["{PRODUCT}", "{SECOND_PRODUCT}"] }}
room = "bar"
"""
)

TWO_PARTS = f"""
[benefits.bar]
connector = "club"
for = {{ products = ["{PRODUCT}"] }}
rooms = ["bar", "garden"]
kick = true
"""

UPGRADE = f"""
[benefits.bar]
connector = "club"
for = {{ products = ["{PRODUCT}"] }}
room = "bar"
kick = true

[benefits.suite]
connector = "club"
for = {{ products = ["{SECOND_PRODUCT}"] }}
room = "suite"
kick = true
"""


@dataclass
class House:
    """The service with a club as its platform."""

    running: Running
    club: Club
    refunds: dict[int, list[SimulatedEvent]] = field(default_factory=dict)

    async def rows(self) -> dict[tuple[str, str], dict[str, Any]]:
        found = await self.running.service.database.read(lambda connection: grants.listed(connection, {}, limit=100))
        return {(row["benefit"], row["part"]): row for row in found}

    async def all_rows(self) -> list[dict[str, Any]]:
        return await self.running.service.database.read(lambda connection: grants.listed(connection, {}, limit=100))

    async def row(self, benefit: str = "bar", part: str = "") -> dict[str, Any]:
        return (await self.rows())[benefit, part]

    async def link(self, customer: str, account: str, source: Any = "linked") -> None:
        await self.running.service.accounts.link(customer, None, "github", Account(account), source=source)
        await self.drain()

    async def drain(self) -> None:
        await self.running.service.pipeline.drain()

    async def later(self, **by: float) -> None:
        self.running.clock.move(**by)
        await self.drain()

    async def buy(self, seed: int = 1) -> str:
        """A purchase that can be refunded; returns the customer's id."""
        events = self.running.story("refund", seed)
        refunded = next(number for number, event in enumerate(events) if event.type == "refund.created")
        self.refunds[seed] = events[refunded:]
        await self.running.receive(events[:refunded])
        return events[0].customer_id

    async def bought(self, account: str = "42", seed: int = 1) -> str:
        customer = await self.buy(seed)
        await self.link(customer, account)
        return customer

    async def refund(self, seed: int = 1) -> None:
        await self.running.receive(self.refunds[seed])

    def did(self, *what: str) -> list[str]:
        return [name for name, _ in self.club.calls if not what or name in what]


@asynccontextmanager
async def open_house(url: str, folder: Path, clock: Clock, text: str, **more: Any) -> AsyncIterator[House]:
    catalogue = parse_catalogue(text, CLUB_TERMS, timedelta())
    async with run_service(url, folder, catalogue, clock, **more) as running:
        club = Club()
        running.service.pipeline.connectors = {"club": club}
        running.service.pipeline.parse_catalogue = lambda text, grace: parse_catalogue(text, CLUB_TERMS, grace)
        yield House(running, club)


@pytest.fixture
async def house(database_url: str, tmp_path: Path, clock: Clock) -> AsyncIterator[House]:
    async with open_house(database_url, tmp_path, clock, ONE) as opened:
        yield opened


@pytest.fixture
async def shared(database_url: str, tmp_path: Path, clock: Clock) -> AsyncIterator[House]:
    async with open_house(database_url, tmp_path, clock, SHARED) as opened:
        yield opened


# Whose account.


async def test_without_an_account_the_customer_must_act_and_linking_one_gives_at_once(house: House) -> None:
    customer = await house.buy()
    row = await house.row()
    assert (row["status"], row["who"], row["reason"]) == ("action_required", "customer", "link your GitHub account")
    await house.link(customer, "42")
    assert (await house.row())["status"] == "granted"
    assert house.club.inside == {"club:house:42:bar"}


async def test_another_account_moves_the_access_and_the_old_one_goes_first(house: House) -> None:
    customer = await house.bought("42")
    await house.link(customer, "43")
    assert house.club.inside == {"club:house:43:bar"}
    assert house.did() == ["look", "grant", "revoke", "look", "grant"]


async def test_a_move_that_cannot_take_back_the_old_gives_nothing_new(house: House) -> None:
    customer = await house.bought("42")
    house.club.fails = [ActionRequired("the bot has no permission", who="merchant")]
    await house.link(customer, "43")
    assert house.club.inside == {"club:house:42:bar"}
    await house.later(minutes=10)
    assert house.club.inside == {"club:house:43:bar"}


async def test_unlinking_takes_the_access_back_and_waits_for_another_account(house: House) -> None:
    customer = await house.bought("42")
    assert await house.running.service.accounts.unlink(customer, None, "github", source="linked")
    await house.drain()
    row = await house.row()
    assert (row["status"], row["wanted"], row["receipt"], row["resource"]) == ("action_required", True, None, None)
    assert house.club.inside == set()
    assert not await house.running.service.accounts.unlink(customer, None, "github", source="linked")


async def test_what_the_customer_linked_is_trusted_more_than_what_the_app_set(house: House) -> None:
    customer = await house.buy()
    await house.link(customer, "1", source="set")
    assert house.club.inside == {"club:house:1:bar"}
    await house.link(customer, "2", source="linked")
    assert house.club.inside == {"club:house:2:bar"}
    await house.link(customer, "3", source="set")
    assert house.club.inside == {"club:house:2:bar"}
    known = await house.running.service.accounts.known(customer, None)
    assert [(one.source, one.account_id) for one in known] == [("linked", "2"), ("set", "3")]


async def test_a_name_is_looked_up_once_and_bound_to_the_id_that_it_had(house: House) -> None:
    house.club.names = {"octocat": "583231"}
    customer = await house.buy()
    await house.running.service.accounts.name(customer, None, "github", "octocat")
    await house.drain()
    assert house.club.inside == {"club:house:583231:bar"}
    house.club.names = {"octocat": "666"}  # somebody else has registered the name
    await house.running.service.pipeline.refresh([customer])
    await house.later(days=1)
    assert house.club.inside == {"club:house:583231:bar"}
    assert house.did("identify") == ["identify"]


async def test_a_name_that_nobody_has_waits_for_the_customer(house: House) -> None:
    customer = await house.buy()
    await house.running.service.accounts.name(customer, None, "github", "octocta")
    await house.drain()
    row = await house.row()
    assert (row["status"], row["who"]) == ("action_required", "merchant"), "the app said so, not the customer"
    assert row["reason"] == "the app said so, but there is no octocta"
    house.club.names = {"octocta": "7"}
    await house.later(minutes=10)
    assert house.club.inside == {"club:house:7:bar"}


@pytest.mark.parametrize(("value", "account"), [("octocat", "583231"), ("https://github.com/octocat/", "583231"),
                                                ("@octocat", "583231"), (99, "99")])  # fmt: skip
async def test_a_field_of_the_customer_names_the_account(
    sqlite_url: str, tmp_path: Path, clock: Clock, value: object, account: str
) -> None:
    async with open_house(sqlite_url, tmp_path, clock, ONE, github_fields="github") as house:
        house.club.names = {"octocat": "583231"}
        events = house.running.story("purchase")
        for number, event in enumerate(events):
            body = json.loads(event.body)
            if event.type == "order.paid":
                body["data"]["custom_field_data"] = {"github": value}
            events[number] = type(event)(
                event.webhook_id, event.type, event.timestamp, event.customer_id, event.external_id,
                json.dumps(body).encode(),
            )  # fmt: skip
        await house.running.receive(events)
        assert house.club.inside == {f"club:house:{account}:bar"}
        [known] = await house.running.service.accounts.known(events[0].customer_id, None)
        assert (known.source, known.account_id) == ("field", account)
        house.club.names = {"octocat": "666"}
        await house.running.service.pipeline.refresh([events[0].customer_id])
        await house.drain()
        assert house.club.inside == {f"club:house:{account}:bar"}


async def test_a_deleted_customers_accounts_and_tokens_are_forgotten(house: House) -> None:
    events = house.running.story("delete-customer")
    gone = next(number for number, event in enumerate(events) if event.type == "member.deleted")
    await house.running.receive(events[:gone])
    customer = events[0].customer_id
    await house.link(customer, "42")
    assert house.club.inside
    await house.running.receive(events[gone:])
    assert house.club.inside == set()
    assert await house.running.service.accounts.known(customer, None) == []


# Who gave it.


async def test_what_they_had_before_us_stays_theirs(house: House) -> None:
    house.club.inside.add("club:house:42:bar")
    await house.bought("42")
    assert (await house.row())["status"] == "granted"
    await house.refund()
    assert (await house.row())["status"] == "revoked"
    assert house.club.inside == {"club:house:42:bar"}


async def test_what_was_given_right_before_we_died_is_still_known_to_be_our_gift(house: House) -> None:
    """Without the note of what was there before, it would look as if they had always had it."""
    customer = await house.buy()
    house.club.dies_after = [Unavailable("no answer")]
    await house.link(customer, "42")
    assert json.loads((await house.row())["receipt"])["data"] == {"before": False, "kick": False}
    await house.later(seconds=10)
    assert (await house.row())["status"] == "granted"
    await house.refund()
    assert house.club.inside == set()


async def test_access_that_two_benefits_share_goes_with_the_last_of_them(shared: House) -> None:
    customer = await shared.bought("42")
    assert {row["status"] for row in (await shared.rows()).values()} == {"granted"}
    assert shared.club.inside == {"club:house:42:bar"}
    shared.running.service.pipeline.catalogue = parse_catalogue(
        SHARED.replace(f'products = ["{PRODUCT}"]', f'products = ["{SECOND_PRODUCT}"]'), CLUB_TERMS, timedelta()
    )
    await shared.running.service.pipeline.propose(shared.running.service.pipeline.catalogue, accept=True)
    await shared.running.service.pipeline.refresh([customer])
    await shared.drain()
    rows = await shared.rows()
    assert (rows["bar", ""]["status"], rows["lounge", ""]["status"]) == ("revoked", "granted")
    assert shared.did("revoke", "kick") == []
    await shared.refund()
    assert shared.club.inside == set()


async def test_two_customers_with_one_account_keep_what_each_is_entitled_to(house: House) -> None:
    await house.bought("42", seed=1)
    await house.bought("42", seed=2)
    await house.refund(seed=1)
    assert house.club.inside == {"club:house:42:bar"}
    await house.refund(seed=2)
    assert house.club.inside == set(), "the second knows from the first that it was we who gave it"


async def test_a_receipt_is_let_go_only_when_another_grant_has_one(house: House) -> None:
    """Else the second would find them inside and take it for a membership of before."""
    await house.bought("42", seed=1)
    second = await house.buy(seed=2)
    house.club.fails = [Unavailable("HTTP 502")]
    await house.link(second, "42")
    await house.refund(seed=1)
    assert house.club.inside == {"club:house:42:bar"}
    await house.later(seconds=10)
    await house.later(seconds=10)
    assert {row["status"] for row in (await house.rows()).values()} <= {"granted", "revoked"}
    await house.refund(seed=2)
    assert house.club.inside == set()


async def test_a_receipt_goes_to_whoever_waits_for_the_same_even_if_that_one_cannot_be_given(house: House) -> None:
    await house.bought("42", seed=1)
    second = await house.buy(seed=2)
    house.club.fails = [Rejected("never")]
    await house.link(second, "42")
    await house.refund(seed=1)
    rows = {row["customer_id"]: row for row in await house.all_rows()}
    mine, other = rows.pop(second), rows.popitem()[1]
    assert (other["status"], other["held"]) == ("revoked", None)
    assert (mine["status"], mine["held"]) == ("failed", "club:house:42:bar")
    await house.refund(seed=2)
    assert house.club.inside == set()


async def test_an_heir_that_wants_it_no_more_gets_nothing_and_all_goes(house: House) -> None:
    first = await house.bought("42", seed=1)
    second = await house.buy(seed=2)
    house.club.fails = [Unavailable("HTTP 502")]
    await house.link(second, "42")
    rows = {row["customer_id"]: row["id"] for row in await house.all_rows()}
    pipeline, now = house.running.service.pipeline, house.running.clock.at

    async def told(seed: int) -> None:
        house.running.trigger.deliveries.clear()
        for event in house.refunds[seed]:
            await house.running.post(event)
        await pipeline.close()
        await pipeline.process(house.running.trigger.deliveries)

    await told(1)
    claimed = await pipeline.database.write(
        lambda connection: settling.claim(connection, [rows[first]], pipeline.rules, pipeline.connectors, now)
    )
    assert [one.heir for one in claimed.claims] == [rows[second]]
    await told(2)
    await pipeline._settle(claimed)
    for _ in range(3):
        await house.later(seconds=5)
    assert {row["status"] for row in await house.all_rows()} == {"revoked"}
    assert house.club.inside == set()


async def test_two_customers_who_change_places_do_not_wait_for_each_other(house: House) -> None:
    first, second = await house.bought("1", seed=1), await house.bought("2", seed=2)
    down: list[ConnectorError] = [Unavailable("HTTP 502") for _ in range(4)]
    house.club.fails = down
    await house.running.service.accounts.link(first, None, "github", Account("2"), source="linked")
    await house.running.service.accounts.link(second, None, "github", Account("1"), source="linked")
    await house.drain()
    for _ in range(8):
        await house.later(seconds=30)
    rows = {row["customer_id"]: row["held"] for row in await house.all_rows()}
    assert rows == {first: "club:house:2:bar", second: "club:house:1:bar"}
    assert house.club.inside == {"club:house:1:bar", "club:house:2:bar"}


async def test_what_others_keep_is_let_go_of_and_brought_down_to_what_they_need(shared: House) -> None:
    customer = await shared.bought("42")
    only = parse_catalogue(SHARED.replace(ONE, ""), CLUB_TERMS, timedelta())
    await shared.running.service.pipeline.propose(only, accept=True)
    await shared.running.service.pipeline.refresh([customer])
    await shared.drain()
    assert shared.did("let go") == ["let go"]
    assert shared.club.inside == {"club:house:42:bar"}


async def test_what_was_taken_back_when_the_account_was_unlinked_is_remembered(house: House) -> None:
    house.club.inside.add("club:house:42:bar")
    customer = await house.bought("42")
    await house.running.service.accounts.unlink(customer, None, "github", source="linked")
    await house.drain()
    row = await house.row()
    assert json.loads(row["taken"])["data"]["before"] is True
    assert row["touched"] == "club:house:42:bar"


async def test_the_same_name_told_again_stays_bound_to_the_id_that_it_had(house: House) -> None:
    """An app may tell it at each sign-in, also after somebody else has registered it."""
    house.club.names = {"ada": "42"}
    customer = await house.buy()
    await house.running.service.accounts.name(customer, None, "github", "ada")
    await house.drain()
    house.club.names = {"ada": "666"}
    await house.running.service.accounts.name(customer, None, "github", "Ada")
    await house.drain()
    assert house.club.inside == {"club:house:42:bar"}
    house.club.names["grace"] = "7"
    await house.running.service.accounts.name(customer, None, "github", "grace")
    await house.drain()
    assert house.club.inside == {"club:house:7:bar"}


async def test_a_name_that_is_not_found_takes_nothing_from_the_account_before(house: House) -> None:
    customer = await house.buy()
    await house.link(customer, "42", source="set")
    await house.running.service.accounts.name(customer, None, "github", "typo")
    await house.drain()
    assert (await house.row())["reason"] == "the app said so, but there is no typo"
    assert house.club.inside == {"club:house:42:bar"}


# What shares a scope.


async def test_parts_are_given_each_alone_and_the_benefit_is_as_far_as_the_last(
    database_url: str, tmp_path: Path, clock: Clock
) -> None:
    async with open_house(database_url, tmp_path, clock, TWO_PARTS) as house:
        customer = await house.buy()
        house.club.fails = [Unavailable("HTTP 502")]
        await house.link(customer, "42")
        rows = await house.rows()
        assert sorted(row["status"] for row in rows.values()) == ["granted", "granting"]
        answer = (await house.running.get(f"/v1/customers/{customer}/entitlements/bar")).json()
        assert (answer["entitled"], answer["status"]) == (True, "granting")
        assert sorted(one["part"] for one in answer["grants"]) == ["bar", "garden"]
        await house.later(seconds=5)
        assert house.club.inside == {"club:house:42:bar", "club:house:42:garden"}
        answer = (await house.running.get(f"/v1/customers/{customer}/entitlements/bar")).json()
        assert answer["status"] == "granted"


async def test_only_the_last_of_a_scope_takes_the_whole(database_url: str, tmp_path: Path, clock: Clock) -> None:
    async with open_house(database_url, tmp_path, clock, TWO_PARTS) as house:
        await house.bought("42")
        fewer = parse_catalogue(TWO_PARTS.replace('"bar", "garden"', '"bar"'), CLUB_TERMS, timedelta())
        await house.running.service.pipeline.propose(fewer, accept=True)
        await house.drain()
        assert house.did("kick", "revoke") == ["revoke"]
        assert house.club.guests == {"club:house:42"}
        await house.refund()
        assert house.did("kick", "revoke") == ["revoke", "kick"]
        assert house.club.guests == set()


async def test_who_unlinks_is_thrown_out_with_their_last_room(database_url: str, tmp_path: Path, clock: Clock) -> None:
    async with open_house(database_url, tmp_path, clock, TWO_PARTS) as house:
        customer = await house.bought("42")
        await house.running.service.accounts.unlink(customer, None, "github", source="linked")
        await house.drain()
        assert house.did("kick", "revoke") == ["revoke", "kick"]
        assert house.club.guests == set()


async def test_an_upgrade_does_not_throw_out_whoever_stays_in_the_house(
    database_url: str, tmp_path: Path, clock: Clock
) -> None:
    async with open_house(database_url, tmp_path, clock, UPGRADE) as house:
        events = house.running.story("upgrade")
        await house.running.receive(events[:1])
        await house.link(events[0].customer_id, "42")
        for event in events[1:]:
            await house.running.receive([event])
        assert house.club.inside == {"club:house:42:suite"}
        assert house.did("kick") == []


# What the customer must accept.


async def test_while_an_invitation_waits_the_answer_says_so_and_accepting_is_noticed(house: House) -> None:
    house.club.invites = True
    customer = await house.bought("42")
    answer = (await house.running.get(f"/v1/customers/{customer}/entitlements/bar")).json()
    assert (answer["status"], answer["problem"]) == (
        "pending", {"who": "customer", "message": "Accept the invitation"},
    )  # fmt: skip
    assert answer["gives"] == {"kind": "room", "resource": "club:house:42:bar"}
    await house.later(minutes=10)
    assert (await house.row())["status"] == "pending"
    house.club.inside.add("club:house:42:bar")
    await house.later(minutes=10)
    row = await house.row()
    assert (row["status"], row["who"], row["reason"]) == ("granted", None, None)


async def test_who_never_accepts_is_asked_again_only_when_a_person_wants_it(house: House) -> None:
    house.club.invites = True
    await house.bought("42")
    for _ in range(4):
        house.club.invited.clear()
        await house.later(minutes=10)
    row = await house.row()
    assert (row["status"], row["reason"]) == ("action_required", "you did not accept")
    assert house.club.invited == set()
    now = house.running.clock.at
    await house.running.service.database.write(lambda connection: grants.retry(connection, [row["id"]], now))
    await house.drain()
    assert (await house.row())["status"] == "pending"
    assert house.club.invited == {"club:house:42:bar"}


async def test_a_waiting_invitation_is_taken_back_too(house: House) -> None:
    house.club.invites = True
    await house.bought("42")
    await house.refund()
    assert house.club.invited == set()
    assert (await house.row())["status"] == "revoked"
