"""License keys as the connector issues them, and as they are shown: whole, once, or masked."""

from collections.abc import Callable
from datetime import datetime
from functools import partial

import structlog

from connectors.base import LicenseKey
from worker.sealing import NotSealed, Seal
from worker.store import licenses
from worker.store.database import Database

log = structlog.get_logger()


class StoredLicenseKeys:
    """License keys, in the database."""

    def __init__(self, database: Database, seal: Seal, now: Callable[[], datetime]) -> None:
        self._database = database
        self._seal = seal
        self._now = now

    async def issue(self, key: LicenseKey) -> LicenseKey:
        """Keep this key, or return the one that the resource already has, revived. Raises NotSealed."""
        is_whole = key.storage == "plain"
        sealed = (None, None) if is_whole else (self._seal.seal((key.key or "").encode()), self._seal.fingerprint)
        return await self._database.write(partial(licenses.issue, key=key, sealed=sealed, now=self._now()))

    async def revoke(self, resource: str) -> None:
        """Revoke the resource's key; none or already revoked is success."""
        await self._database.write(partial(licenses.revoke, resource=resource, now=self._now()))

    async def find(self, resource: str) -> LicenseKey | None:
        """The resource's key, or None."""
        return await self._database.peek(partial(licenses.of_resource, resource=resource))

    async def whole(self, key_id: str) -> str | None:
        """Return the whole key where it may be shown again and again; None where it may be shown once, or was."""
        return (await self._database.peek(partial(licenses.whole, key_id=key_id)))[0]

    async def show(self, key_id: str) -> str | None:
        """Return the whole key; where only its digest is kept, this once. None when it was shown already."""
        key, sealed = await self._database.peek(partial(licenses.whole, key_id=key_id))
        if sealed is None:
            return key
        self._seal.open(sealed)  # before it is forgotten: it must be readable
        taken = await self._database.write(partial(licenses.take_sealed, key_id=key_id))
        return self._seal.open(taken).decode() if taken else None

    async def is_unshown(self, key_id: str) -> bool:
        """Whether the key can be shown once, and was not."""
        return (await self._database.peek(partial(licenses.whole, key_id=key_id)))[1] is not None

    async def reseal(self) -> int:
        """Encrypt with the first key what an older one has encrypted; returns how many there were."""
        count = 0
        while fingerprint := self._seal.fingerprint:
            some = partial(licenses.sealed_with_another, fingerprint=fingerprint, limit=100)
            rows = await self._database.read(some)
            for key_id, sealed in rows:
                try:
                    again: tuple[bytes | None, str] = (self._seal.seal(self._seal.open(sealed)), fingerprint)
                except NotSealed as error:
                    log.error("a license key that was never shown cannot be read; rotate it", key_id=key_id,
                              reason=str(error))  # fmt: skip
                    again = None, fingerprint
                change = partial(licenses.reseal, key_id=key_id, before=sealed, sealed=again)
                await self._database.write(change)
            count += len(rows)
            if not rows:
                break
        return count
