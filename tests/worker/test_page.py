"""The customers' page: who may open it, what it shows, what its forms do, and what never leaves it."""

import dataclasses
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from http.cookies import SimpleCookie
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import sqlalchemy as sa

from config.catalogue import Catalogue
from connectors.base import Account
from tests.conftest import Clock, Running, run_service, settings_for
from worker.answers import EDGES, Edges
from worker.http.api import make_api
from worker.http.page_look import Look, contrast, readable
from worker.http.page_session import PageTokens
from worker.http.page_view import WORDS
from worker.simulate import SimulatedEvent
from worker.store import grants
from worker.store.ready import Ready, ReadyAnswers

ENTER = "/me/enter/"
LINKABLE = {
    "github_client_id": "github-client", "github_client_secret": "github-secret-1",
    "discord_client_id": "discord-client", "discord_client_secret": "discord-secret-1",
    "encryption_keys": "encryption-key-1",
}  # fmt: skip


class Visit:
    """A browser without a screen: it keeps cookies as browsers do, and finds the forms of a page."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.cookies: dict[str, str] = {}
        self.page = ""

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        answer = await self.client.request(method, path, headers={"cookie": cookie}, **more)
        for written in answer.headers.get_list("set-cookie"):
            for name, morsel in SimpleCookie(written).items():
                self.cookies[name] = morsel.value
                if morsel["max-age"] == "0":
                    del self.cookies[name]
        return answer

    async def get(self, path: str = "/me") -> httpx.Response:
        answer = await self.ask("GET", path)
        self.page = answer.text
        return answer

    async def submit(self, action: str) -> httpx.Response:
        """Send the form of the page with this action."""
        form = re.search(rf'action="{action}">\s*<input type="hidden" name="proof" value="([^"]+)"', self.page)
        assert form, f"no form {action} on the page"
        return await self.ask("POST", action, data={"proof": form[1]})


async def visit(running: Running, customer_id: str, member_id: str | None = None) -> Visit:
    """Open the page of a customer, and look at it."""
    url, _ = PageTokens(running.context.settings).make_link(customer_id, member_id, running.clock.at)
    visited = Visit(running.client)
    assert (await visited.get(urlsplit(url).path)).status_code == 303
    assert (await visited.get()).status_code == 200
    return visited


def granted(grant_id: str, **more: Any) -> dict[str, Any]:
    return {
        "id": grant_id, "member_id": None, "member_external_id": None, "purchase": None, "part": None,
        "entitled": True, "status": "granted", "standing": "active", "valid_until": None, "because": [],
        "gives": None, "problem": None, "granted_at": None, "revoked_at": None,
    } | more  # fmt: skip


def waiting(grant_id: str, who: str = "customer", message: str = "Do it.", **more: Any) -> dict[str, Any]:
    return granted(grant_id, status="action_required", problem={"who": who, "message": message}) | more


def answer(benefit: str, connector: str, *grants: dict[str, Any], description: str = "") -> dict[str, Any]:
    best = grants[0]
    spoken = {name: best[name] for name in ("entitled", "status", "standing", "valid_until", "gives", "problem")}
    return {
        "benefit": benefit, "connector": connector, "description": description or benefit.capitalize(),
        "as_of": None, "because": [], "grants": list(grants), **spoken,
    }  # fmt: skip


async def keep(running: Running, customer_id: str, *answers: dict[str, Any]) -> None:
    """Have these be the customer's ready answers, whatever their grants are."""
    document: dict[str, Any] = {one["benefit"]: one for one in answers}
    document[EDGES] = {"until": None, "dynamic": [], "owner": None, "owner_external_id": None}
    assert set(document[EDGES]) == set(Edges.__struct_fields__)
    await running.service.database.write(
        lambda connection: connection.execute(
            sa.text("UPDATE customers SET entitlements = :answers WHERE id = :id"),
            {"answers": json.dumps(document).encode(), "id": customer_id},
        )
    )


@asynccontextmanager
async def customer_of(
    url: str, folder: Path, catalogue: Catalogue, transport: httpx.AsyncBaseTransport | None = None, **more: Any
) -> AsyncIterator[tuple[Running, str]]:
    """A service at which accounts can be linked, and a customer of it. `transport` stands for the platforms."""
    async with run_service(url, folder, catalogue, Clock(), **(LINKABLE | more)) as running:
        events = running.story("purchase")
        await running.receive(events)
        context = dataclasses.replace(running.context, connectors=with_platforms(running))
        api = httpx.ASGITransport(make_api(context, running.clock, platforms=transport))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=api, base_url="http://almoner") as client:
            yield dataclasses.replace(running, client=client, context=context), events[0].customer_id


