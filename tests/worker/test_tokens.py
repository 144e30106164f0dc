"""Customers' tokens: unreadable at rest, re-encrypted when keys change, gone when they must be."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa

from connectors.base import Account, AccountToken
from tests.conftest import Running
from worker.accounts import Accounts, StoredTokens
from worker.sealing import NotSealed, Seal

TOKEN = AccountToken("access-token-secret", "refresh-token-secret")


@pytest.fixture
async def customer(running: Running) -> str:
    events = running.story("purchase")
    await running.receive(events)
    customer = events[0].customer_id
    await running.service.accounts.link(
        customer, None, "discord", Account("80351110224678912", "nelly"), source="linked", token=TOKEN
    )
    return customer


async def stored(running: Running) -> list[tuple[bytes | None, str | None]]:
    statement = sa.text("SELECT token, sealed_with FROM accounts")
    rows = await running.service.database.read(lambda connection: connection.execute(statement).all())
    return [(row[0], row[1]) for row in rows]


async def test_a_token_is_found_by_its_account_and_is_not_readable_at_rest(running: Running, customer: str) -> None:
    assert await running.service.tokens.find("discord", "80351110224678912") == TOKEN
    assert await running.service.tokens.find("github", "80351110224678912") is None
    [row] = await stored(running)
    assert row[0]
    assert b"access-token-secret" not in row[0]
    assert "secret" not in repr(TOKEN)


async def test_a_refreshed_token_takes_the_place_of_the_old_and_a_refused_one_is_forgotten(
    running: Running, customer: str
) -> None:
    newer = AccountToken("newer", "refresh", running.clock.at + timedelta(days=7))
    await running.service.tokens.keep("discord", "80351110224678912", newer)
    assert await running.service.tokens.find("discord", "80351110224678912") == newer
    await running.service.tokens.forget("discord", "80351110224678912", TOKEN)
    assert await running.service.tokens.find("discord", "80351110224678912") == newer, "another came in its place"
    await running.service.tokens.forget("discord", "80351110224678912", newer)
    assert await running.service.tokens.find("discord", "80351110224678912") is None
    [known] = await running.service.accounts.known(customer, None)
    assert known.account_id == "80351110224678912", "the account stays known; only the token is gone"


async def test_unlinking_forgets_the_token(running: Running, customer: str) -> None:
    assert await running.service.accounts.unlink(customer, None, "discord", source="linked")
    assert await stored(running) == []


async def test_deleting_the_customer_forgets_the_token(running: Running) -> None:
    events = running.story("delete-customer")
    await running.receive(events[:3])
    await running.service.accounts.link(
        events[0].customer_id, None, "discord", Account("1"), source="linked", token=TOKEN
    )
    assert len(await stored(running)) == 1
    await running.receive(events[3:])
    assert await stored(running) == []


async def test_an_older_key_still_decrypts_and_everything_is_encrypted_anew_with_the_first(
    running: Running, customer: str
) -> None:
    database, clock = running.service.database, running.clock
    both = StoredTokens(database, Seal(["encryption-key-2", "encryption-key-1"]), clock)
    assert await both.find("discord", "80351110224678912") == TOKEN
    assert await both.reseal() == 1
    assert await both.reseal() == 0
    only_new = StoredTokens(database, Seal(["encryption-key-2"]), clock)
    assert await only_new.find("discord", "80351110224678912") == TOKEN


async def test_a_token_whose_key_is_lost_is_as_good_as_none_and_the_customer_links_again(
    running: Running, customer: str
) -> None:
    lost = StoredTokens(running.service.database, Seal(["another-key"]), running.clock)
    assert await lost.find("discord", "80351110224678912") is None
    assert await lost.reseal() == 1
    assert await stored(running) == [(None, None)]


async def test_without_a_key_no_token_is_kept(running: Running) -> None:
    events = running.story("purchase")
    await running.receive(events)
    accounts = Accounts(running.service.database, running.service.pipeline, Seal([]))
    with pytest.raises(NotSealed, match="ALMONER_ENCRYPTION_KEYS is missing"):
        await accounts.link(events[0].customer_id, None, "discord", Account("1"), source="linked", token=TOKEN)
    await accounts.link(events[0].customer_id, None, "discord", Account("1"), source="linked")
    assert await stored(running) == [(None, None)]


async def test_members_of_a_team_have_accounts_each_of_their_own_and_the_owner_is_the_customer(
    running: Running,
) -> None:
    events = running.story("seats")
    await running.receive(events)
    customer, members = events[0].customer_id, [one for one in events if one.type == "member.created"]
    ids = [json.loads(one.body)["data"]["id"] for one in members]
    owner, one, other = ids[0], ids[1], ids[2]
    accounts = running.service.accounts
    await accounts.link(customer, owner, "github", Account("1"), source="linked")
    await accounts.link(customer, one, "github", Account("2"), source="linked")
    assert [known.account_id for known in await accounts.known(customer, None)] == ["1"]
    assert [known.account_id for known in await accounts.known(customer, owner)] == ["1"]
    assert [known.account_id for known in await accounts.known(customer, one)] == ["2"]
    assert await accounts.known(customer, other) == []
    assert await accounts.known("nobody", None) == []


async def test_an_account_stays_with_the_person_who_was_the_owner_when_it_was_linked(running: Running) -> None:
    events = running.story("seats")
    await running.receive(events)
    customer = events[0].customer_id
    accounts = running.service.accounts
    members = [json.loads(one.body) for one in events if one.type == "member.created"]
    owner, other = members[0]["data"]["id"], members[1]["data"]["id"]
    await accounts.link(customer, None, "github", Account("1"), source="linked")
    handed_over = []
    for member, role in ((0, "member"), (1, "owner")):
        body = members[member] | {"type": "member.updated", "timestamp": "2026-11-01T11:59:59Z"}
        body["data"] |= {"role": role, "modified_at": "2026-11-01T11:59:59Z"}
        handed_over.append(replace(events[0], webhook_id=f"m{member}", body=json.dumps(body).encode()))
    await running.receive(handed_over)
    assert [one.account_id for one in await accounts.known(customer, owner)] == ["1"]
    assert await accounts.known(customer, None) == await accounts.known(customer, other) == []


async def test_what_was_told_before_there_was_an_owner_is_theirs_and_goes_with_the_next(running: Running) -> None:
    events = running.story("purchase")
    before = next(number for number, event in enumerate(events) if event.type == "member.created")
    await running.receive(events[:before])
    customer, accounts = events[0].customer_id, running.service.accounts
    await accounts.link(customer, None, "github", Account("1"), source="set")
    await running.receive(events[before:])
    assert [one.account_id for one in await accounts.known(customer, None)] == ["1"]
    await accounts.link(customer, None, "github", Account("2"), source="set")
    assert [one.account_id for one in await accounts.known(customer, None)] == ["2"]
    assert await accounts.unlink(customer, None, "github", source="set")
    assert await accounts.known(customer, None) == []
