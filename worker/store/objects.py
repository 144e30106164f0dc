"""Polar's objects as they were last sent."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from worker.store.models import ObjectRow, UtcTime
from worker.store.upsert import among, upsert

objects = ObjectRow.__table__  # type: ignore[attr-defined]

Row = dict[str, Any]

COLUMNS: tuple[str, ...] = tuple(column.name for column in objects.c)
_KEYS = ("kind", "id")

_KEEP = upsert(objects, COLUMNS, _KEYS)
# A hot path: through SQLAlchemy's Core the same takes three times as long.
_KEEP_SQLITE = (
    f"INSERT INTO objects ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))}) "  # noqa: S608 - our names
    f"ON CONFLICT (kind, id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in COLUMNS[2:])}"
)
_TIMES = tuple(column.name for column in objects.c if isinstance(column.type, UtcTime))
_KEEP_NEWER = upsert(
    objects,
    COLUMNS,
    _KEYS,
    where=lambda new: (
        sa.tuple_(new.deleted, new.modified_at, new.body)
        > sa.tuple_(objects.c.deleted, objects.c.modified_at, objects.c.body)
    ),
)
_READ = sa.select(objects).where(objects.c.kind.in_(among("kinds")), objects.c.id.in_(among("ids")))
_RANKS = sa.select(objects.c.id, objects.c.deleted, objects.c.modified_at, objects.c.body).where(
    objects.c.kind == "benefit", objects.c.id.in_(among("ids"))
)
_BODIES = sa.select(objects.c.id, objects.c.body).where(
    objects.c.kind == sa.bindparam("kind"), objects.c.id.in_(among("ids"))
)


def keep(connection: sa.Connection, rows: Sequence[Row]) -> None:
    """Write objects of customers whose rows are locked."""
    if rows and connection.dialect.name == "sqlite":
        raw: Any = connection.connection.driver_connection
        for row in rows:
            row.update((name, _sqlite_time(row[name])) for name in _TIMES if row[name])
            raw.execute(_KEEP_SQLITE, [row[name] for name in COLUMNS])
    elif rows:
        connection.execute(_KEEP(connection), sorted(rows, key=lambda row: (row["kind"], row["id"])))


def _sqlite_time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(" ", "microseconds")[:26]


def read(connection: sa.Connection, keys: Iterable[tuple[str, str]]) -> list[Row]:
    """Return the rows of these kinds and ids, those that there are."""
    wanted = set(keys)
    values = {"kinds": sorted({kind for kind, _ in wanted}), "ids": sorted({one for _, one in wanted})}
    found = [row._asdict() for row in connection.execute(_READ, values)]
    return [row for row in found if (row["kind"], row["id"]) in wanted]


def rank(row: Mapping[str, Any]) -> tuple[bool, Any, str]:
    """Return by what the newest description of a benefit is told: deleted, modified last, the greater text."""
    return row["deleted"], row["modified_at"], row["body"]


def keep_benefits(connection: sa.Connection, rows: Mapping[str, Row]) -> None:
    """Write the descriptions that are newer than those we have.

    Everybody's events carry the same ones: what is known already is not written, and so nobody waits for anybody.
    Whoever does write does it last in a transaction, in the order of ids, so that nobody waits in a circle.
    """
    if not rows:
        return
    known = {row.id: (row.deleted, row.modified_at, row.body) for row in connection.execute(_RANKS, {"ids": [*rows]})}
    newer = [row for one, row in sorted(rows.items()) if one not in known or rank(row) > known[one]]
    if newer:
        connection.execute(_KEEP_NEWER(connection), newer)


def bodies(connection: sa.Connection, kind: str, ids: Iterable[str]) -> dict[str, str]:
    """Return the JSON of these objects by id, deleted ones too."""
    wanted = list(ids)
    if not wanted:
        return {}
    return {row.id: row.body for row in connection.execute(_BODIES, {"kind": kind, "ids": wanted})}
