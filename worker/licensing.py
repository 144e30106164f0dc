"""What a license key allows now: Polar's checks, in Polar's order, each with a reason code of ours. Pure.

Source of the order, the statuses and the classes: polar.md 5.4 (Polar's server/polar/license_key/service.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any

from config.catalogue import Benefit
from connectors.license_key import Terms


class Reason(StrEnum):
    """Why a call about a license key came out as it did."""

    VALID = "valid"
    EXPIRED = "expired"
    REVOKED = "revoked"
    DISABLED = "disabled"
    USAGE_EXCEEDED = "usage_exceeded"
    ACTIVATION_LIMIT = "activation_limit"
    FINGERPRINT_MISMATCH = "fingerprint_mismatch"
    NOT_FOUND = "not_found"


class Refused(Exception):
    """A call that is not allowed: the status and sentence to answer with, and the reason."""

    def __init__(self, status: int, detail: str, reason: Reason) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Key:
    """A license key as it stands."""

    id: str
    benefit: str
    source: str
    customer_id: str
    member_id: str | None
    purchase: str | None
    display_key: str
    key: str | None = field(repr=False)  # it would stand in every traceback
    given: bool
    status: str
    limit_activations: int | None
    limit_usage: int | None
    usage: int
    validations: int
    last_validated_at: datetime | None
    expires_at: datetime | None
    created_at: datetime
    modified_at: datetime | None

    @property
    def standing(self) -> str:
        """Polar's status: what the merchant says of it, while the benefit gives it."""
        return self.status if self.given else "revoked"


@dataclass(frozen=True, slots=True)
class Activation:
    """A device that uses a key. `conditions` are what a validation must repeat exactly."""

    id: str
    license_key_id: str
    label: str
    conditions: Mapping[str, Any]
    meta: Mapping[str, Any]
    created_at: datetime
    modified_at: datetime | None
    seen_at: datetime


@dataclass(frozen=True)
class Policy:
    """What a benefit says of its keys beyond Polar's limits; the default is as at Polar."""

    overage: float = 0
    heartbeat: timedelta | None = None
    one_per_fingerprint: bool = False
    expires_after_activation: timedelta | None = None


AS_AT_POLAR = Policy()


def policy_of(benefit: Benefit | None) -> Policy:
    """Return the policy of a benefit of the catalogue; keys that Polar issued, and those of no benefit, have none."""
    terms = benefit.config if benefit else None
    if not isinstance(terms, Terms):
        return AS_AT_POLAR
    from_activation = terms.expires if terms.expires_from == "activation" else None
    return Policy(terms.overage, terms.heartbeat, terms.one_per_fingerprint, from_activation)


def most(limit: int | None, policy: Policy) -> int | None:
    """Return how much is allowed: the limit, and what may be used beyond it."""
    return None if limit is None else limit + int(limit * Decimal(str(policy.overage)))  # 100 * 0.29 is 28.999... else


def is_expired(key: Key, now: datetime) -> bool:
    """Whether the key has ended."""
    return key.expires_at is not None and key.expires_at <= now


def is_live(activation: Activation, policy: Policy, now: datetime) -> bool:
    """Whether an activation still counts: it was validated within the heartbeat, where there is one."""
    return policy.heartbeat is None or activation.seen_at + policy.heartbeat > now


@dataclass(frozen=True, slots=True)
class Asked:
    """What a validation wants to know."""

    activation_id: str | None = None
    is_right_benefit: bool = True
    customer_id: str | None = None
    increment: int = 0
    conditions: Mapping[str, Any] | None = None


UNKNOWN = Refused(404, "There is no such license key", Reason.NOT_FOUND)


def check_standing(key: Key, now: datetime, *, status: int) -> None:
    """Raise Refused, with this status, for a key that is not granted or has ended."""
    if key.standing != "granted":
        raise Refused(status, "License key is no longer active", Reason(key.standing))
    if is_expired(key, now):
        raise Refused(status, "License key has expired", Reason.EXPIRED)


def check_validation(key: Key, activation: Activation | None, asked: Asked, policy: Policy, now: datetime) -> None:
    """Raise Refused unless the key is valid for what is asked. `activation` is the one with the id that was asked."""
    check_standing(key, now, status=404)
    if asked.activation_id is not None:
        _check_activation(activation, asked, policy, now)
    if not asked.is_right_benefit or asked.customer_id not in {None, key.customer_id}:
        what = "customer" if asked.is_right_benefit else "benefit"
        raise Refused(404, f"License key is not of this {what}", Reason.NOT_FOUND)
    check_usage(key, asked.increment, policy)


def _check_activation(activation: Activation | None, asked: Asked, policy: Policy, now: datetime) -> None:
    if activation is None or not is_live(activation, policy, now):
        text = "no such activation" if activation is None else "an activation that was released: it was not validated"
        raise Refused(404, f"License key has {text}", Reason.NOT_FOUND)
    if activation.conditions and activation.conditions != (asked.conditions or {}):
        raise Refused(
            404, "License key is activated under other conditions: send the same as then", Reason.FINGERPRINT_MISMATCH
        )


def check_usage(key: Key, increment: int, policy: Policy) -> None:
    """Raise Refused where more uses are counted than are left. A used-up key is valid while none is counted."""
    allowed = most(key.limit_usage, policy)
    if allowed is not None and increment > 0 and key.usage + increment > allowed:
        left = max(allowed - key.usage, 0)
        raise Refused(400, f"License key has only {left} more usages", Reason.USAGE_EXCEEDED)


def check_activating(key: Key, now: datetime) -> None:
    """Raise Refused where the key takes no activations at all."""
    check_standing(key, now, status=403)
    if key.limit_activations is None:
        text = "License key has no activations: validate it without one"
        raise Refused(403, text, Reason.ACTIVATION_LIMIT)


def check_room(key: Key, live: int, policy: Policy) -> None:
    """Raise Refused where as many devices as may are active already."""
    allowed = most(key.limit_activations, policy)
    if allowed is not None and live >= allowed:
        raise Refused(403, f"License key is active on {live} devices, as many as it may be", Reason.ACTIVATION_LIMIT)


def fingerprint_of(conditions: Mapping[str, Any], policy: Policy) -> str | None:
    """Return which device it is, where each may have one activation. Raises Refused where it does not say."""
    if not policy.one_per_fingerprint:
        return None
    if "fingerprint" not in conditions:
        text = "Send the device's own `fingerprint` in `conditions`: each device has one activation of this key"
        raise Refused(403, text, Reason.FINGERPRINT_MISMATCH)
    return str(conditions["fingerprint"])


def ends_after(key: Key, policy: Policy, now: datetime) -> datetime | None:
    """Return when a key ends that is being activated: for the first time it may begin to count."""
    if key.expires_at is None and policy.expires_after_activation is not None:
        return now + policy.expires_after_activation
    return key.expires_at
