"""What apps and devices do with license keys: validate, activate, deactivate; what merchants do: change and rotate.

Each reads, checks (worker/licensing.py) and writes in one transaction, so that calls at the same time pass no limit.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from config.catalogue import Catalogue
from connectors.license_key import Terms, masked, new_key
from worker import licensing
from worker.licensing import UNKNOWN, Activation, Asked, Key, Policy, Reason, Refused
from worker.pipeline import Pipeline
from worker.store import licenses
from worker.store.database import Database
from worker.store.licenses import Found
from worker.tally import Tally

LookUp = Callable[[], Awaitable[bool]]
"""Asks Polar for the key, which is unknown here; says whether it is known now. Raises Unavailable."""
IsOf = Callable[[Found], bool]
"""Whether a key is of the organization that was asked for."""


@dataclass(frozen=True)
class Device:
    """A device that wants to be activated."""

    label: str
    conditions: Mapping[str, Any]
    meta: Mapping[str, Any]


class LicenseCalls:
    """All calls about license keys."""

    def __init__(self, database: Database, pipeline: Pipeline, tally: Tally) -> None:
        self._database = database
        self._pipeline = pipeline
        self._tally = tally

    async def find(self, key: str, activation_id: str | None, is_of: IsOf, look_up: LookUp) -> Found:
        """Return a key by itself. Raises Refused (404), and what `look_up` raises."""
        digest = licenses.digest_of(key)
        found = await self._peek(digest, activation_id)
        if found is None and await look_up():
            found = await self._peek(digest, activation_id)
        if found is None or not is_of(found):
            raise UNKNOWN
        return found

    async def _peek(self, digest: str, activation_id: str | None) -> Found | None:
        if self._database.quick:
            return licenses.found_by(self._database.quick, digest, activation_id)
        return await self._database.read(partial(licenses.find, digest=digest, activation_id=activation_id))

    def policy(self, key: Key) -> Policy:
        """Return what the benefit says of the key."""
        catalogue: Catalogue = self._pipeline.catalogue
        return licensing.policy_of(catalogue.benefits.get(key.benefit) if key.source == "own" else None)

    async def validate(self, found: Found, digest: str, asked: Asked) -> Found:
        """Return the key as it is after this validation, durable where uses were counted. Raises Refused."""
        if asked.increment == 0:
            return self._validate(found, asked)
        now = self._pipeline.now()

        def work(connection: sa.Connection) -> Found:
            current = licenses.find_locked(connection, digest, asked.activation_id)
            if current is None:
                raise UNKNOWN
            activation = self._as_seen(current.activation)
            licensing.check_validation(current.key, activation, asked, self.policy(current.key), now)
            licenses.use(connection, current.key.id, asked.increment, now)
            if activation:
                licenses.see(connection, [{"of": activation.id, "at": now}])
            return current

        before = await self._database.write(work)
        key = before.key
        used = replace(
            key, usage=key.usage + asked.increment, validations=key.validations + 1, last_validated_at=now
        )  # fmt: skip
        return Found(used, before.facts, before.activation)

    def _validate(self, found: Found, asked: Asked) -> Found:
        now = self._pipeline.now()
        key, activation = found.key, self._as_seen(found.activation)
        licensing.check_validation(key, activation, asked, self.policy(key), now)
        uncounted = self._tally.count(key.id, asked.activation_id, now)
        return Found(
            replace(key, validations=key.validations + uncounted, last_validated_at=now), found.facts, activation
        )

    def _as_seen(self, activation: Activation | None) -> Activation | None:
        """Return an activation with what is counted of it, and not written yet."""
        if activation is None:
            return None
        return replace(activation, seen_at=self._tally.seen_at(activation.id, activation.seen_at))

    async def activate(self, digest: str, device: Device) -> tuple[Key, Activation]:
        """Activate a device. Raises Refused."""
        now = self._pipeline.now()
        await self._tally.write()  # what was seen a moment ago is not released as dead

        def work(connection: sa.Connection) -> tuple[Key, Activation, bool]:
            key = licenses.locked(connection, digest)
            if key is None:
                raise UNKNOWN
            policy = self.policy(key)
            licensing.check_activating(key, now)
            fingerprint = licensing.fingerprint_of(device.conditions, policy)
            kept = _released(connection, key, policy, now)
            same = licenses.of_fingerprint(connection, key.id, fingerprint) if fingerprint is not None else None
            if same is None:
                licensing.check_room(key, len(kept), policy)
            activation = _written(connection, key, same, device, fingerprint, now)
            ends = licensing.ends_after(key, policy, now)
            begins = ends != key.expires_at
            return _changed(connection, key, {"expires_at": ends}, now) if begins else key, activation, begins

        key, activation, begins = await self._database.write(work)
        if begins:
            await self._pipeline.refresh([key.customer_id])
        return key, activation

    async def deactivate(self, key: Key, activation_id: str) -> None:
        """End an activation; also of a key that has ended. Raises Refused (404)."""
        now = self._pipeline.now()
        end = partial(licenses.deactivate, key_id=key.id, ids=[activation_id], now=now)
        if not await self._database.write(end):
            raise Refused(404, "License key has no such activation", Reason.NOT_FOUND)

    async def live(self, key: Key) -> list[Activation]:
        """Return the activations of a key that count now."""
        policy, now = self.policy(key), self._pipeline.now()
        kept = await self._database.read(partial(licenses.live, key_id=key.id))
        seen = [replace(one, seen_at=self._tally.seen_at(one.id, one.seen_at)) for one in kept]
        return [one for one in seen if licensing.is_live(one, policy, now)]

    async def change(self, key_id: str, changes: Mapping[str, Any]) -> Key:
        """Change a key as the merchant wants it. Raises Refused."""
        now = self._pipeline.now()

        def work(connection: sa.Connection) -> Key:
            key = _ours(licenses.by_id(connection, key_id, lock=True))
            return _changed(connection, key, changes, now) if changes else key

        key = await self._database.write(work)
        await self._pipeline.refresh([key.customer_id])
        return key

    async def rotate(self, key_id: str) -> tuple[Key, str]:
        """Put another string in place of a key's, at once; returns it too, for the last time in `hash` storage.

        Raises Refused (404, or 400 for a key that is revoked).
        """
        now = self._pipeline.now()

        def work(connection: sa.Connection) -> tuple[Key, str]:
            key = _ours(licenses.by_id(connection, key_id, lock=True))
            if key.standing not in {"granted", "disabled"}:
                raise Refused(400, "Only a key that is granted or disabled can be rotated", Reason(key.standing))
            benefit = self._pipeline.catalogue.benefits.get(key.benefit)
            terms = benefit.config if benefit and isinstance(benefit.config, Terms) else None
            whole = new_key(terms.prefix if terms else "")
            is_hashed = terms.storage == "hash" if terms else key.key is None
            changes = {
                "digest": licenses.digest_of(whole), "display_key": masked(whole),
                "key": None if is_hashed else whole, "sealed": None, "sealed_with": None,
            }  # fmt: skip
            return _changed(connection, key, changes, now), whole

        key, whole = await self._database.write(work)
        await self._pipeline.refresh([key.customer_id])
        return key, whole


def _ours(key: Key | None) -> Key:
    if key is None:
        raise UNKNOWN
    if key.source != "own":
        raise Refused(403, "Polar issued this license key: change it there, and it is read again", Reason.NOT_FOUND)
    return key


def _changed(connection: sa.Connection, key: Key, changes: Mapping[str, Any], now: datetime) -> Key:
    """Write a change, also into the receipt of its grant, from which answers are made."""
    licenses.change(connection, key.id, changes, now)
    after = licenses.by_id(connection, key.id)
    if after is None:
        raise UNKNOWN
    told = {
        "display_key": after.display_key,
        "limit_activations": after.limit_activations,
        "limit_usage": after.limit_usage,
        "expires_at": after.expires_at.isoformat() if after.expires_at else None,
    }
    licenses.tell_grant(connection, key.id, told)
    return after


def _released(connection: sa.Connection, key: Key, policy: Policy, now: datetime) -> list[Activation]:
    """End the activations that have not been heard of; returns those that count."""
    found = licenses.live(connection, key.id)
    dead = [one.id for one in found if not licensing.is_live(one, policy, now)]
    if dead:
        licenses.deactivate(connection, key.id, dead, now)
    return [one for one in found if one.id not in dead]


def _written(
    connection: sa.Connection, key: Key, same: Activation | None, device: Device, fingerprint: str | None,
    now: datetime,
) -> Activation:  # fmt: skip
    activation = Activation(
        id=same.id if same else str(uuid4()),
        license_key_id=key.id,
        label=device.label,
        conditions=device.conditions,
        meta=device.meta,
        created_at=same.created_at if same else now,
        modified_at=now if same else None,
        seen_at=now,
    )
    if same:
        licenses.renew(connection, activation)
    else:
        licenses.activate(connection, activation, fingerprint)
    return activation
