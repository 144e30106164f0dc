"""Customers: their facts, their ready answers, and which of Polar's objects belong to whom."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from handlers.state import ManualGrant
from worker.store.models import CustomerRow, Link, ManualGrantRow, OfferingRow
from worker.store.upsert import among, upsert

customers = CustomerRow.__table__  # type: ignore[attr-defined]
links = Link.__table__  # type: ignore[attr-defined]
offerings = OfferingRow.__table__  # type: ignore[attr-defined]
manual_grants = ManualGrantRow.__table__  # type: ignore[attr-defined]


_BLANK = upsert(customers, ("id", "deleted", "version", "entitlements", "state"), ("id",), change=lambda _: {})
_LOCK = (
    sa.select(customers.c.id, customers.c.state, customers.c.version)
    .where(customers.c.id.in_(among("ids")))
    .order_by(customers.c.id)
    .with_for_update()
)
_SAVE = upsert(
    customers,
    ("id", "external_id", "deleted", "version", "as_of", "due_at", "catalogue", "polar_state", "entitlements", "state"),
    ("id",),
)


def lock(connection: sa.Connection, ids: Iterable[str]) -> dict[str, Any]:
    """Return the rows of these customers, locked until the transaction ends; new ones are made, still without facts.

    Always in the order of their ids, so that two workers never wait for each other in a circle.
    """
    wanted = sorted(set(ids))
    if not wanted:
        return {}
    if connection.dialect.name != "sqlite":  # SQLite has one writer: there is nothing to lock
        blank = [{"id": one, "deleted": False, "version": 0, "entitlements": b"{}", "state": b""} for one in wanted]
        connection.execute(_BLANK(connection), blank)
    return {row.id: row for row in connection.execute(_LOCK, {"ids": wanted})}


def save(connection: sa.Connection, rows: list[dict[str, Any]]) -> None:
    """Write whole customers: facts, answers, and when they are due again."""
    if rows:
        connection.execute(_SAVE(connection), rows)


_SAVE_ANSWERS = (
    customers.update()
    .where(customers.c.id == sa.bindparam("row"))
    .values(entitlements=sa.bindparam("entitlements"), version=customers.c.version + 1)
)


def save_answers(connection: sa.Connection, rows: list[dict[str, Any]]) -> None:
    """Write new answers; each row has `row` (the customer's id) and `entitlements`."""
    if rows:
        connection.execute(_SAVE_ANSWERS, rows)


_FACTS = sa.select(customers.c.id, customers.c.state).where(customers.c.id.in_(among("ids")))


def facts(connection: sa.Connection, ids: Iterable[str]) -> dict[str, bytes]:
    """Return the encoded states of these customers."""
    return {row.id: row.state for row in connection.execute(_FACTS, {"ids": list(ids)}) if row.state}


def due(connection: sa.Connection, now: datetime, *, limit: int) -> list[str]:
    """Return the customers whose answer changes with time, and that time has come."""
    statement = sa.select(customers.c.id).where(customers.c.due_at <= now).order_by(customers.c.due_at).limit(limit)
    return list(connection.execute(statement).scalars())


def made_with_another(connection: sa.Connection, digest: str, *, limit: int, after: str | None = None) -> list[str]:
    """Return customers whose answers were made with another catalogue than this one.

    With `after` in the order of their ids, to page on; without it any of them, by the index.
    """
    other = sa.or_(customers.c.catalogue < digest, customers.c.catalogue > digest)
    statement = sa.select(customers.c.id).where(other).limit(limit)
    if after is not None:
        statement = statement.where(customers.c.id > after).order_by(customers.c.id)
    return list(connection.execute(statement).scalars())


def total(connection: sa.Connection) -> int:
    """Return how many customers there are."""
    return connection.execute(sa.select(sa.func.count()).select_from(customers)).scalar_one()


def find(connection: sa.Connection, name: str) -> str | None:
    """Return the id of the customer with this id or external id."""
    statement = (
        sa.select(customers.c.id)
        .where(sa.or_(customers.c.id == name, customers.c.external_id == name))
        .order_by(customers.c.deleted, customers.c.id)
        .limit(1)
    )
    return connection.execute(statement).scalar_one_or_none()


# Which objects belong to whom.


_OWNERS = sa.select(links.c.object_id, links.c.customer_id).where(
    links.c.object_id.in_(among("objects")), links.c.kind != "benefit"
)
_LINK = upsert(links, ("kind", "object_id", "customer_id"), ("kind", "object_id", "customer_id"))


def owners(connection: sa.Connection, object_ids: Iterable[str]) -> dict[str, str]:
    """Return the customer of each of these purchases and seats, where it is known."""
    wanted = list(object_ids)
    if not wanted:
        return {}
    return {row.object_id: row.customer_id for row in connection.execute(_OWNERS, {"objects": wanted})}


def link(connection: sa.Connection, found: Iterable[tuple[str, str, str]]) -> None:
    """Remember (kind, object, customer)."""
    rows = [{"kind": kind, "object_id": one, "customer_id": customer} for kind, one, customer in sorted(set(found))]
    if rows:
        connection.execute(_LINK(connection), rows)


# What the organization offers.


_OFFERED = sa.select(offerings.c.id, offerings.c.body).where(offerings.c.id.in_(among("ids")))


def offered(connection: sa.Connection, ids: Iterable[str]) -> dict[str, bytes]:
    """Return the newest descriptions of these products and benefits."""
    return {row.id: row.body for row in connection.execute(_OFFERED, {"ids": list(ids)})}


_OFFER = upsert(
    offerings,
    ("id", "kind", "modified_at", "sent_at", "body", "spread_after"),
    ("id",),
    where=lambda new: (
        sa.tuple_(new.modified_at, new.sent_at, new.body)
        > sa.tuple_(offerings.c.modified_at, offerings.c.sent_at, offerings.c.body)
    ),
)


def offer(connection: sa.Connection, row: Mapping[str, Any]) -> bool:
    """Keep a description if it is newer than the one we have, by Polar's times; says whether it was."""
    return connection.execute(_OFFER(connection), dict(row)).rowcount > 0


_SPREADING = sa.select(offerings.c.id, offerings.c.spread_after).where(offerings.c.spread_after.is_not(None)).limit(1)
_HOLDERS = (
    sa.select(links.c.customer_id)
    .where(
        links.c.kind == "benefit",
        links.c.object_id == sa.bindparam("object"),
        links.c.customer_id > sa.bindparam("after"),
    )
    .order_by(links.c.customer_id)
    .limit(sa.bindparam("limit"))
)


def is_spreading(connection: sa.Connection) -> bool:
    """Whether a changed benefit has holders whose answers do not show it yet."""
    return connection.execute(_SPREADING).first() is not None


def spread(connection: sa.Connection, now: datetime, *, limit: int) -> int:
    """Have the answers of the next holders of a changed benefit made anew by the sweep; returns how many.

    A few at a time: everybody may hold it, and whoever works on one of them must not wait for all.
    """
    found = connection.execute(_SPREADING.with_for_update(skip_locked=True)).first()
    if found is None:
        return 0
    values = {"object": found.id, "after": found.spread_after, "limit": limit}
    holders = list(connection.execute(_HOLDERS, values).scalars())
    if holders:
        connection.execute(_LOCK, {"ids": holders})  # in the one order
        connection.execute(customers.update().where(customers.c.id.in_(holders)).values(due_at=now))
    rest = holders[-1] if len(holders) == limit else None
    connection.execute(offerings.update().where(offerings.c.id == found.id).values(spread_after=rest))
    return len(holders)


# Grants by hand.


_MANUAL = sa.select(manual_grants).where(
    manual_grants.c.customer_id.in_(among("ids")), manual_grants.c.withdrawn_at.is_(None)
)


def manual_of(connection: sa.Connection, ids: Iterable[str]) -> dict[str, dict[str, ManualGrant]]:
    """Return, by customer, the operators' grants that were not withdrawn."""
    found: dict[str, dict[str, ManualGrant]] = {}
    for row in connection.execute(_MANUAL, {"ids": list(ids)}).mappings():
        found.setdefault(row["customer_id"], {})[row["id"]] = ManualGrant(
            id=row["id"],
            benefit=row["benefit"],
            member_id=row["member_id"],
            reason=row["reason"],
            by=row["given_by"],
            ends_at=row["ends_at"],
        )
    return found


def give_by_hand(connection: sa.Connection, row: Mapping[str, Any]) -> None:
    """Record an operator's grant, and make the customer due."""
    connection.execute(manual_grants.insert().values(**row))
    _make_due(connection, row["customer_id"], row["created_at"])


def withdraw(connection: sa.Connection, customer_id: str, benefit: str, now: datetime) -> int:
    """Withdraw the operators' grants of one benefit; returns how many there were, and makes the customer due."""
    gone = connection.execute(
        manual_grants.update()
        .where(
            manual_grants.c.customer_id == customer_id,
            manual_grants.c.benefit == benefit,
            manual_grants.c.withdrawn_at.is_(None),
        )
        .values(withdrawn_at=now)
    ).rowcount
    _make_due(connection, customer_id, now)
    return gone


def _make_due(connection: sa.Connection, customer_id: str, now: datetime) -> None:
    connection.execute(customers.update().where(customers.c.id == customer_id).values(due_at=now))
