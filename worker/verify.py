"""Verify a webhook's signature, by both of Polar's schemes and with several secrets. Pure.

Polar signs `{webhook-id}.{webhook-timestamp}.{body}` with HMAC-SHA256. Secrets made since 2026-09-08 follow Standard
Webhooks: the key is what stands base64-encoded after `whsec_`. All others are used whole, as UTF-8 bytes (polar.md
2.3). A secret's form does not tell which, so both are tried.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from standardwebhooks.webhooks import Webhook

Scheme = Literal["standard", "legacy"]

_ID = re.compile(r"[!-~]{1,255}")
_TIMESTAMP = re.compile(r"[0-9]{1,15}")
_PREFIX = "whsec_"


class NotVerified(Exception):
    """The request does not prove that it comes from Polar; the message may be shown to whoever sent it."""


@dataclass(frozen=True)
class Key:
    """One way to sign: a secret under one scheme. `secret` is its fingerprint, not itself."""

    secret: str
    scheme: Scheme
    bytes: bytes


@dataclass(frozen=True)
class Verified:
    """Who a request is from, and when it was sent."""

    webhook_id: str
    sent_at: datetime
    secret: str
    scheme: Scheme


def fingerprint(secret: str) -> str:
    """Return a name for a secret that gives nothing away: the start of its SHA-256."""
    return hashlib.sha256(secret.encode()).hexdigest()[:12]


def keys_of(secrets: Iterable[str]) -> tuple[Key, ...]:
    """Return all keys by which these secrets may sign; made once, since decoding costs more than verifying."""
    keys = []
    for secret in secrets:
        name = fingerprint(secret)
        standard = _standard_key(secret)
        if standard:
            keys.append(Key(name, "standard", standard))
        keys.append(Key(name, "legacy", secret.encode()))
    return tuple(keys)


def _standard_key(secret: str) -> bytes | None:
    """Return the key that the reference library reads out of a secret, or None where it cannot."""
    encoded = secret.removeprefix(_PREFIX)
    if not secret.startswith(_PREFIX) or not encoded:
        return None
    try:
        # Refuses what base64 cannot be; the library itself would skip foreign characters.
        base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        key: bytes = Webhook(secret)._whsecret  # noqa: SLF001 - the library offers no other way to its key
    except ValueError:
        return None
    return key


def verify(
    headers: Mapping[str, str], body: bytes, keys: tuple[Key, ...], now: datetime, tolerance: timedelta
) -> Verified:
    """Return who sent this and when. `headers` have lower-case names. Raises NotVerified."""
    webhook_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    signatures = headers.get("webhook-signature", "")
    if not webhook_id or not timestamp or not signatures:
        raise NotVerified("webhook-id, webhook-timestamp and webhook-signature are needed")
    if not _ID.fullmatch(webhook_id) or not _TIMESTAMP.fullmatch(timestamp):
        raise NotVerified("webhook-id or webhook-timestamp is malformed")
    match = _matching(f"{webhook_id}.{timestamp}.".encode() + body, signatures, keys)
    if match is None:
        raise NotVerified("No signature matches; compare the secret in Polar with ALMONER_WEBHOOK_SECRETS")
    seconds = int(timestamp) - now.timestamp()
    if abs(seconds) > tolerance.total_seconds():
        raise NotVerified(
            f"webhook-timestamp is {abs(seconds):.0f} s in the {'future' if seconds > 0 else 'past'}; "
            f"more than {tolerance.total_seconds():.0f} s are refused. Is this server's clock right?"
        )
    return Verified(webhook_id, datetime.fromtimestamp(int(timestamp), UTC), match.secret, match.scheme)


def _matching(content: bytes, signatures: str, keys: tuple[Key, ...]) -> Key | None:
    offered = [part[3:].encode("latin-1", "replace") for part in signatures.split(" ")[:16] if part.startswith("v1,")]
    if not offered:
        return None
    for key in keys:
        expected = base64.b64encode(hmac.digest(key.bytes, content, "sha256"))
        if any(hmac.compare_digest(expected, one) for one in offered):
            return key
    return None
