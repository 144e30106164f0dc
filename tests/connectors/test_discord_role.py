"""Roles in Discord, against a Discord that keeps to its specification: who gets them, who waits, and who must act."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from pydantic import ValidationError

from connectors.base import (
    Account,
    AccountToken,
    ActionRequired,
    ConnectorError,
    Holding,
    Rate,
    Receipt,
    Recipient,
    Rejected,
    Unavailable,
)
from connectors.discord_role import DiscordRole, Terms
from tests.conftest import Clock, settings_for
from tests.connectors.ports import MemoryTokens, Moment, World, stored
from tests.fakes.discord import (
    BOT,
    BOT_TOKEN,
    CLIENT_ID,
    CLIENT_SECRET,
    CREATE_INVITE,
    GUILD,
    KICK_MEMBERS,
    MANAGE_ROLES,
    FakeDiscord,
    Token,
    serve,
)
from tests.fakes.specification import Specification
from worker.limits import StoredLimits
from worker.store.database import Database

ADA, GRACE = "80351110224678912", "53908232506183680"
ROLE, OTHER_ROLE, THIRD_ROLE = "1100000000000000001", "1100000000000000002", "1100000000000000003"
BUYER = Recipient(customer_id="c-1", accounts={"discord": ADA})
RESOURCE = f"discord_role:{GUILD}:{ADA}:{ROLE}"
PUT_ROLE = f"PUT /guilds/{GUILD}/members/{ADA}/roles/{ROLE}"
PUT_MEMBER = f"PUT /guilds/{GUILD}/members/{ADA}"
GET_MEMBER = f"GET /guilds/{GUILD}/members/{ADA}"
DELETE_ROLE = f"DELETE /guilds/{GUILD}/members/{ADA}/roles/{ROLE}"
KICK = f"DELETE /guilds/{GUILD}/members/{ADA}"
# The document has OAuth's calls only in part.
EXTRA = {"POST /oauth2/token": "https://docs.discord.com/developers/topics/oauth2#authorization-code-grant"}
ANYWHERE = dict.fromkeys((500, 502, 503, 504, 524), "any server may fail")


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[FakeDiscord, str, Specification]]:
    path = Path(__file__).parent.parent / "data" / "discord.openapi.json.gz"
    with serve() as (discord, url):
        yield discord, url, Specification(path, extra=EXTRA, anywhere=ANYWHERE)


@pytest.fixture
def discord(served: tuple[FakeDiscord, str, Specification]) -> Iterator[FakeDiscord]:
    """One server, in which Ada is a member and Grace is not."""
    discord, _, specification = served
    discord.reset()
    discord.specification = specification
    specification.violations.clear()
    for role in (ROLE, OTHER_ROLE, THIRD_ROLE):
        discord.add_role(role)
    discord.add_user(ADA, "ada")
    discord.add_user(GRACE, "grace")
    discord.join(ADA)
    yield discord
    assert specification.violations == []


@pytest.fixture
def world(served: tuple[FakeDiscord, str, Specification], tmp_path: Path, clock: Clock) -> Iterator[World]:
    settings = settings_for(
        "",
        tmp_path,
        discord_api_url=served[1],
        discord_bot_token=BOT_TOKEN,
        discord_client_id=CLIENT_ID,
        discord_client_secret=CLIENT_SECRET,
        call_timeout=timedelta(seconds=2),
    )
    with ThreadPoolExecutor(1) as executor:
        yield World(settings, executor, clock)


@pytest.fixture
async def connector(discord: FakeDiscord, world: World) -> AsyncIterator[DiscordRole]:
    connector = DiscordRole(world.tools)
    yield connector
    await connector.close()


def terms(**more: Any) -> Terms:
    return Terms.model_validate({"benefit": "pro", "guild": GUILD} | ({} if "roles" in more else {"role": ROLE}) | more)


def allow(discord: FakeDiscord, world: World, *, expired: bool = False, account: str = ADA) -> Token:
    """Let the customer have approved that the bot adds them."""
    token = discord.issue(account)
    token.is_expired = expired
    expires_at = world.now() + (timedelta(seconds=-1) if expired else timedelta(days=7))
    world.tokens.kept["discord", account] = AccountToken(token.access, token.refresh, expires_at)
    return token


async def failing(call: Awaitable[object]) -> ConnectorError:
    with pytest.raises(ConnectorError) as failed:
        await call
    return failed.value


async def must_act(call: Awaitable[object], who: str) -> str:
    error = await failing(call)
    assert isinstance(error, ActionRequired), error
    assert error.who == who
    return str(error)


# The config.


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"guild": 197038439483310086}, 'write it in quotes: "197038439483310086"'),
        ({"role": 1100000000000000001}, 'write it in quotes: "1100000000000000001"'),
        ({"roles": [ROLE, 1100000000000000002]}, "write it in quotes"),
        ({"role": "pro"}, "'pro' is not an id; Discord's have 17 to 20 digits"),
        ({"guild": "acme"}, "'acme' is not an id"),
        ({"role": ROLE, "roles": [OTHER_ROLE]}, "give exactly one of role and roles"),
        ({"role": None}, "give exactly one of role and roles"),
        ({"roles": []}, "give exactly one of role and roles"),
        ({"roles": [ROLE, ROLE]}, "a role is named twice"),
        ({"role": GUILD}, "@everyone, which is no role to give"),
        ({"on_revoke": "ban"}, "'remove_role' or 'kick'"),
        ({"join": "yes"}, "valid boolean"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as refused:
        terms(**more)
    assert sentence in str(refused.value)


def test_one_role_is_the_benefit_itself() -> None:
    config = terms()
    assert config.parts() == {"": config}
    assert (config.on_revoke, config.join) == ("remove_role", True)


def test_several_roles_are_parts_that_keep_their_names(connector: DiscordRole) -> None:
    two = terms(roles=[ROLE, OTHER_ROLE], on_revoke="kick").parts()
    three = terms(roles=[THIRD_ROLE, OTHER_ROLE, ROLE], on_revoke="kick").parts()
    assert list(two) == [ROLE, OTHER_ROLE]
    assert {name: three[name] for name in two} == two
    assert connector.resource(BUYER, two[ROLE]) == RESOURCE  # type: ignore[arg-type]


def test_the_bot_token_is_what_is_needed(world: World) -> None:
    assert DiscordRole.missing(terms(), world.settings) == []
    (sentence,) = DiscordRole.missing(terms(), settings_for("", world.settings.data_dir))
    assert sentence.startswith("ALMONER_DISCORD_BOT_TOKEN is missing")


def test_a_resource_is_a_role_of_an_account_in_a_server_and_its_scope_the_person_there(connector: DiscordRole) -> None:
    assert connector.resource(BUYER, terms()) == RESOURCE
    assert connector.scope(RESOURCE) == f"discord_role:{GUILD}:{ADA}"


def test_without_an_account_the_customer_must_link_one(connector: DiscordRole) -> None:
    with pytest.raises(ActionRequired, match="link your Discord account") as refused:
        connector.resource(Recipient(customer_id="c-1"), terms())
    assert refused.value.who == "customer"


# Giving.


async def test_a_member_gets_the_role_with_one_request_and_a_reason(
    connector: DiscordRole, discord: FakeDiscord
) -> None:
    receipt = stored(await connector.grant(BUYER, terms(), None))
    assert discord.lines() == [PUT_ROLE]
    assert discord.log[-1].reason == "Almoner: benefit pro granted"
    assert discord.roles_of(ADA) == {ROLE}
    assert receipt.resource == RESOURCE
    assert receipt.data == {
        "benefit": "pro", "guild": GUILD, "role": ROLE, "account": ADA, "on_revoke": "remove_role", "in_guild": True,
    }  # fmt: skip
    assert receipt.waiting is None
    assert await connector.holds(receipt) == Holding.HELD


async def test_who_has_the_role_already_gets_it_too(connector: DiscordRole, discord: FakeDiscord) -> None:
    discord.guilds[GUILD].members[ADA] = {ROLE, OTHER_ROLE}
    receipt = await connector.grant(BUYER, terms(), None)
    assert receipt == await connector.grant(BUYER, terms(), receipt)
    assert discord.roles_of(ADA) == {ROLE, OTHER_ROLE}


async def test_who_allowed_it_is_added_to_the_server_with_the_role(
    connector: DiscordRole, discord: FakeDiscord, world: World
) -> None:
    discord.leave(ADA)
    allow(discord, world)
    receipt = await connector.grant(BUYER, terms(), None)
    assert discord.lines() == [PUT_ROLE, PUT_MEMBER]
    assert discord.roles_of(ADA) == {ROLE}
    assert await connector.holds(receipt) == Holding.HELD
    assert connector.offer(receipt)["username"] == "ada"
    again = await connector.grant(BUYER, terms(), receipt)
    assert again == receipt, "the name is kept"


async def test_polar_12_a_member_by_then_is_not_taken_for_having_the_role(
    connector: DiscordRole, discord: FakeDiscord, world: World
) -> None:
    allow(discord, world)
    discord.script(PUT_ROLE, status=404, body={"code": 10007, "message": "Unknown Member"})
    receipt = await connector.grant(BUYER, terms(), None)
    assert [one.status for one in discord.log[1:]] == [404, 204, 204]
    assert discord.lines() == [PUT_ROLE, PUT_MEMBER, PUT_ROLE]
    assert discord.roles_of(ADA) == {ROLE}
    assert receipt.data["in_guild"] is True


async def test_who_is_not_there_is_waited_for_and_gets_the_role_when_they_join(
    connector: DiscordRole, discord: FakeDiscord
) -> None:
    discord.leave(ADA)
    waiting = stored(await connector.grant(BUYER, terms(), None))
    assert waiting.data["in_guild"] is False
    assert str(waiting.waiting).startswith(f"Join the Discord server {GUILD}")
    assert await connector.holds(waiting) == Holding.PENDING
    assert await connector.holds(waiting) == Holding.PENDING
    discord.join(ADA)
    assert await connector.holds(waiting) == Holding.GONE
    receipt = await connector.grant(BUYER, terms(), waiting)
    assert (receipt.data["in_guild"], receipt.waiting) == (True, None)
    assert await connector.holds(receipt) == Holding.HELD


async def test_nobody_is_added_where_the_benefit_says_so(
    connector: DiscordRole, discord: FakeDiscord, world: World
) -> None:
    discord.leave(ADA)
    allow(discord, world)
    receipt = await connector.grant(BUYER, terms(join=False), None)
    assert await connector.holds(receipt) == Holding.PENDING
    assert PUT_MEMBER not in discord.lines()


async def test_who_left_and_came_back_gets_the_role_again(connector: DiscordRole, discord: FakeDiscord) -> None:
    receipt = await connector.grant(BUYER, terms(), None)
    discord.leave(ADA)
    assert await connector.holds(receipt) == Holding.GONE
    discord.join(ADA)
    assert await connector.holds(receipt) == Holding.GONE
    receipt = await connector.grant(BUYER, terms(), receipt)
    assert await connector.holds(receipt) == Holding.HELD


# The customer's token.


async def test_two_roles_that_want_a_token_at_once_renew_it_once(
    connector: DiscordRole, discord: FakeDiscord, world: World
) -> None:
    """A refresh token works once: whoever came second would take the customer's leave away."""
    discord.leave(ADA)
    discord.add_role(OTHER_ROLE)
    allow(discord, world, expired=True)
    receipts = await asyncio.gather(
        connector.grant(BUYER, terms(), None), connector.grant(BUYER, terms(role=OTHER_ROLE), None)
    )
    assert discord.roles_of(ADA) == {ROLE, OTHER_ROLE}
    assert all(receipt.data["in_guild"] for receipt in receipts)
    assert discord.lines().count("POST /oauth2/token") == 1
    assert world.tokens.kept


