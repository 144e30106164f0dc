"""Which benefits file is in force, for every process alike, and which one waits for a person."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from worker.store.models import CatalogueRow
from worker.store.upsert import insert

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


def hold(connection: sa.Connection, digest: str, text: str, because: str, now: datetime) -> None:
    """Keep a file aside, with the reason."""
    statement = insert(connection, catalogues).values(
        digest=digest, text=text, in_force=False, proposed_at=now, held_because=because
    )
    connection.execute(
        statement.on_conflict_do_update(index_elements=["digest"], set_={"held_because": because, "proposed_at": now})
    )


def put_in_force(connection: sa.Connection, digest: str, text: str, now: datetime) -> None:
    """Make this the file in force, instead of the one before; nothing is held any more."""
    connection.execute(catalogues.update().values(in_force=False, held_because=None))
    statement = insert(connection, catalogues).values(
        digest=digest, text=text, in_force=True, proposed_at=now, in_force_at=now
    )
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["digest"], set_={"in_force": True, "in_force_at": now, "held_because": None}
        )
    )
