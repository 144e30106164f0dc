"""Linking an account: the whole way to the platform and back against fakes of both, and every way that it can fail."""

import asyncio
import dataclasses
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx
import pytest

from config.catalogue import parse_catalogue
from connectors import TERMS
from tests.conftest import POLAR_BENEFIT, PRODUCT, Clock, Running, run_service, settings_for
from tests.fakes import discord as discord_fake
from tests.fakes.discord import GUILD, FakeDiscord
from tests.fakes.github import API, GitHub
from tests.fakes.serving import serving
from tests.worker.test_page import ENTER, LINKABLE, Visit, customer_of, visit
from worker.http.api import make_api
from worker.http.oauth import platforms_of

ROLE = "197038439483310099"
MIA = "80351110224678912"
OCTOCAT = 583231

SOLD = f"""
[benefits.key]
connector = "license_key"
description = "Acme Pro license"
for = {{ products = ["{PRODUCT}"] }}
prefix = "ACME"
limit_activations = 3

[benefits.files]
connector = "file_download"
description = "Acme Pro for Linux"
for = {{ products = ["{PRODUCT}"] }}
folder = "FOLDER"
files = ["acme-pro-2.4.0.tar.gz", "Getting started.pdf"]

[benefits.repository]
connector = "github_repository"
description = "Source code on GitHub"
for = {{ products = ["{PRODUCT}"] }}
repository = "acme/pro"

[benefits.role]
connector = "discord_role"
description = "Lounge on Discord"
for = {{ products = ["{PRODUCT}"] }}
guild = "{GUILD}"
role = "{ROLE}"

[benefits.course]
connector = "custom_link"
description = "Video course"
for = {{ products = ["{PRODUCT}"], benefits = ["{POLAR_BENEFIT}"] }}
url = "https://learn.example.com/course"
sign = true
"""


@dataclass
class Shop:
    """A service that gives everything, both platforms, and one customer who has bought it all."""

    running: Running
    customer: str
    github: GitHub
    discord: FakeDiscord


@pytest.fixture(scope="session")
def platforms() -> Iterator[tuple[GitHub, str, FakeDiscord, str]]:
    """Both platforms, on loopback; each test resets them."""
    github = GitHub()
    with serving(github) as github_address, discord_fake.serve() as (discord, discord_address):
        github.web = github_address
        yield github, github_address + API, discord, discord_address


@asynccontextmanager
async def open_shop(
    url: str, folder: Path, platforms: tuple[GitHub, str, FakeDiscord, str], **more: Any
) -> AsyncIterator[Shop]:
    """Sell one of each."""
    github, github_url, discord, discord_url = platforms
    clock = Clock()
    github.reset(clock)
    discord.reset()
    owner = github.user("acme-owner")
    organization = github.organization("acme", owners={owner.id})
    github.repository(organization, "pro")
    github.user("octocat", OCTOCAT)
    discord.add_role(ROLE)
    discord.add_user(MIA, "mia.lee")
    goods = folder / "goods"
    goods.mkdir()
    (goods / "acme-pro-2.4.0.tar.gz").write_bytes(bytes(1000) * 18_400)
    (goods / "Getting started.pdf").write_bytes(bytes(1000) * 742)
    settings = {
        "github_api_url": github_url, "github_token": github.token(owner), "discord_api_url": discord_url,
        "github_client_id": github.client_id, "github_client_secret": github.client_secret,
        "discord_bot_token": discord_fake.BOT_TOKEN, "discord_client_id": discord_fake.CLIENT_ID,
        "discord_client_secret": discord_fake.CLIENT_SECRET, "encryption_keys": "encryption-key-1",
    }  # fmt: skip
    catalogue = parse_catalogue(SOLD.replace("FOLDER", str(goods)), TERMS, timedelta())
    async with run_service(url, folder, catalogue, clock, **(settings | more)) as running:
        events = running.story("purchase")
        email = f"{events[0].external_id}@example.com".encode()
        await running.receive([
            dataclasses.replace(one, body=one.body.replace(email, b"mia.lee@example.com")) for one in events
        ])  # fmt: skip
        yield Shop(running, events[0].customer_id, github, discord)


@pytest.fixture
async def shop(sqlite_url: str, tmp_path: Path, platforms: Any) -> AsyncIterator[Shop]:
    async with open_shop(sqlite_url, tmp_path, platforms) as opened:
        yield opened