async def test_nobody_is_thrown_out_for_an_account_that_somebody_named_in_a_field(
    connector: DiscordRole, discord: FakeDiscord
) -> None:
    """Whoever buys may name somebody else, and then ask for their money back."""
    named = msgspec.structs.replace(BUYER, sources={"discord": "field"})
    receipt = stored(await connector.grant(named, terms(on_revoke="kick"), None))
    await connector.revoke(receipt)
    assert discord.roles_of(ADA) == set()
    linked = msgspec.structs.replace(BUYER, sources={"discord": "linked"})
    await connector.revoke(stored(await connector.grant(linked, terms(on_revoke="kick"), None)))
    assert discord.roles_of(ADA) is None


async def test_member_gentei_18_an_expired_token_is_renewed_first_and_the_new_one_kept(
    connector: DiscordRole, discord: FakeDiscord, world: World, clock: Clock
) -> None:
    discord.leave(ADA)
    old = allow(discord, world, expired=True)
    await connector.grant(BUYER, terms(), None)
    assert discord.lines() == [PUT_ROLE, "POST /oauth2/token", PUT_MEMBER]
    assert discord.roles_of(ADA) == {ROLE}
    kept = world.tokens.kept["discord", ADA]
    (only,) = discord.tokens
    assert (kept.access_token, kept.refresh_token) == (only.access, only.refresh) != (old.access, old.refresh)
    assert kept.expires_at == clock.at + timedelta(days=7)


