"""Reports of audits."""

from datetime import datetime

import sqlalchemy as sa

from worker.store.models import AuditRow

audits = AuditRow.__table__  # type: ignore[attr-defined]

_KEPT = 30


def keep(connection: sa.Connection, at: datetime, findings: int, report: bytes) -> None:
    """Keep a report, and of older ones the newest few."""
    connection.execute(audits.insert().values(at=at, findings=findings, report=report))
    newest = sa.select(audits.c.id).order_by(audits.c.id.desc()).limit(_KEPT)
    connection.execute(audits.delete().where(audits.c.id.not_in(list(connection.execute(newest).scalars()))))


def last(connection: sa.Connection) -> bytes | None:
    """Return the newest report."""
    statement = sa.select(audits.c.report).order_by(audits.c.id.desc()).limit(1)
    found: bytes | None = connection.execute(statement).scalar_one_or_none()
    return found
