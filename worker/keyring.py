"""The keys that sign offline licences: which one signs now, and which an app must still know. Pure."""

import hashlib
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from msgspec import Struct

_HOUR = timedelta(hours=1)

Standing = Literal["signs", "waits", "replaced", "retired"]


class SigningKey(Struct, frozen=True, kw_only=True):
    """A key. Its private half is encrypted wherever it is kept."""

    kid: str
    public_key: bytes
    """32 bytes, raw."""
    sealed: bytes | None
    """The private half, 32 bytes, encrypted; forgotten when the key is retired."""
    sealed_with: str | None
    """The fingerprint of what encrypted it."""
    created_at: datetime
    signs_from: datetime
    retired_at: datetime | None = None
    """From when on it signs nothing, because another has taken its place or a person has retired it."""
    until: datetime | None = None
    """Until when an app must know it: no licence that it has signed lasts longer. None while it has signed none."""


def kid_of(public_key: bytes) -> str:
    """Return what a key is called: 16 hexadecimal digits that follow from its public half."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def base64url(data: bytes) -> str:
    """Write bytes as licences and lists of keys do: without padding."""
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def signer(keys: Iterable[SigningKey], now: datetime) -> SigningKey | None:
    """Return the key that signs now: of those whose time has come, the newest."""
    able = [one for one in keys if one.sealed and one.signs_from <= now and not _is_over(one, now)]
    return max(able, key=lambda one: (one.signs_from, one.kid), default=None)


def waiting(keys: Iterable[SigningKey], now: datetime) -> SigningKey | None:
    """Return the key that is known already and signs later, or None."""
    return next((one for one in keys if one.signs_from > now and not _is_over(one, now)), None)


def standing(key: SigningKey, now: datetime) -> Standing:
    """Return what a key does now. One that was replaced is still listed; one that is retired is not."""
    if _is_over(key, now):
        return "replaced" if is_listed(key, now) else "retired"
    return "signs" if key.signs_from <= now else "waits"


def is_listed(key: SigningKey, now: datetime) -> bool:
    """Whether apps must know it: it signs, will sign, or has signed what may still be good."""
    return not _is_over(key, now) or (key.until is not None and key.until > now)


def _is_over(key: SigningKey, now: datetime) -> bool:
    return key.retired_at is not None and key.retired_at <= now


def covering(valid_until: datetime) -> datetime:
    """Return what to remember of a licence's end: the next full hour, so that most licences need no write."""
    hour = valid_until.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    return hour if hour == valid_until else hour + _HOUR


def listed(keys: Sequence[SigningKey], now: datetime) -> list[dict[str, Any]]:
    """Return the keys that apps must know, as `/.well-known/almoner-keys.json` has them."""
    return [
        {
            "kid": one.kid,
            "alg": "Ed25519",
            "public_key": base64url(one.public_key),
            "signs_from": _written(one.signs_from),
            "retired_at": _written(one.retired_at),
            "until": _written(one.until) if one.retired_at else None,
        }
        for one in keys
        if is_listed(one, now)
    ]


def _written(at: datetime | None) -> str | None:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z") if at else None
