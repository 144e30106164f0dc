"""The keys that sign offline licences: made, kept encrypted, replaced, retired, and used."""

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

import sqlalchemy as sa
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from config.settings import Settings
from worker import keyring
from worker.keyring import SigningKey
from worker.offline import Licence, Signed, signed
from worker.sealing import NotSealed, Seal
from worker.store import signing_keys
from worker.store.database import Database

log = structlog.get_logger()


class NotRetired(Exception):
    """A key is still needed; the message says for what."""


class SigningKeys:
    """The signing keys, in the database. All processes share them."""

    def __init__(self, database: Database, settings: Settings, now: Callable[[], datetime]) -> None:
        self._database = database
        self._seal = Seal([key.get_secret_value() for key in settings.encryption_keys], "signing keys")
        self._now = now
        self._opened: dict[str, Ed25519PrivateKey] = {}

    async def sign(self, drafted: Licence) -> Signed:
        """Return the licence, signed; the first one makes the first key. Raises NotSealed."""
        until = keyring.covering(drafted.valid_until)
        while True:
            key = keyring.signer(await self.all(), self._now()) or (await self.create())[0]
            private = self._private(key)
            # What it must be known for is written before anybody has the licence.
            if key.until and key.until >= until:
                break
            if await self._database.write(partial(signing_keys.needed_until, kid=key.kid, until=until)):
                break
        return signed(drafted, key.kid, private)

    def _private(self, key: SigningKey) -> Ed25519PrivateKey:
        if key.kid not in self._opened:
            plain = self._seal.open(key.sealed or b"")
            self._opened[key.kid] = Ed25519PrivateKey.from_private_bytes(plain)
        return self._opened[key.kid]

    async def all(self) -> list[SigningKey]:
        """Return every key that there is or was, the oldest first."""
        return await self._database.peek(signing_keys.every)

    async def create(self) -> tuple[SigningKey, bool]:
        """Return the key that signs, and whether it was made now, because there was none. Raises NotSealed.

        Of processes that do this at once, one makes it.
        """
        new = self._new(self._now())

        def first(connection: sa.Connection) -> tuple[SigningKey, bool]:
            signing_keys.lock(connection)
            there = keyring.signer(signing_keys.every(connection), new.created_at)
            if there is None:
                signing_keys.add(connection, new)
            return there or new, there is None

        return await self._database.write(first)

    async def rotate(self, after: timedelta) -> tuple[SigningKey, bool]:
        """Make a key that takes over after this time, listed from now on; returns it. Raises NotSealed.

        Where one waits already, that is returned, and False; the first of all signs at once.
        """
        now = self._now()
        new = self._new(now)

        def next_one(connection: sa.Connection) -> tuple[SigningKey, bool]:
            signing_keys.lock(connection)
            keys = signing_keys.every(connection)
            there = keyring.waiting(keys, now)
            if there:
                return there, False
            made = new if keyring.signer(keys, now) is None else _from(new, now + after)
            signing_keys.replace(connection, made)
            return made, True

        return await self._database.write(next_one)

    async def retire(self, kid: str, *, force: bool = False) -> SigningKey | None:
        """Take a key off the list, and forget its private half; returns it as it was, or None where there is none.

        One that waits leaves its place to the one before. Raises NotRetired where it signs, or what it has signed may
        be good: unless forced, and then nothing of that verifies any more.
        """
        now = self._now()

        def take_off(connection: sa.Connection) -> SigningKey | None:
            signing_keys.lock(connection)
            key = next((one for one in signing_keys.every(connection) if one.kid == kid), None)
            if key and not force:
                _check_unneeded(key, now)
            if key:
                signing_keys.retire(connection, key, now)
            return key

        key = await self._database.write(take_off)
        self._opened.pop(kid, None)
        return key

    def _new(self, now: datetime) -> SigningKey:
        private = Ed25519PrivateKey.generate()
        public = private.public_key().public_bytes_raw()
        sealed = self._seal.seal(private.private_bytes_raw())
        return SigningKey(kid=keyring.kid_of(public), public_key=public, sealed=sealed,
                          sealed_with=self._seal.fingerprint, created_at=now, signs_from=now)  # fmt: skip

    async def reseal(self) -> int:
        """Encrypt with the first key what an older one has encrypted; returns how many there were.

        What no key opens is left as it is: the older key may come back.
        """
        count = 0
        for key in await self._database.read(signing_keys.every):
            if key.sealed is None or self._seal.fingerprint in {None, key.sealed_with}:
                continue
            try:
                sealed = self._seal.seal(self._seal.open(key.sealed))
            except NotSealed as error:
                log.error("a key that signs licences cannot be read", kid=key.kid, reason=str(error),
                          next="or replace it: almoner signing-keys rotate --in 0s")  # fmt: skip
                continue
            change = partial(signing_keys.reseal, key=key, sealed=sealed, sealed_with=self._seal.fingerprint)
            await self._database.write(change)
            count += 1
        return count


def _from(key: SigningKey, at: datetime) -> SigningKey:
    return SigningKey(kid=key.kid, public_key=key.public_key, sealed=key.sealed, sealed_with=key.sealed_with,
                      created_at=key.created_at, signs_from=at)  # fmt: skip


def _check_unneeded(key: SigningKey, now: datetime) -> None:
    """Raises NotRetired."""
    if keyring.standing(key, now) == "signs":
        raise NotRetired(f"{key.kid} signs now; first have another take its place: almoner signing-keys rotate")
    if key.until and key.until > now:
        raise NotRetired(f"Licences that {key.kid} has signed may be good until {key.until:%Y-%m-%d %H:%M}Z")