def with_platforms(running: Running) -> Any:
    """The connectors, and of those with a platform as much as the page asks for."""
    stand_ins = {
        "github_repository": SimpleNamespace(platform="github", dynamic=False),
        "discord_role": SimpleNamespace(platform="discord", dynamic=False),
    }
    return {**running.context.connectors, **stand_ins}


@pytest.fixture
async def linkable(sqlite_url: str, tmp_path: Path, catalogue: Catalogue) -> AsyncIterator[tuple[Running, str]]:
    async with customer_of(sqlite_url, tmp_path, catalogue) as found:
        yield found


def cards_of(page: str) -> dict[str, str]:
    """The words of each card's badge, by its title."""
    return dict(re.findall(r'<h2>([^<]*)</h2>\s*<span class="badge \w+">([^<]*)</span>', page))


# Who may open it.


async def test_a_link_opens_the_page_and_no_token_stays_in_the_address(running: Running) -> None:
    events = running.story("purchase")
    await running.receive(events)
    url, ends = PageTokens(running.context.settings).make_link(events[0].customer_id, None, running.clock.at)
    assert ends == running.clock.at + timedelta(minutes=15)
    opened = await running.client.get(urlsplit(url).path)
    assert (opened.status_code, opened.headers["location"]) == (303, "/me")
    (written,) = opened.headers.get_list("set-cookie")
    cookie = SimpleCookie(written)["almoner_session"]
    assert (cookie["path"], cookie["max-age"], cookie["samesite"]) == ("/me", "3600", "lax")
    assert cookie["httponly"]
    assert cookie["secure"]
    visited = Visit(running.client)
    visited.cookies = {"almoner_session": cookie.value}
    for path in ("/me", "/me/"):
        page = await visited.get(path)
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert urlsplit(url).path.removeprefix(ENTER) not in page.text


async def test_a_link_that_is_old_forged_or_of_another_kind_says_what_to_do(on_sqlite: Running) -> None:
    customer = (await on_sqlite.live("purchase"), on_sqlite.story("purchase")[0].customer_id)[1]
    tokens = PageTokens(on_sqlite.context.settings)
    good = urlsplit(tokens.make_link(customer, None, on_sqlite.clock.at)[0]).path
    old = urlsplit(tokens.make_link(customer, None, on_sqlite.clock.at - timedelta(minutes=15))[0]).path
    stranger = urlsplit(tokens.make_link("nobody", None, on_sqlite.clock.at)[0]).path
    member = urlsplit(tokens.make_link(customer, "nobody", on_sqlite.clock.at)[0]).path
    download = ENTER + on_sqlite.context.tokens.make("grant", "file", on_sqlite.clock.at)
    session = ENTER + (await visit(on_sqlite, customer)).cookies["almoner_session"]
    for path in (old, good[:-1] + "~", stranger, member, download, session, f"{ENTER}x", f"{ENTER}%ff%00"):
        refused = await on_sqlite.client.get(path)
        assert refused.status_code == 410
        assert "This link has ended" in refused.text
        assert "ask for a new one" in refused.text
        assert "set-cookie" not in refused.headers


async def test_the_first_key_signs_and_all_verify(on_sqlite: Running) -> None:
    def tokens(keys: str) -> PageTokens:
        return PageTokens(settings_for("", Path(), signing_keys=keys))

    now = on_sqlite.clock.at
    old, both, new = tokens("old-key-1"), tokens("new-key-1,old-key-1"), tokens("new-key-1")

    def token(of: PageTokens) -> str:
        return of.make_link("customer", "member", now)[0].rpartition("/")[2]

    session = both.enter(token(old), now)
    assert session
    assert (session.customer_id, session.member_id) == ("customer", "member")
    assert new.enter(token(both), now)
    assert new.enter(token(old), now) is None
    assert both.is_proof(session, old.proof(session))
    assert not new.is_proof(session, old.proof(session))


async def test_a_session_ends_by_time_by_leaving_and_with_the_customer(running: Running) -> None:
    events = running.story("delete-customer")
    deleted = next(number for number, event in enumerate(events) if event.type == "customer.deleted")
    await running.receive(events[:deleted])
    customer = events[0].customer_id
    leaving = await visit(running, customer)
    left = await leaving.submit("/me/leave")
    assert left.status_code == 200
    assert "You have signed out" in left.text
    assert leaving.cookies == {}
    waiting_long = await visit(running, customer)
    running.clock.move(minutes=59)
    assert (await waiting_long.get()).status_code == 200
    running.clock.move(minutes=1)
    staying = await visit(running, customer)
    await running.receive(events[deleted:])
    for visited in (Visit(running.client), leaving, waiting_long, staying):
        closed = await visited.get()
        assert closed.status_code == 403
        assert "This page is closed" in closed.text


