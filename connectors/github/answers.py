"""What GitHub allows and refuses, and what that means for us: pure rules about limits and answers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from connectors.base import ActionRequired, ConnectorError, Rate, Unavailable
from connectors.http import error_for_status, retry_after

# "no more than 80 content-generating requests per minute and no more than 500 per hour", 5,000 requests an hour, and
# without headers "wait for at least one minute":
# https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api
# https://docs.github.com/en/rest/using-the-rest-api/best-practices-for-using-the-rest-api
# "50 invitations to a repository per 24 hour period", not counting members of the organization:
# https://docs.github.com/en/rest/collaborators/collaborators#add-a-repository-collaborator
REQUESTS = (5_000, 3_600.0)
_WRITES = ((":writes", 80, 60.0), (":writes-hour", 500, 3_600.0))
_INVITATIONS = (50, 86_400.0)
UNNAMED_WAIT_SECONDS = 60.0
_LONGEST_RESET_SECONDS = 3_600.0
_FULL_REPOSITORY_WAIT_SECONDS = 3_600.0

# What GitHub says, and who must do what: `{0}` is what we were about. The first that fits counts.
_REFUSALS: tuple[tuple[str, str], ...] = (
    (r"\barchived\b", "{0}: the repository is archived; unarchive it, or take it out of the benefit"),
    (r"\bseats?\b", "{0}: the organization has no seats left; buy seats, or remove people who need none"),
    (r"\bsuspended\b", "{0}: the GitHub App's installation is suspended; unsuspend it in the organization's settings"),
    (r"\bblock(?:ed|s)?\b", "{0}: the account and the organization block each other; lift the block"),
    (
        r"outside collaborator|\bpolic(?:y|ies)\b|enterprise|members can",
        "{0}: a policy of the organization forbids it; allow outside collaborators, or make the account a member",
    ),
    (
        r"cannot assign",
        "{0}: the permission is below what the organization gives its members anyway; raise it in the benefit",
    ),
    (
        r"not accessible by|admin rights|administration",
        "{0}: we may not; give the App `Administration: Read and write`, or take an administrator's token",
    ),
    (r"\brole\b|\bpermission\b", "{0}: the organization has no such role; correct the benefit's `permission`"),
)


def rates(who: str, pace: float, *, writes: bool = False, invites: int | None = None) -> tuple[Rate, ...]:
    """Return the limits of one request: of this installation or token, and of the repository that it invites to."""
    found = [Rate(f"github:{who}", REQUESTS[0], REQUESTS[1] * pace)]
    if writes:
        found += [Rate(f"github:{who}{name}", limit, seconds * pace) for name, limit, seconds in _WRITES]
    if invites is not None:
        found.append(Rate(f"github:invitations:{invites}", _INVITATIONS[0], _INVITATIONS[1] * pace))
    return tuple(found)


@dataclass(frozen=True)
class Answer:
    """What GitHub answered to one request."""

    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def message(self) -> str:
        """Everything that it says in words."""
        if not isinstance(self.body, dict):
            return ""
        errors = self.body.get("errors")
        said = [self.body.get("message"), *(errors if isinstance(errors, list) else [])]
        return "; ".join(
            str(one.get("message") or one.get("code")) if isinstance(one, dict) else str(one) for one in said
        )


def wait_asked_for(answer: Answer, now: datetime) -> float | None:
    """Return the seconds that a used-up limit asks us to wait, 0 where it does not say how long; None without one.

    https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api#exceeding-the-rate-limit
    """
    if answer.status not in {403, 429}:
        return None
    seconds = retry_after(answer.headers.get("retry-after"), now)
    if seconds is not None:
        return max(seconds, 1e-3)
    reset = answer.headers.get("x-ratelimit-reset", "")
    if answer.headers.get("x-ratelimit-remaining") == "0" and reset.isdigit():
        seconds = (datetime.fromtimestamp(int(reset), UTC) - now).total_seconds()
        return min(max(seconds, 1.0), _LONGEST_RESET_SECONDS)
    is_limit = answer.status == 429 or re.search(r"rate limit|abuse detection", answer.message, re.IGNORECASE)
    return 0 if is_limit else None


def refusal(answer: Answer, about: str) -> ConnectorError:
    """Return the error for an answer of 400 or above, in a sentence that says who must do what."""
    if answer.status == 401:
        return ActionRequired(
            f"{about}: GitHub does not accept our credentials; look at ALMONER_GITHUB_APP_ID and "
            "ALMONER_GITHUB_PRIVATE_KEY, or ALMONER_GITHUB_TOKEN",
            who="merchant",
        )
    # The words that were seen at https://github.com/octokit/octokit.net/issues/1686
    if re.search(r"limited to sending \d+ invitations", answer.message, re.IGNORECASE):
        reason = f"{about}: GitHub allows no more invitations to this repository today"
        return Unavailable(reason, retry_after=_FULL_REPOSITORY_WAIT_SECONDS)
    if answer.status in {403, 422}:
        for words, sentence in _REFUSALS:
            if re.search(words, answer.message, re.IGNORECASE):
                return ActionRequired(sentence.format(about), who="merchant")
    if answer.status == 404:
        return ActionRequired(
            f"{about}: GitHub finds it no more, or we may not see it; look at the repository, the account and our "
            "permissions there",
            who="merchant",
        )
    return error_for_status(answer.status, f"{about}: GitHub answered {answer.status}: {answer.message[:200]}")
