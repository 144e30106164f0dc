"""What a platform's HTTP status means for us: one table, for every connector."""

from datetime import datetime
from email.utils import parsedate_to_datetime

from connectors.base import ActionRequired, ConnectorError, Rejected, Unavailable


def error_for_status(status: int, reason: str, *, retry_after: float | None = None) -> ConnectorError:
    """Return the error for a status that is not a success. `retry_after` in seconds, as the platform asked.

    408, 425, 429 and 5xx pass by themselves; 401 and 403 mean that the merchant's credentials or permissions are
    wrong; any other status will be the same next time.
    """
    if status in {408, 425, 429} or status >= 500:
        return Unavailable(reason, retry_after=retry_after)
    if status in {401, 403}:
        return ActionRequired(reason, who="merchant")
    return Rejected(reason)


def retry_after(header: str | None, now: datetime) -> float | None:
    """Return the seconds that a `Retry-After` header asks for: a number of them, or a date (RFC 9110, 10.2.3)."""
    if not header:
        return None
    if header.strip().isdigit():
        return float(header)
    try:
        at = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max((at - now).total_seconds(), 0.0) if at.tzinfo else None
