"""Deliveries: taken in once, worked off, listed, replayed; and the ledger that counts them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from worker.store.models import Conflict, Delivery, DeliveryStatus, LedgerEntry, Refusal, SecretUse
from worker.store.upsert import among, upsert

deliveries = Delivery.__table__  # type: ignore[attr-defined]
conflicts = Conflict.__table__  # type: ignore[attr-defined]
refusals = Refusal.__table__  # type: ignore[attr-defined]
ledger = LedgerEntry.__table__  # type: ignore[attr-defined]
secret_uses = SecretUse.__table__  # type: ignore[attr-defined]

RECEIVED = "received"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A verified message on its way into the inbox."""

    webhook_id: str
    type: str
    status: DeliveryStatus
    reason: str | None
    event_at: datetime | None
    sent_at: datetime
    received_at: datetime
    api_version: str | None
    secret: str
    scheme: str
    digest: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of an arrival. `id` is the row's, for the trigger; None where there is nothing to do."""

    status: Literal["accepted", "duplicate", "ignored"]
    id: int | None = None


_COLUMNS = (
    "webhook_id", "type", "status", "reason", "event_at", "sent_at", "received_at", "next_attempt_at", "api_version",
    "secret", "digest", "body",
)  # fmt: skip
# The one hot path: through SQLAlchemy's Core the same insert costs four times as much (benchmarks/accept.py).
_INSERT_SQLITE = (
    f"INSERT INTO deliveries ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))}) "  # noqa: S608 - our names
    "ON CONFLICT (webhook_id) DO NOTHING"
)


def sqlite_time(at: datetime | None) -> str | None:
    """Write a time as SQLAlchemy does on SQLite: in UTC, without the zone."""
    if at is None:
        return None
    return (at if at.tzinfo is UTC else at.astimezone(UTC)).isoformat(" ", "microseconds")[:26]


def take_in(connection: sa.Connection, arrivals: Sequence[Arrival]) -> list[Accepted]:
    """Store arrivals, each id once for ever; count duplicates, and keep another body under a known id aside."""
    if connection.dialect.name == "sqlite":
        ids = _insert_sqlite(connection, arrivals)
    else:
        ids = _insert_postgresql(connection, arrivals)
    answers = []
    moved: Counter[str] = Counter()
    for arrival, row_id in zip(arrivals, ids, strict=True):
        if row_id is None:
            _count_duplicate(connection, arrival)
            answers.append(Accepted("duplicate"))
            continue
        moved[RECEIVED] += 1
        moved[arrival.status] += 1
        is_work = arrival.status == DeliveryStatus.PENDING
        answers.append(Accepted("accepted", row_id) if is_work else Accepted("ignored"))
    enter(connection, moved)
    return answers


def _insert_sqlite(connection: sa.Connection, arrivals: Sequence[Arrival]) -> list[int | None]:
    raw: Any = connection.connection.driver_connection
    ids: list[int | None] = []
    for one in arrivals:
        received = sqlite_time(one.received_at)
        cursor = raw.execute(
            _INSERT_SQLITE,
            (one.webhook_id, one.type, one.status.value, one.reason, sqlite_time(one.event_at),
             sqlite_time(one.sent_at), received, received, one.api_version, one.secret, one.digest, one.body),
        )  # fmt: skip
        ids.append(cursor.lastrowid if cursor.rowcount else None)
    return ids


def _insert_postgresql(connection: sa.Connection, arrivals: Sequence[Arrival]) -> list[int | None]:
    first: dict[str, Arrival] = {}
    for one in arrivals:
        first.setdefault(one.webhook_id, one)
    statement = (
        postgresql.insert(deliveries)
        .values([_row(one) for one in sorted(first.values(), key=lambda one: one.webhook_id)])
        .on_conflict_do_nothing(index_elements=["webhook_id"])
        .returning(deliveries.c.webhook_id, deliveries.c.id)
    )
    new: dict[str, int] = {row.webhook_id: row.id for row in connection.execute(statement)}
    return [new.get(one.webhook_id) if first[one.webhook_id] is one else None for one in arrivals]


