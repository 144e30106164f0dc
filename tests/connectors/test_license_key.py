"""License keys: their form, what revives, and what the receipt keeps of them."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from pydantic import ValidationError

from config.settings import Settings
from connectors.base import Holding, LicenseKey, Recipient
from connectors.license_key import LicenseKeyConnector, Terms
from tests.conftest import Clock, settings_for
from tests.connectors.ports import World, stored

BUYER = Recipient(customer_id="c-1", member_id="m-1", purchase="order-1")
KEY = re.compile(r"[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}")


@pytest.fixture
def world(tmp_path: Path, clock: Clock) -> Iterator[World]:
    with ThreadPoolExecutor(1) as executor:
        yield World(settings_for("", tmp_path), executor, clock)


@pytest.fixture
def connector(world: World) -> LicenseKeyConnector:
    return LicenseKeyConnector(world.tools)


def terms(**more: Any) -> Terms:
    return Terms(benefit="pro", **more)


def only(world: World) -> LicenseKey:
    (key,) = world.license_keys.kept.values()
    return key


# The terms.


@pytest.mark.parametrize(
    ("written", "read"), [("", ""), ("acme", "ACME"), (" Acme-2 ", "ACME-2"), ("-", "-"), ("A" * 40, "A" * 40)]
)
def test_a_prefix_is_written_in_capitals(written: str, read: str) -> None:
    assert terms(prefix=written).prefix == read


@pytest.mark.parametrize("prefix", ["ac me", "acme_", "acmé", "a\nb", "٣", "acme.", "A" * 41])
def test_a_prefix_with_anything_but_letters_digits_and_hyphens_is_refused(prefix: str) -> None:
    with pytest.raises(ValidationError, match="prefix"):
        terms(prefix=prefix)


@pytest.mark.parametrize("name", ["limit_activations", "limit_usage"])
@pytest.mark.parametrize("limit", [0, -1, 1_000_000_001, "3", 2.0, True])
def test_a_limit_is_a_whole_number_of_at_least_one(name: str, limit: object) -> None:
    with pytest.raises(ValidationError, match=name):
        terms(**{name: limit})


@pytest.mark.parametrize("name", ["limit_activations", "limit_usage"])
@pytest.mark.parametrize("limit", [None, 1, 1_000_000_000])
def test_a_limit_may_be_left_out(name: str, limit: int | None) -> None:
    assert getattr(terms(**{name: limit}), name) == limit


@pytest.mark.parametrize("expires", ["0s", "36526d", "soon"])
def test_a_key_lasts_more_than_nothing_and_a_century_at_most(expires: str) -> None:
    with pytest.raises(ValidationError, match="expires"):
        terms(expires=expires)


def test_it_lacks_no_setting(world: World) -> None:
    assert LicenseKeyConnector.missing(terms(), world.settings) == []


# The key.


async def test_a_key_is_the_prefix_and_a_random_uuid_in_capitals(connector: LicenseKeyConnector, world: World) -> None:
    await connector.grant(BUYER, terms(prefix="acme"), None)
    prefix, _, key = (only(world).key or "").partition("-")
    assert prefix == "ACME"
    assert KEY.fullmatch(key)


async def test_a_key_without_a_prefix_is_the_uuid_alone(connector: LicenseKeyConnector, world: World) -> None:
    await connector.grant(BUYER, terms(), None)
    assert KEY.fullmatch(only(world).key or "")


async def test_no_bit_of_a_key_can_be_known_beforehand(connector: LicenseKeyConnector, world: World) -> None:
    for number in range(200):
        await connector.grant(msgspec.structs.replace(BUYER, purchase=str(number)), terms(), None)
    keys = [UUID(str(key.key)).int for key in world.license_keys.kept.values()]
    always, never = (1 << 128) - 1, (1 << 128) - 1
    for key in keys:
        always &= key
        never &= ~key
    assert len(set(keys)) == 200
    assert (always, never) == (0, 0), "a UUID of version 4 would always have six bits the same"


async def test_a_key_is_issued_to_whom_it_belongs(connector: LicenseKeyConnector, world: World, now: datetime) -> None:
    await connector.grant(BUYER, terms(limit_activations=3, limit_usage=5, expires="30d"), None)
    key = only(world)
    assert (key.benefit, key.customer_id, key.member_id, key.status) == ("pro", "c-1", "m-1", "granted")
    assert (key.limit_activations, key.limit_usage) == (3, 5)
    assert key.expires_at == now + timedelta(days=30)
    assert UUID(key.id)


async def test_a_key_without_an_end_says_so(connector: LicenseKeyConnector, world: World) -> None:
    receipt = await connector.grant(BUYER, terms(), None)
    assert only(world).expires_at is None
    assert receipt.data["expires_at"] is None


@pytest.mark.parametrize(
    ("more", "benefit"),
    [({"customer_id": "c-2"}, "pro"), ({"member_id": "m-2"}, "pro"), ({"purchase": "order-2"}, "pro"), ({}, "basic")],
)
async def test_each_benefit_customer_member_and_purchase_has_a_key_of_its_own(
    connector: LicenseKeyConnector, world: World, more: dict[str, str], benefit: str
) -> None:
    first = await connector.grant(BUYER, terms(), None)
    second = await connector.grant(msgspec.structs.replace(BUYER, **more), Terms(benefit=benefit), None)
    assert first.resource != second.resource
    assert first.data["license_key_id"] != second.data["license_key_id"]
    assert len({key.key for key in world.license_keys.kept.values()}) == 2


async def test_who_has_neither_member_nor_purchase_has_a_key_too(connector: LicenseKeyConnector) -> None:
    receipt = await connector.grant(Recipient(customer_id="c-1"), terms(), None)
    assert receipt.resource == "license_key:pro:c-1::"


# Reviving.


async def test_a_revived_key_is_the_same_with_the_limits_of_today_and_its_first_end(
    connector: LicenseKeyConnector, world: World, clock: Clock
) -> None:
    first = stored(await connector.grant(BUYER, terms(prefix="acme", limit_activations=3, expires="30d"), None))
    key = only(world)
    await connector.revoke(first)
    assert only(world).given is False
    clock.move(days=10)
    second = await connector.grant(BUYER, terms(prefix="new", limit_usage=8, expires="60d"), first)
    revived = only(world)
    assert (revived.id, revived.key, revived.status) == (key.id, key.key, "granted")
    assert second.data == first.data | {"limit_activations": None, "limit_usage": 8}


async def test_a_key_that_the_merchant_disabled_is_still_the_customers(
    connector: LicenseKeyConnector, world: World
) -> None:
    receipt = await connector.grant(BUYER, terms(), None)
    world.license_keys.kept[receipt.resource] = msgspec.structs.replace(only(world), status="disabled")
    assert await connector.holds(receipt) == Holding.HELD
    await connector.grant(BUYER, terms(limit_usage=1), receipt)
    assert only(world).status == "disabled", "only the merchant enables it again"
    await connector.revoke(receipt)
    assert await connector.holds(receipt) == Holding.GONE


# What is shown.


async def test_a_receipt_has_the_key_masked_to_its_last_six_characters(
    connector: LicenseKeyConnector, world: World, now: datetime
) -> None:
    receipt = await connector.grant(BUYER, terms(prefix="acme", limit_activations=3, expires="1d"), None)
    key = only(world)
    assert key.key
    assert receipt.data == {
        "license_key_id": key.id,
        "display_key": f"****-{key.key[-6:]}",
        "limit_activations": 3,
        "limit_usage": None,
        "expires_at": (now + timedelta(days=1)).isoformat(),
    }
    assert key.key not in repr(receipt)
    assert key.key[:-6] not in repr(receipt)


async def test_an_offer_is_the_masked_key_and_stays_as_it_is(connector: LicenseKeyConnector) -> None:
    receipt = await connector.grant(BUYER, terms(), None)
    offer = connector.offer(receipt)
    assert offer == {"kind": "license_key", **receipt.data}
    assert connector.present(offer, "grant-1", None) is offer  # type: ignore[arg-type]


def test_the_key_itself_stands_in_no_repr() -> None:
    issued = LicenseKey(
        id="1", resource="license_key:key:c-1::", benefit="key", customer_id="c-1", member_id=None,
        key="ACME-SECRET", display_key="****-SECRET",
    )  # fmt: skip
    assert "SECRET" not in repr(issued)
    assert "license_key:key:c-1" in repr(issued)


@pytest.mark.parametrize("wanted", [{"storage": "hash"}, {"offline": "30d"}])
def test_what_is_encrypted_at_rest_needs_a_key_for_it(wanted: dict[str, str]) -> None:
    [problem] = LicenseKeyConnector.missing(terms(**wanted), Settings())
    assert "ALMONER_ENCRYPTION_KEYS" in problem
    assert LicenseKeyConnector.missing(terms(**wanted), Settings(encryption_keys="a-key")) == []
    assert LicenseKeyConnector.missing(terms(), Settings()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"expires_from": "activation"},
        {"expires_from": "activation", "expires": "1d"},
        {"heartbeat": "1d"},
        {"one_per_fingerprint": True},
        {"overage": -1},
        {"heartbeat": "1s", "limit_activations": 1},
    ],
)
def test_terms_that_contradict_each_other_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        terms(**wrong)