async def answered(question: httpx.Response) -> str:
    """Follow the customer to the platform, where they agree; returns the path and query that they come back with."""
    assert question.status_code == 303
    async with httpx.AsyncClient(trust_env=False) as browser:
        agreed = await browser.get(question.headers["location"])
    assert agreed.status_code == 302
    parts = urlsplit(agreed.headers["location"])
    assert f"{parts.scheme}://{parts.netloc}" == "https://sidecar.example.com"
    return f"{parts.path}?{parts.query}"


# The whole way.


async def test_a_github_account_is_linked_and_invited_and_no_token_of_it_is_kept(shop: Shop) -> None:
    shop.github.approves_as = OCTOCAT
    visited = await visit(shop.running, shop.customer)
    asked = await visited.submit("/me/link/github")
    query = dict(parse_qsl(urlsplit(asked.headers["location"]).query))
    assert query["redirect_uri"] == "https://sidecar.example.com/me/callback/github"
    assert query["code_challenge_method"] == "S256"
    assert "scope" not in query
    back = await visited.get(await answered(asked))
    assert (back.status_code, back.headers["location"]) == (303, "/me")
    (account,) = await shop.running.context.accounts.known(shop.customer, None)
    assert (account.account_id, account.name, account.source) == (str(OCTOCAT), "octocat", "linked")
    assert await shop.running.service.tokens.find("github", str(OCTOCAT)) is None
    await shop.running.service.pipeline.drain()
    await visited.get()
    assert "Your GitHub account is linked." in visited.page
    assert ">Open invitation</a>" in visited.page
    assert "octocat · Linked by you" in visited.page
    assert set(visited.cookies) == {"almoner_session"}


async def test_a_discord_account_is_linked_and_its_token_lets_the_bot_add_it(shop: Shop) -> None:
    shop.discord.approve_as(MIA)
    visited = await visit(shop.running, shop.customer)
    asked = await visited.submit("/me/link/discord")
    assert dict(parse_qsl(urlsplit(asked.headers["location"]).query))["scope"] == "identify guilds.join"
    await visited.get(await answered(asked))
    token = await shop.running.service.tokens.find("discord", MIA)
    assert token
    assert token.access_token.startswith("access-")
    assert token.refresh_token
    assert token.expires_at
    assert token.expires_at > shop.running.clock.at
    await shop.running.service.pipeline.drain()
    assert shop.discord.roles_of(MIA) == {ROLE}
    await visited.get()
    assert "<strong>mia.lee</strong> has the role." in visited.page

    await visited.submit("/me/unlink/discord")
    await shop.running.service.pipeline.drain()
    assert await shop.running.service.tokens.find("discord", MIA) is None
    assert shop.discord.roles_of(MIA) == set()
    await visited.get()
    assert "Link your Discord account, and this is set up for you." in visited.page


async def test_an_account_that_changes_moves_the_access(shop: Shop) -> None:
    other = shop.github.user("hubot")
    (repository,) = shop.github.repositories.values()
    visited = await visit(shop.running, shop.customer)
    for user in (OCTOCAT, other.id):
        shop.github.approves_as = user
        await visited.get(await answered(await visited.submit("/me/link/github")))
        await shop.running.service.pipeline.drain()
        await visited.get()
        shop.github.accept(repository, shop.github.users[user])
        shop.running.clock.move(seconds=31)
        await visited.submit("/me/check")
        await shop.running.service.pipeline.drain()
        assert OCTOCAT in repository.collaborators or user != OCTOCAT
    assert OCTOCAT not in repository.collaborators
    assert other.id in repository.collaborators


async def test_a_member_links_an_account_of_their_own(running: Running) -> None:
    """The account that a member links is not the customer's."""
    events = running.story("seats")
    await running.receive(events)
    customer = events[0].customer_id
    grants = (await running.get(f"/v1/customers/{customer}/entitlements/key")).json()["grants"]
    member = next(grant["member_id"] for grant in grants if grant["entitled"])

    def platform(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/user":
            return httpx.Response(200, json={"id": OCTOCAT, "login": "octocat"})
        return httpx.Response(200, json={"access_token": "token"})

    async with as_linkable(running, platform) as linkable:
        visited = await visit(linkable, customer, member)
        await link(visited, "github")
    assert [one.account_id for one in await running.context.accounts.known(customer, member)] == [str(OCTOCAT)]
    assert await running.context.accounts.known(customer, None) == []


@asynccontextmanager
async def as_linkable(running: Running, platform: Callable[[httpx.Request], httpx.Response]) -> AsyncIterator[Running]:
    """The same service with GitHub's client id, and a stand-in for GitHub."""
    settings = running.context.settings.model_copy(update={"github_client_id": "client"})
    context = dataclasses.replace(running.context, settings=settings)
    api = httpx.ASGITransport(make_api(context, running.clock, platforms=httpx.MockTransport(platform)))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=api, base_url="http://almoner") as client:
        yield dataclasses.replace(running, client=client, context=context)