@pytest.mark.parametrize("expires_in", [timedelta(seconds=59), timedelta(days=-30)])
async def test_a_token_that_ends_within_a_minute_is_renewed(
    connector: DiscordRole, discord: FakeDiscord, world: World, expires_in: timedelta
) -> None:
    discord.leave(ADA)
    token = discord.issue(ADA)
    world.tokens.kept["discord", ADA] = AccountToken(token.access, token.refresh, world.now() + expires_in)
    await connector.grant(BUYER, terms(), None)
    assert "POST /oauth2/token" in discord.lines()


@pytest.mark.parametrize("is_expired", [False, True])
async def test_a_token_that_is_refused_is_forgotten_and_the_customer_links_again(
    connector: DiscordRole, discord: FakeDiscord, world: World, is_expired: bool
) -> None:
    discord.leave(ADA)
    allow(discord, world, expired=is_expired)
    discord.tokens.clear()  # they took the permission back at Discord
    assert "link your Discord account again" in await must_act(connector.grant(BUYER, terms(), None), "customer")
    assert world.tokens.kept == {}
    assert len(discord.lines()) == 2
    receipt = await connector.grant(BUYER, terms(), None)
    assert await connector.holds(receipt) == Holding.PENDING, "from now on they may also join by themselves"


async def test_an_expired_token_that_cannot_be_renewed_is_forgotten_unasked(
    connector: DiscordRole, discord: FakeDiscord, world: World
) -> None:
    discord.leave(ADA)
    world.tokens.kept["discord", ADA] = AccountToken("a", None, world.now())
    await must_act(connector.grant(BUYER, terms(), None), "customer")
    assert world.tokens.kept == {}
    assert discord.lines() == [PUT_ROLE]


class Overtaken(MemoryTokens):
    """Tokens, of which the first reading is older than what another worker keeps right afterwards."""

    def __init__(self, older: AccountToken) -> None:
        super().__init__()
        self._older: AccountToken | None = older

    async def find(self, platform: str, account_id: str) -> AccountToken | None:
        older, self._older = self._older, None
        return older or await super().find(platform, account_id)


@pytest.mark.parametrize("is_expired", [False, True])
async def test_a_token_that_another_worker_has_renewed_meanwhile_is_read_again(
    connector: DiscordRole, discord: FakeDiscord, world: World, is_expired: bool
) -> None:
    discord.leave(ADA)
    allow(discord, world)
    ends = world.now() + timedelta(days=-1 if is_expired else 1)
    tokens = Overtaken(AccountToken("older", "older-refresh", ends))
    tokens.kept = world.tokens.kept
    world.tokens = tokens
    connector._tokens = tokens
    await connector.grant(BUYER, terms(), None)
    assert discord.roles_of(ADA) == {ROLE}
    assert ("discord", ADA) in tokens.kept


async def test_discord_api_docs_5951_the_token_of_another_account_adds_nobody(
    connector: DiscordRole, discord: FakeDiscord, world: World
) -> None:
    discord.leave(ADA)
    allow(discord, world, account=GRACE)
    world.tokens.kept["discord", ADA] = world.tokens.kept.pop(("discord", GRACE))
    await must_act(connector.grant(BUYER, terms(), None), "customer")
    assert discord.roles_of(ADA) is None
    assert discord.roles_of(GRACE) is None


async def test_a_wrong_client_secret_is_the_merchants_and_keeps_the_token(
    connector: DiscordRole, discord: FakeDiscord, world: World
) -> None:
    discord.leave(ADA)
    allow(discord, world, expired=True)
    discord.script("POST /oauth2/token", status=401, body={"error": "invalid_client"})
    reason = await must_act(connector.grant(BUYER, terms(), None), "merchant")
    assert "ALMONER_DISCORD_CLIENT_ID and _SECRET" in reason
    assert ("discord", ADA) in world.tokens.kept


@pytest.mark.parametrize(
    ("script", "retry_after"),
    [
        ({"status": 503, "body": "<html>"}, None),
        ({"drop": "before"}, None),
        ({"status": 200, "body": "<html>"}, None),
        ({"status": 429, "body": {"message": "", "code": 0, "retry_after": 7.5, "global": False}}, 7.5),
    ],
)
async def test_while_tokens_cannot_be_renewed_nothing_is_lost(
    connector: DiscordRole, discord: FakeDiscord, world: World, script: dict[str, Any], retry_after: float | None
) -> None:
    discord.leave(ADA)
    allow(discord, world, expired=True)
    discord.script("POST /oauth2/token", **script)
    error = await failing(connector.grant(BUYER, terms(), None))
    assert isinstance(error, Unavailable)
    assert error.retry_after == retry_after
    assert ("discord", ADA) in world.tokens.kept
    world.limits.parked.clear()
    await connector.grant(BUYER, terms(), None)
    assert discord.roles_of(ADA) == {ROLE}


# Who must act.


async def test_freehire_2604_both_causes_of_50013_are_told_apart(connector: DiscordRole, discord: FakeDiscord) -> None:
    discord.bot_role().permissions = 0
    reason = await must_act(connector.grant(BUYER, terms(), None), "merchant")
    assert reason.startswith(f"the role {ROLE} of the Discord server {GUILD} for the account {ADA}: ")
    assert "the bot lacks the permission Manage Roles" in reason
    assert "highest" not in reason
    discord.bot_role().permissions = MANAGE_ROLES
    discord.guilds[GUILD].roles[ROLE].position = 11
    reason = await must_act(connector.grant(BUYER, terms(), None), "merchant")
    assert "is at or above the bot's highest" in reason
    assert "Manage Roles" not in reason


async def test_of_roles_at_the_same_position_the_older_is_higher(connector: DiscordRole, discord: FakeDiscord) -> None:
    older = "100000000000000001"
    discord.add_role(older, position=10)
    discord.guilds[GUILD].roles[ROLE].position = 10
    assert "at or above" in await must_act(connector.grant(BUYER, terms(role=older), None), "merchant")
    assert await connector.examine(terms(role=older)) != []
    await connector.grant(BUYER, terms(), None)
    assert await connector.examine(terms()) == []


async def test_a_role_of_an_integration_cannot_be_given(connector: DiscordRole, discord: FakeDiscord) -> None:
    discord.add_role("1100000000000000004", managed=True)
    config = terms(role="1100000000000000004")
    assert "belongs to an integration or to boosters" in await must_act(
        connector.grant(BUYER, config, None), "merchant"
    )


