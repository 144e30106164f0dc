"""What every connector promises, asked of each in CONNECTORS. A new one says below how it is set up for it."""

import logging
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from pydantic import ValidationError

from config.catalogue import BenefitConfig, Per
from connectors import CONNECTORS, TERMS
from connectors.base import ConnectorError, Holding, LicenseKey, LicenseKeys, Passes, Receipt, Recipient
from connectors.license_key import masked
from tests.conftest import Clock, settings_for
from tests.connectors.ports import MemoryLicenseKeys, MemoryPasses, Moment, World, stored
from tests.fakes import discord as fake_discord
from tests.fakes.discord import FakeDiscord
from tests.fakes.github import GitHub as FakeGitHub
from tests.fakes.serving import serving
from worker.app import StoredPasses
from worker.license_keys import StoredLicenseKeys
from worker.sealing import Seal
from worker.store.database import Database

BUYER = Recipient(
    customer_id="c-1",
    external_id="user 1",
    email="ada@example.com",
    name="Ada",
    purchase="order-1",
    organization_id="o-1",
    accounts={"github": "583231", "discord": "80351110224678912"},
)
OTHER = Recipient(
    customer_id="c-2",
    external_id="user 2",
    email="grace@example.com",
    name="Grace",
    purchase="order-2",
    organization_id="o-1",
    accounts={"github": "1024025", "discord": "53908232506183680"},
)


@dataclass
class Setup:
    """What the suite needs to know of one connector."""

    world: World
    terms: dict[str, Any]
    """A config that works."""
    changed: dict[str, Any]
    """Another config of the same benefit, in as much as possible."""
    failing: dict[str, Any] | None = None
    """A config with which granting fails, where there is one."""
    secrets: Callable[[], list[str]] = list
    """What must not be seen in logs, errors or receipts, beside the secrets of the settings."""
    make: Callable[[World], Any] = field(kw_only=True)
    made: list[Any] = field(default_factory=list)

    def connector(self) -> Any:
        """A connector that remembers nothing of earlier ones, like after a restart."""
        self.made.append(self.make(self.world))
        return self.made[-1]

    async def close(self) -> None:
        """Close what its connectors opened."""
        for one in self.made:
            if hasattr(one, "close"):
                await one.close()

    def hidden(self) -> list[str]:
        return [*self.secrets(), self.world.settings.link_secret.get_secret_value(), "signing-key-1"]


def _license_key(world: World, _folder: Path) -> dict[str, Any]:
    return {
        "terms": {"prefix": "ACME", "limit_activations": 3, "expires": "30d"},
        "changed": {"prefix": "OTHER", "limit_usage": 9},
        "secrets": lambda: [key.key for key in world.license_keys.kept.values()],
    }


def _file_download(_world: World, folder: Path) -> dict[str, Any]:
    for name in ("manual.txt", "other.txt"):
        (folder / name).write_text(name)
    return {
        "terms": {"folder": str(folder), "files": ["manual.txt"]},
        "changed": {"folder": str(folder), "files": ["other.txt"]},
        "failing": {"folder": str(folder), "files": ["absent.txt"]},
    }


def _custom_link(_world: World, _folder: Path) -> dict[str, Any]:
    return {
        "terms": {"url": "https://example.com/{customer.external_id}", "sign": True, "expires": "5m"},
        "changed": {"note": "Welcome, {customer.name}"},
    }


def _discord_role(world: World, _folder: Path) -> dict[str, Any]:
    discord, url = _discord()
    discord.reset()
    roles = ["1100000000000000001", "1100000000000000002"]
    for role in roles:
        discord.add_role(role)
    for person in (BUYER, OTHER):
        discord.add_user(person.accounts["discord"], str(person.name).lower())
        discord.join(person.accounts["discord"])
    values = world.settings.model_dump() | {"discord_api_url": url, "discord_bot_token": fake_discord.BOT_TOKEN}
    world.settings = type(world.settings)(**values)
    return {
        "terms": {"guild": fake_discord.GUILD, "role": roles[0]},
        "changed": {"guild": fake_discord.GUILD, "role": roles[1], "on_revoke": "kick"},
        "failing": {"guild": fake_discord.GUILD, "role": "1100000000000000009"},
        "secrets": lambda: [fake_discord.BOT_TOKEN],
    }


