"""The keys that sign offline licences."""

from datetime import datetime

import msgspec
import sqlalchemy as sa

from worker.keyring import SigningKey
from worker.store.models import SigningKeyRow

table = SigningKeyRow.__table__  # type: ignore[attr-defined]

_LOCK = 727_660_120
"""Any number: two processes that change them at once do it one after the other."""
_EVERY = sa.select(table).order_by(table.c.signs_from, table.c.kid)


def lock(connection: sa.Connection) -> None:
    """Have nobody else change them until the transaction ends. SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


def every(connection: sa.Connection) -> list[SigningKey]:
    """Return all keys, the oldest first."""
    return [SigningKey(**row._asdict()) for row in connection.execute(_EVERY)]


def add(connection: sa.Connection, key: SigningKey) -> None:
    """Keep a new key."""
    connection.execute(table.insert().values(msgspec.structs.asdict(key)))


def replace(connection: sa.Connection, key: SigningKey) -> None:
    """Keep a new key that takes the place of whichever signs, once it does."""
    connection.execute(table.update().where(table.c.retired_at.is_(None)).values(retired_at=key.signs_from))
    add(connection, key)


def needed_until(connection: sa.Connection, kid: str, until: datetime) -> bool:
    """Remember until when what a key signs is good; returns whether it still signs."""
    chosen = table.update().where(table.c.kid == kid, table.c.sealed.is_not(None))
    later = sa.case((table.c.until > until, table.c.until), else_=until)
    return connection.execute(chosen.values(until=later)).rowcount > 0


def retire(connection: sa.Connection, key: SigningKey, now: datetime) -> None:
    """Forget the private half of a key; from now on it is not listed.

    What it was to replace goes on signing, and what waits to replace it signs at once.
    """
    ended = {"retired_at": min(key.retired_at or now, now), "until": min(key.until, now) if key.until else None}
    connection.execute(table.update().where(table.c.kid == key.kid).values(sealed=None, sealed_with=None, **ended))
    if key.signs_from > now:
        connection.execute(table.update().where(table.c.retired_at == key.signs_from).values(retired_at=None))
    elif key.retired_at is None or key.retired_at > now:
        connection.execute(table.update().where(table.c.signs_from > now).values(signs_from=now))


def reseal(connection: sa.Connection, key: SigningKey, sealed: bytes, sealed_with: str | None) -> None:
    """Put another encryption in place of this one, unless the key was retired meanwhile."""
    chosen = table.update().where(table.c.kid == key.kid, table.c.sealed == key.sealed)
    connection.execute(chosen.values(sealed=sealed, sealed_with=sealed_with))