async def test_a_forged_session_is_none(on_sqlite: Running) -> None:
    await on_sqlite.live("purchase")
    visited = await visit(on_sqlite, on_sqlite.story("purchase")[0].customer_id)
    good = visited.cookies["almoner_session"]
    for cookie in (good[:-2], "x", "", "WzFd.x", good.swapcase()):
        visited.cookies = {"almoner_session": cookie}
        assert (await visited.get()).status_code == 403


# What it shows.


async def test_a_customer_sees_what_they_bought_and_whole_keys(running: Running) -> None:
    events = running.story("subscription")
    await running.receive(events)
    visited = await visit(running, events[0].customer_id)
    cards = cards_of(visited.page)
    assert set(cards.values()) == {"Ready"}
    assert len(cards) >= 3
    key = re.search(r'<textarea class="code"[^>]* readonly[^>]*>(ACME-[0-9A-F-]{36})</textarea>', visited.page)
    assert key
    assert "For 3 devices" in visited.page
    (url,) = re.findall(r'href="([^"]*/downloads/[^"]*)" download>\s*<span class="file-name">sub/app.bin', visited.page)
    fetched = await running.client.get(urlsplit(url).path)
    assert fetched.content == bytes(range(256)) * 4
    assert "1.0 kB" in visited.page
    assert re.search(r'href="https://example.com/join\?who=[^"]+&amp;almoner_signature=', visited.page)


async def test_a_note_is_text(on_sqlite: Running) -> None:
    customer = (await on_sqlite.live("purchase"), on_sqlite.story("purchase")[0].customer_id)[1]
    gives = {"kind": "note", "note": r"**Welcome**, mia\.lee@example\.com &lt;3 <script>alert(1)</script>"}
    await keep(on_sqlite, customer, answer("better", "custom_link", granted("1", gives=gives)))
    page = (await visit(on_sqlite, customer)).page
    assert "**Welcome**, mia.lee@example.com &lt;3 &lt;script&gt;alert(1)&lt;/script&gt;" in page


async def test_every_status_has_its_words_and_the_merchants_problems_stay_inside(
    linkable: tuple[Running, str],
) -> None:
    running, customer = linkable
    pending = {"kind": "github_repository", "repository": "acme/pro", "permission": "pull", "login": "octocat",
               "url": "https://github.com/acme/pro", "invitation_url": "https://github.com/acme/pro/invitations",
               "invitation_expires_at": "2026-11-08T12:00:00+00:00", "given_by_us": True}  # fmt: skip
    secret = "the bot role is too low in guild 123"
    await keep(
        running, customer,
        answer("link", "custom_link", granted("1", gives={"kind": "link", "url": "https://example.com/?a=1&b=2"})),
        answer("repo", "github_repository", granted("2", status="pending", gives=pending)),
        answer("role", "discord_role", waiting("3", "merchant", secret)),
        answer("files", "file_download", granted("4", status="failed", problem={"who": "operator", "message": secret})),
        answer("key", "license_key", granted("5", status="granting", problem={"who": None, "message": secret})),
        answer("gone", "custom_link",
               granted("6", entitled=False, status="revoked", revoked_at="2026-10-30T08:00:00.000000Z")),
        answer("late", "custom_link", granted("7", valid_until="2026-10-31T00:00:00Z", gives={"kind": "link"})),
        answer("grace", "custom_link", granted("8", standing="grace", valid_until="2026-11-04T00:00:00Z",
                                               gives={"kind": "link", "url": "https://example.com"})),
    )  # fmt: skip
    page = (await visit(running, customer)).page
    assert cards_of(page) == {
        "Link": "Ready", "Repo": "Waiting for you", "Role": "We are looking into it",
        "Files": "We are looking into it", "Key": "Being set up", "Grace": "Ready",
    }  # fmt: skip
    assert page.index("<h2>Repo</h2>") < page.index("<h2>Key</h2>")  # what waits for them comes first
    assert secret not in page
    assert 'href="https://github.com/acme/pro/invitations"' in page
    assert re.search(r"good until <time[^>]*>8 November 2026<", page)
    assert 'href="https://example.com/?a=1&amp;b=2"' in page
    ended = page[page.index('<details class="ended">') :]
    assert "Gone" in ended
    assert "30 October 2026" in ended
    assert "Late" in ended
    assert "A payment is overdue." in page
    assert "4 November 2026" in page
    assert set(cards_of(page).values()) == set(WORDS.values())


