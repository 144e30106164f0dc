"""The rows of license keys that Polar issued: told by its events, then read there; and keys that Polar does not know.

They stand among our own in `license_keys`, with the source `polar` and the id that they have at Polar.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from worker.store.licenses import activations, digest_of, license_keys
from worker.store.models import UnknownKeyRow, UtcTime
from worker.store.upsert import among, upsert
from worker.told_keys import ReadActivation, ReadKey, Told

unknown_keys = UnknownKeyRow.__table__  # type: ignore[attr-defined]

_encode = msgspec.json.Encoder(order="deterministic").encode

NO_TOKEN = "ALMONER_POLAR_ACCESS_TOKEN is not set, so that it cannot be read at Polar"  # noqa: S105 - a sentence

# Activations that Polar made are marked by their fingerprint, which ours on such keys never have: a benefit of Polar's
# has no `one_per_fingerprint`. So those that Polar has no more can be told from those that were made here.
_MADE_AT_POLAR = "polar:"


class SameKey(Exception):
    """Another license key here has the same string; `id` is that one's."""

    def __init__(self, other_id: str) -> None:
        super().__init__(f"the license key {other_id} here has the same string")
        self.id = other_id


@dataclass(frozen=True)
class Claimed:
    """A key that is ours to read until the time `until`, which also tells whether it still is."""

    id: str
    customer_id: str
    attempts: int
    problem: str | None
    until: datetime


# As told.


_TELL = upsert(
    license_keys,
    ("id", "resource", "benefit", "source", "customer_id", "member_id", "purchase", "display_key", "given", "status",
     "usage", "validations", "created_at", "read_at", "read_attempts", "problem"),
    ("id",),
    change=lambda new: {
        "benefit": new.benefit,
        "customer_id": new.customer_id,
        # A snapshot names neither.
        "member_id": sa.func.coalesce(new.member_id, license_keys.c.member_id),
        "purchase": sa.func.coalesce(new.purchase, license_keys.c.purchase),
        # Together with the key itself, once that is read.
        "display_key": sa.case((license_keys.c.digest.is_(None), new.display_key), else_=license_keys.c.display_key),
        "given": new.given,
        # Given again, Polar has taken its own "revoked" back; what the merchant said is read there.
        "status": sa.case(
            (sa.and_(new.given, ~license_keys.c.given, license_keys.c.status == "revoked"), "granted"),
            else_=license_keys.c.status,
        ),
        "modified_at": sa.case(
            (new.given != license_keys.c.given, sa.bindparam("now", type_=UtcTime())), else_=license_keys.c.modified_at
        ),
        "read_at": new.read_at,
        "read_attempts": 0,
        "problem": new.problem,
    },
    where=lambda _: license_keys.c.source == "polar",
)  # fmt: skip


def tell(connection: sa.Connection, told: Iterable[Told], now: datetime, *, reads: bool) -> None:
    """Keep what Polar's events say. What is given is due to be read, if `reads`; what is not is revoked at once."""
    rows = [_told_row(one, now, reads=reads) for one in sorted(told, key=lambda one: one.id)]
    if rows:
        connection.execute(_TELL(connection), rows)


def _told_row(told: Told, now: datetime, *, reads: bool) -> dict[str, Any]:
    return {
        "id": told.id, "resource": f"polar:{told.id}", "benefit": told.benefit, "source": "polar",
        "customer_id": told.customer_id, "member_id": told.member_id, "purchase": told.purchase,
        "display_key": told.display_key, "given": told.given, "status": "granted", "usage": 0, "validations": 0,
        "created_at": told.created_at, "read_at": now if told.given and reads else None, "read_attempts": 0,
        "problem": NO_TOKEN if told.given and not reads else None, "now": now,
    }  # fmt: skip


def catch_up(connection: sa.Connection, now: datetime) -> int:
    """Have read what was told while there was no token, or a wrong one; returns how many keys there are."""
    missed = license_keys.update().where(
        license_keys.c.source == "polar", license_keys.c.given.is_(True), license_keys.c.read_at.is_(None),
        license_keys.c.problem.is_not(None),
    )  # fmt: skip
    return connection.execute(missed.values(read_at=now, problem=None)).rowcount


# As read.


def is_due(connection: sa.Connection, now: datetime) -> bool:
    """Whether any key is due to be read."""
    return (
        connection.execute(sa.select(license_keys.c.id).where(license_keys.c.read_at <= now).limit(1)).first()
        is not None
    )


