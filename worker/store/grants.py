"""Grants, the leases under which they are settled, and what our own connectors keep."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from connectors.base import Receipt
from worker.store.models import Download, GrantRow, GrantStatus, Lease, LicenseKeyRow, PassRow, Pulse
from worker.store.upsert import among, upsert

grants = GrantRow.__table__  # type: ignore[attr-defined]
leases = Lease.__table__  # type: ignore[attr-defined]
passes = PassRow.__table__  # type: ignore[attr-defined]
license_keys = LicenseKeyRow.__table__  # type: ignore[attr-defined]
downloads = Download.__table__  # type: ignore[attr-defined]
pulses = Pulse.__table__  # type: ignore[attr-defined]

_encode = msgspec.json.Encoder().encode
_receipt = msgspec.json.Decoder(Receipt).decode


_OF_CUSTOMERS = sa.select(grants).where(grants.c.customer_id.in_(among("ids"))).order_by(grants.c.id)
_LOCK_OF_CUSTOMERS = _OF_CUSTOMERS.with_for_update()
_BY_IDS = sa.select(grants).where(grants.c.id.in_(among("ids"))).order_by(grants.c.id)


def of_customers(
    connection: sa.Connection, ids: Iterable[str], *, lock: bool = False
) -> dict[str, list[dict[str, Any]]]:
    """Return all grants of these customers, by customer; `lock` them until the transaction ends."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in connection.execute(_LOCK_OF_CUSTOMERS if lock else _OF_CUSTOMERS, {"ids": list(ids)}):
        found.setdefault(row.customer_id, []).append(row._asdict())
    return found


def by_ids(connection: sa.Connection, ids: Iterable[str]) -> list[dict[str, Any]]:
    """Return these grants."""
    return [row._asdict() for row in connection.execute(_BY_IDS, {"ids": list(ids)})]


_LOCK_FREE = (
    sa.select(grants.c.id, grants.c.generation, grants.c.receipt, grants.c.next_attempt_at)
    .where(grants.c.id.in_(among("ids")))
    .with_for_update(skip_locked=True)
)