async def test_given_repositories_and_roles_can_be_opened(linkable: tuple[Running, str]) -> None:
    running, customer = linkable
    repository = {"kind": "github_repository", "repository": "acme/pro", "permission": "pull", "login": "octocat",
                  "url": "https://github.com/acme/pro", "invitation_url": None, "invitation_expires_at": None,
                  "given_by_us": True}  # fmt: skip
    role = {"kind": "discord_role", "guild": "1", "role": "2", "username": "mia", "in_guild": True,
            "url": "https://discord.com/channels/1"}  # fmt: skip
    await keep(
        running, customer,
        answer("repo", "github_repository", granted("1", part="acme/docs", gives=repository),
               granted("2", part="acme/pro", status="pending", gives=repository)),
        answer("role", "discord_role", granted("3", gives=role)),
    )  # fmt: skip
    page = (await visit(running, customer)).page
    assert cards_of(page) == {"Repo": "Waiting for you", "Role": "Ready"}
    assert re.search(r"<h3>acme/docs\s*<span class=\"item-words\">Ready</span></h3>", page)
    assert "<strong>mia</strong> has the role." in page
    assert 'href="https://discord.com/channels/1"' in page
    assert 'href="https://github.com/acme/pro"' in page


async def test_an_account_that_is_missing_can_be_linked_where_there_is_a_client_id(
    linkable: tuple[Running, str], sqlite_url: str, tmp_path: Path, catalogue: Catalogue
) -> None:
    running, customer = linkable
    answers = (
        answer("repo", "github_repository", waiting("1", message="no GitHub account is known")),
        answer("role", "discord_role", waiting("2", message="no Discord account is known")),
    )
    await keep(running, customer, *answers)
    page = (await visit(running, customer)).page
    for platform, title in (("github", "GitHub"), ("discord", "Discord")):
        assert f"Link your {title} account, and this is set up for you." in page
        assert f'action="/me/link/{platform}"' in page
    (tmp_path / "other").mkdir()
    off: dict[str, Any] = {"github_client_id": "", "discord_client_id": "", "page_name": "Acme"}
    async with customer_of(sqlite_url, tmp_path / "other", catalogue, **off) as (running, customer):
        await keep(running, customer, *answers)
        page = (await visit(running, customer)).page
        assert "Tell Acme the name of your GitHub account" in page
        assert "/me/link/" not in page
        assert "form-action 'self';" in (await running.client.get("/me")).headers["content-security-policy"]


async def test_accounts_are_listed_and_only_linked_ones_can_be_unlinked(linkable: tuple[Running, str]) -> None:
    running, customer = linkable
    accounts = running.context.accounts
    await accounts.link(customer, None, "github", Account("583231", "octocat"), source="linked")
    await accounts.link(customer, None, "discord", Account("80351110224678912"), source="set")
    visited = await visit(running, customer)
    assert "octocat · Linked by you" in visited.page
    assert "80351110224678912 · Set by the shop" in visited.page
    assert 'action="/me/unlink/github"' in visited.page
    assert 'action="/me/unlink/discord"' not in visited.page
    assert visited.page.count(">Change</button>") == 2
    assert (await visited.submit("/me/unlink/github")).status_code == 303
    await visited.get()
    assert "Your GitHub account is not linked any more." in visited.page
    assert [one.platform for one in await accounts.known(customer, None)] == ["discord"]
    await visited.get()
    assert "not linked any more" not in visited.page


async def test_a_member_sees_what_is_theirs_and_the_buyer_how_the_others_stand(running: Running) -> None:
    events = running.story("seats")
    await running.receive(events)
    customer = events[0].customer_id
    given = (await running.get(f"/v1/customers/{customer}/entitlements/key")).json()["grants"]
    keys = {}
    for grant in given:
        page = (await visit(running, customer, grant["member_id"])).page
        assert "Your team" not in page
        keys[grant["member_id"]] = re.findall(r"ACME-[0-9A-F-]{36}", page)
        assert len(keys[grant["member_id"]]) == (1 if grant["entitled"] else 0)
    shown = [key for found in keys.values() for key in found]
    assert len(shown) == len(set(shown)) == 2
    buyer = (await visit(running, customer)).page
    assert "Your team" in buyer
    assert not any(key in buyer for key in shown)


