"""Grants, the leases under which they are settled, and what our own connectors keep."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from connectors.base import LicenseKey
from worker.store.models import Download, GrantRow, GrantStatus, Lease, LicenseKeyRow, PassRow, Pulse
from worker.store.upsert import insert, write_all

grants = GrantRow.__table__  # type: ignore[attr-defined]
leases = Lease.__table__  # type: ignore[attr-defined]
passes = PassRow.__table__  # type: ignore[attr-defined]
license_keys = LicenseKeyRow.__table__  # type: ignore[attr-defined]
downloads = Download.__table__  # type: ignore[attr-defined]
pulses = Pulse.__table__  # type: ignore[attr-defined]


def of_customers(connection: sa.Connection, ids: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Return all grants of these customers, by customer."""
    found: dict[str, list[dict[str, Any]]] = {}
    statement = sa.select(grants).where(grants.c.customer_id.in_(list(ids))).order_by(grants.c.id)
    for row in connection.execute(statement).mappings():
        found.setdefault(row["customer_id"], []).append(dict(row))
    return found


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
    if rows:
        connection.execute(_CHANGE, list(rows))


def explain(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write new reasons for grants that need not be settled again; each row names its grant in `row`."""
    if rows:
        connection.execute(_EXPLAIN, list(rows))


def by_ids(connection: sa.Connection, ids: Iterable[str]) -> list[dict[str, Any]]:
    """Return these grants."""
    statement = sa.select(grants).where(grants.c.id.in_(list(ids))).order_by(grants.c.id)
    return [dict(row) for row in connection.execute(statement).mappings()]


def due(connection: sa.Connection, now: datetime, *, untouched_since: datetime, limit: int) -> list[str]:
    """Return grants that are not settled and due: tried before, or not picked up since that time."""
    statement = (
        sa.select(grants.c.id)
        .where(
            grants.c.next_attempt_at <= now,
            sa.or_(grants.c.attempts > 0, grants.c.next_attempt_at <= untouched_since),
        )
        .order_by(grants.c.next_attempt_at)
        .limit(limit)
    )
    return list(connection.execute(statement).scalars())


def others_holding(connection: sa.Connection, resource: str, grant_id: str) -> list[str]:
    """Return the other grants, of anybody, that want this external resource to stay."""
    statement = sa.select(grants.c.id).where(
        sa.or_(grants.c.resource == resource, grants.c.held == resource),
        grants.c.wanted.is_(True),
        grants.c.id != grant_id,
    )
    return list(connection.execute(statement).scalars())


def intend(connection: sa.Connection, grant_id: str, resource: str, receipt: str) -> None:
    """Record which external resource a grant is about, before anything is done to it."""
    connection.execute(
        grants.update().where(grants.c.id == grant_id).values(resource=resource, held=resource, receipt=receipt)
    )


def due_on(connection: sa.Connection, resources: Iterable[str], now: datetime) -> list[str]:
    """Return the grants of these external resources that are due: they waited for a lease."""
    wanted = list(resources)
    if not wanted:
        return []
    statement = sa.select(grants.c.id).where(
        sa.or_(grants.c.resource.in_(wanted), grants.c.held.in_(wanted)), grants.c.next_attempt_at <= now
    )
    return list(connection.execute(statement).scalars())


SETTLED = (
    "status", "settled_generation", "resource", "held", "receipt", "attempts", "next_attempt_at", "who", "reason",
    "granted_at", "revoked_at",
)  # fmt: skip
_SETTLE = (
    grants.update().where(grants.c.id == sa.bindparam("row")).values({name: sa.bindparam(name) for name in SETTLED})
)


def settle(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write what settling came to; each row names its grant in `row`."""
    if rows:
        connection.execute(_SETTLE, list(rows))


def retry(connection: sa.Connection, ids: Sequence[str], now: datetime) -> int:
    """Have grants settled again from the first attempt; returns how many there are."""
    return connection.execute(
        grants.update()
        .where(grants.c.id.in_(list(ids)))
        .values(
            generation=grants.c.generation + 1,
            attempts=0,
            next_attempt_at=now,
            status=sa.case((grants.c.wanted, GrantStatus.GRANTING.value), else_=GrantStatus.REVOKING.value),
        )
    ).rowcount


def listed(connection: sa.Connection, conditions: Mapping[str, Any], *, limit: int) -> list[dict[str, Any]]:
    """Return grants by exact conditions on their columns; those that somebody must look at first."""
    urgency = sa.case(
        (grants.c.status == GrantStatus.FAILED, 0),
        (grants.c.status == GrantStatus.REVOKING, 1),
        (grants.c.status == GrantStatus.ACTION_REQUIRED, 2),
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


def live_by_benefit(connection: sa.Connection) -> dict[str, int]:
    """Return how many grants are wanted, by benefit."""
    statement = sa.select(grants.c.benefit, sa.func.count()).where(grants.c.wanted).group_by(grants.c.benefit)
    return {row[0]: row[1] for row in connection.execute(statement)}


def by_status(connection: sa.Connection) -> dict[tuple[str, str], int]:
    """Return how many grants there are, by connector and status."""
    statement = sa.select(grants.c.connector, grants.c.status, sa.func.count()).group_by(
        grants.c.connector, grants.c.status
    )
    return {(connector, status): count for connector, status, count in connection.execute(statement)}


# Leases.


def lease(connection: sa.Connection, resource: str, token: str, now: datetime, until: datetime) -> bool:
    """Take the lease of a resource unless somebody else has it; says whether we have it now."""
    statement = insert(connection, leases).values(resource=resource, token=token, until=until)
    taken = connection.execute(
        statement.on_conflict_do_update(
            index_elements=["resource"], set_={"token": token, "until": until}, where=leases.c.until <= now
        )
    )
    return taken.rowcount > 0


def is_leased(connection: sa.Connection, resource: str, token: str) -> bool:
    """Whether the lease is still ours: if not, another worker has acted since, and we must not save."""
    statement = sa.select(leases.c.token).where(leases.c.resource == resource).with_for_update()
    return connection.execute(statement).scalar_one_or_none() == token


def release(connection: sa.Connection, resources: Iterable[str], token: str) -> None:
    """Give leases back."""
    connection.execute(leases.delete().where(leases.c.resource.in_(list(resources)), leases.c.token == token))


# What our own connectors keep.


def set_pass(connection: sa.Connection, resource: str, *, is_open: bool) -> None:
    """Open or close a pass."""
    write_all(connection, passes, [{"resource": resource, "is_open": is_open}], ("resource",))


def is_open(connection: sa.Connection, resource: str) -> bool:
    """Whether a pass is open."""
    return bool(connection.execute(sa.select(passes.c.is_open).where(passes.c.resource == resource)).scalar())


def issue_key(connection: sa.Connection, key: LicenseKey, now: datetime) -> LicenseKey:
    """Keep a license key, or revive the one that its resource has: same id, same string, same expiry."""
    statement = insert(connection, license_keys).values(
        id=key.id, resource=key.resource, benefit=key.benefit, customer_id=key.customer_id, member_id=key.member_id,
        key=key.key, status="granted", limit_activations=key.limit_activations, limit_usage=key.limit_usage,
        expires_at=key.expires_at, created_at=now, usage=0, validations=0,
    )  # fmt: skip
    row = connection.execute(
        statement.on_conflict_do_update(
            index_elements=["resource"],
            set_={
                "status": sa.case((license_keys.c.status == "disabled", "disabled"), else_="granted"),
                "limit_activations": key.limit_activations,
                "limit_usage": key.limit_usage,
                "modified_at": now,
            },
        ).returning(license_keys)
    )
    return _key(dict(row.mappings().one()))


def revoke_key(connection: sa.Connection, resource: str, now: datetime) -> None:
    """Disable the key of a resource."""
    connection.execute(
        license_keys.update()
        .where(license_keys.c.resource == resource, license_keys.c.status != "revoked")
        .values(status="revoked", modified_at=now)
    )


def find_key(connection: sa.Connection, resource: str) -> LicenseKey | None:
    """Return the key of a resource."""
    row = connection.execute(sa.select(license_keys).where(license_keys.c.resource == resource)).mappings().first()
    return _key(dict(row)) if row else None


def key_string(connection: sa.Connection, key_id: str) -> str | None:
    """Return the whole key: a secret."""
    return connection.execute(sa.select(license_keys.c.key).where(license_keys.c.id == key_id)).scalar_one_or_none()


def _key(row: Mapping[str, Any]) -> LicenseKey:
    return LicenseKey(**{name: row[name] for name in LicenseKey.__struct_fields__})


def count_download(connection: sa.Connection, grant_id: str, name: str, now: datetime) -> None:
    """Count one download."""
    statement = insert(connection, downloads).values(grant_id=grant_id, name=name, count=1, last_at=now)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["grant_id", "name"], set_={"count": downloads.c.count + 1, "last_at": now}
        )
    )


# Pulses.


def beat(connection: sa.Connection, name: str, now: datetime) -> None:
    """Record that something that must keep happening has happened."""
    write_all(connection, pulses, [{"name": name, "at": now}], ("name",))


def last_beat(connection: sa.Connection, name: str) -> datetime | None:
    """Return when it last happened."""
    return connection.execute(sa.select(pulses.c.at).where(pulses.c.name == name)).scalar_one_or_none()