async def test_syncbot_23_a_refusal_of_one_role_leaves_the_others(connector: DiscordRole, discord: FakeDiscord) -> None:
    discord.guilds[GUILD].roles[OTHER_ROLE].position = 11
    await must_act(connector.grant(BUYER, terms(role=OTHER_ROLE), None), "merchant")
    await connector.grant(BUYER, terms(), None)
    assert discord.roles_of(ADA) == {ROLE}


async def test_adding_people_needs_create_invite(connector: DiscordRole, discord: FakeDiscord, world: World) -> None:
    discord.leave(ADA)
    allow(discord, world)
    discord.bot_role().permissions = MANAGE_ROLES
    reason = await must_act(connector.grant(BUYER, terms(), None), "merchant")
    assert "the bot lacks the permission Create Invite" in reason
    assert ("discord", ADA) in world.tokens.kept


async def test_discord_api_docs_5578_the_bot_must_be_in_the_server(
    connector: DiscordRole, discord: FakeDiscord, world: World
) -> None:
    allow(discord, world)
    discord.leave(BOT)
    reason = await must_act(connector.grant(BUYER, terms(), None), "merchant")
    assert "the bot is not in the server" in reason
    assert ("discord", ADA) in world.tokens.kept


async def test_an_unknown_server_is_the_merchants(connector: DiscordRole) -> None:
    config = terms(guild="197038439483310099")
    assert "knows no such server" in await must_act(connector.grant(BUYER, config, None), "merchant")


async def test_a_deleted_role_is_the_merchants(connector: DiscordRole, discord: FakeDiscord) -> None:
    discord.delete_role(ROLE)
    assert "the role was deleted" in await must_act(connector.grant(BUYER, terms(), None), "merchant")


async def test_a_deleted_account_is_the_customers(connector: DiscordRole, discord: FakeDiscord) -> None:
    discord.delete_user(ADA)
    assert "link another" in await must_act(connector.grant(BUYER, terms(), None), "customer")


async def test_who_is_banned_needs_the_merchant(connector: DiscordRole, discord: FakeDiscord, world: World) -> None:
    allow(discord, world)
    discord.ban(ADA)
    assert "banned from the server" in await must_act(connector.grant(BUYER, terms(), None), "merchant")


async def test_who_is_in_too_many_servers_must_leave_one(
    connector: DiscordRole, discord: FakeDiscord, world: World
) -> None:
    discord.leave(ADA)
    allow(discord, world)
    discord.users[ADA].guilds = 100
    assert "leave one of them" in await must_act(connector.grant(BUYER, terms(), None), "customer")


async def test_discord_api_docs_6888_who_is_in_as_many_servers_as_allowed_and_in_this_one_gets_the_role(
    connector: DiscordRole, discord: FakeDiscord, world: World
) -> None:
    allow(discord, world)
    discord.users[ADA].guilds = 100
    discord.checks_cap_first = True
    receipt = await connector.grant(BUYER, terms(), None)
    assert await connector.holds(receipt) == Holding.HELD


@pytest.mark.parametrize(
    ("code", "sentence"), [(60003, "two-factor authentication"), (30019, "as many members as Discord allows")]
)
async def test_other_refusals_say_what_to_do_too(
    connector: DiscordRole, discord: FakeDiscord, code: int, sentence: str
) -> None:
    discord.script(PUT_ROLE, status=403, body={"code": code, "message": "No"})
    assert sentence in await must_act(connector.grant(BUYER, terms(), None), "merchant")


async def test_a_refusal_that_nobody_knows_is_shown_to_a_person(connector: DiscordRole, discord: FakeDiscord) -> None:
    discord.script(PUT_ROLE, status=400, body={"code": 50028, "message": "Invalid Role"})
    error = await failing(connector.grant(BUYER, terms(), None))
    assert isinstance(error, Rejected)
    assert "400 (50028: Invalid Role)" in str(error)


async def test_a_refused_bot_token_is_the_merchants(connector: DiscordRole, discord: FakeDiscord) -> None:
    discord.script("GET /users/@me", status=401, body={"code": 0, "message": "401: Unauthorized"})
    assert "ALMONER_DISCORD_BOT_TOKEN" in await must_act(connector.grant(BUYER, terms(), None), "merchant")
    await connector.grant(BUYER, terms(), None)
    discord.script(PUT_ROLE, status=401, body={"code": 0, "message": "401: Unauthorized"})
    assert "ALMONER_DISCORD_BOT_TOKEN" in await must_act(connector.grant(BUYER, terms(), None), "merchant")


async def test_an_address_that_is_no_discord_is_told(connector: DiscordRole, discord: FakeDiscord) -> None:
    discord.script("GET /users/@me", status=404, body="<html>")
    error = await failing(connector.grant(BUYER, terms(), None))
    assert "ALMONER_DISCORD_API_URL" in str(error)


# What passes by itself.


@pytest.mark.parametrize("status", [500, 502, 503, 504, 524])
async def test_a_server_error_is_for_later_and_nothing_sleeps_inside(
    connector: DiscordRole, discord: FakeDiscord, status: int
) -> None:
    discord.script(PUT_ROLE, status=status, body="<html>", headers={"Retry-After": "9"})
    began = time.monotonic()
    error = await failing(connector.grant(BUYER, terms(), None))
    assert isinstance(error, Unavailable)
    assert error.retry_after == (9 if status == 503 else None)
    assert discord.lines() == [PUT_ROLE], "discord.py would have tried again"
    assert time.monotonic() - began < 0.9, "discord.py would have slept for a second"


@pytest.mark.parametrize(
    "script",
    [
        # aiohttp itself asks once more where a connection that it kept was dropped.
        {"drop": "before", "times": 2},
        {"drop": "after", "times": 2},
        {"status": 200, "body": "<html>"},
        {"status": 200, "body": "{", "headers": {"Content-Type": "application/json"}},
    ],
)
async def test_what_was_not_understood_may_have_happened_and_is_done_again(
    connector: DiscordRole, discord: FakeDiscord, script: dict[str, Any]
) -> None:
    await connector.examine(terms())
    discord.script(GET_MEMBER if "status" in script else PUT_ROLE, **script)
    given = Receipt(RESOURCE, intended=True)
    call = connector.holds(given) if "status" in script else connector.grant(BUYER, terms(), None)
    assert isinstance(await failing(call), Unavailable)
    receipt = await connector.grant(BUYER, terms(), None)
    assert await connector.holds(receipt) == Holding.HELD


async def test_no_answer_within_the_time_of_a_call_is_for_later(world: World, discord: FakeDiscord) -> None:
    world.settings = world.settings.model_copy(update={"call_timeout": timedelta(seconds=0.15)})
    connector = DiscordRole(world.tools)
    discord.script(PUT_ROLE, seconds=0.5, status=204)
    error = await failing(connector.grant(BUYER, terms(), None))
    assert isinstance(error, Unavailable)
    assert "within 0.15 s" in str(error)
    await connector.close()


