"""License keys: a random string, kept for ever by the store, disabled and revived with the grant."""

import re
import secrets
from datetime import timedelta
from typing import Any, ClassVar, Literal, Self
from uuid import UUID, uuid5

from pydantic import Field, field_validator, model_validator

from config.catalogue import BenefitConfig, Per
from config.durations import Duration
from config.settings import Settings
from connectors.base import Holding, LicenseKey, Presentation, Receipt, Recipient, Serving, Tools

_NAMESPACE = UUID("c0a5f3d2-8b1e-5f47-9e0a-6d3b2a1c4e5f")
_CENTURY = timedelta(days=36_525)
_MOST = 1_000_000_000  # below what a column of 32 bits holds


class Terms(BenefitConfig):
    """A kind of license key."""

    prefix: str = Field(default="", max_length=40, description="stands before the key: PREFIX-XXXXXXXX-...")
    expires: Duration | None = Field(
        default=None, gt=timedelta(), le=_CENTURY, description="how long a key lasts after it is issued"
    )
    limit_activations: int | None = Field(
        default=None, ge=1, le=_MOST, strict=True, description="how many devices may use it at once"
    )
    limit_usage: int | None = Field(
        default=None, ge=1, le=_MOST, strict=True, description="how many uses may be counted on it"
    )
    storage: Literal["plain", "hash"] = Field(
        default="plain", description="`hash`: only a digest is kept; the key is shown once, then masked"
    )
    expires_from: Literal["issue", "activation"] = Field(
        default="issue", description="`activation`: `expires` counts from the first activation"
    )
    overage: float = Field(
        default=0, ge=0, le=100, description="how much of the limits may be used beyond them: 0.25 is a quarter"
    )
    heartbeat: Duration | None = Field(
        default=None, ge=timedelta(minutes=1), le=_CENTURY,
        description="an activation that is not validated for so long is released",
    )  # fmt: skip
    one_per_fingerprint: bool = Field(
        default=False, strict=True, description="activating again with the same `conditions.fingerprint` gives the same"
    )
    offline: Duration | None = Field(
        default=None,
        gt=timedelta(),
        le=_CENTURY,
        description="how long an offline licence lasts at most",
    )

    @field_validator("prefix")
    @classmethod
    def _letters(cls, prefix: str) -> str:
        prefix = prefix.strip()
        if not re.fullmatch(r"[A-Za-z0-9-]*", prefix):
            raise ValueError("a prefix has the letters A to Z, digits and - only")
        return prefix.upper()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.expires_from == "activation" and (self.expires is None or self.limit_activations is None):
            raise ValueError('expires_from = "activation" needs `expires` and `limit_activations`')
        if (self.heartbeat or self.one_per_fingerprint) and self.limit_activations is None:
            raise ValueError("`heartbeat` and `one_per_fingerprint` need `limit_activations`")
        return self


class LicenseKeyConnector(Serving):
    """Issues license keys; the same key comes back when the benefit does."""

    Config: ClassVar[type[BenefitConfig]] = Terms
    per: ClassVar[Per] = "purchase"
    dynamic: ClassVar[bool] = False

    def __init__(self, tools: Tools) -> None:
        self._keys = tools.license_keys
        self._now = tools.now

    @staticmethod
    def missing(config: Terms, settings: Settings) -> list[str]:
        """Return what the settings lack for this benefit: what encrypts keys until they are shown, and signing keys."""
        wanted = 'storage = "hash"' if config.storage == "hash" else "`offline`" if config.offline else None
        if wanted and not settings.encryption_keys:
            return [f"{wanted} needs ALMONER_ENCRYPTION_KEYS, e.g. from `openssl rand -hex 32`"]
        return []

    def resource(self, to: Recipient, config: Terms) -> str:
        """Return the name of the one key that this customer, member and purchase ever has of the benefit."""
        return ":".join(["license_key", config.benefit, to.customer_id, to.member_id or "", to.purchase or ""])

    async def grant(self, to: Recipient, config: Terms, held: Receipt | None) -> Receipt:  # noqa: ARG002 - the store knows
        """Issue the key, or revive the one that there is, with the limits of today.

        Revived, it is the same id and string, as at Polar (https://github.com/polarsource/polar/pull/13025).
        The receipt has the key masked; only the store has the whole.
        """
        resource = self.resource(to, config)
        key = new_key(config.prefix)
        lasts = config.expires if config.expires_from == "issue" else None
        issued = await self._keys.issue(
            LicenseKey(
                id=str(uuid5(_NAMESPACE, resource)),
                resource=resource,
                benefit=config.benefit,
                customer_id=to.customer_id,
                member_id=to.member_id,
                purchase=to.purchase,
                key=key,
                display_key=masked(key),
                storage=config.storage,
                limit_activations=config.limit_activations,
                limit_usage=config.limit_usage,
                expires_at=self._now() + lasts if lasts else None,
            )
        )
        data = {
            "license_key_id": issued.id,
            "display_key": issued.display_key,
            "limit_activations": issued.limit_activations,
            "limit_usage": issued.limit_usage,
            "expires_at": issued.expires_at.isoformat() if issued.expires_at else None,
        }
        return Receipt(resource, data)

    async def revoke(self, held: Receipt, *, last: bool = True) -> None:  # noqa: ARG002 - each stands alone
        """Take the resource's key back, whatever the benefit is configured to be now."""
        await self._keys.revoke(held.resource)

    async def holds(self, held: Receipt) -> Holding:
        """Read the key back. One that the merchant has disabled is still theirs."""
        key = await self._keys.find(held.resource)
        return Holding.HELD if key and key.given else Holding.GONE

    def offer(self, held: Receipt) -> dict[str, Any]:
        """Return the key, masked, and its limits."""
        return {"kind": "license_key", **held.data}

    @staticmethod
    def present(offer: dict[str, Any], grant_id: str, at: Presentation) -> dict[str, Any]:  # noqa: ARG004 - as for all
        """Add nothing."""
        return offer


def new_key(prefix: str) -> str:
    """Return a key in Polar's form, PREFIX-UUID in capitals. All 128 bits are random: none tells a UUID's version."""
    key = str(UUID(bytes=secrets.token_bytes(16))).upper()
    return f"{prefix}-{key}" if prefix else key


def masked(key: str) -> str:
    """Return a key as it may be shown to everybody, in Polar's form."""
    return f"****-{key[-6:]}"
