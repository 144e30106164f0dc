"""License keys and their activations: found by digest, changed so that no two calls together pass a limit."""

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from connectors.base import LicenseKey
from worker.store.models import ActivationRow, LicenseKeyRow
from worker.store.upsert import upsert

license_keys = LicenseKeyRow.__table__  # type: ignore[attr-defined]
activations = ActivationRow.__table__  # type: ignore[attr-defined]


def digest_of(key: str) -> str:
    """Return what a key is found by.

    A search by digests tells nothing of a key through time, and 128 random bits need no salt.
    """
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


Sealed = tuple[bytes | None, str | None]
"""An encrypted key, and the fingerprint of what encrypted it; nothing where the plain one is kept."""


# As the connector keeps them.


_ISSUE = upsert(
    license_keys,
    ("id", "resource", "benefit", "source", "customer_id", "member_id", "purchase", "digest", "display_key", "key",
     "sealed", "sealed_with", "status", "limit_activations", "limit_usage", "usage", "validations",
     "expires_at", "created_at"),
    ("resource",),
    change=lambda new: {
        "status": sa.case((license_keys.c.status == "disabled", "disabled"), else_="granted"),
        "limit_activations": new.limit_activations,
        "limit_usage": new.limit_usage,
        "modified_at": new.created_at,
    },
    returning=True,
)  # fmt: skip
_REVOKE = (
    license_keys.update()
    .where(license_keys.c.resource == sa.bindparam("of"), license_keys.c.status != "revoked")
    .values(status="revoked", modified_at=sa.bindparam("now"))
)
_FIND = sa.select(license_keys).where(license_keys.c.resource == sa.bindparam("resource"))


def issue(connection: sa.Connection, key: LicenseKey, sealed: Sealed, now: datetime) -> LicenseKey:
    """Keep a license key, or revive the one that its resource has: same id, same string, same expiry.

    `sealed` is the encrypted key, where the plain one is not to be kept.
    """
    row = {name: getattr(key, name) for name in LicenseKey.__struct_fields__ if name != "storage"}
    row |= {
        "key": key.key if key.storage == "plain" else None, "sealed": sealed[0], "sealed_with": sealed[1],
        "digest": digest_of(key.key or ""),
        "source": "own", "status": "granted", "created_at": now, "usage": 0, "validations": 0,
    }  # fmt: skip
    return _key(connection.execute(_ISSUE(connection), row).one()._asdict())


def revoke(connection: sa.Connection, resource: str, now: datetime) -> None:
    """Revoke the key of a resource."""
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


def sealed_with_another(connection: sa.Connection, fingerprint: str, *, limit: int) -> list[tuple[str, bytes]]:
    """Return keys that another secret has encrypted: their ids, and what is encrypted."""
    other = sa.or_(license_keys.c.sealed_with < fingerprint, license_keys.c.sealed_with > fingerprint)
    found = connection.execute(sa.select(license_keys.c.id, license_keys.c.sealed).where(other).limit(limit))
    return [(row.id, row.sealed) for row in found]


def reseal(connection: sa.Connection, key_id: str, before: bytes, sealed: Sealed) -> None:
    """Put another encryption in place of this one, unless the key was shown meanwhile."""
    chosen = license_keys.update().where(license_keys.c.id == key_id, license_keys.c.sealed == before)
    connection.execute(chosen.values(sealed=sealed[0], sealed_with=sealed[1]))
