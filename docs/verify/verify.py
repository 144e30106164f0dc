"""Verifies Almoner's offline licences. Copy this file; it needs Python 3.11, `pip install cryptography`, no network."""

import base64
import json
import re
from datetime import datetime, timedelta
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

TOLERANCE = timedelta(minutes=5)


class LicenceError(Exception):
    """The licence is not good.

    `reason`: malformed, unknown_key, bad_signature, clock_set_back, not_yet_valid, expired, or fingerprint_mismatch.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def verify(
    text: str, keys: dict[str, Any], now: datetime, fingerprint: str | None = None, last_seen: datetime | None = None
) -> dict[str, Any]:
    """Return what the licence says. Raises LicenceError, and TypeError for a time of yours without a time zone.

    `keys` is what /.well-known/almoner-keys.json answered; `fingerprint` is this device's; `last_seen` is the latest
    time that the app has ever seen. Times have a time zone.
    """
    _check_zones(now, last_seen or now)
    signed, _, signature = text.strip(" \t\r\n").rpartition(".")
    head, _, payload = signed.partition(".")
    try:
        said: dict[str, Any] = json.loads(_decoded(payload).decode(), parse_constant=_refused)
        given = _decoded(signature)
        if head != "almoner1" or len(given) != 64 or not isinstance(said["kid"], str):
            raise LicenceError("malformed")
    except (ValueError, TypeError, KeyError, RecursionError):
        raise LicenceError("malformed") from None
    known = next((key for key in keys["keys"] if key["kid"] == said["kid"]), None)
    if known is None:
        raise LicenceError("unknown_key")
    try:
        Ed25519PublicKey.from_public_bytes(_decoded(known["public_key"])).verify(given, signed.encode())
    except InvalidSignature:
        raise LicenceError("bad_signature") from None
    if said["version"] != 1:
        raise LicenceError("malformed")
    if last_seen is not None and now < last_seen - TOLERANCE:
        raise LicenceError("clock_set_back")
    if now < _time(said["issued_at"]) - TOLERANCE:
        raise LicenceError("not_yet_valid")
    if now >= _time(said["valid_until"]):
        raise LicenceError("expired")
    if said["fingerprint"] not in {None, fingerprint}:
        raise LicenceError("fingerprint_mismatch")
    return said


def _decoded(part: str) -> bytes:
    """Decode base64url. Raises ValueError for all that would not be written so."""
    if not re.fullmatch("[A-Za-z0-9_-]+", part):
        raise ValueError(part)
    data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != part:
        raise ValueError(part)
    return data


def _check_zones(*times: datetime) -> None:
    if any(time.tzinfo is None for time in times):
        raise TypeError("give times with a zone, like datetime.now(timezone.utc)")


def _refused(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity are no JSON


def _time(written: str) -> datetime:
    return datetime.fromisoformat(written)
