"""The keys that sign offline licences: one for all processes, encrypted, replaced without a gap, retired."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.conftest import Clock, settings_for
from tests.worker.test_offline import verifier
from worker import keyring
from worker.keyring import SigningKey
from worker.offline import Licence
from worker.sealing import NotSealed, Seal
from worker.signing_keys import NotRetired, SigningKeys
from worker.store import signing_keys
from worker.store.database import Database

AT = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


def licence(until: datetime = AT + 30 * DAY) -> Licence:
    return Licence(
        id="1", license_key_id="key", display_key="****-ABCDEF", benefit="pro", benefit_id="b", description="Pro",
        customer_id="c", external_customer_id=None, organization_id=None, activation_id=None, fingerprint=None,
        issued_at=AT, valid_until=until, paid_through=None,
    )  # fmt: skip


def key(kid: str = "a", **fields: Any) -> SigningKey:
    return SigningKey(**{"kid": kid, "public_key": b"p" * 32, "sealed": b"s", "sealed_with": "f", "created_at": AT,
                         "signs_from": AT, **fields})  # fmt: skip


# Which key does what.


def test_of_the_keys_whose_time_has_come_the_newest_signs() -> None:
    old, new = key("old", retired_at=AT + DAY), key("new", signs_from=AT + DAY)
    assert keyring.signer([old, new], AT) is old
    assert keyring.signer([old, new], AT + DAY - SECOND) is old
    assert keyring.signer([old, new], AT + DAY) is new
    assert keyring.waiting([old, new], AT) is new
    assert keyring.waiting([old, new], AT + DAY) is None
    assert keyring.signer([key(sealed=None), new], AT) is None
    assert keyring.signer([], AT) is None


@pytest.mark.parametrize(
    ("fields", "standing", "is_listed"),
    [
        ({}, "signs", True),
        ({"retired_at": AT + SECOND}, "signs", True),
        ({"signs_from": AT + SECOND}, "waits", True),
        ({"retired_at": AT}, "retired", False),
        ({"retired_at": AT, "until": AT}, "retired", False),
        ({"retired_at": AT, "until": AT + SECOND}, "replaced", True),
    ],
)
def test_a_key_is_listed_while_anything_needs_it(fields: dict[str, Any], standing: str, is_listed: bool) -> None:
    one = key(**fields)
    assert keyring.standing(one, AT) == standing
    assert keyring.is_listed(one, AT) is is_listed
    assert len(keyring.listed([one], AT)) == is_listed


def test_the_list_tells_when_a_key_stops_and_until_when_it_is_needed() -> None:
    before, after = keyring.listed([key(until=AT + DAY), key("b", retired_at=AT + DAY, until=AT + 2 * DAY)], AT)
    assert before == {
        "kid": "a", "alg": "Ed25519", "public_key": "cHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHA",
        "signs_from": "2026-11-01T12:00:00Z", "retired_at": None, "until": None,
    }  # fmt: skip
    assert (after["retired_at"], after["until"]) == ("2026-11-02T12:00:00Z", "2026-11-03T12:00:00Z")


def test_what_is_remembered_of_a_licence_is_the_next_full_hour() -> None:
    assert keyring.covering(AT) == AT
    assert keyring.covering(AT + SECOND) == AT + HOUR
    assert keyring.covering(AT + HOUR - timedelta(microseconds=1)) == AT + HOUR


# In the database.


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = Database(database_url)
    yield opened
    await opened.close()


def keys_on(database: Database, clock: Clock, encryption_keys: str = "encryption-key-1") -> SigningKeys:
    return SigningKeys(database, settings_for("", Path(), encryption_keys=encryption_keys), clock)


async def test_the_first_licence_makes_the_first_key(database: Database, clock: Clock) -> None:
    keys = keys_on(database, clock)
    assert await keys.all() == []
    made = await keys.sign(licence())
    (only,) = await keys.all()
    assert (made.licence.kid, only.kid) == (only.kid, keyring.kid_of(only.public_key))
    assert len(only.kid) == 16
    said = verifier.verify(made.text, {"keys": keyring.listed([only], AT)}, AT)
    assert said["kid"] == only.kid
    assert (await keys.create()) == (only, False)


async def test_processes_that_make_the_first_key_at_once_make_one(database_url: str, clock: Clock) -> None:
    databases = [Database(database_url) for _ in range(4)]
    try:
        made = await asyncio.gather(*(keys_on(one, clock).sign(licence()) for one in databases * 3))
        assert len({one.licence.kid for one in made}) == 1
        assert len(await keys_on(databases[0], clock).all()) == 1
    finally:
        for one in databases:
            await one.close()


async def test_processes_that_rotate_at_once_add_one_key(database_url: str, clock: Clock) -> None:
    databases = [Database(database_url) for _ in range(4)]
    try:
        await keys_on(databases[0], clock).create()
        rotated = await asyncio.gather(*(keys_on(one, clock).rotate(DAY) for one in databases))
        assert sorted(is_new for _, is_new in rotated) == [False, False, False, True]
        assert len(await keys_on(databases[0], clock).all()) == 2
    finally:
        for one in databases:
            await one.close()


async def test_private_halves_are_encrypted_and_for_this_purpose_only(database: Database, clock: Clock) -> None:
    keys = keys_on(database, clock)
    made, _ = await keys.create()
    assert made.sealed
    assert b"encryption-key-1" not in made.sealed
    plain = Seal(["encryption-key-1"], "signing keys").open(made.sealed)
    assert Ed25519PrivateKey.from_private_bytes(plain).public_key().public_bytes_raw() == made.public_key
    assert plain not in made.sealed
    with pytest.raises(NotSealed):  # what encrypts customers' tokens does not open it
        Seal(["encryption-key-1"]).open(made.sealed)


async def test_what_a_key_has_signed_is_remembered_before_it_is_given_out(database: Database, clock: Clock) -> None:
    keys = keys_on(database, clock)
    for until, remembered in (
        (AT + 2 * DAY + SECOND, AT + 2 * DAY + HOUR),
        (AT + DAY, AT + 2 * DAY + HOUR),
        (AT + 2 * DAY + HOUR, AT + 2 * DAY + HOUR),
        (AT + 3 * DAY, AT + 3 * DAY),
    ):
        await keys.sign(licence(until))
        assert [one.until for one in await keys.all()] == [remembered]


async def test_a_key_takes_over_after_the_overlap_and_the_old_one_stays_listed(
    database: Database, clock: Clock
) -> None:
    keys = keys_on(database, clock)
    first = await keys.sign(licence(AT + 30 * DAY))
    new, is_new = await keys.rotate(DAY)
    assert (is_new, new.signs_from) == (True, AT + DAY)
    document = {"keys": keyring.listed(await keys.all(), clock.at)}
    assert [one["kid"] for one in document["keys"]] == [first.licence.kid, new.kid]
    assert (await keys.sign(licence())).licence.kid == first.licence.kid
    clock.move(days=1)
    second = await keys.sign(licence())
    assert second.licence.kid == new.kid
    assert verifier.verify(second.text, document, clock.at)  # the list was fetched before it signed
    assert [keyring.standing(one, clock.at) for one in await keys.all()] == ["replaced", "signs"]
    assert verifier.verify(first.text, {"keys": keyring.listed(await keys.all(), clock.at)}, clock.at)
    clock.move(days=29)
    assert [one["kid"] for one in keyring.listed(await keys.all(), clock.at)] == [new.kid]


async def test_only_one_key_waits_at_a_time(database: Database, clock: Clock) -> None:
    keys = keys_on(database, clock)
    assert (await keys.rotate(DAY))[0].signs_from == AT  # the first of all has nobody to wait for
    waiting, _ = await keys.rotate(DAY)
    assert await keys.rotate(timedelta()) == (waiting, False)
    clock.move(days=1)
    assert (await keys.rotate(timedelta()))[1] is True


async def test_one_that_waits_and_is_retired_leaves_its_place_to_the_one_before(
    database: Database, clock: Clock
) -> None:
    keys = keys_on(database, clock)
    first = (await keys.sign(licence())).licence.kid
    waiting, _ = await keys.rotate(DAY)
    assert await keys.retire(waiting.kid)
    clock.move(days=2)
    assert (await keys.sign(licence())).licence.kid == first
    assert {one.kid: keyring.standing(one, clock.at) for one in await keys.all()} == {
        first: "signs", waiting.kid: "retired",
    }  # fmt: skip


async def test_a_key_that_is_needed_is_not_retired_unless_forced(database: Database, clock: Clock) -> None:
    keys = keys_on(database, clock)
    first = (await keys.sign(licence(AT + 30 * DAY))).licence.kid
    with pytest.raises(NotRetired, match="signs now"):
        await keys.retire(first)
    await keys.rotate(timedelta())
    with pytest.raises(NotRetired, match="may be good until 2026-12-01 12:00Z"):
        await keys.retire(first)
    clock.move(days=30)
    assert await keys.retire(first)
    gone = next(one for one in await keys.all() if one.kid == first)
    assert (gone.sealed, gone.sealed_with, gone.until) == (None, None, AT + 30 * DAY)
    assert await keys.retire(first)  # again is nothing
    assert await keys.retire("unknown") is None


async def test_a_key_that_is_retired_by_force_verifies_nothing_and_another_signs_at_once(
    database: Database, clock: Clock
) -> None:
    keys, elsewhere = keys_on(database, clock), keys_on(database, clock)
    stolen = await keys.sign(licence())
    await keys.retire(stolen.licence.kid, force=True)
    for process in (keys, elsewhere):
        made = await process.sign(licence())
        assert made.licence.kid != stolen.licence.kid
    document = {"keys": keyring.listed(await keys.all(), clock.at)}
    assert verifier.verify(made.text, document, clock.at)
    with pytest.raises(verifier.LicenceError, match="unknown_key"):
        verifier.verify(stolen.text, document, clock.at)


async def test_where_one_waits_it_takes_the_place_of_the_one_that_is_retired_by_force(
    database: Database, clock: Clock
) -> None:
    keys = keys_on(database, clock)
    first, _ = await keys.create()
    waiting, _ = await keys.rotate(DAY)
    await keys.retire(first.kid, force=True)
    assert (await keys.sign(licence())).licence.kid == waiting.kid
    assert len(await keys.all()) == 2


async def test_a_licence_is_signed_anew_where_its_key_is_retired_meanwhile(database: Database, clock: Clock) -> None:
    """Between choosing a key and remembering what it signs."""
    keys = keys_on(database, clock)
    first, _ = await keys.create()
    await keys.retire(first.kid, force=True)
    assert not await database.write(lambda connection: signing_keys.needed_until(connection, first.kid, AT + DAY))


async def test_at_start_keys_are_encrypted_anew_with_the_first_encryption_key(database: Database, clock: Clock) -> None:
    old = keys_on(database, clock, "old-key-1")
    before, _ = await old.create()
    both = keys_on(database, clock, "new-key-1,old-key-1")
    assert await both.reseal() == 1
    assert await both.reseal() == 0
    (after,) = await both.all()
    assert after.sealed != before.sealed
    assert (await keys_on(database, clock, "new-key-1").sign(licence())).licence.kid == before.kid
    await both.rotate(timedelta())
    await both.retire(before.kid, force=True)
    assert await old.reseal() == 0  # nothing is left of one, and the other it cannot read


async def test_what_no_encryption_key_opens_is_kept_and_said(
    database: Database, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    made, _ = await keys_on(database, clock, "old-key-1").create()
    other = keys_on(database, clock, "other-key-1")
    assert await other.reseal() == 0
    assert "almoner signing-keys rotate --in 0s" in caplog.text
    with pytest.raises(NotSealed, match="put the older key behind"):
        await other.sign(licence())
    assert [one.sealed for one in await other.all()] == [made.sealed]
    assert (await other.rotate(timedelta()))[1]
    assert (await other.sign(licence())).licence.kid != made.kid


async def test_without_an_encryption_key_nothing_is_made_or_changed(database: Database, clock: Clock) -> None:
    made, _ = await keys_on(database, clock).create()
    none = keys_on(database, clock, "")
    for act in (none.create(), none.rotate(DAY)):
        with pytest.raises(NotSealed, match="ALMONER_ENCRYPTION_KEYS is missing: signing keys cannot be kept"):
            await act
    with pytest.raises(NotSealed, match="put the older key behind"):
        await none.sign(licence())
    assert await none.reseal() == 0
    assert await none.all() == [made]