async def test_nobody_listening_is_for_later(world: World) -> None:
    values = world.settings.model_dump() | {"discord_api_url": "http://127.0.0.1:9/api/v10"}
    world.settings = type(world.settings)(**values)
    connector = DiscordRole(world.tools)
    assert isinstance(await failing(connector.grant(BUYER, terms(), None)), Unavailable)
    assert isinstance(await failing(connector.examine(terms())), Unavailable)
    await connector.close()


# Limits.


def limited(seconds: float, *, is_global: bool = False) -> dict[str, Any]:
    return {"message": "You are being rate limited.", "retry_after": seconds, "global": is_global, "code": 0}


async def test_a_429_parks_the_bucket_for_as_long_as_it_says(
    connector: DiscordRole, discord: FakeDiscord, world: World
) -> None:
    discord.script(PUT_ROLE, status=429, body=limited(1.25), headers={"X-RateLimit-Scope": "user"})
    error = await failing(connector.grant(BUYER, terms(), None))
    assert isinstance(error, Unavailable)
    assert error.retry_after == 1.25
    ((name, (seconds, _)),) = world.limits.parked.items()
    assert name.endswith(f":PUT /guilds/{{guild_id}}/members/{{user_id}}/roles/{{role_id}}:{GUILD}")
    assert seconds == 1.25
    assert discord.lines() == [PUT_ROLE]
    assert await connector.holds(Receipt(RESOURCE, intended=True)) == Holding.GONE, "other routes go on"


async def test_a_global_429_parks_the_bot(connector: DiscordRole, discord: FakeDiscord, world: World) -> None:
    discord.script(PUT_ROLE, status=429, body=limited(3, is_global=True), headers={"X-RateLimit-Global": "true"})
    error = await failing(connector.grant(BUYER, terms(), None))
    assert isinstance(error, Unavailable)
    assert error.retry_after == 3
    (name,) = world.limits.parked
    assert name == "discord:" + name.split(":")[1]
    assert isinstance(await failing(connector.holds(Receipt(RESOURCE))), Unavailable)
    assert discord.lines() == [PUT_ROLE]


@pytest.mark.parametrize(
    ("script", "seconds"),
    [
        ({"body": "<html>banned</html>", "headers": {"Retry-After": "1337", "Via": None}}, 1337),
        ({"body": "<html>banned</html>", "headers": {"Via": None}}, 60),
    ],
)
async def test_a_ban_of_our_address_parks_the_bot(
    connector: DiscordRole, discord: FakeDiscord, world: World, script: dict[str, Any], seconds: float
) -> None:
    discord.script(PUT_ROLE, status=429, **script)
    error = await failing(connector.grant(BUYER, terms(), None))
    assert isinstance(error, Unavailable)
    assert error.retry_after == seconds
    assert [name.count(":") for name in world.limits.parked] == [1]


async def test_every_call_takes_places_of_the_bot_the_server_and_the_bucket(
    connector: DiscordRole, world: World
) -> None:
    await connector.grant(BUYER, terms(), None)
    who = world.limits.taken[0].name
    assert who.startswith("discord:")
    assert BOT_TOKEN not in who
    assert world.limits.taken == [
        Rate(who, 50, 1),
        Rate(f"{who}:GET /users/@me:", 10, 10),
        Rate(who, 50, 1),
        Rate(f"{who}:guild:{GUILD}", 50, 1),
        Rate(f"{who}:PUT /guilds/{{guild_id}}/members/{{user_id}}/roles/{{role_id}}:{GUILD}", 10, 10),
    ]


async def test_what_headers_say_of_a_bucket_is_learned_and_routes_that_share_one_share_its_name(
    connector: DiscordRole, discord: FakeDiscord, world: World
) -> None:
    discord.limits_on = True
    discord.bucket_limit, discord.bucket_seconds = 7, 30.0
    receipt = await connector.grant(BUYER, terms(), None)
    await connector.grant(BUYER, terms(), None)
    bucket = world.limits.taken[-1]
    assert (bucket.limit, bucket.seconds) == (7, 30)
    assert world.limits.learned[bucket.name] == bucket
    assert bucket.name.endswith(f":{GUILD}")
    assert "PUT" not in bucket.name
    await connector.revoke(receipt)
    await connector.revoke(receipt)
    assert world.limits.taken[-1] == bucket
    assert len([name for name in world.limits.learned if name.endswith(GUILD)]) == 1


async def test_an_empty_bucket_is_parked_before_it_refuses(
    connector: DiscordRole, discord: FakeDiscord, world: World
) -> None:
    discord.limits_on = True
    discord.bucket_limit, discord.bucket_seconds = 2, 30.0
    await connector.grant(BUYER, terms(), None)
    assert world.limits.parked == {}
    await connector.grant(BUYER, terms(), None)
    error = await failing(connector.grant(BUYER, terms(), None))
    assert isinstance(error, Unavailable)
    assert 29 < (error.retry_after or 0) <= 30
    assert discord.invalid_requests == 0


async def test_windows_of_our_own_go_by_the_pace_and_discords_as_it_says(discord: FakeDiscord, world: World) -> None:
    connector = DiscordRole(world.tools, pace=0.01)
    discord.limits_on, discord.scale = True, 0.01
    await connector.grant(BUYER, terms(), None)
    await connector.grant(BUYER, terms(), None)
    assert world.limits.taken[-3].seconds == 0.01
    assert world.limits.taken[0].seconds == 0.01
    assert world.limits.taken[1].seconds == pytest.approx(0.1)
    assert world.limits.taken[-1].seconds == pytest.approx(0.1, rel=0.1)
    await connector.close()


async def test_polar_8592_under_real_limits_everybody_gets_their_role_and_discord_refuses_nothing(
    discord: FakeDiscord, world: World, sqlite_url: str
) -> None:
    discord.limits_on, discord.scale = True, 0.03
    database = Database(sqlite_url)
    now = lambda: datetime.now(UTC)  # noqa: E731
    tools = DiscordRole(world.tools, pace=0.03)
    tools._limits = StoredLimits(database, now)
    people = [str(10**17 + number) for number in range(25)]
    for one in people:
        discord.add_user(one, f"user{one}")
        discord.join(one)

    async def give(account: str) -> None:
        while True:
            try:
                await tools.grant(Recipient(customer_id=account, accounts={"discord": account}), terms(), None)
                return
            except Unavailable as error:
                await asyncio.sleep(error.retry_after or 9)

    try:
        await asyncio.gather(*map(give, people))
    finally:
        await tools.close()
        await database.close()
    assert all(discord.roles_of(one) == {ROLE} for one in people)
    assert discord.invalid_requests == 0