def _row(one: Arrival) -> dict[str, Any]:
    return {
        "webhook_id": one.webhook_id, "type": one.type, "status": one.status, "reason": one.reason,
        "event_at": one.event_at, "sent_at": one.sent_at, "received_at": one.received_at,
        "next_attempt_at": one.received_at, "api_version": one.api_version, "secret": one.secret,
        "digest": one.digest, "body": one.body, "attempts": 0, "replays": 0, "duplicates": 0, "conflicts": 0,
    }  # fmt: skip


def _count_duplicate(connection: sa.Connection, arrival: Arrival) -> None:
    known = sa.select(deliveries.c.digest).where(deliveries.c.webhook_id == arrival.webhook_id)
    differs = connection.execute(known).scalar_one() != arrival.digest
    connection.execute(
        deliveries.update()
        .where(deliveries.c.webhook_id == arrival.webhook_id)
        .values(
            duplicates=deliveries.c.duplicates + 1,
            last_duplicate_at=arrival.received_at,
            conflicts=deliveries.c.conflicts + int(differs),
        )
    )
    if differs:
        connection.execute(
            conflicts.insert().values(
                webhook_id=arrival.webhook_id,
                digest=arrival.digest,
                received_at=arrival.received_at,
                body=arrival.body,
            )
        )


_NOTE_SECRET = upsert(
    secret_uses,
    ("secret", "scheme", "first_used_at", "last_used_at"),
    ("secret", "scheme"),
    change=lambda new: {"last_used_at": new.last_used_at},
)


def note_secrets(connection: sa.Connection, uses: Iterable[tuple[str, str, datetime]]) -> None:
    """Remember when secrets matched last: (fingerprint, scheme, time)."""
    for secret, scheme, at in sorted(uses):
        row = {"secret": secret, "scheme": scheme, "first_used_at": at, "last_used_at": at}
        connection.execute(_NOTE_SECRET(connection), row)


def secrets_in_use(connection: sa.Connection) -> list[dict[str, Any]]:
    """Return when each secret matched first and last."""
    return [
        dict(row)
        for row in connection.execute(sa.select(secret_uses).order_by(secret_uses.c.last_used_at.desc())).mappings()
    ]


# The ledger.


def enter(connection: sa.Connection, moved: Mapping[str, int]) -> None:
    """Write into the ledger what one transaction moved. Rows are only added, so writers never wait for each other."""
    rows = [(str(account), amount) for account, amount in moved.items() if amount]
    if rows and connection.dialect.name == "sqlite":
        raw: Any = connection.connection.driver_connection
        raw.executemany("INSERT INTO ledger (account, amount) VALUES (?, ?)", rows)
    elif rows:
        connection.execute(ledger.insert(), [{"account": account, "amount": amount} for account, amount in rows])


def balance(connection: sa.Connection) -> dict[str, int]:
    """Return the ledger's accounts: `received`, and one for each status. It sums a few rows, never the deliveries."""
    sums: dict[str, int] = dict(
        connection.execute(sa.select(ledger.c.account, sa.func.sum(ledger.c.amount)).group_by(ledger.c.account)).all()
    )
    return {account: int(sums.get(account, 0)) for account in (RECEIVED, *(status.value for status in DeliveryStatus))}


def counted(connection: sa.Connection) -> dict[str, int]:
    """Return the same figures counted from the deliveries themselves: slow, for checking the ledger."""
    rows: dict[str, int] = dict(
        connection.execute(sa.select(deliveries.c.status, sa.func.count()).group_by(deliveries.c.status)).all()
    )
    counts = {status.value: int(rows.get(status.value, 0)) for status in DeliveryStatus}
    return {RECEIVED: sum(counts.values()), **counts}


def compact_ledger(connection: sa.Connection, *, above: int = 500) -> int:
    """Replace many ledger rows by one for each account; returns how many were replaced."""
    last = connection.execute(sa.select(sa.func.max(ledger.c.id), sa.func.count())).one()
    if not last[0] or last[1] <= above:
        return 0
    gone = connection.execute(
        ledger.delete().where(ledger.c.id <= last[0]).returning(ledger.c.account, ledger.c.amount)
    ).all()
    moved: Counter[str] = Counter()
    for account, amount in gone:
        moved[account] += amount
    enter(connection, moved)
    return len(gone)


