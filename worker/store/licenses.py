"""License keys and their activations: found by digest, changed so that no two calls together pass a limit."""

import hashlib
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from connectors.base import LicenseKey, Receipt
from worker.licensing import Activation, Key
from worker.store.inbox import sqlite_time
from worker.store.models import ActivationRow, GrantRow, LicenseKeyRow
from worker.store.upsert import upsert

license_keys = LicenseKeyRow.__table__  # type: ignore[attr-defined]
activations = ActivationRow.__table__  # type: ignore[attr-defined]
grants = GrantRow.__table__  # type: ignore[attr-defined]

_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_receipt = msgspec.json.Decoder(Receipt).decode


def digest_of(key: str) -> str:
    """Return what a key is found by.

    A search by digests tells nothing of a key through time, and 128 random bits need no salt.
    """
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


Row = Mapping[str, Any] | sa.RowMapping

Sealed = tuple[bytes | None, str | None]
"""An encrypted key, and the fingerprint of what encrypted it; nothing where the plain one is kept."""


# As the connector keeps them.


_ISSUE = upsert(
    license_keys,
    ("id", "resource", "benefit", "source", "customer_id", "member_id", "purchase", "digest", "display_key", "key",
     "sealed", "sealed_with", "given", "status", "limit_activations", "limit_usage", "usage", "validations",
     "expires_at", "created_at"),
    ("resource",),
    change=lambda new: {
        "given": new.given,
        "limit_activations": new.limit_activations,
        "limit_usage": new.limit_usage,
        "modified_at": new.created_at,
    },
    returning=True,
)  # fmt: skip
_REVOKE = (
    license_keys.update()
    .where(license_keys.c.resource == sa.bindparam("of"), license_keys.c.given.is_(True))
    .values(given=False, modified_at=sa.bindparam("now"))
)
_FIND = sa.select(license_keys).where(license_keys.c.resource == sa.bindparam("resource"))


def issue(connection: sa.Connection, key: LicenseKey, sealed: Callable[[str], Sealed], now: datetime) -> LicenseKey:
    """Keep a license key, or revive the one that its resource has: same id, same string, same expiry.

    `sealed` encrypts, where the plain one is not to be kept.
    """
    is_whole = key.storage == "plain"
    if not is_whole:
        _hide(connection, license_keys.c.resource == key.resource, sealed, limit=1)
    hidden = (None, None) if is_whole else sealed(key.key or "")
    row = {name: getattr(key, name) for name in LicenseKey.__struct_fields__ if name != "storage"}
    row |= {
        "key": key.key if is_whole else None, "sealed": hidden[0], "sealed_with": hidden[1],
        "digest": digest_of(key.key or ""), "source": "own", "given": True, "status": "granted", "created_at": now,
        "usage": 0, "validations": 0,
    }  # fmt: skip
    return _key(connection.execute(_ISSUE(connection), row).one()._asdict())


def revoke(connection: sa.Connection, resource: str, now: datetime) -> None:
    """Take the key of a resource back."""
    connection.execute(_REVOKE, {"of": resource, "now": now})


def of_resource(connection: sa.Connection, resource: str) -> LicenseKey | None:
    """Return the key of a resource."""
    row = connection.execute(_FIND, {"resource": resource}).first()
    return _key(row._asdict()) if row else None


def _key(row: Mapping[str, Any]) -> LicenseKey:
    known = {name: row[name] for name in LicenseKey.__struct_fields__ if name != "storage"}
    return LicenseKey(storage="hash" if row["key"] is None else "plain", **known)


# As they are shown.


def whole(connection: sa.Connection, key_id: str) -> tuple[str | None, bytes | None]:
    """Return the whole key, a secret, where it is kept; else as it is encrypted, where it was never shown."""
    found = connection.execute(sa.select(license_keys.c.key, license_keys.c.sealed).where(license_keys.c.id == key_id))
    row = found.one_or_none()
    return (row.key, row.sealed) if row else (None, None)


def take_sealed(connection: sa.Connection, key_id: str) -> bytes | None:
    """Return the encrypted key and forget it, so that it is shown once; None where it was shown already."""
    chosen = sa.select(license_keys.c.sealed).where(license_keys.c.id == key_id).with_for_update()
    sealed: bytes | None = connection.execute(chosen).scalar_one_or_none()
    if sealed is not None:
        change = license_keys.update().where(license_keys.c.id == key_id)
        connection.execute(change.values(sealed=None, sealed_with=None))
    return sealed


