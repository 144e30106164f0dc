"""License keys as the connector issues them, and as they are shown: whole, once, or masked."""

from collections.abc import Callable, Collection
from datetime import datetime
from functools import partial

import structlog

from config.catalogue import Catalogue
from connectors.base import LicenseKey
from connectors.license_key import Terms
from worker.sealing import NotSealed, Seal
from worker.store import licenses
from worker.store.database import Database

log = structlog.get_logger()

_CHUNK = 100


def hashed(catalogue: Catalogue) -> list[str]:
    """Return the benefits whose license keys are to be kept as a hash."""
    terms = {key: benefit.config for key, benefit in catalogue.benefits.items()}
    return [key for key, config in terms.items() if isinstance(config, Terms) and config.storage == "hash"]


class StoredLicenseKeys:
    """License keys, in the database."""

    def __init__(self, database: Database, seal: Seal, now: Callable[[], datetime]) -> None:
        self._database = database
        self._seal = seal
        self._now = now

    async def issue(self, key: LicenseKey) -> LicenseKey:
        """Keep this key, or return the one that the resource already has, revived. Raises NotSealed."""
        return await self._database.write(partial(licenses.issue, key=key, sealed=self._sealed, now=self._now()))

    def _sealed(self, key: str) -> licenses.Sealed:
        return self._seal.seal(key.encode()), self._seal.fingerprint

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
        count, last = 0, ""
        while fingerprint := self._seal.fingerprint:
            some = partial(licenses.sealed_with_another, fingerprint=fingerprint, after=last, limit=_CHUNK)
            rows = await self._database.read(some)
            for key_id, sealed in rows:
                last = key_id
                try:
                    again = self._sealed(self._seal.open(sealed).decode())
                except NotSealed as error:  # it stays as it is: the older key may come back
                    log.error("a license key that was never shown cannot be read", key_id=key_id, reason=str(error),
                              next=f"almoner licenses rotate {key_id}")  # fmt: skip
                    continue
                change = partial(licenses.reseal, key_id=key_id, before=sealed, sealed=again)
                await self._database.write(change)
                count += 1
            if not rows:
                break
        return count

    async def hide(self, benefits: Collection[str]) -> int:
        """Keep of the keys of these benefits, which are to be kept as a hash, only that; returns how many there were.

        Each can be shown once more: whoever has not copied theirs yet shall not lose it. Raises NotSealed.
        """
        count = 0
        while benefits:
            hide = partial(licenses.hide, benefits=benefits, sealed=self._sealed, limit=_CHUNK)
            hidden = await self._database.write(hide)
            count += hidden
            if not hidden:
                break
        return count