async def test_of_a_team_without_an_owner_the_buyer_sees_no_members_keys(running: Running) -> None:
    events = running.story("seats")
    await running.receive(events)
    customer = events[0].customer_id
    owner = next(json.loads(one.body)["data"] for one in events if one.type == "member.created")
    await running.receive([told_again(events, owner["id"], "member.deleted", running)])
    assert not re.findall(r"ACME-[0-9A-F-]{36}", (await visit(running, customer)).page)


async def test_a_link_does_not_put_another_persons_page_in_place_of_the_open_one_unasked(running: Running) -> None:
    """Whoever is sent a stranger's link would link their own account to the stranger's purchase."""
    mine, theirs = (running.story("purchase", seed) for seed in (1, 2))
    await running.receive([*mine, *theirs])
    visited = await visit(running, mine[0].customer_id)
    url, _ = PageTokens(running.context.settings).make_link(theirs[0].customer_id, None, running.clock.at)
    path = urlsplit(url).path
    asked = await visited.ask("GET", path)
    assert asked.status_code == 200
    assert "set-cookie" not in asked.headers
    assert f"{theirs[0].external_id}@example.com" in asked.text
    visited.page = asked.text
    forged = await visited.ask("POST", path, data={"proof": "forged"})
    assert forged.status_code == 403
    assert f"{mine[0].external_id}@example.com" in (await visited.ask("GET", "/me")).text
    assert (await visited.submit(path)).status_code == 303
    assert f"{theirs[0].external_id}@example.com" in (await visited.ask("GET", "/me")).text
    again, _ = PageTokens(running.context.settings).make_link(theirs[0].customer_id, None, running.clock.at)
    assert (await visited.ask("GET", urlsplit(again).path)).status_code == 303, "one's own page opens at once"
    await visited.get()
    [proof, *_] = re.findall('name="proof" value="([^"]+)"', visited.page)
    running.clock.move(minutes=16)
    assert (await visited.ask("POST", path, data={"proof": proof})).status_code == 410


async def test_accounts_cannot_be_changed_without_end(linkable: tuple[Running, str]) -> None:
    running, customer = linkable
    await keep(running, customer, answer("repo", "github_repository", waiting("g-1")))
    visited = await visit(running, customer)
    for _ in range(20):
        assert "github.com" in (await visited.submit("/me/link/github")).headers["location"]
    assert (await visited.submit("/me/link/github")).headers["location"] == "/me"
    await visited.get()
    assert "very often today" in visited.page


async def test_the_session_of_a_member_who_has_left_ends(running: Running) -> None:
    events = running.story("seats")
    await running.receive(events)
    member = next(json.loads(one.body)["data"] for one in reversed(events) if one.type == "member.created")
    visited = await visit(running, events[0].customer_id, member["id"])
    await running.receive([told_again(events, member["id"], "member.deleted", running)])
    assert (await visited.get()).status_code == 403


def told_again(events: Sequence[SimulatedEvent], member_id: str, kind: str, running: Running) -> SimulatedEvent:
    """The event that told of a member, as one of another kind, and later."""
    told = next(one for one in events if one.type == "member.created" and member_id.encode() in one.body)
    now = running.clock.at + timedelta(minutes=1)
    body = json.loads(told.body)
    body |= {"type": kind, "timestamp": now.isoformat()}
    body["data"]["modified_at"] = now.isoformat()
    return dataclasses.replace(told, webhook_id=f"{told.webhook_id}-again", type=kind, timestamp=now,
                               body=json.dumps(body).encode())  # fmt: skip


async def test_what_polar_gives_itself_is_named_unless_it_is_ours_already(on_sqlite: Running) -> None:
    customer = (await on_sqlite.live("purchase"), on_sqlite.story("purchase")[0].customer_id)[1]
    theirs = {"kind": "feature_flag", "metadata": {"secret": "x"}, "properties": {"inside": "y"}}
    ours = next(
        one for benefit in on_sqlite.context.pipeline.catalogue.benefits.values() for one in benefit.by_benefits
    )
    await keep(
        on_sqlite, customer,
        answer("0b0d", "polar:feature_flag", granted("1", gives=theirs), description="Dark mode"),
        answer(ours, "polar:custom", granted("2", gives=theirs), description="Lounge"),
        answer("9f9f", "polar:custom", granted("3", gives=theirs), description="9f9f"),
    )  # fmt: skip
    page = (await visit(on_sqlite, customer)).page
    also = page[page.index("Also yours") :]
    assert "Dark mode" in also
    assert not any(word in page for word in ("Lounge", "9f9f", "secret", "inside"))


