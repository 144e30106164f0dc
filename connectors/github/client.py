"""GitHub's REST API: signing in as an App or by a token, and one request at a time within the limits."""

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from connectors.base import ActionRequired, Rate, Tools, Unavailable
from connectors.github.answers import REQUESTS, UNNAMED_WAIT_SECONDS, Answer, rates, refusal, wait_asked_for
from connectors.github.connections import Connections, MovedElsewhere, Shared, own_auth

if TYPE_CHECKING:
    from github import Auth

T = TypeVar("T")

_LONGEST_REQUEST_SECONDS = 4
_RENEW_BEFORE = timedelta(minutes=2)
_PAGE = 100
_RECENT_SECONDS = 60.0
"""How long we go by what a repository was called: many grants look at one at once, and one's acts follow quickly."""


@dataclass(frozen=True)
class Installation:
    """The App at an organization: what it may do, and in which repositories."""

    id: int
    sees_all: bool
    is_suspended: bool
    permissions: Mapping[str, str]


@dataclass
class Access:
    """A way in: an installation of the App, the App itself, or a token; with what we keep of it."""

    who: str
    """Names its limits; never the token."""
    installation: Installation | None = None
    connections: Connections | None = None
    until: datetime | None = None
    limit: int = REQUESTS[0]


class GitHub:
    """Requests to GitHub, each a job of its own in the executor: who is cancelled begins no further one."""

    def __init__(self, tools: Tools, pace: float = 1.0) -> None:
        self._tools = tools
        self._pace = pace
        self.shared = Shared()
        self._token: Access | None = None
        self._app: Access | None = None
        self._installed: dict[str, int] = {}
        self._accesses: dict[int, Access] = {}

    async def ask(
        self,
        access: Access,
        verb: str,
        path: str,
        about: str,
        *,
        body: Mapping[str, Any] | None = None,
        taken: bool = False,
        invites: int | None = None,
        fine: tuple[int, ...] = (),
    ) -> Answer:
        """Send one request. Statuses of 400 and above raise ConnectorError, except those that are `fine`.

        `about` begins the sentence of an error; `taken`: its places under the limits are taken already;
        `invites`: the number of the repository that it invites to.
        """
        if not taken:
            await self.take(access, writes=verb not in {"GET", "POST"})
        connections = await self._signed_in(access, about)
        answer = await self._send(connections, verb, path, body, about)
        if answer.status == 401 and access.installation:
            # The token has ended early, as when the App was removed and installed again. A fresh one, or the reason.
            if access.connections is connections:
                access.connections = None
            answer = await self._send(await self._signed_in(access, about), verb, path, body, about)
        await self._heed(access, answer, about)
        if answer.status >= 400 and answer.status not in fine:
            error = refusal(answer, about)
            if invites is not None and isinstance(error, Unavailable) and error.retry_after:
                # The day's invitations, and others than us have sent some.
                full = rates(access.who, self._pace, invites=invites)[-1]
                await self._tools.limits.park(full.name, error.retry_after, str(error))
            raise error
        return answer

    @property
    def is_app(self) -> bool:
        """Whether we sign in as an App, and not by a token."""
        return bool(self._tools.settings.github_app_id)

    async def take(self, access: Access, *, writes: bool = False, invites: int | None = None, reads: int = 0) -> None:
        """Take the places of one request under the limits, and of `reads` more. Raises Unavailable."""
        more = rates(access.who, self._pace) * reads
        await self._tools.limits.take(*more, *rates(access.who, self._pace, writes=writes, invites=invites))

    async def check_room(self, access: Access) -> None:
        """See whether there is a place for a write: else looking costs requests for nothing. Raises Unavailable."""
        await self._tools.limits.check(*rates(access.who, self._pace, writes=True))

    @property
    def recently(self) -> float:
        """Since when, by the monotonic clock, what was read may be used again where that is enough."""
        return monotonic() - _RECENT_SECONDS * self._pace

    async def pages(self, access: Access, path: str, about: str) -> list[dict[str, Any]]:
        """Return a whole list, as it was after now. Raises ConnectorError."""

        async def read() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = []
            for page in range(1, 10_000):
                more = f"{path}{'&' if '?' in path else '?'}per_page={_PAGE}&page={page}"
                answer = await self.ask(access, "GET", more, about)
                found += answer.body
                if 'rel="next"' not in answer.headers.get("link", ""):
                    break
            return found

        return await self.shared.ask((access.who, path), read)

    async def access(self, name: str, *, fresh: bool = False) -> Access:
        """Return the way in to a repository: by the token, or the App's installation there. Raises ConnectorError."""
        if not self.is_app:
            return self.by_token()
        number = self._installed.get(name.lower())
        if number is None or fresh:

            async def find() -> int:
                about = f"the repository {name}"
                answer = await self.ask(self._as_app(), "GET", f"/repos/{name}/installation", about, fine=(404,))
                if answer.status == 404:
                    raise ActionRequired(
                        f"{about} does not exist, or the GitHub App is not installed there; install it, give it this "
                        "repository, or correct the name",
                        who="merchant",
                    )
                return self._keep(answer.body).id

            number = await self.shared.ask(("installation", name.lower()), find)
            self._installed[name.lower()] = number
        return self._accesses[number]

    # Signing in.

    def by_token(self) -> Access:
        """Return the way in by the token. Raises ActionRequired where there is none."""
        if self._token is None:
            secret = self._tools.settings.github_token.get_secret_value()
            if not secret:
                raise ActionRequired("ALMONER_GITHUB_TOKEN is missing, and there is no GitHub App", who="merchant")
            self._token = Access(f"token-{hashlib.sha256(secret.encode()).hexdigest()[:12]}")
        return self._token

    def _as_app(self) -> Access:
        if self._app is None:
            self._app = Access(f"app-{self._tools.settings.github_app_id}")
        return self._app

    async def by_installation(self, number: int, about: str) -> Access:
        """Return the way in by an installation that we had. Raises ActionRequired where it was removed."""
        answer = await self.ask(self._as_app(), "GET", f"/app/installations/{number}", about, fine=(404,))
        if answer.status == 404:
            raise ActionRequired(f"{about}: the GitHub App was uninstalled there; install it again", who="merchant")
        return self._accesses[self._keep(answer.body).id]

    def _keep(self, body: Mapping[str, Any]) -> Installation:
        found = Installation(
            body["id"],
            sees_all=body["repository_selection"] == "all",
            is_suspended=bool(body["suspended_at"]),
            permissions=body["permissions"],
        )
        self._accesses.setdefault(found.id, Access(str(found.id))).installation = found
        return found

    async def _signed_in(self, access: Access, about: str) -> Connections:
        ends = access.until
        if access.connections and (ends is None or ends - _RENEW_BEFORE > self._tools.now()):
            return access.connections
        if access.installation:
            return await self.shared.ask(("token", access.who), lambda: self._renewed(access, about))
        try:
            auth = await self._in_thread(own_auth, self._tools.settings)
        except ValueError as error:
            raise ActionRequired(str(error), who="merchant") from None
        access.connections = self._connections(auth)
        return access.connections

    async def _renewed(self, access: Access, about: str) -> Connections:
        """Return connections with a fresh token of the installation; one lasts an hour.

        https://docs.github.com/en/rest/apps/apps#create-an-installation-access-token-for-an-app
        """
        from github import Auth

        if access.installation is None:  # pragma: no cover - only installations get here
            raise TypeError(access.who)
        path = f"/app/installations/{access.installation.id}/access_tokens"
        answer = await self.ask(self._as_app(), "POST", path, about, body={}, fine=(404,))
        if answer.status == 404:
            self._installed = {name: one for name, one in self._installed.items() if one != access.installation.id}
            raise ActionRequired(f"{about}: the GitHub App was uninstalled there; install it again", who="merchant")
        access.until = datetime.fromisoformat(answer.body["expires_at"])
        access.connections = self._connections(Auth.Token(answer.body["token"]))
        return access.connections

    def _connections(self, auth: "Auth.Auth") -> Connections:
        seconds = int(self._tools.settings.call_timeout.total_seconds() / 2)
        return Connections(auth, self._tools.settings.github_api_url, max(1, min(seconds, _LONGEST_REQUEST_SECONDS)))

    # One request.

    async def _send(
        self, connections: Connections, verb: str, path: str, body: Mapping[str, Any] | None, about: str
    ) -> Answer:
        from requests import RequestException

        try:
            return await self._in_thread(connections.send, verb, path, body)
        except RequestException as error:
            # Not the error's own text: it can quote addresses with passwords in them.
            raise Unavailable(f"{about}: GitHub cannot be reached: {type(error).__name__}") from None
        except json.JSONDecodeError:
            raise Unavailable(f"{about}: GitHub's answer is not JSON") from None
        except MovedElsewhere:
            raise ActionRequired(
                f"{about}: GitHub is at another address; correct ALMONER_GITHUB_API_URL", who="merchant"
            ) from None

    async def _in_thread(self, call: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._tools.executor, call, *arguments)

    async def _heed(self, access: Access, answer: Answer, about: str) -> None:
        """Learn the limit that GitHub tells of, and have everybody wait where it is used up. Raises Unavailable."""
        told = answer.headers.get("x-ratelimit-limit", "")
        if (
            told.isdigit()
            and int(told) != access.limit
            and answer.headers.get("x-ratelimit-resource", "core") == "core"
        ):
            access.limit = int(told)
            rate = rates(access.who, self._pace)[0]
            await self._tools.limits.learn(Rate(rate.name, access.limit, rate.seconds))
        wait = wait_asked_for(answer, self._tools.now())
        if wait is not None:
            seconds = UNNAMED_WAIT_SECONDS * self._pace if wait == 0 else wait
            reason = f"GitHub's limit for {access.who} is used up"
            await self._tools.limits.park(f"github:{access.who}", seconds, reason)
            raise Unavailable(f"{about}: {reason}", retry_after=seconds)
