"""What a platform's HTTP status means for us: one table, for every connector."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from connectors.base import ActionRequired, ConnectorError, Rejected, Unavailable

_SECONDS = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_LONGEST_WAIT_SECONDS = 86_400.0


def error_for_status(status: int, reason: str, *, retry_after: float | None = None) -> ConnectorError:
    """Return the error for a status that is not a success. `retry_after` in seconds, as the platform asked.

    | status                       | error                                 | because                                  |
    |------------------------------|---------------------------------------|------------------------------------------|
    | 429, 503 with `retry_after`  | Unavailable, and no attempt used up   | the platform asked us to wait            |
    | 408, 425, 429, 5xx           | Unavailable                           | it passes by itself                      |
    | 401, 403                     | ActionRequired of the merchant        | credentials or permissions are wrong     |
    | any other                    | Rejected                              | it will be the same next time            |
    """
    if status in {429, 503}:
        return Unavailable(reason, retry_after=retry_after)
    # A wait is free of attempts, so that only the statuses that RFC 9110 and RFC 6585 give one may ask for it:
    # else a fault that says "Retry-After" would be tried for ever.
    if status in {408, 425} or status >= 500:
        return Unavailable(reason)
    if status in {401, 403}:
        return ActionRequired(reason, who="merchant")
    return Rejected(reason)


def retry_after(header: str | None, now: datetime) -> float | None:
    """Return the seconds that a `Retry-After` header asks for, a number or a date, at most a day; None without one.

    https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3; a fraction is not in there, but Discord has sent them.
    """
    text = (header or "").strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), _LONGEST_WAIT_SECONDS)
    try:
        at = parsedate_to_datetime(text)
        # The RFC's third form of a date names no zone, and means UTC.
        seconds = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now.timestamp()
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), _LONGEST_WAIT_SECONDS)