async def test_who_has_nothing_yet_is_told_so(on_sqlite: Running) -> None:
    customer = (await on_sqlite.live("purchase"), on_sqlite.story("purchase")[0].customer_id)[1]
    await keep(on_sqlite, customer)
    assert "Nothing here yet" in (await visit(on_sqlite, customer)).page


async def test_hostile_names_are_only_text(linkable: tuple[Running, str]) -> None:
    running, customer = linkable
    evil = '"><script>alert(1)</script>'
    await running.context.accounts.link(customer, None, "github", Account("1", evil), source="linked")
    files = {"kind": "files", "benefit": "files", "files": [{"name": evil, "size": 1, "url": 'https://x/"><b>'}]}
    await keep(running, customer, answer("files", "license_key", granted("1", gives=files, part=evil),
                                         granted("2", part="b"), description=evil))  # fmt: skip
    page = (await visit(running, customer)).page
    assert "<script>alert" not in page
    assert "<b>" not in page
    assert page.count("&lt;script&gt;") >= 3


# What its forms do.


@pytest.mark.parametrize("path", ["/me/check", "/me/leave", "/me/link/github", "/me/link/discord", "/me/unlink/github"])
async def test_a_form_that_is_not_of_this_session_is_403_and_does_nothing(
    linkable: tuple[Running, str], path: str
) -> None:
    running, customer = linkable
    await running.context.accounts.link(customer, None, "github", Account("1"), source="linked")
    await keep(running, customer, answer("repo", "github_repository", waiting("1")))
    running.trigger.grants.clear()
    visited, other = await visit(running, customer), await visit(running, customer)
    of_other = re.search(r'name="proof" value="([^"]+)"', other.page)
    assert of_other
    for form in ({}, {"proof": ""}, {"proof": "x"}, {"proof": of_other[1]}):
        refused = await visited.ask("POST", path, data=form)
        assert refused.status_code == 403
        assert "set-cookie" not in refused.headers
    assert (await running.client.post(path, data={"proof": of_other[1]})).status_code == 403
    assert await running.context.accounts.known(customer, None)
    assert running.trigger.grants == []


async def test_checking_again_settles_what_waits_for_the_customer_twice_a_minute_at_most(
    running: Running,
) -> None:
    events = running.story("purchase")
    await running.receive(events)
    customer = events[0].customer_id
    (key,) = (await running.answer(events[0].external_id, "key"))["grants"]
    (files,) = (await running.answer(events[0].external_id, "files"))["grants"]
    await keep(
        running, customer,
        answer("key", "license_key", waiting(key["id"])),
        answer("files", "file_download", waiting(files["id"], "merchant")),
        answer("9f9f", "polar:custom", waiting("polar-grant")),
    )  # fmt: skip
    running.trigger.grants.clear()
    visited = await visit(running, customer)
    for notice in ("We are checking again", "Please wait half a minute"):
        sent = await visited.submit("/me/check")
        assert (sent.status_code, sent.headers["location"]) == (303, "/me")
        await visited.get()
        assert notice in visited.page
        assert running.trigger.grants == [key["id"]]
    running.clock.move(seconds=31)
    await visited.submit("/me/check")
    assert running.trigger.grants == [key["id"]] * 2
    await running.service.pipeline.drain()
    await visited.get()
    assert set(cards_of(visited.page).values()) == {"Ready"}
    settled = await running.answer(events[0].external_id, "key")
    assert (settled["status"], settled["grants"][0]["id"]) == ("granted", key["id"])


async def test_who_lets_invitations_end_is_asked_again_but_not_without_end(running: Running) -> None:
    """A repository has fifty invitations a day, for all customers together."""
    events = running.story("purchase")
    await running.receive(events)
    customer = events[0].customer_id
    (key,) = (await running.answer(events[0].external_id, "key"))["grants"]
    offers = []
    for _ in range(3):
        values = {"receipt": json.dumps({"resource": "r", "offers": 3}), "id": key["id"]}
        change = sa.text("UPDATE grants SET receipt = :receipt WHERE id = :id").bindparams(**values)
        await running.service.database.write(partial(sa.Connection.execute, statement=change))
        await keep(running, customer, answer("key", "license_key", waiting(key["id"])))
        await (await visit(running, customer)).submit("/me/check")
        row = await running.service.database.read(lambda connection: grants.by_ids(connection, [key["id"]]))
        offers.append(json.loads(row[0]["receipt"])["offers"])
        running.clock.move(minutes=1)
    assert offers == [0, 0, 3]