def hide(connection: sa.Connection, benefits: Collection[str], sealed: Callable[[str], Sealed], *, limit: int) -> int:
    """Put an encryption in place of the plain keys of these benefits, of some at a time; returns how many."""
    mine = sa.and_(license_keys.c.source == "own", license_keys.c.benefit.in_(benefits))
    return _hide(connection, mine, sealed, limit=limit)


def _hide(
    connection: sa.Connection, which: sa.ColumnElement[bool], sealed: Callable[[str], Sealed], *, limit: int
) -> int:
    plain = sa.select(license_keys.c.id, license_keys.c.key).where(which, license_keys.c.key.is_not(None))
    rows = connection.execute(plain.limit(limit).with_for_update()).all()
    for row in rows:
        hidden = sealed(row.key)
        change = license_keys.update().where(license_keys.c.id == row.id)
        connection.execute(change.values(key=None, sealed=hidden[0], sealed_with=hidden[1]))
    return len(rows)


def sealed_with_another(
    connection: sa.Connection, fingerprint: str, *, after: str, limit: int
) -> list[tuple[str, bytes]]:
    """Return keys that another secret has encrypted: their ids, from the one after, and what is encrypted."""
    other = sa.or_(license_keys.c.sealed_with < fingerprint, license_keys.c.sealed_with > fingerprint)
    chosen = sa.select(license_keys.c.id, license_keys.c.sealed).where(other, license_keys.c.id > after)
    found = connection.execute(chosen.order_by(license_keys.c.id).limit(limit))
    return [(row.id, row.sealed) for row in found]


def reseal(connection: sa.Connection, key_id: str, before: bytes, sealed: Sealed) -> None:
    """Put another encryption in place of this one, unless the key was shown meanwhile."""
    chosen = license_keys.update().where(license_keys.c.id == key_id, license_keys.c.sealed == before)
    connection.execute(chosen.values(sealed=sealed[0], sealed_with=sealed[1]))


# As they are asked for. Each question is one statement: on SQLite some microseconds, on the event loop's own thread.

