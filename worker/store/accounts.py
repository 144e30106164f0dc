"""Accounts of customers at platforms, and the tokens that came with them."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from handlers.state import KnownAccount
from worker.store.models import AccountRow
from worker.store.upsert import among, upsert

accounts = AccountRow.__table__  # type: ignore[attr-defined]

_COLUMNS = ("customer_id", "member_id", "platform", "source", "account_id", "name", "token", "sealed_with",
            "created_at", "modified_at")  # fmt: skip
_KEYS = ("customer_id", "member_id", "platform", "source")
_KEEP = upsert(
    accounts,
    _COLUMNS,
    _KEYS,
    change=lambda new: {
        name: new[name] for name in ("account_id", "name", "token", "sealed_with", "modified_at")
    },
)  # fmt: skip
_OF_CUSTOMERS = (
    sa.select(*(accounts.c[name] for name in (*_KEYS, "account_id", "name")))
    .where(accounts.c.customer_id.in_(among("ids")))
    .order_by(*(accounts.c[name] for name in _KEYS))
)


def of_customers(connection: sa.Connection, ids: Iterable[str]) -> dict[str, list[KnownAccount]]:
    """Return, by customer, the accounts that were linked, set, or found by a name in a field."""
    found: dict[str, list[KnownAccount]] = {}
    for row in connection.execute(_OF_CUSTOMERS, {"ids": list(ids)}):
        found.setdefault(row.customer_id, []).append(
            KnownAccount(
                platform=row.platform, member_id=row.member_id or None, account_id=row.account_id, name=row.name,
                source=row.source,
            )
        )  # fmt: skip
    return found


def keep(
    connection: sa.Connection,
    customer_id: str,
    account: KnownAccount,
    now: datetime,
    *,
    token: bytes | None = None,
    sealed_with: str | None = None,
) -> None:
    """Remember an account, instead of the one that the same source told before."""
    row = {
        "customer_id": customer_id,
        "member_id": account.member_id or "",
        "platform": account.platform,
        "source": account.source,
        "account_id": account.account_id,
        "name": account.name,
        "token": token,
        "sealed_with": sealed_with,
        "created_at": now,
        "modified_at": now,
    }
    connection.execute(_KEEP(connection), row)


def identify(connection: sa.Connection, customer_id: str, account: KnownAccount, now: datetime) -> None:
    """Bind a name to the id that was found for it, once: whoever has that name later is somebody else."""
    named = accounts.update().where(
        accounts.c.customer_id == customer_id,
        accounts.c.member_id == (account.member_id or ""),
        accounts.c.platform == account.platform,
        accounts.c.source == account.source,
        accounts.c.name == account.name,
        accounts.c.account_id.is_(None),
    )
    changed = connection.execute(named.values(account_id=account.account_id, modified_at=now)).rowcount
    if not changed and account.source == "field":
        keep(connection, customer_id, account, now)


def forget(
    connection: sa.Connection, customer_id: str, people: Iterable[str | None], platform: str, source: str
) -> bool:
    """Forget an account of these people, and its token; says whether there was one."""
    return (
        connection.execute(
            accounts.delete().where(
                accounts.c.customer_id == customer_id,
                accounts.c.member_id.in_([one or "" for one in people]),
                accounts.c.platform == platform,
                accounts.c.source == source,
            )
        ).rowcount
        > 0
    )


def forget_people(connection: sa.Connection, customer_ids: Iterable[str], members: Iterable[tuple[str, str]]) -> None:
    """Forget all accounts and tokens of customers, and of (customer, member)."""
    for customer_id in customer_ids:
        connection.execute(accounts.delete().where(accounts.c.customer_id == customer_id))
    for customer_id, member_id in members:
        connection.execute(
            accounts.delete().where(accounts.c.customer_id == customer_id, accounts.c.member_id == member_id)
        )


def token(connection: sa.Connection, platform: str, account_id: str) -> bytes | None:
    """Return the newest token of an account, encrypted."""
    statement = (
        sa.select(accounts.c.token)
        .where(accounts.c.platform == platform, accounts.c.account_id == account_id, accounts.c.token.is_not(None))
        .order_by(accounts.c.modified_at.desc())
        .limit(1)
    )
    found: bytes | None = connection.execute(statement).scalar_one_or_none()
    return found


def change_token(
    connection: sa.Connection, platform: str, account_id: str, sealed: bytes | None, sealed_with: str | None,
    now: datetime,
) -> None:  # fmt: skip
    """Put a token, or none, in place of what there is of an account."""
    connection.execute(
        accounts.update()
        .where(accounts.c.platform == platform, accounts.c.account_id == account_id, accounts.c.source == "linked")
        .values(token=sealed, sealed_with=sealed_with, modified_at=now)
    )


def sealed_with_another(connection: sa.Connection, fingerprint: str, *, limit: int) -> list[dict[str, Any]]:
    """Return rows whose token was encrypted with another key than this one."""
    statement = (
        sa.select(*(accounts.c[name] for name in (*_KEYS, "token")))
        .where(accounts.c.token.is_not(None), accounts.c.sealed_with != fingerprint)
        .limit(limit)
    )
    return [dict(row) for row in connection.execute(statement).mappings()]


def reseal(connection: sa.Connection, row: dict[str, Any], sealed: bytes | None, fingerprint: str | None) -> None:
    """Put the same token in place, encrypted with another key; only where it has not changed meanwhile."""
    connection.execute(
        accounts.update()
        .where(*(accounts.c[name] == row[name] for name in (*_KEYS, "token")))
        .values(token=sealed, sealed_with=fingerprint)
    )