async def test_checking_when_nothing_waits_does_nothing(on_sqlite: Running) -> None:
    await on_sqlite.live("purchase")
    visited = await visit(on_sqlite, on_sqlite.story("purchase")[0].customer_id)
    on_sqlite.trigger.grants.clear()
    visited.page = visited.page.replace("/me/leave", "/me/check")
    await visited.submit("/me/check")
    await visited.get()
    assert "nothing that waits for you" in visited.page
    assert on_sqlite.trigger.grants == []


async def test_a_member_checks_what_is_theirs_alone(running: Running) -> None:
    events = running.story("seats")
    await running.receive(events)
    customer = events[0].customer_id
    grants = (await running.get(f"/v1/customers/{customer}/entitlements/key")).json()["grants"]
    live = [grant for grant in grants if grant["entitled"]]
    await keep(running, customer, answer("key", "license_key",
               *(waiting(one["id"], member_id=one["member_id"]) for one in live)))  # fmt: skip
    visited = await visit(running, customer, live[0]["member_id"])
    running.trigger.grants.clear()
    await visited.submit("/me/check")
    assert running.trigger.grants == [live[0]["id"]]
    await running.service.pipeline.drain()


async def test_a_notice_is_one_of_our_sentences_or_none(on_sqlite: Running) -> None:
    await on_sqlite.live("purchase")
    visited = await visit(on_sqlite, on_sqlite.story("purchase")[0].customer_id)
    for written in ("Your card was stolen", "linked.<b>", "failed.{x}", "x.y.z", "checking.github"):
        visited.cookies["almoner_notice"] = written
        page = (await visited.get()).text
        assert written not in page
        assert "almoner_notice" not in visited.cookies


# What every answer has.


async def test_every_answer_of_the_page_is_guarded(linkable: tuple[Running, str]) -> None:
    running, customer = linkable
    visited = await visit(running, customer)
    asked = [await visited.ask("GET", path) for path in
             ("/me", "/me/style.css", "/me/page.js", "/me/icon.svg", "/me/logo", "/me/enter/x", "/me/nothing",
              "/me/callback/github", "/me/check")]  # fmt: skip
    asked += [
        await visited.ask("POST", "/me/leave"),
        await visited.ask("POST", "/me/check", data={"proof": "x" * 20_000}),
    ]
    for one in asked:
        policy = one.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe-inline" not in policy or one.headers["content-type"] == "image/svg+xml"
        assert one.headers["x-content-type-options"] == "nosniff"
        assert one.headers["referrer-policy"] == "no-referrer"
        assert one.headers["cache-control"] == "no-store"
    assert "form-action 'self' https://discord.com https://github.com;" in asked[0].headers["content-security-policy"]
    assert not re.search(r"style=|<style|onclick|<script>", asked[0].text)
    assert [one.status_code for one in asked] == [200, 200, 200, 200, 404, 410, 404, 303, 405, 403, 413]
    assert all("text/html" in one.headers["content-type"] for one in asked if one.status_code >= 400)
    elsewhere = await running.client.get("/metro")
    assert elsewhere.json()["error"] == "ResourceNotFound"
    assert "content-security-policy" not in elsewhere.headers