async def test_five_refusals_in_a_row_park_the_server_and_only_it(
    connector: DiscordRole, discord: FakeDiscord, world: World
) -> None:
    second = "297038439483310086"
    discord.add_guild(second)
    discord.add_role(OTHER_ROLE, guild=second)
    discord.join(ADA, guild=second)
    discord.bot_role().permissions = 0
    for _ in range(5):
        await must_act(connector.grant(BUYER, terms(), None), "merchant")
    asked = len(discord.log)
    error = await failing(connector.grant(BUYER, terms(), None))
    assert isinstance(error, Unavailable)
    assert error.retry_after == 600
    assert f"refused the server {GUILD} 5 times in a row (403, 50013)" in str(error)
    assert len(discord.log) == asked
    await connector.grant(BUYER, terms(guild=second, role=OTHER_ROLE), None)
    assert [name.split(":", 2)[2] for name in world.limits.parked] == [f"guild:{GUILD}"]


async def test_a_change_that_succeeds_ends_a_run_of_refusals(
    connector: DiscordRole, discord: FakeDiscord, world: World
) -> None:
    discord.guilds[GUILD].roles[OTHER_ROLE].position = 11
    for _ in range(4):
        for _ in range(4):
            await must_act(connector.grant(BUYER, terms(role=OTHER_ROLE), None), "merchant")
        await connector.grant(BUYER, terms(), None)
    assert world.limits.parked == {}


async def test_what_is_wrong_with_customers_parks_no_server(
    connector: DiscordRole, discord: FakeDiscord, world: World
) -> None:
    for _ in range(6):
        discord.leave(ADA)
        allow(discord, world)
        discord.tokens.clear()
        await must_act(connector.grant(BUYER, terms(), None), "customer")
    discord.ban(ADA)
    for _ in range(6):
        allow(discord, world)
        await must_act(connector.grant(BUYER, terms(), None), "merchant")
    assert world.limits.parked == {}


async def test_a_bot_token_that_is_refused_again_and_again_parks_the_bot(
    connector: DiscordRole, discord: FakeDiscord, world: World
) -> None:
    discord.script("GET /users/@me", times=9, status=401, body={"code": 0, "message": "401: Unauthorized"})
    for _ in range(5):
        await must_act(connector.grant(BUYER, terms(), None), "merchant")
    assert isinstance(await failing(connector.grant(BUYER, terms(), None)), Unavailable)
    assert len(discord.log) == 5


# Taking back.


async def test_the_role_is_removed_with_a_reason_and_the_person_stays(
    connector: DiscordRole, discord: FakeDiscord
) -> None:
    receipt = stored(await connector.grant(BUYER, terms(), None))
    discord.guilds[GUILD].members[ADA].add(OTHER_ROLE)
    await connector.revoke(receipt)
    assert discord.lines() == [PUT_ROLE, DELETE_ROLE]
    assert discord.log[-1].reason == "Almoner: benefit pro revoked"
    assert discord.roles_of(ADA) == {OTHER_ROLE}
    assert not await connector.left(receipt)


async def test_polar_3_6_c_nobody_is_kicked_while_another_role_there_is_theirs(
    connector: DiscordRole, discord: FakeDiscord
) -> None:
    receipt = stored(await connector.grant(BUYER, terms(on_revoke="kick"), None))
    await connector.revoke(receipt, last=False)
    assert discord.roles_of(ADA) == set()
    receipt = stored(await connector.grant(BUYER, terms(on_revoke="kick"), None))
    await connector.revoke(receipt, last=True)
    assert discord.roles_of(ADA) is None
    assert discord.lines()[-1] == KICK
    assert discord.log[-1].reason == "Almoner: benefit pro revoked"
    assert not await connector.left(receipt)


async def test_what_revoking_does_is_what_the_receipt_says(connector: DiscordRole, discord: FakeDiscord) -> None:
    receipt = stored(await connector.grant(BUYER, terms(), None))
    receipt = stored(await connector.grant(BUYER, terms(on_revoke="kick"), receipt))
    assert receipt.data["on_revoke"] == "kick", "a changed config is in force once it was granted again"
    await connector.revoke(receipt)
    assert discord.roles_of(ADA) is None


async def test_what_we_died_before_noting_is_a_role_and_kicks_nobody(
    connector: DiscordRole, discord: FakeDiscord
) -> None:
    await connector.grant(BUYER, terms(on_revoke="kick"), None)
    await connector.revoke(Receipt(RESOURCE, intended=True))
    assert discord.roles_of(ADA) == set()
    assert discord.log[-1].reason == "Almoner: revoked"


@pytest.mark.parametrize("on_revoke", ["remove_role", "kick"])
@pytest.mark.parametrize("gone", ["left", "deleted account", "deleted role"])
async def test_what_is_certainly_gone_is_revoked(
    connector: DiscordRole, discord: FakeDiscord, on_revoke: str, gone: str
) -> None:
    receipt = stored(await connector.grant(BUYER, terms(on_revoke=on_revoke), None))
    if gone == "left":
        discord.leave(ADA)
    elif gone == "deleted account":
        discord.delete_user(ADA)
    else:
        discord.delete_role(ROLE)
    await connector.revoke(receipt)
    await connector.revoke(receipt)
    assert not await connector.left(receipt)


async def test_polar_3_5_a_refusal_is_never_taken_for_revoked(connector: DiscordRole, discord: FakeDiscord) -> None:
    receipt = stored(await connector.grant(BUYER, terms(), None))
    discord.bot_role().permissions = KICK_MEMBERS
    assert "Manage Roles" in await must_act(connector.revoke(receipt), "merchant")
    assert await connector.holds(receipt) == Holding.HELD
    discord.script(DELETE_ROLE, status=400, body={"code": 0, "message": "?"})
    assert isinstance(await failing(connector.revoke(receipt)), Rejected)


@pytest.mark.parametrize("known", [True, False])
async def test_while_the_bot_is_out_of_the_server_nothing_is_proven(
    connector: DiscordRole, discord: FakeDiscord, known: bool
) -> None:
    receipt = stored(await connector.grant(BUYER, terms(), None))
    if known:
        discord.leave(BOT)
    else:
        discord.guilds.clear()
    await must_act(connector.revoke(receipt), "merchant")
    await must_act(connector.holds(receipt), "merchant")