_KEY = tuple(Key.__dataclass_fields__)
_ACTIVATION = tuple(Activation.__dataclass_fields__)
_COLUMNS = ", ".join([*(f"k.{name}" for name in _KEY), "c.state", *(f"a.{name}" for name in _ACTIVATION)])
_ASKED = (
    f"SELECT {_COLUMNS} FROM license_keys k LEFT JOIN customers c ON c.id = k.customer_id "  # noqa: S608 - our names
    "LEFT JOIN activations a ON a.license_key_id = k.id AND a.id = :activation AND a.deleted_at IS NULL "
    "WHERE k.digest = :digest"
)
_TIMES = {
    name for name in (*_KEY, *_ACTIVATION) if name.endswith("_at")
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    """A key, the facts of its customer, still encoded, and the activation that was asked for."""

    key: Key
    facts: bytes | None
    activation: Activation | None


def found_by(quick: sqlite3.Connection, digest: str, activation_id: str | None) -> Found | None:
    """Look a key up on SQLite, past SQLAlchemy, whose own time is ten times the question's."""
    row = quick.execute(_ASKED, {"digest": digest, "activation": activation_id or ""}).fetchone()
    return _found(row) if row else None


def find(connection: sa.Connection, digest: str, activation_id: str | None) -> Found | None:
    """Look a key up."""
    row = connection.execute(sa.text(_ASKED), {"digest": digest, "activation": activation_id or ""}).one_or_none()
    return _found(row) if row else None


def find_locked(connection: sa.Connection, digest: str, activation_id: str | None) -> Found | None:
    """Look a key up to change it: nobody else changes it until the transaction ends. SQLite has one writer anyway."""
    if connection.dialect.name == "sqlite":
        raw: Any = connection.connection.driver_connection
        return found_by(raw, digest, activation_id)
    values = {"digest": digest, "activation": activation_id or ""}
    row = connection.execute(sa.text(f"{_ASKED} FOR UPDATE OF k"), values).one_or_none()
    return _found(row) if row else None


def _found(row: Sequence[Any]) -> Found:
    size = len(_KEY)
    activation = row[size + 1 :]
    return Found(key_of(dict(zip(_KEY, row, strict=False))), row[size],
                 activation_of(dict(zip(_ACTIVATION, activation, strict=True))) if activation[0] else None)  # fmt: skip


def key_of(row: Row) -> Key:
    """Return the key of a row."""
    read: dict[str, Any] = {name: _time(row[name]) if name in _TIMES else row[name] for name in _KEY}
    return Key(**read | {"given": bool(row["given"])})


def activation_of(row: Row) -> Activation:
    """Return the activation of a row."""
    read: dict[str, Any] = {name: _time(row[name]) if name in _TIMES else row[name] for name in _ACTIVATION}
    return Activation(**read | {name: _decode(row[name]) for name in ("conditions", "meta")})


def _time(value: Any) -> datetime | None:  # noqa: ANN401 - SQLite's text, or a time
    return datetime.fromisoformat(value).replace(tzinfo=UTC) if isinstance(value, str) else value


# As they change.


_LOCK = sa.select(license_keys).where(license_keys.c.digest == sa.bindparam("digest")).with_for_update()
_LIVE = (
    sa.select(activations)
    .where(activations.c.license_key_id == sa.bindparam("key"), activations.c.deleted_at.is_(None))
    .order_by(activations.c.created_at, activations.c.id)
)
_USE = (
    license_keys.update()
    .where(license_keys.c.id == sa.bindparam("of"))
    .values(
        usage=license_keys.c.usage + sa.bindparam("increment"),
        validations=license_keys.c.validations + 1,
        last_validated_at=sa.bindparam("now"),
    )
)
_COUNT = (
    license_keys.update()
    .where(license_keys.c.id == sa.bindparam("of"))
    .values(validations=license_keys.c.validations + sa.bindparam("count"), last_validated_at=sa.bindparam("at"))
)
_COUNT_SQLITE = "UPDATE license_keys SET validations = validations + ?, last_validated_at = ? WHERE id = ?"
_SEE = activations.update().where(activations.c.id == sa.bindparam("of")).values(seen_at=sa.bindparam("at"))


def locked(connection: sa.Connection, digest: str) -> Key | None:
    """Return a key, locked until the transaction ends: whoever checks a limit then is alone."""
    row = connection.execute(_LOCK, {"digest": digest}).mappings().one_or_none()
    return key_of(row) if row else None


def live(connection: sa.Connection, key_id: str) -> list[Activation]:
    """Return the activations of a key that were not ended, the oldest first."""
    return [activation_of(row) for row in connection.execute(_LIVE, {"key": key_id}).mappings()]


def of_fingerprint(connection: sa.Connection, key_id: str, fingerprint: str) -> Activation | None:
    """Return the live activation of a device."""
    chosen = sa.select(activations).where(
        activations.c.license_key_id == key_id, activations.c.fingerprint == fingerprint,
        activations.c.deleted_at.is_(None),
    )  # fmt: skip
    row = connection.execute(chosen).mappings().one_or_none()
    return activation_of(row) if row else None


def use(connection: sa.Connection, key_id: str, increment: int, now: datetime) -> None:
    """Count uses, and the validation that counts them."""
    connection.execute(_USE, {"of": key_id, "increment": increment, "now": now})


def count_validations(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add validations: each row has `of` (the key's id), `count` and `at`."""
    if rows and connection.dialect.name == "sqlite":  # thousands a second: SQLAlchemy's share would be the larger
        raw: Any = connection.connection.driver_connection
        raw.executemany(_COUNT_SQLITE, [(row["count"], sqlite_time(row["at"]), row["of"]) for row in rows])
    elif rows:
        connection.execute(_COUNT, rows)


def see(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Remember when activations were last seen: each row has `of` and `at`."""
    if rows:
        connection.execute(_SEE, rows)


def activate(connection: sa.Connection, activation: Activation, fingerprint: str | None) -> None:
    """Keep a new activation."""
    connection.execute(
        activations.insert().values(
            id=activation.id, license_key_id=activation.license_key_id, label=activation.label,
            conditions=_encode(activation.conditions).decode(), meta=_encode(activation.meta).decode(),
            fingerprint=fingerprint, created_at=activation.created_at, seen_at=activation.seen_at,
        )
    )  # fmt: skip


def renew(connection: sa.Connection, activation: Activation) -> None:
    """Write the label, meta, conditions and times of an activation anew."""
    connection.execute(
        activations.update()
        .where(activations.c.id == activation.id)
        .values(
            label=activation.label, conditions=_encode(activation.conditions).decode(),
            meta=_encode(activation.meta).decode(), modified_at=activation.modified_at, seen_at=activation.seen_at,
        )
    )  # fmt: skip


def deactivate(connection: sa.Connection, key_id: str, ids: Collection[str], now: datetime) -> int:
    """End activations of a key; returns how many were live."""
    chosen = activations.update().where(
        activations.c.license_key_id == key_id, activations.c.id.in_(ids), activations.c.deleted_at.is_(None)
    )
    return connection.execute(chosen.values(deleted_at=now, modified_at=now)).rowcount


def change(connection: sa.Connection, key_id: str, changes: Mapping[str, Any], now: datetime) -> None:
    """Write columns of a key."""
    connection.execute(
        license_keys.update().where(license_keys.c.id == key_id).values(modified_at=now, **changes)
    )  # fmt: skip


def tell_grant(connection: sa.Connection, key_id: str, told: Mapping[str, Any]) -> None:
    """Write what has changed of a key into the receipt of the grant that gave it."""
    held = sa.select(license_keys.c.resource).where(license_keys.c.id == key_id).scalar_subquery()
    chosen = sa.select(grants.c.id, grants.c.receipt).where(grants.c.held == held).with_for_update()
    for row in connection.execute(chosen).all():
        receipt = _receipt(row.receipt) if row.receipt else None
        if receipt is not None and not receipt.intended:
            changed = msgspec.structs.replace(receipt, data={**receipt.data, **told})
            chosen = grants.update().where(grants.c.id == row.id)
            connection.execute(chosen.values(receipt=_encode(changed).decode()))


# As they are listed.


@dataclass(frozen=True)
class Chosen:
    """Which keys to list. Each condition that is None lets all through."""

    customer_ids: Collection[str] | None = None
    benefits: Collection[str] | None = None
    statuses: Collection[str] | None = None
    ids: Collection[str] | None = None

    def where(self) -> list[sa.ColumnElement[bool]]:
        """Return the conditions."""
        columns = {
            "customer_ids": license_keys.c.customer_id, "benefits": license_keys.c.benefit,
            "statuses": sa.case((license_keys.c.given, license_keys.c.status), else_="revoked"),
            "ids": license_keys.c.id,
        }  # fmt: skip
        readable = license_keys.c.digest.is_not(None)  # a key of Polar's that was not read yet is none yet
        wanted = ((name, getattr(self, name)) for name in columns)
        return [readable, *(columns[name].in_(values) for name, values in wanted if values is not None)]


def listed(connection: sa.Connection, chosen: Chosen, *, offset: int, limit: int) -> tuple[list[Key], int]:
    """Return a page of keys, newest first, and how many there are on all pages."""
    where = chosen.where()
    total = connection.execute(sa.select(sa.func.count()).select_from(license_keys).where(*where)).scalar_one()
    newest = (license_keys.c.created_at.desc(), license_keys.c.id.desc())
    rows = connection.execute(sa.select(license_keys).where(*where).order_by(*newest).offset(offset).limit(limit))
    return [key_of(row) for row in rows.mappings()], total


def after(connection: sa.Connection, key_id: str, *, limit: int) -> list[Key]:
    """Return the keys whose ids come after this one, in their order, to page through all of them."""
    chosen = sa.select(license_keys).where(license_keys.c.id > key_id, license_keys.c.digest.is_not(None))
    rows = connection.execute(chosen.order_by(license_keys.c.id).limit(limit))
    return [key_of(row) for row in rows.mappings()]


def by_id(connection: sa.Connection, key_id: str, *, lock: bool = False) -> Key | None:
    """Return one key."""
    chosen = sa.select(license_keys).where(license_keys.c.id == key_id, license_keys.c.digest.is_not(None))
    row = connection.execute(chosen.with_for_update() if lock else chosen).mappings().one_or_none()
    return key_of(row) if row else None