async def link(visited: Visit, platform: str, **changed: str) -> str:
    """Come back from the platform at once, with this changed; returns what the page says then."""
    proof = re.search(r'name="proof" value="([^"]+)"', visited.page)
    assert proof
    asked = await visited.ask("POST", f"/me/link/{platform}", data={"proof": proof[1]})
    state = dict(parse_qsl(urlsplit(asked.headers["location"]).query))["state"]
    query = {"code": "a-secret-code", "state": state} | changed
    back = await visited.get(f"/me/callback/{platform}?{urlencode(query)}")
    assert (back.status_code, back.headers["location"]) == (303, "/me")
    await visited.get()
    said = re.search(r'role="status">([^<]*)<', visited.page)
    assert said
    return said[1]


# Every way that it can fail; nothing is changed.


async def test_a_customer_who_does_not_agree_changes_nothing(shop: Shop) -> None:
    visited = await visit(shop.running, shop.customer)
    assert "You did not agree at GitHub" in await link(visited, "github", error="access_denied", code="")
    shop.discord.approve_as("-")
    back = await visited.get(await answered(await visited.submit("/me/link/discord")))
    assert back.status_code == 303
    await visited.get()
    assert "You did not agree at Discord" in visited.page
    assert await shop.running.context.accounts.known(shop.customer, None) == []


async def test_an_answer_that_does_not_belong_to_this_browser_is_not_taken(shop: Shop) -> None:
    """Else whoever has a customer open their link would have their own account given what the customer bought."""
    shop.github.approves_as = OCTOCAT
    mine, theirs = await visit(shop.running, shop.customer), await visit(shop.running, shop.customer)
    coming = await answered(await theirs.submit("/me/link/github"))
    for visited in (mine, await visit(shop.running, shop.customer)):
        await visited.get(coming)
        await visited.get()
        assert "begun in another window" in visited.page
    # Not with the cookie of another session either, nor at another platform, nor after the page was left.
    mine.cookies["almoner_link_github"] = theirs.cookies["almoner_link_github"]
    await mine.get(coming)
    theirs.cookies["almoner_link_discord"] = theirs.cookies["almoner_link_github"]
    await theirs.get(coming.replace("github", "discord"))
    stranger = Visit(shop.running.client)
    stranger.cookies = {"almoner_link_github": theirs.cookies["almoner_link_github"]}
    assert (await stranger.get(coming)).status_code == 403
    assert await shop.running.context.accounts.known(shop.customer, None) == []
    await theirs.get(coming)
    assert len(await shop.running.context.accounts.known(shop.customer, None)) == 1


async def test_an_answer_counts_once_and_for_ten_minutes(shop: Shop) -> None:
    shop.github.approves_as = OCTOCAT
    visited = await visit(shop.running, shop.customer)
    coming = await answered(await visited.submit("/me/link/github"))
    shop.running.clock.move(minutes=10)
    await visited.get(coming)
    assert await shop.running.context.accounts.known(shop.customer, None) == []
    await visited.get()
    coming = await answered(await visited.submit("/me/link/github"))
    await visited.get(coming)
    assert "almoner_link_github" not in visited.cookies
    await visited.get(coming)
    await visited.get()
    assert "begun in another window" in visited.page


async def test_a_code_without_its_proof_is_worth_nothing(shop: Shop) -> None:
    """PKCE: a code that somebody has seen cannot be exchanged in another browser."""
    shop.discord.approve_as(MIA)
    mine, theirs = await visit(shop.running, shop.customer), await visit(shop.running, shop.customer)
    seen = dict(parse_qsl(urlsplit(await answered(await theirs.submit("/me/link/discord"))).query))["code"]
    assert "Discord did not answer as it should" in await link(mine, "discord", code=seen)
    assert await shop.running.context.accounts.known(shop.customer, None) == []


