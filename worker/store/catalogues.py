"""Which benefits file is in force, for every process alike, and which one waits for a person."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from config.catalogue import Catalogue
from worker.store.models import CatalogueRow
from worker.store.upsert import upsert

catalogues = CatalogueRow.__table__  # type: ignore[attr-defined]


def in_force(connection: sa.Connection) -> dict[str, Any] | None:
    """Return the file in force, or None before the first."""
    row = connection.execute(sa.select(catalogues).where(catalogues.c.in_force)).mappings().one_or_none()
    return dict(row) if row else None


def held(connection: sa.Connection) -> dict[str, Any] | None:
    """Return the newest file that is held until a person accepts it."""
    statement = (
        sa.select(catalogues)
        .where(catalogues.c.held_because.is_not(None))
        .order_by(catalogues.c.proposed_at.desc())
        .limit(1)
    )
    row = connection.execute(statement).mappings().one_or_none()
    return dict(row) if row else None


_SINCE = sa.select(
    sa.func.min(catalogues.c.proposed_at),
    sa.func.max(sa.case((catalogues.c.in_force, catalogues.c.proposed_at))),
)


def since(connection: sa.Connection) -> tuple[datetime | None, datetime | None]:
    """Return when the first file was proposed, and when the one in force was."""
    first, last = connection.execute(_SINCE).one()
    return first, last


_LOCK = 727_660_119
"""Any number: two processes that start together decide one after the other."""


def lock(connection: sa.Connection) -> None:
    """Have nobody else decide until the transaction ends. SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


_HOLD = upsert(
    catalogues,
    ("digest", "text", "grace_seconds", "in_force", "proposed_at", "held_because"),
    ("digest",),
    change=lambda new: {"held_because": new.held_because, "proposed_at": new.proposed_at},
)
_PUT_IN_FORCE = upsert(
    catalogues,
    ("digest", "text", "grace_seconds", "in_force", "proposed_at", "in_force_at"),
    ("digest",),
    change=lambda new: {"in_force": new.in_force, "in_force_at": new.in_force_at, "held_because": None},
)


def hold(connection: sa.Connection, catalogue: Catalogue, because: str, now: datetime) -> None:
    """Keep a file aside, with the reason."""
    row = _row(catalogue) | {"in_force": False, "proposed_at": now, "held_because": because}
    connection.execute(_HOLD(connection), row)


def put_in_force(connection: sa.Connection, catalogue: Catalogue, now: datetime) -> None:
    """Make this the file in force, instead of the one before; nothing is held any more."""
    connection.execute(catalogues.update().values(in_force=False, held_because=None))
    row = _row(catalogue) | {"in_force": True, "proposed_at": now, "in_force_at": now}
    connection.execute(_PUT_IN_FORCE(connection), row)


def _row(catalogue: Catalogue) -> dict[str, Any]:
    return {
        "digest": catalogue.digest,
        "text": catalogue.text,
        "grace_seconds": catalogue.grace.total_seconds(),
    }