def _github_repository(world: World, _folder: Path) -> dict[str, Any]:
    github, url = _github()
    github.reset(world.now)
    acme = github.organization("acme")
    github.repository(acme, "pro")
    for person in (BUYER, OTHER):
        github.user(str(person.name), int(person.accounts["github"]))
    values = {"github_api_url": f"{url}/api/v3", "github_app_id": github.app_id, "github_private_key": github.pem}
    world.settings = type(world.settings)(**(world.settings.model_dump() | values))
    return {
        "terms": {"repository": "acme/pro"},
        "changed": {"repository": "acme/pro", "permission": "push"},
        "failing": {"repository": "acme/pro", "permission": "no-such-role"},
        "secrets": lambda: [github.pem, *github.tokens],
    }


@cache
def _github() -> tuple[FakeGitHub, str]:
    github = FakeGitHub(is_checked=True)
    return github, _SERVERS.enter_context(serving(github))


@cache
def _discord() -> tuple[FakeDiscord, str]:
    return _SERVERS.enter_context(fake_discord.serve())


_SERVERS = ExitStack()


@pytest.fixture(scope="module", autouse=True)
def _servers() -> Iterator[None]:
    """End the platforms that were started for the module."""
    yield
    _SERVERS.close()


SETUPS: Mapping[str, Callable[[World, Path], dict[str, Any]]] = {
    "github_repository": _github_repository,
    "discord_role": _discord_role,
    "license_key": _license_key,
    "file_download": _file_download,
    "custom_link": _custom_link,
}


@pytest.fixture
def world(tmp_path: Path, clock: Clock) -> Iterator[World]:
    with ThreadPoolExecutor(2) as executor:
        yield World(settings_for("", tmp_path), executor, clock)