def claim(connection: sa.Connection, now: datetime, *, until: datetime, limit: int) -> list[Claimed]:
    """Take keys that are due, the longest first: nobody else gets them before `until`, nor ever if they are saved."""
    due = (
        sa.select(license_keys.c.id, license_keys.c.customer_id, license_keys.c.read_attempts, license_keys.c.problem)
        .where(license_keys.c.read_at <= now)
        .order_by(license_keys.c.read_at, license_keys.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    rows = connection.execute(due).all()
    chosen = license_keys.update().where(license_keys.c.id.in_(among("ids")))
    if rows:
        connection.execute(chosen.values(read_at=until), {"ids": [row.id for row in rows]})
    return [Claimed(row.id, row.customer_id, row.read_attempts, row.problem, until) for row in rows]


def postpone(
    connection: sa.Connection, claimed: Claimed, *, at: datetime | None, attempts: int, problem: str
) -> bool:  # fmt: skip
    """Write why a key could not be read, and when to try again, or never; says whether it was still ours to read."""
    chosen = license_keys.update().where(license_keys.c.id == claimed.id, license_keys.c.read_at == claimed.until)
    return connection.execute(chosen.values(read_at=at, read_attempts=attempts, problem=problem)).rowcount > 0


def save(connection: sa.Connection, read: ReadKey, claimed: Claimed | None, now: datetime) -> bool:
    """Keep a key as it was read; says whether it was kept. Raises SameKey.

    `claimed`: only if nobody told of the key meanwhile; else it is due again, and what was read may be old. Without
    it the key was looked up, and a row that is here already stays due if it is. A key that is not given here stays so.
    """
    locked = sa.select(license_keys).where(license_keys.c.id == read.id).with_for_update()
    found = connection.execute(locked).one_or_none()
    row = found._asdict() if found else None
    if claimed and (row is None or row["read_at"] != claimed.until):
        return False
    digest = digest_of(read.key)
    same = sa.select(license_keys.c.id).where(license_keys.c.digest == digest, license_keys.c.id != read.id)
    if other := connection.execute(same).scalar_one_or_none():
        raise SameKey(other)
    columns = _read_columns(read, row, digest)
    if row is None:
        new = {
            "id": read.id, "resource": f"polar:{read.id}", "source": "polar", "given": True,
            "benefit": read.benefit_id, "customer_id": read.customer_id, "member_id": read.member_id,
        }  # fmt: skip
        connection.execute(license_keys.insert().values(**new, **columns))
    else:
        if claimed:
            columns |= {"read_at": None, "read_attempts": 0, "problem": None}
        connection.execute(license_keys.update().where(license_keys.c.id == read.id).values(**columns))
    _save_activations(connection, read, now)
    return True


def _read_columns(read: ReadKey, row: Mapping[str, Any] | None, digest: str) -> dict[str, Any]:
    # Once a merchant's programs ask here, uses are counted here and no longer at Polar, whose figure stands still or is
    # counted on by programs that ask there yet: the larger of both is never less than what either has allowed.
    used = ("usage", "validations")
    counts = {name: max(getattr(read, name), row[name] if row else 0) for name in used}
    seen = [at for at in (read.last_validated_at, row["last_validated_at"] if row else None) if at]
    same = (
        "key",
        "display_key",
        "status",
        "limit_activations",
        "limit_usage",
        "expires_at",
        "created_at",
        "modified_at",
    )
    return {
        **{name: getattr(read, name) for name in same}, **counts,
        "digest": digest, "last_validated_at": max(seen, default=None),
    }  # fmt: skip


def _save_activations(connection: sa.Connection, read: ReadKey, now: datetime) -> None:
    """Bring the activations that Polar made to what it shows. One that was ended here stays ended."""
    held = {
        row.id: row
        for row in connection.execute(sa.select(activations).where(activations.c.license_key_id == read.id))
    }  # fmt: skip
    new = [_activation_row(one, read.id, now) for one in read.activations if one.id not in held]
    if new:
        connection.execute(activations.insert(), new)
    for one in read.activations:
        if one.id in held and (held[one.id].label, held[one.id].meta) != (one.label, _encode(one.meta).decode()):
            changed = {"label": one.label, "meta": _encode(one.meta).decode(), "modified_at": one.modified_at}
            connection.execute(activations.update().where(activations.c.id == one.id).values(**changed))
    there = {one.id for one in read.activations}
    gone = [
        row.id for row in held.values()
        if row.id not in there and row.deleted_at is None and (row.fingerprint or "").startswith(_MADE_AT_POLAR)
    ]  # fmt: skip
    if gone:
        ended = activations.update().where(activations.c.id.in_(gone))
        connection.execute(ended.values(deleted_at=now, modified_at=now))


def _activation_row(one: ReadActivation, key_id: str, now: datetime) -> dict[str, Any]:
    # Polar never shows the conditions of an activation: until the device is activated anew, any are taken.
    return {
        "id": one.id, "license_key_id": key_id, "label": one.label, "conditions": "{}",
        "meta": _encode(one.meta).decode(), "fingerprint": f"{_MADE_AT_POLAR}{one.id}", "created_at": one.created_at,
        "modified_at": one.modified_at, "seen_at": now,
    }  # fmt: skip


# Keys that Polar does not know.


_NOTE = upsert(unknown_keys, ("digest", "until"), ("digest",))


def is_unknown(connection: sa.Connection, digest: str, now: datetime) -> bool:
    """Whether Polar said of late that it does not know a key."""
    asked = sa.select(unknown_keys.c.digest).where(unknown_keys.c.digest == digest, unknown_keys.c.until > now)
    return connection.execute(asked).first() is not None


def note_unknown(connection: sa.Connection, digest: str, until: datetime) -> None:
    """Remember until then that Polar does not know a key."""
    connection.execute(_NOTE(connection), {"digest": digest, "until": until})


def prune(connection: sa.Connection, now: datetime) -> None:
    """Forget what is not to be remembered any longer."""
    connection.execute(unknown_keys.delete().where(unknown_keys.c.until <= now))