FAILURES: dict[str, Callable[[httpx.Request], httpx.Response]] = {
    "refused by 200, as GitHub does": lambda _: httpx.Response(200, json={"error": "bad_verification_code"}),
    "refused by 400": lambda _: httpx.Response(400, json={"error": "invalid_grant"}),
    "down": lambda _: httpx.Response(503, text="a-secret-answer"),
    "no json": lambda _: httpx.Response(200, text="<html>a-secret-answer"),
    "no object": lambda _: httpx.Response(200, json=["a-secret-answer"]),
    "a redirect": lambda _: httpx.Response(302, headers={"location": "http://169.254.169.254/"}),
    "no account": lambda asked: httpx.Response(200, json={"access_token": "a-secret-token"}),
    "an account without a number": lambda asked: httpx.Response(200, json={"access_token": "x", "id": "octocat"}),
}


def _fail(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectTimeout("a-secret-reason")


@pytest.mark.parametrize("failure", [*FAILURES, "no answer"])
@pytest.mark.parametrize("platform", ["github", "discord"])
async def test_a_platform_that_fails_changes_nothing_and_nothing_secret_is_logged(
    sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, catalogue: Any, failure: str, platform: str
) -> None:
    transport = httpx.MockTransport(FAILURES.get(failure, _fail))
    async with customer_of(sqlite_url, tmp_path, catalogue, transport) as (running, customer):
        said = await link(await visit(running, customer), platform)
        assert "did not answer as it should. Nothing has changed" in said
        assert await running.context.accounts.known(customer, None) == []
    assert "an account could not be linked" in caplog.text
    for secret in ("a-secret", "github-secret-1", "discord-secret-1", ENTER):
        assert secret not in caplog.text


async def test_a_discord_token_that_cannot_be_encrypted_is_not_kept(
    sqlite_url: str, tmp_path: Path, catalogue: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def platform(request: httpx.Request) -> httpx.Response:
        who = {"id": MIA, "username": "mia.lee"}
        return httpx.Response(200, json=who if request.method == "GET" else {"access_token": "a-secret-token"})

    transport = httpx.MockTransport(platform)
    async with customer_of(sqlite_url, tmp_path, catalogue, transport, encryption_keys="") as (running, customer):
        said = await link(await visit(running, customer), "discord")
        assert "did not answer as it should" in said
        assert await running.context.accounts.known(customer, None) == []
    assert "a-secret-token" not in caplog.text


@pytest.mark.parametrize("path", ["/me/link/myspace", "/me/unlink/myspace", "/me/link/github"])
async def test_a_platform_that_cannot_be_linked_is_404(on_sqlite: Running, path: str) -> None:
    await on_sqlite.live("purchase")
    visited = await visit(on_sqlite, on_sqlite.story("purchase")[0].customer_id)
    assert (await visited.ask("POST", path)).status_code == 404
    assert (await visited.get("/me/callback/github")).status_code == 404


# Where platforms are.


@pytest.mark.parametrize(
    ("api", "authorize", "user"),
    [("https://api.github.com", "https://github.com/login/oauth/authorize", "https://api.github.com/user"),
     ("https://git.acme.com/api/v3", "https://git.acme.com/login/oauth/authorize", "https://git.acme.com/api/v3/user"),
     ("https://api.acme.ghe.com/", "https://acme.ghe.com/login/oauth/authorize", "https://api.acme.ghe.com/user")],
)  # fmt: skip
def test_github_is_where_its_api_says(api: str, authorize: str, user: str) -> None:
    github = platforms_of(settings_for("", Path(), **(LINKABLE | {"github_api_url": api})))["github"]
    assert (github.authorize_url, github.user_url) == (authorize, user)
    assert github.token_url == authorize.replace("authorize", "access_token")
    assert f"{github.origin}/login/oauth/authorize" == authorize


def test_discord_is_where_its_api_says() -> None:
    discord = platforms_of(settings_for("", Path(), **LINKABLE))["discord"]
    assert discord.authorize_url == "https://discord.com/oauth2/authorize"
    assert discord.token_url == "https://discord.com/api/v10/oauth2/token"
    assert discord.user_url == "https://discord.com/api/v10/users/@me"
    assert platforms_of(settings_for("", Path())) == {}


async def test_accounts_of_many_customers_can_be_linked_at_once(shop: Shop) -> None:
    shop.github.approves_as = OCTOCAT
    visits = [await visit(shop.running, shop.customer) for _ in range(5)]
    coming = [await answered(await one.submit("/me/link/github")) for one in visits]
    backs = await asyncio.gather(*(one.get(path) for one, path in zip(visits, coming, strict=True)))
    assert [back.status_code for back in backs] == [303] * 5
    assert len(await shop.running.context.accounts.known(shop.customer, None)) == 1