@pytest.fixture(params=list(CONNECTORS))
async def setup(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> AsyncIterator[Setup]:
    name = request.param
    if name not in SETUPS:
        pytest.fail(f"the connector {name!r} is not under the contract: add it to SETUPS in {__file__}")
    folder = tmp_path / "outside"
    folder.mkdir()
    made = Setup(world, **SETUPS[name](world, folder), make=lambda world: CONNECTORS[name](world.tools))
    yield made
    await made.close()


@pytest.fixture
def connector(setup: Setup) -> Any:
    return setup.connector()


@pytest.fixture
def config(setup: Setup, connector: Any) -> BenefitConfig:
    return configured(connector, setup.terms)


def configured(connector: Any, terms: Mapping[str, Any]) -> BenefitConfig:
    config = connector.Config.model_validate({"benefit": "pro", **terms})
    assert isinstance(config, BenefitConfig)
    return config


async def give(connector: Any, to: Recipient, config: BenefitConfig, held: Receipt | None = None) -> Receipt:
    """Grant as the worker does: what the connector wants to have written down first is given to it again."""
    receipt: Receipt = await connector.grant(to, config, held)
    while receipt.intended:
        receipt = await connector.grant(to, config, stored(receipt))
    return receipt


# What it is.


def test_every_setup_is_of_a_connector_that_there_is() -> None:
    assert SETUPS.keys() <= CONNECTORS.keys()


def test_the_name_of_a_connector_is_the_name_of_its_file(setup: Setup) -> None:
    name = next(name for name, made in CONNECTORS.items() if isinstance(setup.connector(), made))
    assert CONNECTORS[name].__module__ == f"connectors.{name}"


def test_the_catalogue_knows_the_terms_of_every_connector() -> None:
    assert TERMS.keys() == CONNECTORS.keys()
    for name, terms in TERMS.items():
        assert terms.config is CONNECTORS[name].Config
        assert terms.per is CONNECTORS[name].per
        assert terms.per in get_args(Per)


def test_a_config_with_an_unknown_field_is_refused(setup: Setup, connector: Any) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        configured(connector, setup.terms | {"colour": "red"})


def test_a_config_cannot_be_changed(config: BenefitConfig) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        config.benefit = "other"  # type: ignore[misc]


def test_every_field_of_a_config_is_described(connector: Any) -> None:
    assert [name for name, field in connector.Config.model_fields.items() if not field.description] == []


def test_settings_that_suffice_lack_nothing(setup: Setup, connector: Any, config: BenefitConfig) -> None:
    assert connector.missing(config, setup.world.settings) == []


# Which thing outside it is about.


def test_a_resource_is_the_same_after_a_restart(setup: Setup, connector: Any, config: BenefitConfig) -> None:
    assert connector.resource(BUYER, config) == setup.connector().resource(BUYER, config)


def test_a_resource_does_not_hang_on_what_people_can_change_about_themselves(
    connector: Any, config: BenefitConfig
) -> None:
    renamed = msgspec.structs.replace(BUYER, email="countess@example.com", name="Countess", external_id="user 9")
    assert connector.resource(renamed, config) == connector.resource(BUYER, config)


def test_two_customers_never_share_a_resource(connector: Any, config: BenefitConfig) -> None:
    assert connector.resource(OTHER, config) != connector.resource(BUYER, config)


async def test_a_receipt_names_the_resource_that_was_asked_for(connector: Any, config: BenefitConfig) -> None:
    receipt = await give(connector, BUYER, config)
    assert receipt.resource == connector.resource(BUYER, config)
    assert not receipt.intended


# Giving.


async def test_what_was_granted_is_there_when_read_back(setup: Setup, connector: Any, config: BenefitConfig) -> None:
    receipt = stored(await give(connector, BUYER, config))
    assert await setup.connector().holds(receipt) in {Holding.HELD, Holding.PENDING}


async def test_granting_twice_is_granting_once(setup: Setup, connector: Any, config: BenefitConfig) -> None:
    noted = stored(await connector.grant(BUYER, config, None))
    first = stored(await give(connector, BUYER, config, noted))
    with_receipt = stored(await give(connector, BUYER, config, first))
    # We may have died before the receipt was written: there is what was noted before acting, if anything.
    without_receipt = stored(await give(setup.connector(), BUYER, config, noted if noted.intended else None))
    assert first == with_receipt == without_receipt
    await connector.revoke(first)
    assert not await connector.left(first)


async def test_granting_to_one_gives_another_nothing(connector: Any, config: BenefitConfig) -> None:
    await give(connector, BUYER, config)
    assert await connector.holds(Receipt(connector.resource(OTHER, config), intended=True)) == Holding.GONE


async def test_granting_with_a_changed_config_brings_what_is_held_up_to_date(
    setup: Setup, connector: Any, config: BenefitConfig
) -> None:
    changed = configured(connector, setup.changed)
    first = stored(await give(connector, BUYER, config))
    is_another = connector.resource(BUYER, changed) != first.resource
    second = stored(await give(connector, BUYER, changed, None if is_another else first))
    assert connector.offer(second) != connector.offer(first)
    assert await connector.holds(second) in {Holding.HELD, Holding.PENDING}
    if is_another:  # it is moved: the old one goes by its receipt, and the new one stays
        await connector.revoke(first, last=False)
        assert not await connector.left(first)
        assert await connector.holds(second) in {Holding.HELD, Holding.PENDING}


async def test_letting_go_of_what_another_grant_keeps_takes_nothing_from_it(
    connector: Any, config: BenefitConfig
) -> None:
    receipt = stored(await give(connector, BUYER, config))
    await connector.let_go(receipt, [receipt])
    assert await connector.holds(receipt) in {Holding.HELD, Holding.PENDING}


async def test_a_scope_is_the_resource_or_a_part_before_a_colon(connector: Any, config: BenefitConfig) -> None:
    resource = connector.resource(BUYER, config)
    scope = connector.scope(resource)
    assert resource == scope or resource.startswith(f"{scope}:")
    assert connector.scope(connector.resource(OTHER, config)) != scope


async def test_an_offer_can_be_stored_and_says_what_kind_it_is(
    setup: Setup, connector: Any, config: BenefitConfig, clock: Clock
) -> None:
    offer = connector.offer(stored(await give(connector, BUYER, config)))
    assert offer["kind"]
    kept = msgspec.json.decode(msgspec.json.encode(offer))
    assert kept == offer
    shown = connector.present(kept, "grant-1", Moment(clock.at, setup.world.settings))
    assert shown["kind"] == offer["kind"]
    assert kept == offer, "presenting changes a copy: the stored offer is used again"
    if not connector.dynamic:
        assert shown == offer


# Taking back.


async def test_what_was_revoked_is_gone_when_read_back(connector: Any, config: BenefitConfig) -> None:
    receipt = stored(await give(connector, BUYER, config))
    await connector.revoke(receipt)
    assert not await connector.left(receipt)


async def test_revoking_what_is_already_gone_succeeds(connector: Any, config: BenefitConfig) -> None:
    receipt = stored(await give(connector, BUYER, config))
    await connector.revoke(receipt)
    await connector.revoke(receipt)
    assert not await connector.left(receipt)


async def test_revoking_what_was_never_given_succeeds(setup: Setup, connector: Any, config: BenefitConfig) -> None:
    await connector.revoke(Receipt(connector.resource(BUYER, config), intended=True))
    assert not await setup.connector().left(Receipt(connector.resource(BUYER, config), intended=True))


async def test_revoking_from_an_intended_receipt_takes_back_what_we_died_before_noting(
    setup: Setup, connector: Any, config: BenefitConfig
) -> None:
    given = stored(await give(connector, BUYER, config))
    intended = stored(Receipt(given.resource, intended=True))
    await setup.connector().revoke(intended)
    assert not await connector.left(given)
    assert not await connector.left(intended)


async def test_revoking_after_a_change_of_config_needs_the_receipt_alone(
    setup: Setup, connector: Any, config: BenefitConfig
) -> None:
    receipt = stored(await give(connector, BUYER, config))
    restarted = setup.connector()
    configured(restarted, setup.changed)
    await restarted.revoke(receipt)
    assert not await setup.connector().left(receipt)


async def test_revoking_takes_nothing_from_another(connector: Any, config: BenefitConfig) -> None:
    mine = stored(await give(connector, BUYER, config))
    theirs = stored(await give(connector, OTHER, config))
    await connector.revoke(mine)
    assert await connector.holds(theirs) in {Holding.HELD, Holding.PENDING}


async def test_granting_after_revoking_gives_the_same_again(
    setup: Setup, connector: Any, config: BenefitConfig
) -> None:
    first = stored(await give(connector, BUYER, config))
    await connector.revoke(first)
    second = stored(await give(setup.connector(), BUYER, config))
    assert second.resource == first.resource
    assert connector.offer(second) == connector.offer(first)
    assert await connector.holds(second) in {Holding.HELD, Holding.PENDING}


# Failing, and secrets.


async def test_a_failure_is_named_for_what_happens_next_and_gives_nothing(setup: Setup, connector: Any) -> None:
    if setup.failing is None:
        return
    failing = configured(connector, setup.failing)
    with pytest.raises(ConnectorError) as failed:
        await give(connector, BUYER, failing)
    assert type(failed.value) is not ConnectorError
    assert str(failed.value)
    assert await connector.holds(Receipt(connector.resource(BUYER, failing), intended=True)) == Holding.GONE


async def test_no_secret_is_seen_in_logs_errors_or_receipts(
    setup: Setup, connector: Any, config: BenefitConfig, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    seen = [repr(connector), repr(config)]
    receipt = await give(connector, BUYER, config)
    offer = connector.offer(receipt)
    connector.present(offer, "grant-1", Moment(clock.at, setup.world.settings))
    seen += [repr(receipt), str(stored(receipt)), repr(offer)]
    await connector.holds(receipt)
    await connector.revoke(receipt)
    if setup.failing is not None:
        with pytest.raises(ConnectorError) as failed:
            await connector.grant(BUYER, configured(connector, setup.failing), receipt)
        seen += [str(failed.value), repr(failed.value), *traceback.format_exception(failed.value)]
    seen += [record.getMessage() for record in caplog.records]
    assert setup.hidden()
    for secret in setup.hidden():
        assert not [text for text in seen if secret in text]


# The fakes that all of this stands on keep the promises of the database.


@asynccontextmanager
async def _ports(kind: str, url: str, clock: Clock) -> AsyncIterator[tuple[Passes, LicenseKeys]]:
    if kind == "memory":
        yield MemoryPasses(), MemoryLicenseKeys()
        return
    database = Database(url)
    try:
        yield StoredPasses(database), StoredLicenseKeys(database, Seal(["encryption-key-1"]), clock)
    finally:
        await database.close()


@pytest.fixture(params=["memory", "stored"])
async def ports(
    request: pytest.FixtureRequest, sqlite_url: str, clock: Clock
) -> AsyncIterator[tuple[Passes, LicenseKeys]]:
    async with _ports(request.param, sqlite_url, clock) as opened:
        yield opened


async def test_a_pass_is_open_from_opening_to_closing_however_often(ports: tuple[Passes, LicenseKeys]) -> None:
    passes, _ = ports
    assert not await passes.is_open("one")
    await passes.close("one")
    for _ in range(2):
        await passes.open("one")
        assert await passes.is_open("one")
        assert not await passes.is_open("two")
    for _ in range(2):
        await passes.close("one")
        assert not await passes.is_open("one")


def _issued(key: str, **more: Any) -> LicenseKey:
    return LicenseKey(
        id="id-1", resource="one", benefit="pro", customer_id="c-1", key=key, display_key=masked(key), **more
    )


async def test_a_key_is_issued_once_and_revived_with_new_limits(
    ports: tuple[Passes, LicenseKeys], clock: Clock
) -> None:
    _, keys = ports
    assert await keys.find("one") is None
    await keys.revoke("one")
    first = _issued("SECRET-1", limit_activations=3, expires_at=clock.at)
    assert await keys.issue(first) == first
    await keys.revoke("one")
    await keys.revoke("one")
    assert await keys.find("one") == msgspec.structs.replace(first, given=False)
    other = _issued("SECRET-2", limit_usage=7)
    revived = msgspec.structs.replace(first, limit_activations=None, limit_usage=7)
    assert await keys.issue(other) == revived
    assert await keys.find("one") == revived