async def test_kicking_needs_the_permission_and_a_higher_role(connector: DiscordRole, discord: FakeDiscord) -> None:
    receipt = stored(await connector.grant(BUYER, terms(on_revoke="kick"), None))
    discord.bot_role().permissions = MANAGE_ROLES
    assert "the bot lacks the permission Kick Members" in await must_act(connector.revoke(receipt), "merchant")
    discord.bot_role().permissions = MANAGE_ROLES | KICK_MEMBERS
    discord.guilds[GUILD].owner = ADA
    assert "the account owns the server, or has a role" in await must_act(connector.revoke(receipt), "merchant")
    assert discord.roles_of(ADA) == {ROLE}


async def test_polar_3_6_f_who_never_joined_is_not_waited_for_after_revoking(
    connector: DiscordRole, discord: FakeDiscord
) -> None:
    discord.leave(ADA)
    waiting = stored(await connector.grant(BUYER, terms(on_revoke="kick"), None))
    await connector.revoke(waiting)
    assert not await connector.left(waiting)
    discord.join(ADA)
    await connector.revoke(waiting)
    assert discord.roles_of(ADA) == set(), "who came by themselves is not kicked"
    again = await connector.grant(BUYER, terms(), None)
    assert await connector.holds(again) == Holding.HELD


async def test_polar_3_6_a_one_of_two_roles_goes_and_the_other_stays(
    connector: DiscordRole, discord: FakeDiscord
) -> None:
    first = stored(await connector.grant(BUYER, terms(), None))
    second = stored(await connector.grant(BUYER, terms(role=OTHER_ROLE), None))
    assert first.resource != second.resource
    await connector.revoke(first)
    assert not await connector.left(first)
    assert await connector.holds(second) == Holding.HELD


async def test_polar_3_6_e_a_renamed_account_keeps_and_loses_its_role(
    connector: DiscordRole, discord: FakeDiscord
) -> None:
    receipt = stored(await connector.grant(BUYER, terms(), None))
    discord.users[ADA].name = "countess"
    discord.add_user("90351110224678912", "ada")
    discord.join("90351110224678912")
    assert await connector.holds(receipt) == Holding.HELD
    await connector.revoke(receipt)
    assert discord.roles_of(ADA) == set()


# Finding out.


@pytest.mark.parametrize("told", ["grace", "@grace", "Grace", " grace ", "grace#0"])
async def test_a_member_is_found_by_their_exact_user_name(
    connector: DiscordRole, discord: FakeDiscord, told: str
) -> None:
    discord.join(GRACE)
    discord.add_user("90351110224678912", "grace_hopper")
    discord.join("90351110224678912")
    assert await connector.identify(told, terms()) == Account(GRACE, "grace")
    assert len(discord.lines()) == 1


async def test_an_old_name_with_a_number_means_only_who_has_that_number_still(
    connector: DiscordRole, discord: FakeDiscord
) -> None:
    discord.join(GRACE)
    await must_act(connector.identify("grace#1234", terms()), "customer")
    discord.add_user("90351110224678912", "Grace", discriminator="1234")
    discord.join("90351110224678912")
    assert await connector.identify("grace#1234", terms()) == Account("90351110224678912", "Grace")
    assert await connector.identify("grace", terms()) == Account(GRACE, "grace")


@pytest.mark.parametrize("told", ["grac", "hopper", "almoner", "", "@", "x" * 99, "a#b#c"])
async def test_nobody_is_found_by_half_a_name_and_no_bot(
    connector: DiscordRole, discord: FakeDiscord, told: str
) -> None:
    discord.join(GRACE)
    reason = await must_act(connector.identify(told, terms()), "customer")
    assert "join the server first, or link your Discord account" in reason


async def test_a_benefit_that_can_be_given_has_nothing_wrong(connector: DiscordRole, discord: FakeDiscord) -> None:
    assert await connector.examine(terms(roles=[ROLE, OTHER_ROLE], on_revoke="kick")) == []
    assert len(discord.lines()) == 2


async def test_an_administrator_may_everything_but_what_is_above(connector: DiscordRole, discord: FakeDiscord) -> None:
    discord.bot_role().permissions = 8
    assert await connector.examine(terms(on_revoke="kick")) == []
    discord.guilds[GUILD].roles[ROLE].position = 12
    assert len(await connector.examine(terms(on_revoke="kick"))) == 1


async def test_what_everybody_may_the_bot_may(connector: DiscordRole, discord: FakeDiscord) -> None:
    discord.bot_role().permissions = MANAGE_ROLES
    assert await connector.examine(terms()) != []
    discord.guilds[GUILD].roles[GUILD].permissions = CREATE_INVITE
    assert await connector.examine(terms()) == []


async def test_everything_that_is_wrong_is_said_at_once(connector: DiscordRole, discord: FakeDiscord) -> None:
    discord.bot_role().permissions = 0
    discord.guilds[GUILD].roles[OTHER_ROLE].position = 10
    discord.guilds[GUILD].roles[OTHER_ROLE].id = OTHER_ROLE
    discord.add_role("100000000000000001", position=11)
    discord.add_role("1100000000000000004", managed=True)
    roles = [ROLE, "100000000000000001", "1100000000000000004", "1100000000000000009"]
    found = await connector.examine(terms(roles=roles, on_revoke="kick"))
    expected = [
        "Manage Roles",
        "Kick Members",
        "Create Invite",
        "100000000000000001 .* at or above",
        "1100000000000000004 .* belongs to an integration",
        "no role 1100000000000000009",
    ]
    assert len(found) == len(expected)
    for sentence, pattern in zip(found, expected, strict=True):
        assert re.search(pattern, sentence), sentence
    assert not any("Create Invite" in one for one in await connector.examine(terms(join=False)))
    assert not any("Kick Members" in one for one in await connector.examine(terms()))


async def test_a_bot_outside_and_a_refused_token_are_said(connector: DiscordRole, discord: FakeDiscord) -> None:
    discord.script("GET /users/@me", status=401, body={"code": 0, "message": "401: Unauthorized"})
    (sentence,) = await connector.examine(terms())
    assert "ALMONER_DISCORD_BOT_TOKEN" in sentence
    (sentence,) = await connector.examine(terms(guild="197038439483310099"))
    assert "add the bot to it" in sentence
    discord.leave(BOT)
    (sentence,) = await connector.examine(terms())
    assert "the bot is not in the server" in sentence


async def test_a_bot_that_is_no_member_of_the_server_is_said_too(connector: DiscordRole, discord: FakeDiscord) -> None:
    unknown = {"code": 10007, "message": "Unknown Member"}
    discord.script(f"GET /guilds/{GUILD}/members/{BOT}", status=404, body=unknown)
    (sentence,) = await connector.examine(terms())
    assert "the bot is not in the server" in sentence
    discord.leave(BOT)
    await must_act(connector.identify("ada", terms()), "merchant")