# Working off.


@dataclass(frozen=True, slots=True)
class Locked:
    """A pending delivery that is ours until the transaction ends."""

    id: int
    webhook_id: str
    body: bytes
    attempts: int


_LOCK_PENDING = (
    sa.select(deliveries.c.id, deliveries.c.webhook_id, deliveries.c.body, deliveries.c.attempts)
    .where(deliveries.c.id.in_(among("ids")), deliveries.c.status == DeliveryStatus.PENDING)
    .order_by(deliveries.c.id)
    .with_for_update(skip_locked=True)
)


def lock_pending(connection: sa.Connection, ids: Sequence[int]) -> list[Locked]:
    """Return those of the deliveries that are still pending, locked against other workers; oldest first."""
    return [Locked(*row) for row in connection.execute(_LOCK_PENDING, {"ids": list(ids)})]


def due(connection: sa.Connection, now: datetime, *, untouched_since: datetime, limit: int) -> list[int]:
    """Return the ids of pending deliveries that are due: tried before, or not picked up since that time."""
    statement = (
        sa.select(deliveries.c.id)
        .where(
            deliveries.c.status == DeliveryStatus.PENDING,
            deliveries.c.next_attempt_at <= now,
            sa.or_(deliveries.c.attempts > 0, deliveries.c.next_attempt_at <= untouched_since),
        )
        .order_by(deliveries.c.next_attempt_at, deliveries.c.id)
        .limit(limit)
    )
    return list(connection.execute(statement).scalars())


_AWAKEN = (
    deliveries.update()
    .where(deliveries.c.waits_for.in_(among("objects")), deliveries.c.status == DeliveryStatus.PENDING)
    .values(next_attempt_at=sa.bindparam("now"))
    .returning(deliveries.c.id)
)


def awaken(connection: sa.Connection, object_ids: Iterable[str], now: datetime) -> list[int]:
    """Make pending deliveries due that wait for one of these objects to become known; returns their row ids."""
    wanted = list(object_ids)
    return list(connection.execute(_AWAKEN, {"objects": wanted, "now": now}).scalars()) if wanted else []


@dataclass(frozen=True, slots=True)
class Outcome:
    """What working on a delivery came to."""

    id: int
    status: DeliveryStatus
    attempts: int
    next_attempt_at: datetime
    customer_id: str | None = None
    reason: str | None = None
    waits_for: str | None = None


_SETTLE_DELIVERY = (
    deliveries.update()
    .where(deliveries.c.id == sa.bindparam("row"))
    .values({
        name: sa.bindparam(name)
        for name in ("status", "attempts", "next_attempt_at", "customer_id", "reason", "waits_for", "processed_at")
    })
)  # fmt: skip


def finish(connection: sa.Connection, outcomes: Sequence[Outcome], now: datetime) -> None:
    """Record what became of locked, pending deliveries, and move them in the ledger."""
    if not outcomes:
        return
    rows = [
        {
            "row": one.id,
            "status": one.status.value,
            "attempts": one.attempts,
            "next_attempt_at": one.next_attempt_at,
            "customer_id": one.customer_id,
            "reason": one.reason,
            "waits_for": one.waits_for,
            "processed_at": None if one.status == DeliveryStatus.PENDING else now,
        }
        for one in outcomes
    ]
    connection.execute(_SETTLE_DELIVERY, rows)
    moved: Counter[str] = Counter(one.status.value for one in outcomes if one.status != DeliveryStatus.PENDING)
    moved[DeliveryStatus.PENDING.value] -= sum(moved.values())
    enter(connection, moved)


# Looking, and replaying.


