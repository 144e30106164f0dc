"""Quotas: how many calls somebody has made in a span of time, for all processes together."""

from datetime import datetime, timedelta

import sqlalchemy as sa

from worker.store.models import QuotaRow
from worker.store.upsert import upsert

quotas = QuotaRow.__table__  # type: ignore[attr-defined]

_ADD = upsert(
    quotas,
    ("name", "span", "count"),
    ("name", "span"),
    change=lambda new: {"count": quotas.c.count + new.count},
    returning=True,
)


def add(connection: sa.Connection, name: str, span: int, count: int) -> int:
    """Add calls in a span; returns how many there are then."""
    row = connection.execute(_ADD(connection), {"name": name, "span": span, "count": count}).one()
    return int(row[2])


def prune(connection: sa.Connection, now: datetime) -> None:
    """Forget the spans that have ended long ago."""
    old = int((now - timedelta(hours=1)).timestamp())
    connection.execute(quotas.delete().where(quotas.c.span < old))