async def test_a_survey_finds_everybody_who_has_a_role_whoever_gave_it(
    connector: DiscordRole, discord: FakeDiscord
) -> None:
    discord.guilds[GUILD].members[ADA] = {ROLE, OTHER_ROLE}
    for number in range(2050):
        one = str(10**17 + number)
        discord.add_user(one, f"user{number}")
        discord.guilds[GUILD].members[one] = {ROLE} if number % 1000 == 0 else {THIRD_ROLE}
    discord.specification = None  # it takes its time over so many
    found = await connector.survey(terms())
    everybody = [str(10**17), str(10**17 + 1000), str(10**17 + 2000), ADA]
    assert found == {f"discord_role:{GUILD}:{one}:{ROLE}": Holding.HELD for one in everybody}
    assert [one.query.get("after") for one in discord.log[1:]] == ["0", str(10**17 + 998), str(10**17 + 1998)]
    several = await connector.survey(terms(roles=[ROLE, OTHER_ROLE]))
    assert several == {**found, f"discord_role:{GUILD}:{ADA}:{OTHER_ROLE}": Holding.HELD}


async def test_a_survey_needs_the_intent_and_says_which(connector: DiscordRole, discord: FakeDiscord) -> None:
    discord.has_members_intent = False
    assert "GUILD_MEMBERS" in await must_act(connector.survey(terms()), "merchant")


async def test_a_survey_waits_for_its_turn_but_not_for_ever(
    connector: DiscordRole, discord: FakeDiscord, world: World
) -> None:
    await connector.grant(BUYER, terms(), None)
    line = f"GET /guilds/{GUILD}/members"
    discord.script(line, status=429, body=limited(0.05))
    clearing = asyncio.get_running_loop().call_later(0.06, world.limits.parked.clear)
    assert await connector.survey(terms()) == {RESOURCE: Holding.HELD}
    clearing.cancel()
    discord.script(line, status=429, body=limited(61))
    assert isinstance(await failing(connector.survey(terms())), Unavailable)


async def test_an_offer_says_which_role_and_where(connector: DiscordRole, discord: FakeDiscord, world: World) -> None:
    assert connector.offer(await connector.grant(BUYER, terms(), None)) == {
        "kind": "discord_role",
        "guild": GUILD,
        "role": ROLE,
        "in_guild": True,
        "url": f"https://discord.com/channels/{GUILD}",
    }
    discord.leave(ADA)
    offer = connector.offer(await connector.grant(BUYER, terms(), None))
    assert offer["in_guild"] is False
    assert connector.present(offer, "grant-1", Moment(world.now(), world.settings)) == offer


# Connections, and secrets.


async def test_calls_at_the_same_time_log_in_once(connector: DiscordRole, discord: FakeDiscord) -> None:
    await asyncio.gather(*(connector.holds(Receipt(RESOURCE, intended=True)) for _ in range(20)))
    assert [one.path for one in discord.log].count("/users/@me") == 1


async def test_who_gives_up_waiting_does_not_take_the_login_from_others(
    connector: DiscordRole, discord: FakeDiscord
) -> None:
    first, second = (asyncio.create_task(connector.holds(Receipt(RESOURCE, intended=True))) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == Holding.GONE
    assert [one.path for one in discord.log].count("/users/@me") == 1


def test_every_event_loop_has_connections_of_its_own_which_close(world: World, discord: FakeDiscord) -> None:
    connector = DiscordRole(world.tools)

    async def once() -> Holding:
        try:
            return await connector.holds(Receipt(RESOURCE, intended=True))
        finally:
            await connector.close()
            await connector.close()

    assert [asyncio.run(once()) for _ in range(2)] == [Holding.GONE] * 2
    assert connector._apis == {}


async def test_no_token_is_seen_in_logs_errors_or_limits(
    discord: FakeDiscord, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    connector = DiscordRole(world.tools)
    discord.leave(ADA)
    tokens = [allow(discord, world, expired=True)]
    receipt = await connector.grant(BUYER, terms(), None)
    tokens += discord.tokens
    discord.leave(ADA)
    discord.tokens.clear()
    seen = [
        await must_act(connector.grant(BUYER, terms(), receipt), "customer"),
        repr(receipt),
        str(world.limits.taken),
    ]
    await connector.close()
    seen += [record.getMessage() for record in caplog.records] + [str(record.__dict__) for record in caplog.records]
    assert any("PUT" in one and "returned 201" in one for one in seen), "discord.py's own log is in it"
    for secret in [BOT_TOKEN, CLIENT_SECRET, *(part for one in tokens for part in (one.access, one.refresh))]:
        assert not [text for text in seen if secret in text]


async def test_the_address_that_other_clients_in_the_process_use_stays(
    connector: DiscordRole, discord: FakeDiscord
) -> None:
    await connector.grant(BUYER, terms(), None)
    from discord.http import Route

    assert Route.BASE == "https://discord.com/api/v10"


# The fake itself.


async def test_the_fake_lets_a_customer_link_with_pkce(
    served: tuple[FakeDiscord, str, Specification], discord: FakeDiscord
) -> None:
    url = served[1]
    root = url.removesuffix("/api/v10")
    discord.approve_as(ADA)
    query = {
        "client_id": CLIENT_ID, "response_type": "code", "redirect_uri": "https://sidecar.example.com/back",
        "scope": "identify guilds.join", "state": "s", "code_challenge_method": "S256",
        # https://www.rfc-editor.org/rfc/rfc7636#appendix-B
        "code_challenge": "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM",
    }  # fmt: skip
    async with httpx.AsyncClient() as client:
        sent = await client.get(f"{root}/oauth2/authorize", params=query)
        back = httpx.URL(sent.headers["location"]).params
        assert back["state"] == "s"
        form = {
            "grant_type": "authorization_code", "code": back["code"], "redirect_uri": query["redirect_uri"],
            "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET,
            "code_verifier": "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
        }  # fmt: skip
        token = (await client.post(f"{url}/oauth2/token", data=form)).json()
        me = await client.get(f"{url}/users/@me", headers={"Authorization": f"Bearer {token['access_token']}"})
        assert (me.json()["id"], me.json()["username"]) == (ADA, "ada")
        again = await client.post(f"{url}/oauth2/token", data=form)
        assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")
        discord.approve_as(None)
        assert "grace" in (await client.get(f"{root}/oauth2/authorize", params=query)).text
        left = await client.post(f"{root}/_fake/leave", json={"user": ADA})
        assert left.status_code == 200
        state = await client.get(f"{root}/_fake/state")
        assert list(state.json()["members"][GUILD]) == [BOT]
