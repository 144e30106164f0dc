"""Who a customer is at GitHub or Discord: told by themselves, by the merchant's app, by Polar, or in a field."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Literal

import msgspec
import sqlalchemy as sa
import structlog

from config.settings import Settings
from connectors.base import Account, AccountToken
from handlers import state as facts
from handlers.state import KnownAccount
from worker.pipeline import Pipeline
from worker.sealing import NotSealed, Seal
from worker.states import read_states
from worker.store import accounts, customers
from worker.store.database import Database

log = structlog.get_logger()

PLATFORMS = ("github", "discord")

_encode = msgspec.json.Encoder().encode
_token = msgspec.json.Decoder(AccountToken).decode


def seal_of(settings: Settings) -> Seal:
    """Return the seal of these settings."""
    return Seal([key.get_secret_value() for key in settings.encryption_keys])


class StoredTokens:
    """Customers' tokens, in the database, encrypted."""

    def __init__(self, database: Database, seal: Seal, now: Callable[[], datetime]) -> None:
        self._database = database
        self._seal = seal
        self._now = now

    async def find(self, platform: str, account_id: str) -> AccountToken | None:
        """Return the token of an account, or None; one that no key opens is as good as none, and is logged."""
        found = partial(accounts.token, platform=platform, account_id=account_id)
        sealed = await self._database.peek(found)
        return self._opened(sealed, platform, account_id) if sealed else None

    async def keep(self, platform: str, account_id: str, token: AccountToken) -> None:
        """Keep the token that came in its place. Raises NotSealed."""
        change = partial(
            accounts.change_token, platform=platform, account_id=account_id, sealed=self._seal.seal(_encode(token)),
            sealed_with=self._seal.fingerprint, now=self._now(),
        )  # fmt: skip
        await self._database.write(change)

    async def forget(self, platform: str, account_id: str, refused: AccountToken) -> None:
        """Delete this token, and no other that came in its place meanwhile."""
        now = self._now()

        def forget(connection: sa.Connection) -> None:
            sealed = accounts.token(connection, platform, account_id)
            if sealed and self._opened(sealed, platform, account_id) == refused:
                accounts.change_token(connection, platform, account_id, None, None, now)

        await self._database.write(forget)

    def _opened(self, sealed: bytes, platform: str, account_id: str) -> AccountToken | None:
        try:
            return _token(self._seal.open(sealed))
        except (NotSealed, msgspec.DecodeError) as error:
            log.error("a customer's token cannot be read", platform=platform, account=account_id, reason=str(error))
            return None

    async def reseal(self) -> int:
        """Encrypt with the first key what an older one has encrypted; returns how many there were."""
        count = 0
        while self._seal.fingerprint:
            some = partial(accounts.sealed_with_another, fingerprint=self._seal.fingerprint, limit=100)
            rows = await self._database.read(some)
            if not rows:
                break
            for row in rows:
                try:
                    sealed: bytes | None = self._seal.seal(self._seal.open(row["token"]))
                except NotSealed:
                    log.error("a customer's token cannot be read with any key, and is forgotten; they link again",
                              customer=row["customer_id"], platform=row["platform"])  # fmt: skip
                    sealed = None
                name = self._seal.fingerprint if sealed else None
                await self._database.write(partial(accounts.reseal, row=row, sealed=sealed, fingerprint=name))
                count += 1
        return count


@dataclass(frozen=True)
class Accounts:
    """What is done to the accounts of customers. Each change is reconciled at once: it may move access."""

    database: Database
    pipeline: Pipeline
    seal: Seal

    async def link(
        self,
        customer_id: str,
        member_id: str | None,
        platform: str,
        account: Account,
        *,
        source: Literal["linked", "set"],
        token: AccountToken | None = None,
    ) -> None:
        """Remember an account. Raises NotSealed where a token comes and there is no key to encrypt it."""
        sealed = self.seal.seal(_encode(token)) if token else None
        await self._keep(customer_id, member_id, platform, account.id, account.name, source, sealed)

    async def name(self, customer_id: str, member_id: str | None, platform: str, name: str) -> None:
        """Remember a name that the merchant's app has told; its id is found when it is first needed."""
        await self._keep(customer_id, member_id, platform, None, name, "set", None)

    async def unlink(
        self, customer_id: str, member_id: str | None, platform: str, *, source: Literal["linked", "set"]
    ) -> bool:
        """Forget an account and its token; says whether there was one."""

        def forget(connection: sa.Connection) -> bool:
            people = self._people(connection, customer_id, member_id)
            return accounts.forget(connection, customer_id, people, platform, source)

        was_there = await self.database.write(forget)
        await self.pipeline.refresh([customer_id])
        return was_there

    async def known(self, customer_id: str, member_id: str | None) -> list[KnownAccount]:
        """Return a person's accounts, the most trusted first."""
        states = await self.database.read(partial(read_states, ids=[customer_id], settings=self.pipeline.settings))
        return facts.known_accounts(states[customer_id], member_id) if customer_id in states else []

    async def _keep(
        self, customer_id: str, member_id: str | None, platform: str, account_id: str | None, name: str | None,
        source: Literal["linked", "set"], sealed: bytes | None,
    ) -> None:  # fmt: skip
        now = self.pipeline.now()

        def keep(connection: sa.Connection) -> None:
            person, *others = self._people(connection, customer_id, member_id)
            known = accounts.of_customers(connection, [customer_id]).get(customer_id, [])
            account = KnownAccount(
                platform=platform,
                member_id=person,
                account_id=account_id or _bound(known, [person, *others], platform, source, name),
                name=name,
                source=source,
            )
            accounts.forget(connection, customer_id, others, platform, source)
            accounts.keep(
                connection, customer_id, account, now, token=sealed,
                sealed_with=self.seal.fingerprint if sealed else None,
            )  # fmt: skip

        await self.database.write(keep)
        await self.pipeline.refresh([customer_id])

    def _people(self, connection: sa.Connection, customer_id: str, member_id: str | None) -> list[str | None]:
        """Return under whom an account is kept, first, and under whom it may stand from before.

        The customer in person is their owner, once there is one: who becomes the owner later is somebody else.
        """
        found = customers.facts(connection, [customer_id])
        owner = facts.owner_of(facts.decode(found[customer_id])) if customer_id in found else None
        return [owner, None] if owner and member_id in {None, owner} else [member_id]


def _bound(
    known: list[KnownAccount], people: list[str | None], platform: str, source: str, name: str | None
) -> str | None:
    """Return the id that the same name was bound to before: whoever has the name now may be somebody else."""
    for one in known:
        is_same = (one.platform, one.source, (one.name or "").lower()) == (platform, source, (name or "").lower())
        if is_same and one.member_id in people and one.account_id:
            return one.account_id
    return None