@dataclass(frozen=True)
class Filter:
    """Which deliveries: every field that is set must match."""

    webhook_ids: tuple[str, ...] = ()
    status: str | None = None
    type: str | None = None
    customer_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is set, so that it matches everything."""
        return self == Filter()

    def where(self) -> list[sa.ColumnElement[bool]]:
        """Return the conditions."""
        columns = deliveries.c
        conditions = {
            "webhook_ids": columns.webhook_id.in_,
            "status": columns.status.__eq__,
            "type": columns.type.__eq__,
            "customer_id": columns.customer_id.__eq__,
            "since": columns.received_at.__ge__,
            "until": columns.received_at.__lt__,
        }
        return [make(wanted) for name, make in conditions.items() if (wanted := getattr(self, name))]


_SHOWN = [column for column in deliveries.c if column.name != "body"]


def listed(connection: sa.Connection, chosen: Filter, *, limit: int, before: int | None = None) -> list[dict[str, Any]]:
    """Return deliveries without their bodies, newest first; `before` a row's id, to page on."""
    statement = sa.select(*_SHOWN).where(*chosen.where()).order_by(deliveries.c.id.desc()).limit(limit)
    if before is not None:
        statement = statement.where(deliveries.c.id < before)
    return [dict(row) for row in connection.execute(statement).mappings()]


def found(connection: sa.Connection, webhook_id: str) -> dict[str, Any] | None:
    """Return one delivery with its body, or None."""
    statement = sa.select(deliveries).where(deliveries.c.webhook_id == webhook_id)
    row = connection.execute(statement).mappings().one_or_none()
    return dict(row) if row else None


def conflicts_of(connection: sa.Connection, webhook_id: str) -> list[dict[str, Any]]:
    """Return the other bodies that came under this id."""
    statement = sa.select(conflicts).where(conflicts.c.webhook_id == webhook_id).order_by(conflicts.c.id)
    return [dict(row) for row in connection.execute(statement).mappings()]


def last_id(connection: sa.Connection) -> int:
    """Return the newest row's id, or 0."""
    return int(connection.execute(sa.select(sa.func.coalesce(sa.func.max(deliveries.c.id), 0))).scalar_one())


def reopen(
    connection: sa.Connection, chosen: Filter, now: datetime, *, after: int, until: int, limit: int
) -> list[int]:
    """Make up to `limit` chosen deliveries pending again, as a new attempt; returns their row ids, in order.

    Only rows with ids above `after`, up to `until`.

    Deduplication plays no part: the rows are there. A delivery that is pending already is only made due now.
    """
    picked = list(
        connection.execute(
            sa.select(deliveries.c.id, deliveries.c.status)
            .where(*chosen.where(), deliveries.c.id > after, deliveries.c.id <= until)
            .order_by(deliveries.c.id)
            .limit(limit)
            .with_for_update()
        ).all()
    )
    moved: Counter[str] = Counter()
    for _, status in picked:
        if status != DeliveryStatus.PENDING:
            moved[status] -= 1
            moved[DeliveryStatus.PENDING.value] += 1
    ids = [row_id for row_id, _ in picked]
    connection.execute(
        deliveries.update()
        .where(deliveries.c.id.in_(ids))
        .values(
            status=DeliveryStatus.PENDING,
            replays=deliveries.c.replays + 1,
            attempts=0,
            next_attempt_at=now,
            reason=None,
            waits_for=None,
        )
    )
    enter(connection, moved)
    return ids


def count(connection: sa.Connection, chosen: Filter) -> int:
    """Return how many deliveries match."""
    statement = sa.select(sa.func.count()).select_from(deliveries).where(*chosen.where())
    return int(connection.execute(statement).scalar_one())


def oldest_pending(connection: sa.Connection) -> datetime | None:
    """Return when the oldest delivery that is still pending was received."""
    oldest = sa.select(sa.func.min(deliveries.c.received_at)).where(deliveries.c.status == DeliveryStatus.PENDING)
    return connection.execute(oldest).scalar_one_or_none()


# Refusals.


def refuse(connection: sa.Connection, refused: Sequence[Mapping[str, Any]], *, keep: int) -> None:
    """Keep refused requests for the operator, and only the newest `keep` of them."""
    connection.execute(refusals.insert(), [dict(one) for one in refused])
    newest = connection.execute(sa.select(sa.func.max(refusals.c.id))).scalar_one()
    connection.execute(refusals.delete().where(refusals.c.id <= newest - keep))


def refused(connection: sa.Connection, *, limit: int) -> list[dict[str, Any]]:
    """Return the newest refusals."""
    return [
        dict(row)
        for row in connection.execute(sa.select(refusals).order_by(refusals.c.id.desc()).limit(limit)).mappings()
    ]