def unchanged(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Lock the grants that are still as they were read; returns their ids.

    On PostgreSQL what was read before a lease was ours may be old by now. A grant that somebody else is at is left
    to them, not waited for: so nobody who holds one ever waits for another.
    """
    if connection.dialect.name == "sqlite":  # one writer: nothing changes meanwhile
        return {row["id"] for row in rows}
    seen = {(row["id"], row["generation"], row["receipt"], row["next_attempt_at"]) for row in rows}
    found = connection.execute(_LOCK_FREE, {"ids": [row["id"] for row in rows]})
    return {row.id for row in found if tuple(row) in seen}


def add(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add new grants."""
    if rows:
        connection.execute(grants.insert(), list(rows))


_CHANGE = (
    grants.update()
    .where(grants.c.id == sa.bindparam("row"))
    .values({
        name: sa.bindparam(name)
        for name in ("connector", "wanted", "status", "standing", "valid_until", "because", "target", "generation",
                     "attempts", "next_attempt_at", "asked_at", "who", "reason", "resource")
    })
)  # fmt: skip

_EXPLAIN = (
    grants.update()
    .where(grants.c.id == sa.bindparam("row"))
    .values({name: sa.bindparam(name) for name in ("standing", "valid_until", "because")})
)


def change(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Change what is wanted of grants; each row names its grant in `row`."""
    if rows:  # in one order: whoever locks several waits for nobody in a circle
        connection.execute(_CHANGE, sorted(rows, key=lambda row: str(row["row"])))


def explain(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write new reasons for grants that need not be settled again; each row names its grant in `row`."""
    if rows:
        connection.execute(_EXPLAIN, sorted(rows, key=lambda row: str(row["row"])))


def due(connection: sa.Connection, now: datetime, *, untouched_since: datetime, limit: int) -> list[str]:
    """Return grants that are not settled and due: tried before, or not picked up since that time."""
    statement = (
        sa.select(grants.c.id)
        .where(
            grants.c.next_attempt_at <= now,
            # Whoever was told to wait has used up no attempt, but has a reason.
            sa.or_(grants.c.attempts > 0, grants.c.reason.is_not(None), grants.c.next_attempt_at <= untouched_since),
        )
        .order_by(grants.c.next_attempt_at)
        .limit(limit)
    )
    return list(connection.execute(statement).scalars())


_ABOUT = sa.select(
    grants.c.id, grants.c.connector, grants.c.wanted, grants.c.resource, grants.c.held, grants.c.receipt
).where(sa.or_(grants.c.resource.in_(among("resources")), grants.c.held.in_(among("resources"))))


def about(connection: sa.Connection, resources: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Return, by external resource, the grants of anybody that have it or are to have it."""
    wanted = list(resources)
    found: dict[str, list[dict[str, Any]]] = {}
    if wanted:
        asked = set(wanted)
        for row in connection.execute(_ABOUT, {"resources": wanted}):
            for one in {row.resource, row.held} & asked:
                found.setdefault(one, []).append(row._asdict())
    return found


_HEIR = (
    sa.select(grants.c.id)
    .where(
        grants.c.id == sa.bindparam("row"),
        grants.c.wanted.is_(True),
        grants.c.resource == sa.bindparam("of"),
        sa.or_(grants.c.held.is_(None), grants.c.held == sa.bindparam("of")),
    )
    .with_for_update(skip_locked=True)
)


def inherit(connection: sa.Connection, grant_id: str, receipt: Receipt) -> bool:
    """Give a grant the receipt of what it wants, from one that has it no more; says whether it took it.

    It may be another customer's, which is not locked here: whoever is at it is not waited for.
    """
    if connection.execute(_HEIR, {"row": grant_id, "of": receipt.resource}).first() is None:
        return False
    row = {"row": grant_id, "resource": receipt.resource, "receipt": _encode(receipt).decode()}
    connection.execute(_INTEND, [row])
    return True


def _inside(column: Any) -> Any:  # noqa: ANN401 - a column, and a condition
    """Return the condition that a resource lies in the scope `:scope`: `;` is the character after `:`."""
    start = sa.bindparam("scope", type_=sa.Text) + ":"
    return sa.and_(column > start, column < sa.bindparam("scope", type_=sa.Text) + ";")


_WANTS_IN = (
    sa.select(grants.c.id)
    .where(
        sa.or_(
            _inside(grants.c.resource),
            _inside(grants.c.held),
            # Not begun yet: it may be about to need the same scope.
            sa.and_(
                grants.c.customer_id == sa.bindparam("customer"),
                sa.func.coalesce(grants.c.member_id, "") == sa.bindparam("member"),
                grants.c.connector == sa.bindparam("connector"),
                grants.c.resource.is_(None),
                grants.c.status == GrantStatus.GRANTING.value,
            ),
        ),
        grants.c.wanted.is_(True),
        grants.c.id != sa.bindparam("but"),
    )
    .limit(1)
)


def wants_in(connection: sa.Connection, scope: str, but: Mapping[str, Any]) -> bool:
    """Whether any grant but this one wants something in a scope, like a role in a guild that somebody is in."""
    values = {"scope": scope, "but": but["id"], "customer": but["customer_id"], "member": but["member_id"] or "",
              "connector": but["connector"]}  # fmt: skip
    return connection.execute(_WANTS_IN, values).first() is not None


_INTEND = (
    grants.update()
    .where(grants.c.id == sa.bindparam("row"))
    .values(
        {
            **{name: sa.bindparam("resource") for name in ("resource", "held", "touched")},
            "receipt": sa.bindparam("receipt"),
        }
    )
)


def intend(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Record which external resource grants are about, before anything is done to it: `row`, `resource`, `receipt`."""
    if rows:
        connection.execute(_INTEND, list(rows))


_DUE_ON = sa.select(grants.c.id).where(
    sa.or_(grants.c.resource.in_(among("resources")), grants.c.held.in_(among("resources"))),
    grants.c.next_attempt_at <= sa.bindparam("now"),
)
_DUE_IN = sa.select(grants.c.id).where(
    sa.or_(_inside(grants.c.resource), _inside(grants.c.held)), grants.c.next_attempt_at <= sa.bindparam("now")
)


def due_on(connection: sa.Connection, resources: Iterable[str], scopes: Iterable[str], now: datetime) -> list[str]:
    """Return the grants of these external resources, and within these scopes, that are due: they waited for a lease."""
    wanted = list(resources)
    found = list(connection.execute(_DUE_ON, {"resources": wanted, "now": now}).scalars()) if wanted else []
    for scope in scopes:
        found += connection.execute(_DUE_IN, {"scope": scope, "now": now}).scalars()
    return found


SETTLED = (
    "status", "settled_generation", "resource", "held", "receipt", "touched", "taken", "attempts", "next_attempt_at",
    "who", "reason", "granted_at", "revoked_at",
)  # fmt: skip
_SETTLE = (
    grants.update().where(grants.c.id == sa.bindparam("row")).values({name: sa.bindparam(name) for name in SETTLED})
)


def settle(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write what settling came to; each row names its grant in `row`."""
    if rows:
        connection.execute(_SETTLE, list(rows))


def retry(connection: sa.Connection, ids: Sequence[str], now: datetime, *, afresh: bool = True) -> int:
    """Have grants settled again from the first attempt; returns how many there are.

    `afresh`: a customer who was asked in vain as often as is allowed is asked again.
    """
    rows = connection.execute(
        sa.select(grants.c.id, grants.c.receipt)
        .where(grants.c.id.in_(list(ids)))
        .order_by(grants.c.id)
        .with_for_update()
    ).all()
    for row in rows:
        receipt = _receipt(row.receipt) if row.receipt else None
        if receipt and receipt.offers and afresh:
            fresh = _encode(msgspec.structs.replace(receipt, offers=0)).decode()
            connection.execute(grants.update().where(grants.c.id == row.id).values(receipt=fresh))
    return connection.execute(
        grants.update()
        .where(grants.c.id.in_([row.id for row in rows]))
        .values(
            generation=grants.c.generation + 1,
            attempts=0,
            next_attempt_at=now,
            status=sa.case((grants.c.wanted, GrantStatus.GRANTING.value), else_=GrantStatus.REVOKING.value),
        )
    ).rowcount


def abandon(connection: sa.Connection, ids: Sequence[str], reason: str, now: datetime) -> list[str]:
    """Have revocations count as done on a person's word; returns their customers. Only what is being taken back."""
    chosen = (
        sa.select(grants.c.id, grants.c.customer_id, grants.c.receipt)
        .where(grants.c.id.in_(list(ids)), grants.c.status == GrantStatus.REVOKING.value)
        .order_by(grants.c.id)
        .with_for_update()
    )
    rows = connection.execute(chosen).all()
    for row in rows:
        connection.execute(
            grants.update()
            .where(grants.c.id == row.id)
            .values(
                status=GrantStatus.REVOKED.value, settled_generation=grants.c.generation, receipt=None, held=None,
                resource=None, taken=row.receipt, next_attempt_at=None, who="operator", reason=reason, revoked_at=now,
            )
        )  # fmt: skip
    return sorted({row.customer_id for row in rows})


def listed(connection: sa.Connection, conditions: Mapping[str, Any], *, limit: int) -> list[dict[str, Any]]:
    """Return grants by exact conditions on their columns; those that somebody must look at first."""
    urgency = sa.case(
        (grants.c.status == GrantStatus.FAILED, 0),
        (grants.c.status == GrantStatus.REVOKING, 1),
        (sa.or_(grants.c.status == GrantStatus.ACTION_REQUIRED, grants.c.reason.is_not(None)), 2),
        (grants.c.next_attempt_at.is_not(None), 3),
        else_=4,
    )
    statement = (
        sa.select(grants)
        .where(*(grants.c[name] == value for name, value in conditions.items() if value is not None))
        .order_by(urgency, grants.c.created_at.desc(), grants.c.id)
        .limit(limit)
    )
    return [dict(row) for row in connection.execute(statement).mappings()]


def by_status(connection: sa.Connection) -> dict[tuple[str, str], int]:
    """Return how many grants there are, by connector and status."""
    statement = sa.select(grants.c.connector, grants.c.status, sa.func.count()).group_by(
        grants.c.connector, grants.c.status
    )
    return {(connector, status): count for connector, status, count in connection.execute(statement)}


# What an audit asks.

_GIVEN = (
    sa.select(grants)
    .where(
        grants.c.benefit == sa.bindparam("benefit"),
        grants.c.part == sa.bindparam("part"),
        grants.c.wanted.is_(True),
        grants.c.status == GrantStatus.GRANTED.value,
        grants.c.id > sa.bindparam("after"),
    )
    .order_by(grants.c.id)
    .limit(sa.bindparam("limit"))
)
_WANTED = sa.select(grants.c.resource, grants.c.held).where(
    sa.or_(grants.c.resource.in_(among("resources")), grants.c.held.in_(among("resources"))),
    sa.or_(grants.c.wanted.is_(True), grants.c.held.is_not(None)),
)
_TOUCHED = (
    sa.select(grants)
    .where(grants.c.touched.in_(among("resources")), grants.c.held.is_(None))
    .order_by(grants.c.revoked_at, grants.c.id)
)
_LEFT_OPEN = (
    sa.select(passes.c.resource)
    .where(
        passes.c.is_open.is_(True),
        passes.c.resource > sa.bindparam("after"),
        ~sa.exists().where(grants.c.held == passes.c.resource),
    )
    .order_by(passes.c.resource)
    .limit(sa.bindparam("limit"))
)
_LEFT_KEYS = (
    sa.select(license_keys.c.resource)
    .where(
        license_keys.c.given.is_(True),
        license_keys.c.source == "own",
        license_keys.c.resource > sa.bindparam("after"),
        ~sa.exists().where(grants.c.held == license_keys.c.resource),
    )
    .order_by(license_keys.c.resource)
    .limit(sa.bindparam("limit"))
)


def given(connection: sa.Connection, benefit: str, part: str, *, after: str, limit: int) -> list[dict[str, Any]]:
    """Return the grants that say that a part of a benefit was given, in the order of their ids."""
    values = {"benefit": benefit, "part": part, "after": after, "limit": limit}
    return [row._asdict() for row in connection.execute(_GIVEN, values)]


def spoken_for(connection: sa.Connection, resources: Iterable[str]) -> set[str]:
    """Return which of these external resources some grant wants, or has and is still to take back."""
    asked = list(resources)
    if not asked:
        return set()
    rows = connection.execute(_WANTED, {"resources": asked})
    return {name for row in rows for name in (row.resource, row.held) if name} & set(asked)


def touched(connection: sa.Connection, resources: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return, by external resource, the grant under which we gave it last, though nothing of it should be left."""
    rows = connection.execute(_TOUCHED, {"resources": list(resources)})
    return {row.touched: row._asdict() for row in rows}


def left_open(connection: sa.Connection, what: Literal["passes", "keys"], *, after: str, limit: int) -> list[str]:
    """Return what we serve ourselves though no grant has it: passes or license keys, by resource, to page on."""
    statement = _LEFT_OPEN if what == "passes" else _LEFT_KEYS
    return list(connection.execute(statement, {"after": after, "limit": limit}).scalars())


def take_again(connection: sa.Connection, grant_id: str, receipt: Receipt, now: datetime) -> bool:
    """Have what a grant left behind taken back and proven gone; says whether it still is behind."""
    return (
        connection.execute(
            grants.update()
            .where(grants.c.id == grant_id, grants.c.held.is_(None))
            .values(
                held=receipt.resource, receipt=_encode(receipt).decode(),
                status=sa.case((grants.c.wanted, grants.c.status), else_=GrantStatus.REVOKING.value),
                generation=grants.c.generation + 1, attempts=0, next_attempt_at=now, asked_at=now,
            )
        ).rowcount
        > 0
    )  # fmt: skip


def oldest_revoking(connection: sa.Connection) -> datetime | None:
    """Return since when the oldest revocation that is not proven has been asked for."""
    statement = sa.select(sa.func.min(grants.c.asked_at)).where(grants.c.status == GrantStatus.REVOKING.value)
    return connection.execute(statement).scalar_one_or_none()


# Leases.


_LEASE = upsert(
    leases, ("resource", "token", "until"), ("resource",), where=lambda _: leases.c.until <= sa.bindparam("now")
)
_LEASED = (
    sa.select(leases.c.resource)
    .where(leases.c.resource.in_(among("resources")), leases.c.token == sa.bindparam("token"))
    .order_by(leases.c.resource)  # the order in which leases are taken: nobody waits in a circle
    .with_for_update()
)
_RELEASE = leases.delete().where(leases.c.resource.in_(among("resources")), leases.c.token == sa.bindparam("token"))


def lease(connection: sa.Connection, resources: Iterable[str], token: str, now: datetime, until: datetime) -> set[str]:
    """Take the leases of resources that nobody has; returns which of them are ours now."""
    wanted = sorted(set(resources))
    if not wanted:
        return set()
    rows = [{"resource": one, "token": token, "until": until, "now": now} for one in wanted]
    connection.execute(_LEASE(connection), rows)
    return leased(connection, wanted, token)


def leased(connection: sa.Connection, resources: Iterable[str], token: str) -> set[str]:
    """Return which leases are still ours; where one is not, another worker has acted since, and we must not save."""
    wanted = list(resources)
    if not wanted:
        return set()
    return set(connection.execute(_LEASED, {"resources": wanted, "token": token}).scalars())


def release(connection: sa.Connection, resources: Iterable[str], token: str) -> None:
    """Give leases back."""
    wanted = list(resources)
    if wanted:
        connection.execute(_RELEASE, {"resources": wanted, "token": token})


# What our own connectors keep.


_SET_PASS = upsert(passes, ("resource", "is_open"), ("resource",))
_IS_OPEN = sa.select(passes.c.is_open).where(passes.c.resource == sa.bindparam("resource"))


def set_pass(connection: sa.Connection, resource: str, *, is_open: bool) -> None:
    """Open or close a pass."""
    connection.execute(_SET_PASS(connection), {"resource": resource, "is_open": is_open})


def is_open(connection: sa.Connection, resource: str) -> bool:
    """Whether a pass is open."""
    return bool(connection.execute(_IS_OPEN, {"resource": resource}).scalar())


_COUNT_DOWNLOAD = upsert(
    downloads,
    ("grant_id", "name", "count", "last_at"),
    ("grant_id", "name"),
    change=lambda new: {"count": downloads.c.count + 1, "last_at": new.last_at},
)


def count_download(connection: sa.Connection, grant_id: str, name: str, now: datetime) -> None:
    """Count one download."""
    connection.execute(_COUNT_DOWNLOAD(connection), {"grant_id": grant_id, "name": name, "count": 1, "last_at": now})


# Pulses.


_BEAT = upsert(pulses, ("name", "at"), ("name",))


def beat(connection: sa.Connection, name: str, now: datetime) -> None:
    """Record that something that must keep happening has happened."""
    connection.execute(_BEAT(connection), {"name": name, "at": now})


def last_beat(connection: sa.Connection, name: str) -> datetime | None:
    """Return when it last happened."""
    return connection.execute(sa.select(pulses.c.at).where(pulses.c.name == name)).scalar_one_or_none()