async def test_a_fault_of_ours_is_a_friendly_page_and_no_token_is_logged(
    on_sqlite: Running, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(ReadyAnswers):
        async def entitlements(self, key: str, name: str) -> Ready | None:
            raise KeyError("what only the log may know")

    await on_sqlite.live("purchase")
    visited = await visit(on_sqlite, on_sqlite.story("purchase")[0].customer_id)
    context = dataclasses.replace(on_sqlite.context, ready=Broken(on_sqlite.service.database))
    transport = httpx.ASGITransport(make_api(context, on_sqlite.clock))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://almoner") as client:
        visited.client = client
        failed = await visited.get()
    assert failed.status_code == 500
    assert "It is our fault" in failed.text
    assert "what only the log may know" in caplog.text
    assert "what only the log may know" not in failed.text


async def test_the_token_of_a_link_is_not_logged_even_when_we_fail(
    on_sqlite: Running, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> datetime:
        raise KeyError("the clock")

    context = dataclasses.replace(on_sqlite.context, now=broken)
    transport = httpx.ASGITransport(make_api(context, on_sqlite.clock))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://almoner") as client:
        assert (await client.get("/me/enter/a-secret-token")).status_code == 500
    assert "/me/enter/..." in caplog.text
    assert "a-secret-token" not in caplog.text


async def test_a_database_that_fails_is_a_friendly_503(on_sqlite: Running) -> None:
    await on_sqlite.live("purchase")
    visited = await visit(on_sqlite, on_sqlite.story("purchase")[0].customer_id)
    database = on_sqlite.service.database
    await database.write(lambda connection: connection.execute(sa.text("ALTER TABLE customers RENAME TO hidden")))
    failed = await visited.get()
    await database.write(lambda connection: connection.execute(sa.text("ALTER TABLE hidden RENAME TO customers")))
    assert failed.status_code == 503
    assert "One moment, please" in failed.text
    assert failed.headers["content-type"].startswith("text/html")


# The merchant's name, colour and logo.


async def test_the_merchants_name_colour_and_logo_are_on_it(
    sqlite_url: str, tmp_path: Path, catalogue: Catalogue
) -> None:
    logo = tmp_path / "logo.svg"
    logo.write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>')
    look: dict[str, Any] = {
        "page_name": "Acme & Sons",
        "page_color": "#ffe14d",
        "page_logo": logo,
        "public_url": "http://shop.test/a/",
    }
    async with customer_of(sqlite_url, tmp_path, catalogue, **look) as (running, customer):
        url, _ = PageTokens(running.context.settings).make_link(customer, None, running.clock.at)
        assert url.startswith("http://shop.test/a/me/enter/")
        opened = await running.client.get(urlsplit(url).path.removeprefix("/a"))
        assert opened.headers["location"] == "/a/me"
        cookie = SimpleCookie(opened.headers["set-cookie"])["almoner_session"]
        assert (cookie["path"], cookie["secure"]) == ("/a/me", "")
        page = (await running.client.get("/me", headers={"cookie": f"almoner_session={cookie.value}"})).text
        assert "Acme &amp; Sons" in page
        assert 'src="/a/me/logo"' in page
        shown = await running.client.get("/me/logo")
        assert shown.headers["content-type"] == "image/svg+xml"
        assert "sandbox" in shown.headers["content-security-policy"]
        style = (await running.client.get("/me/style.css")).text
        assert style.startswith(":root{--accent:#ffe14d;--on-accent:#000000;")


@pytest.mark.parametrize(("name", "kind"), [("a.png", "image/png"), ("a.JPG", "image/jpeg"), ("a.webp", "image/webp")])
def test_a_logo_has_the_type_of_its_file(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_bytes(b"image")
    look = Look(settings_for("", tmp_path, page_logo=tmp_path / name))
    assert look.logo
    assert (look.logo.data, look.logo.media_type) == (b"image", kind)


@pytest.mark.parametrize("name", ["a.gif", "a.html", "missing.png", "a"])
def test_a_file_that_is_no_logo_is_left_out_and_said_so(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    for one in ("a.gif", "a.html", "a"):
        (tmp_path / one).write_bytes(b"image")
    assert Look(settings_for("", tmp_path, page_logo=tmp_path / name)).logo is None
    assert "the page has no logo" in caplog.text


@pytest.mark.parametrize("colour", ["#000000", "#ffffff", "#4f46e5", "#ffe14d", "#ff0000", "#777777", "#00ff88"])
def test_every_colour_can_be_read(colour: str) -> None:
    for surface in ("#ffffff", "#191b21"):
        assert contrast(readable(colour, surface), surface) >= 4.5
    style = Look(settings_for("", Path(), page_color=colour)).style
    on = re.search(r"--on-accent:(#\w+)", style)
    assert on
    assert contrast(colour, on[1]) >= 4.5


def test_contrast_is_that_of_the_standard() -> None:
    assert round(contrast("#000000", "#ffffff"), 2) == 21
    assert round(contrast("#767676", "#ffffff"), 2) == 4.54
    assert round(contrast("#4f46e5", "#4f46e5"), 2) == 1


def test_sizes_and_days_are_written_as_people_do(tmp_path: Path) -> None:
    from worker.http.page_look import _day, _size

    assert [_size(count) for count in (0, 999, 1024, 250_000, 12_400_000, 3_000_000_000, 5e12)] == [
        "0 B", "999 B", "1.0 kB", "250 kB", "12.4 MB", "3.0 GB", "5.0 TB",
    ]  # fmt: skip
    assert _day("2026-11-08T12:00:00+00:00") == _day(datetime(2026, 11, 8, tzinfo=UTC)) == "8 November 2026"
    assert _day(None) == ""
