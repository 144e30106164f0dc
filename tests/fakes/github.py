"""GitHub, as far as repositories and their collaborators go: stateful, over real HTTP, held to GitHub's own document.

`python -m tests.fakes.github --port 0` runs it for the demo and the benchmarks, with a few controls under `/_fake/`.
"""

import argparse
import asyncio
import base64
import hashlib
import json
import re
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.fakes import github_shapes as shapes
from tests.fakes.specification import Specification

DOCUMENT = Path(__file__).parents[1] / "data" / "github.openapi.json.gz"
API = "/api/v3"
LASTS = timedelta(days=7)
_ROLES = {"pull": "read", "triage": "triage", "push": "write", "maintain": "maintain", "admin": "admin"}
_ORDER = ["none", "read", "triage", "write", "maintain", "admin"]
_LEGACY = {"triage": "read", "maintain": "write"}

_EXTRA = {
    f"{verb} /repositories/{{repository_id}}{rest}": "where GitHub redirects those who ask for a name that is past"
    for verb, rest in (
        ("GET", ""),
        ("GET", "/installation"),
        ("GET", "/invitations"),
        ("GET", "/collaborators"),
        ("GET", "/collaborators/{username}"),
        ("GET", "/collaborators/{username}/permission"),
    )
}
_ANYWHERE = dict.fromkeys(
    (301, 307, 401, 403, 404, 422, 429, 500, 502, 503),
    "rate limits, refusals, redirects and faults may come from every operation",
)


@cache
def new_key() -> tuple[str, Any]:
    """An App's private key as PEM text, and the public one. Made once: it takes a moment."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()
    return pem, key.public_key()


def invalid(message: str) -> "Refused":
    """GitHub's way to say what is wrong with a request."""
    return Refused(422, "Validation Failed", errors=[{"resource": "Repository", "code": "custom", "message": message}])


@dataclass
class User:
    id: int
    login: str
    type: str = "User"
    is_deleted: bool = False
    # Of organizations:
    owners: set[int] = field(default_factory=set)
    members: set[int] = field(default_factory=set)
    base: str = "none"
    roles: dict[str, str] = field(default_factory=dict)
    """Custom roles, and the base of each."""
    seats: int | None = None
    allows_outside: bool = True
    blocked: set[int] = field(default_factory=set)


@dataclass
class Invitation:
    id: int
    invitee: int
    role: str
    created_at: datetime


@dataclass
class Repository:
    id: int
    owner: int
    name: str
    is_private: bool = True
    is_archived: bool = False
    is_deleted: bool = False
    collaborators: dict[int, str] = field(default_factory=dict)
    teams: list[tuple[set[int], str]] = field(default_factory=list)
    invitations: dict[int, Invitation] = field(default_factory=dict)
    invited: deque[float] = field(default_factory=deque)


@dataclass
class Installation:
    id: int
    account: int
    selection: str = "all"
    repositories: set[int] = field(default_factory=set)
    suspended_at: datetime | None = None
    is_deleted: bool = False
    permissions: dict[str, str] = field(default_factory=lambda: {"administration": "write", "metadata": "read"})


@dataclass
class Token:
    kind: str  # installation, user
    of: int
    until: datetime | None = None


@dataclass
class Fault:
    """What happens to the next requests that fit, instead of or after the act."""

    verb: str
    path: str
    times: int
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    drops: bool = False
    acts: bool = False
    wait: float = 0.0
    then: Callable[[], None] | None = None


@dataclass
class Request:
    verb: str
    path: str
    query: dict[str, str]
    body: bytes
    headers: dict[str, str]
    status: int = 0

    @property
    def line(self) -> str:
        return f"{self.verb} {self.path}"


@dataclass
class Reply:
    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


class Refused(Exception):
    def __init__(self, status: int, message: str, **more: Any) -> None:
        super().__init__(message)
        headers = more.pop("headers", {})
        self.reply = Reply(status, {"message": message, "documentation_url": "https://docs.github.com/rest"} | more,
                           headers)  # fmt: skip


class GitHub:
    """The fake. Its state is plain attributes; tests change it as GitHub's users and owners would."""

    def __init__(self, *, clock: Callable[[], datetime] | None = None, is_checked: bool = False) -> None:
        self.specification = Specification(DOCUMENT, extra=_EXTRA, anywhere=_ANYWHERE) if is_checked else None
        self.lock = threading.RLock()
        self.web = ""
        self.reset(clock)

    def reset(self, clock: Callable[[], datetime] | None = None) -> None:
        """Forget everything: no users, no repositories; the App is there, and installed nowhere."""
        self.clock = clock or (lambda: datetime.now(UTC))
        self.users: dict[int, User] = {}
        self.repositories: dict[int, Repository] = {}
        self.past_names: dict[str, int] = {}
        self.app_id = "4711"
        self.pem, self.public_key = new_key()
        self.installations: dict[int, Installation] = {}
        self.tokens: dict[str, Token] = {}
        self.faults: list[Fault] = []
        self.log: list[Request] = []
        self.ids = iter(range(100_001, 10**9))
        self.enforces_limits = False
        self.pace = 1.0
        self.primary_limit = 5_000
        self.calls: dict[str, deque[float]] = {}
        self.writes: dict[str, deque[float]] = {}
        self.client_id, self.client_secret = "Iv1.fake", "client-secret-of-the-fake"
        self.codes: dict[str, dict[str, Any]] = {}
        self.approves_as: int | None = None
        if self.specification:
            self.specification.violations.clear()

    # What people do at GitHub.

    def user(self, login: str, number: int | None = None) -> User:
        user = User(number or next(self.ids), login)
        self.users[user.id] = user
        return user

    def organization(self, login: str, *, installed: bool = True, selection: str = "all", **more: Any) -> User:
        organization = User(next(self.ids), login, "Organization", **more)
        self.users[organization.id] = organization
        if installed:
            self.install(organization, selection)
        return organization

    def install(self, owner: User, selection: str = "all", *repositories: Repository) -> Installation:
        made = Installation(next(self.ids), owner.id, selection, {one.id for one in repositories})
        self.installations[made.id] = made
        return made

    def repository(self, owner: User, name: str, **more: Any) -> Repository:
        repository = Repository(next(self.ids), owner.id, name, **more)
        self.repositories[repository.id] = repository
        self.past_names.pop(self.full_name(repository).lower(), None)
        if owner.type == "User":
            repository.collaborators[owner.id] = "admin"
        return repository

    def token(self, user: User) -> str:
        """A token of a person, as `ALMONER_GITHUB_TOKEN`."""
        token = f"ghp_{secrets.token_hex(18)}"
        self.tokens[token] = Token("user", user.id)
        return token

    def rename(self, repository: Repository, name: str) -> None:
        self.past_names[self.full_name(repository).lower()] = repository.id
        repository.name = name

    def transfer(self, repository: Repository, owner: User) -> None:
        self.past_names[self.full_name(repository).lower()] = repository.id
        repository.owner = owner.id

    def accept(self, repository: Repository, user: User) -> None:
        for invitation in self.waiting(repository, user):
            del repository.invitations[invitation.id]
            repository.collaborators[user.id] = invitation.role

    def decline(self, repository: Repository, user: User) -> None:
        for invitation in self.waiting(repository, user):
            del repository.invitations[invitation.id]

    def waiting(self, repository: Repository, user: User) -> list[Invitation]:
        now = self.clock()
        return [
            one for one in repository.invitations.values() if one.invitee == user.id and one.created_at + LASTS > now
        ]

    def uninstall(self, installation: Installation) -> None:
        installation.is_deleted = True
        self.tokens = {
            name: one for name, one in self.tokens.items() if (one.kind, one.of) != ("installation", installation.id)
        }

    def fail(self, verb: str, path: str, status: int | None = None, *, times: int = 1, **more: Any) -> Fault:
        """Have the next requests whose path matches (a pattern, in full) go wrong."""
        fault = Fault(verb, path, times, status, **more)
        self.faults.append(fault)
        return fault

    def lines(self) -> list[str]:
        """Every request to the API so far, without the App's own signing in."""
        return [
            one.line for one in self.log if not one.path.startswith("/app/") and not one.path.endswith("/installation")
        ]

    # What is where.

    def full_name(self, repository: Repository) -> str:
        return f"{self.users[repository.owner].login}/{repository.name}"

    def _user(self, login: str) -> User:
        for user in self.users.values():
            if user.login.lower() == unquote(login).lower() and not user.is_deleted:
                return user
        raise Refused(404, "Not Found")

    def _repository(self, owner: str, name: str) -> Repository:
        wanted = f"{owner}/{name}".lower()
        for repository in self.repositories.values():
            if self.full_name(repository).lower() == wanted and not repository.is_deleted:
                return repository
        raise Refused(404, "Not Found")

    def role(self, repository: Repository, user: int) -> str:
        """The highest role of an account, from all sources; custom roles by name."""
        owner = self.users[repository.owner]
        found = ["read"] if not repository.is_private else []
        if user in owner.owners or user == owner.id:
            return "admin"
        if user in owner.members:
            found.append(owner.base)
        found += [role for members, role in repository.teams if user in members]
        if user in repository.collaborators:
            found.append(repository.collaborators[user])
        return max(found, key=lambda role: _ORDER.index(self.base(repository, role)), default="none")

    def base(self, repository: Repository, role: str) -> str:
        return self.users[repository.owner].roles.get(role, role)

    def is_member(self, repository: Repository, user: int) -> bool:
        owner = self.users[repository.owner]
        return user in owner.members or user in owner.owners or user == owner.id

    # The server.

    async def __call__(self, scope: Mapping[str, Any], receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        self.web = f"http://{headers.get('host', '')}"
        path = scope.get("raw_path", scope["path"].encode()).decode().split("?")[0]
        query = dict(parse_qsl(scope["query_string"].decode(), keep_blank_values=True))
        request = Request(scope["method"], path.removeprefix(API), query, body, headers)
        fault = None
        if path.startswith(API + "/"):
            with self.lock:
                self.log.append(request)
                if self.specification:
                    self.specification.check_request(request.verb, request.path, query, body)
                fault = self._fault(request)
        if fault and fault.wait:
            await asyncio.sleep(fault.wait)
        reply = self._reply(path, request, fault)
        if fault and fault.drops:
            # Announced and not sent: uvicorn closes the connection then.
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
            return
        await self._answer(send, request, reply)

    def _fault(self, request: Request) -> Fault | None:
        for fault in self.faults:
            if fault.times and fault.verb == request.verb and re.fullmatch(fault.path, request.path):
                fault.times -= 1
                return fault
        return None

    def _reply(self, path: str, request: Request, fault: Fault | None) -> Reply:
        with self.lock:
            try:
                if not path.startswith(API + "/"):
                    return self._elsewhere(path, request)
                if fault and fault.then:
                    fault.then()
                if fault and fault.status and not fault.acts:
                    return Reply(fault.status, fault.body, dict(fault.headers))
                reply = Reply(0) if fault and fault.drops and not fault.acts else self._api(request)
                if fault and fault.status:
                    reply = Reply(fault.status, fault.body, dict(fault.headers))
            except Refused as refused:
                reply = refused.reply
            if self.specification and reply.status:
                encoded = b"" if reply.body is None else json.dumps(reply.body).encode()
                self.specification.check_answer(request.verb, request.path, reply.status, encoded)
            return reply

    async def _answer(self, send: Any, request: Request, reply: Reply) -> None:
        request.status = reply.status
        if isinstance(reply.body, str):
            body, kind = reply.body.encode(), "text/html; charset=utf-8"
        else:
            body, kind = (
                b"" if reply.body is None else json.dumps(reply.body).encode(),
                "application/json; charset=utf-8",
            )
        headers = {"content-type": kind, "content-length": str(len(body))} | reply.headers
        sent = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": sent})
        await send({"type": "http.response.body", "body": body})

    # Signing in and limits.

    def _api(self, request: Request) -> Reply:
        caller = self._caller(request)
        name = f"{caller.kind}-{caller.of}"
        told = self._limits(name, request)
        for verb, pattern, act in _ROUTES:
            if verb == request.verb and (match := pattern.fullmatch(request.path)):
                reply: Reply = act(self, request, caller, *match.groups())
                reply.headers = told | reply.headers
                return reply
        raise Refused(404, "Not Found")

    def _caller(self, request: Request) -> Token:
        kind, _, secret = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and secret.count(".") == 2:
            return self._app(secret)
        token = self.tokens.get(secret)
        if token is None or (token.until and token.until <= self.clock()):
            raise Refused(401, "Bad credentials")
        if token.kind == "installation":
            installation = self.installations[token.of]
            if installation.is_deleted:
                raise Refused(401, "Bad credentials")
            if installation.suspended_at:
                raise Refused(403, "This installation has been suspended")
        return token

    def _app(self, secret: str) -> Token:
        """https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app."""
        try:
            claims = jwt.decode(
                secret, self.public_key, algorithms=["RS256"], options={"require": ["exp", "iat", "iss"]}
            )
        except jwt.InvalidTokenError:
            raise Refused(401, "A JSON web token could not be decoded") from None
        if claims["exp"] > time.time() + 600:
            raise Refused(401, "'Expiration time' claim ('exp') is too far in the future")
        if str(claims["iss"]) != self.app_id:
            raise Refused(404, "Integration not found")
        return Token("app", int(self.app_id))

    def _limits(self, name: str, request: Request) -> dict[str, str]:
        now = time.monotonic()
        calls, writes = self.calls.setdefault(name, deque()), self.writes.setdefault(name, deque())
        while calls and calls[0] <= now - 3_600 * self.pace:
            calls.popleft()
        while writes and writes[0] <= now - 3_600 * self.pace:
            writes.popleft()
        calls.append(now)
        remaining = max(self.primary_limit - len(calls), 0)
        reset = self.clock() + timedelta(seconds=calls[0] + 3_600 * self.pace - now)
        told = {
            "x-ratelimit-limit": str(self.primary_limit),
            "x-ratelimit-remaining": str(remaining),
            "x-ratelimit-reset": str(int(reset.timestamp()) + 1),
            "x-ratelimit-resource": "core",
        }
        if not self.enforces_limits:
            return told
        if len(calls) > self.primary_limit:
            raise Refused(403, f"API rate limit exceeded for {name}.", headers=told)
        if request.verb in {"PUT", "PATCH", "DELETE"}:
            last = [at for at in writes if at > now - 60 * self.pace]
            if len(last) >= 80 or len(writes) >= 500:
                first, span = (last[-80], 60) if len(last) >= 80 else (writes[-500], 3_600)
                wait = str(max(first + span * self.pace - now, 0.01))
                wait = wait if self.pace < 1 else str(int(float(wait)) + 1)
                message = "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."
                raise Refused(403, message, headers=told | {"retry-after": wait})
            writes.append(now)
        return told

    # What the routes share.

    def _visible(self, caller: Token, repository: Repository) -> Repository:
        if caller.kind == "installation":
            at = self.installations[caller.of]
            is_here = at.account == repository.owner and (at.selection == "all" or repository.id in at.repositories)
        else:
            is_here = caller.kind == "user" and self.role(repository, caller.of) != "none"
        if not is_here and repository.is_private:
            raise Refused(404, "Not Found")
        return repository

    def _administers(self, caller: Token, repository: Repository) -> bool:
        if caller.kind == "installation":
            return self.installations[caller.of].permissions.get("administration") == "write"
        return self.role(repository, caller.of) == "admin"

    def at(self, request: Request, caller: Token, owner: str, name: str) -> Repository:
        """The repository of a path; a name that is past is redirected."""
        try:
            repository = self._repository(owner, name)
        except Refused:
            past = self.past_names.get(f"{owner}/{name}".lower())
            if past is None or self.repositories[past].is_deleted:
                raise
            if caller.kind != "app":
                self._visible(caller, self.repositories[past])
            rest = request.path.removeprefix(f"/repos/{owner}/{name}")
            tail = f"?{urlencode(request.query)}" if request.query else ""
            url = f"{self.web}{API}/repositories/{past}{rest}{tail}"
            status = 301 if request.verb == "GET" else 307
            raise Refused(status, "Moved Permanently", url=url, headers={"location": url}) from None
        return repository if caller.kind == "app" else self._visible(caller, repository)

    def by_number(self, _: Request, caller: Token, number: str) -> Repository:
        repository = self.repositories.get(int(number))
        if repository is None or repository.is_deleted:
            raise Refused(404, "Not Found")
        return repository if caller.kind == "app" else self._visible(caller, repository)

    def _must_administer(self, caller: Token, repository: Repository) -> None:
        if not self._administers(caller, repository):
            is_app = caller.kind == "installation"
            raise Refused(
                403, "Resource not accessible by integration" if is_app else "Must have admin rights to Repository."
            )

    # Answers.

    def simple(self, number: int) -> dict[str, Any]:
        user = self.users[number]
        return shapes.simple_user(self.web + API, self.web, user.id, user.login, user.type)

    def minimal(self, repository: Repository) -> dict[str, Any]:
        owner = self.simple(repository.owner)
        return shapes.minimal_repository(
            self.web + API, self.web, repository.id, owner, repository.name, private=repository.is_private
        )

    def invitation(self, repository: Repository, one: Invitation) -> dict[str, Any]:
        minimal = self.minimal(repository)
        role = self.base(repository, one.role)
        invitee = None if self.users[one.invitee].is_deleted else self.simple(one.invitee)
        return {
            "id": one.id,
            "node_id": f"RI_{one.id}",
            "permissions": role if role in _ORDER else "read",
            "inviter": self.simple(repository.owner),
            "invitee": invitee,
            "repository": minimal,
            "url": f"{minimal['url']}/invitations/{one.id}",
            "html_url": f"{minimal['html_url']}/invitations",
            "created_at": shapes.text(one.created_at),
            "expired": one.created_at + LASTS <= self.clock(),
        }

    def collaborator(self, repository: Repository, user: int, role: str) -> dict[str, Any]:
        permissions = shapes.permissions_of(self.base(repository, role))
        return self.simple(user) | {"role_name": role, "permissions": permissions}

    def installation(self, one: Installation) -> dict[str, Any]:
        url = f"{self.web}{API}/app/installations/{one.id}"
        account = self.simple(one.account)
        return {
            "id": one.id,
            "account": account,
            "app_id": int(self.app_id),
            "app_slug": "almoner",
            "target_id": one.account,
            "target_type": account["type"],
            "single_file_name": None,
            "repository_selection": one.selection,
            "access_tokens_url": f"{url}/access_tokens",
            "html_url": f"{self.web}/settings/installations/{one.id}",
            "repositories_url": f"{self.web}{API}/installation/repositories",
            "events": [],
            "permissions": one.permissions,
            "created_at": shapes.text(self.clock()),
            "updated_at": shapes.text(self.clock()),
            "suspended_by": None,
            "suspended_at": shapes.text(one.suspended_at) if one.suspended_at else None,
        }

    def page(self, request: Request, found: list[dict[str, Any]]) -> Reply:
        size, page = int(request.query.get("per_page", 30)), int(request.query.get("page", 1))
        size = min(size, 100)
        headers = {}
        if page * size < len(found):
            query = urlencode(request.query | {"page": str(page + 1)})
            headers["link"] = f'<{self.web}{API}{request.path}?{query}>; rel="next"'
        return Reply(200, found[(page - 1) * size : page * size], headers)

    # The App.

    def get_repo_installation(self, request: Request, caller: Token, *where: str) -> Reply:
        if caller.kind != "app":
            raise Refused(401, "A JSON web token could not be decoded")
        repository = self.at(request, caller, *where) if len(where) == 2 else self.by_number(request, caller, *where)
        for one in self.installations.values():
            is_in = one.selection == "all" or repository.id in one.repositories
            if one.account == repository.owner and not one.is_deleted and is_in:
                return Reply(200, self.installation(one))
        raise Refused(404, "Not Found")

    def get_installation(self, _: Request, caller: Token, number: str) -> Reply:
        one = self.installations.get(int(number))
        if caller.kind != "app" or one is None or one.is_deleted:
            raise Refused(404, "Not Found")
        return Reply(200, self.installation(one))

    def new_token(self, _: Request, caller: Token, number: str) -> Reply:
        one = self.installations.get(int(number))
        if caller.kind != "app" or one is None or one.is_deleted:
            raise Refused(404, "Not Found")
        if one.suspended_at:
            raise Refused(403, "This installation has been suspended")
        token = f"ghs_{secrets.token_hex(24)}"
        until = self.clock() + timedelta(hours=1)
        self.tokens[token] = Token("installation", one.id, until)
        return Reply(201, {"token": token, "expires_at": shapes.text(until), "permissions": one.permissions})

    # Users.

    def get_user_by_number(self, _: Request, caller: Token, number: str) -> Reply:
        user = self.users.get(int(number))
        if user is None or user.is_deleted:
            raise Refused(404, "Not Found")
        return Reply(200, shapes.public_user(self.simple(user.id), self.clock()))

    def get_user_by_login(self, _: Request, caller: Token, login: str) -> Reply:
        return Reply(200, shapes.public_user(self.simple(self._user(login).id), self.clock()))

    def get_myself(self, _: Request, caller: Token) -> Reply:
        if caller.kind != "user":
            raise Refused(403, "Resource not accessible by integration")
        return Reply(200, shapes.public_user(self.simple(caller.of), self.clock()))

    # Repositories and collaborators.

    def get_repo(self, request: Request, caller: Token, *where: str) -> Reply:
        repository = self.at(request, caller, *where) if len(where) == 2 else self.by_number(request, caller, *where)
        minimal = self.minimal(repository)
        is_admin = caller.kind == "user" and self._administers(caller, repository)
        body = shapes.full_repository(minimal, self.clock(), archived=repository.is_archived, admin=is_admin)
        return Reply(200, body)

    def list_collaborators(self, request: Request, caller: Token, *where: str) -> Reply:
        repository = self.at(request, caller, *where)
        direct = dict(repository.collaborators)
        if request.query.get("affiliation", "all") != "direct":
            owner = self.users[repository.owner]
            everybody = {*owner.members, *owner.owners, *(one for members, _ in repository.teams for one in members)}
            direct |= {one: self.role(repository, one) for one in everybody if self.role(repository, one) != "none"}
        alive = {one: role for one, role in direct.items() if not self.users[one].is_deleted}
        return self.page(request, [self.collaborator(repository, one, role) for one, role in sorted(alive.items())])

    def is_collaborator(self, request: Request, caller: Token, owner: str, name: str, login: str) -> Reply:
        repository = self.at(request, caller, owner, name)
        user = self._user(login).id
        role = self.role(repository, user)
        is_one = user in repository.collaborators or self.is_member(repository, user)
        is_one = is_one or any(user in members for members, _ in repository.teams)
        if role == "none" or not is_one:
            raise Refused(404, "Not Found")
        return Reply(204)

    def permission(self, request: Request, caller: Token, owner: str, name: str, login: str) -> Reply:
        repository = self.at(request, caller, owner, name)
        user = self._user(login).id
        role = self.role(repository, user)
        base = self.base(repository, role)
        body = {
            "permission": _LEGACY.get(base, base),
            "role_name": role if role != "none" else "",
            "user": self.collaborator(repository, user, role),
        }
        return Reply(200, body)

    def add(self, request: Request, caller: Token, owner: str, name: str, login: str) -> Reply:
        """https://docs.github.com/en/rest/collaborators/collaborators#add-a-repository-collaborator."""
        repository = self.at(request, caller, owner, name)
        self._must_administer(caller, repository)
        if repository.is_archived:
            raise Refused(403, "Repository was archived so is read-only.")
        user = self._user(login).id
        asked = json.loads(request.body or b"{}").get("permission")
        role = self._role_to_give(repository, user, asked)
        if user in repository.collaborators:
            repository.collaborators[user] = role
            return Reply(204)
        if self.is_member(repository, user):
            base = self.users[repository.owner].base
            if _ORDER.index(self.base(repository, role)) < _ORDER.index(base):
                raise Refused(422, f"Cannot assign {login} permission of {role}")
            repository.collaborators[user] = role
            return Reply(204)
        return self._invite(repository, user, role)

    def _role_to_give(self, repository: Repository, user: int, asked: str | None) -> str:
        owner = self.users[repository.owner]
        if owner.type == "User":
            if asked is not None:
                message = "You can only update permissions on organization-owned repositories and their forks"
                raise invalid(message)
            return "write"
        asked = asked or "push"
        if asked not in _ROLES and asked not in owner.roles:
            raise invalid(f"{asked} is not a role")
        if user in owner.blocked:
            raise invalid("User is blocked")
        return _ROLES.get(asked, asked)

    def _invite(self, repository: Repository, user: int, role: str) -> Reply:
        owner = self.users[repository.owner]
        for one in repository.invitations.values():
            if one.invitee == user and one.created_at + LASTS > self.clock():
                one.role = role
                return Reply(201, self.invitation(repository, one))
        if not owner.allows_outside:
            raise Refused(403, "Outside collaborators cannot be invited: a policy of the organization forbids it")
        outside = {
            one for other in self.repositories.values() if other.owner == owner.id for one in other.collaborators
        }
        if owner.seats is not None and len(outside | owner.members | owner.owners) >= owner.seats:
            raise Refused(422, "You must purchase at least one more seat to add this user as a collaborator.")
        now = self.clock().timestamp() if self.pace == 1 else time.monotonic()
        while repository.invited and repository.invited[0] <= now - 86_400 * self.pace:
            repository.invited.popleft()
        if len(repository.invited) >= 50:
            raise invalid("You are limited to sending 50 invitations to a repository per 24 hour period.")
        repository.invited.append(now)
        made = Invitation(next(self.ids), user, role, self.clock())
        repository.invitations[made.id] = made
        return Reply(201, self.invitation(repository, made))

    def remove(self, request: Request, caller: Token, owner: str, name: str, login: str) -> Reply:
        """An invitation to the same user is left as it is."""
        repository = self.at(request, caller, owner, name)
        self._must_administer(caller, repository)
        if repository.is_archived:
            raise Refused(403, "Repository was archived so is read-only.")
        repository.collaborators.pop(self._user(login).id, None)
        return Reply(204)

    def list_invitations(self, request: Request, caller: Token, *where: str) -> Reply:
        repository = self.at(request, caller, *where)
        self._must_administer(caller, repository)
        return self.page(request, [self.invitation(repository, one) for one in repository.invitations.values()])

    def _one_invitation(self, request: Request, caller: Token, owner: str, name: str, number: str) -> Invitation:
        repository = self.at(request, caller, owner, name)
        self._must_administer(caller, repository)
        if int(number) not in repository.invitations:
            raise Refused(404, "Not Found")
        return repository.invitations[int(number)]

    def change_invitation(self, request: Request, caller: Token, owner: str, name: str, number: str) -> Reply:
        one = self._one_invitation(request, caller, owner, name, number)
        asked = json.loads(request.body or b"{}").get("permissions")
        if asked is None:
            raise Refused(422, 'Invalid request.\n\n"permissions" wasn\'t supplied.')
        one.role = asked
        return Reply(200, self.invitation(self._repository(owner, name), one))

    def cancel_invitation(self, request: Request, caller: Token, owner: str, name: str, number: str) -> Reply:
        one = self._one_invitation(request, caller, owner, name, number)
        del self._repository(owner, name).invitations[one.id]
        return Reply(204)

    # Signing in of people, and the controls.

    def _elsewhere(self, path: str, request: Request) -> Reply:
        form = dict(parse_qsl(request.body.decode())) if request.body[:1] not in {b"", b"{"} else {}
        if path == "/login/oauth/authorize":
            return self._authorize(request.query)
        if path == "/login/oauth/access_token" and request.verb == "POST":
            form = form or json.loads(request.body or b"{}")
            return Reply(200, self._exchange(form | request.query))
        if path.startswith("/_fake/"):
            return self._control(path.removeprefix("/_fake/"), json.loads(request.body or b"{}"))
        return Reply(404, "<h1>404</h1>")

    def _authorize(self, query: Mapping[str, str]) -> Reply:
        """Approve as the chosen user; without one, show who could."""
        if query.get("client_id") != self.client_id:
            return Reply(404, "<h1>404</h1>")
        chosen = query.get("_as") or (str(self.approves_as) if self.approves_as else None)
        if chosen is None:
            links = "".join(
                f'<li><a href="?{urlencode(dict(query) | {"_as": str(one.id)})}">{one.login}</a></li>'
                for one in self.users.values()
                if one.type == "User" and not one.is_deleted
            )
            return Reply(200, f"<!doctype html><title>Authorize</title><h1>Authorize as</h1><ul>{links}</ul>")
        code = secrets.token_hex(10)
        self.codes[code] = {"user": int(chosen), **query}
        back = {"code": code} | ({"state": query["state"]} if "state" in query else {})
        uri = query.get("redirect_uri", "")
        return Reply(302, None, {"location": f"{uri}{'&' if '?' in uri else '?'}{urlencode(back)}"})

    def _exchange(self, form: Mapping[str, str]) -> dict[str, Any]:
        """https://docs.github.com/en/apps/oauth-apps/building-oauth-apps/authorizing-oauth-apps

        Errors are answered by 200, too.
        """
        if (form.get("client_id"), form.get("client_secret")) != (self.client_id, self.client_secret):
            return {"error": "incorrect_client_credentials", "error_description": "The client is not who it says."}
        asked = self.codes.pop(form.get("code", ""), None)
        if asked is None:
            return {"error": "bad_verification_code", "error_description": "The code passed is incorrect or expired."}
        if form.get("redirect_uri", asked.get("redirect_uri")) != asked.get("redirect_uri"):
            return {"error": "redirect_uri_mismatch", "error_description": "The redirect_uri MUST match."}
        if "code_challenge" in asked:
            digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
            if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != asked["code_challenge"]:
                return {"error": "bad_verification_code", "error_description": "The code_verifier is incorrect."}
        token = f"ghu_{secrets.token_hex(18)}"
        self.tokens[token] = Token("user", asked["user"])
        return {"access_token": token, "token_type": "bearer", "scope": asked.get("scope", "")}

    def _control(self, name: str, given: dict[str, Any]) -> Reply:
        act = _CONTROLS.get(name)
        return Reply(404, {"message": f"one of {sorted(_CONTROLS)}"}) if act is None else Reply(200, act(self, given))


def _named(github: GitHub, full_name: str) -> Repository:
    return github._repository(*full_name.split("/"))


def _make_repository(github: GitHub, given: dict[str, Any]) -> dict[str, Any]:
    owner, name = given["repository"].split("/")
    found = next((one for one in github.users.values() if one.login == owner), None)
    if found is None:
        found = github.organization(owner) if given.get("organization", True) else github.user(owner)
        if found.type == "User":
            github.install(found)
    repository = github.repository(found, name, is_private=given.get("private", True))
    return {"id": repository.id, "repository": github.full_name(repository)}


def _make_user(github: GitHub, given: dict[str, Any]) -> dict[str, Any]:
    user = github.user(given["login"], given.get("id"))
    return {"id": user.id, "login": user.login}


def _make_users(github: GitHub, given: dict[str, Any]) -> dict[str, Any]:
    first = int(given.get("first", 1_000_000))
    for number in range(first, first + int(given["count"])):
        github.user(f"user-{number}", number)
    return {"first": first, "count": given["count"]}


def _accept(github: GitHub, given: dict[str, Any]) -> dict[str, Any]:
    repository = _named(github, given["repository"])
    everybody = [github._user(given["login"])] if "login" in given else [*github.users.values()]
    for user in everybody:
        github.accept(repository, user)
    return _state(github, {})


def _state(github: GitHub, _: dict[str, Any]) -> dict[str, Any]:
    def login(number: int) -> str:
        return github.users[number].login

    return {
        "requests": len(github.log),
        "refused": sum(one.status in {403, 422, 429} for one in github.log),
        "repositories": {
            github.full_name(one): {
                "id": one.id,
                "collaborators": {login(user): role for user, role in one.collaborators.items()},
                "invitations": {login(invitation.invitee): invitation.role for invitation in one.invitations.values()},
            }
            for one in github.repositories.values()
            if not one.is_deleted
        },
    }


def _set(github: GitHub, given: dict[str, Any]) -> dict[str, Any]:
    """`limits` on or off, their `pace` and `primary_limit`, `approves_as` a login, the clock `ahead` by days."""
    github.enforces_limits = bool(given.get("limits", github.enforces_limits))
    github.pace = float(given.get("pace", github.pace))
    github.primary_limit = int(given.get("primary_limit", github.primary_limit))
    if "approves_as" in given:
        github.approves_as = github._user(given["approves_as"]).id
    if "ahead" in given:
        ahead = timedelta(days=float(given["ahead"]))
        github.clock = lambda: datetime.now(UTC) + ahead
    return {"limits": github.enforces_limits, "pace": github.pace, "primary_limit": github.primary_limit}


def _app(github: GitHub, _: dict[str, Any]) -> dict[str, Any]:
    return {
        "app_id": github.app_id,
        "private_key": github.pem,
        "client_id": github.client_id,
        "client_secret": github.client_secret,
    }


def _reset(github: GitHub, _: dict[str, Any]) -> dict[str, Any]:
    github.reset()
    return {}


_CONTROLS: dict[str, Callable[[GitHub, dict[str, Any]], dict[str, Any]]] = {
    "app": _app,
    "repository": _make_repository,
    "user": _make_user,
    "users": _make_users,
    "accept": _accept,
    "state": _state,
    "set": _set,
    "reset": _reset,
}

_REPO = "/repos/([^/]+)/([^/]+)"
_NUMBER = "/repositories/([0-9]+)"
_ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Reply]]] = [
    (verb, re.compile(pattern), act)
    for verb, pattern, act in (
        ("GET", f"{_REPO}/installation", GitHub.get_repo_installation),
        ("GET", f"{_NUMBER}/installation", GitHub.get_repo_installation),
        ("GET", "/app/installations/([0-9]+)", GitHub.get_installation),
        ("POST", "/app/installations/([0-9]+)/access_tokens", GitHub.new_token),
        ("GET", "/user", GitHub.get_myself),
        ("GET", "/user/([0-9]+)", GitHub.get_user_by_number),
        ("GET", "/users/([^/]+)", GitHub.get_user_by_login),
        ("GET", _REPO, GitHub.get_repo),
        ("GET", _NUMBER, GitHub.get_repo),
        ("GET", f"{_REPO}/collaborators", GitHub.list_collaborators),
        ("GET", f"{_REPO}/collaborators/([^/]+)", GitHub.is_collaborator),
        ("GET", f"{_REPO}/collaborators/([^/]+)/permission", GitHub.permission),
        ("PUT", f"{_REPO}/collaborators/([^/]+)", GitHub.add),
        ("DELETE", f"{_REPO}/collaborators/([^/]+)", GitHub.remove),
        ("GET", f"{_REPO}/invitations", GitHub.list_invitations),
        ("PATCH", f"{_REPO}/invitations/([0-9]+)", GitHub.change_invitation),
        ("DELETE", f"{_REPO}/invitations/([0-9]+)", GitHub.cancel_invitation),
    )
]


def main(arguments: list[str]) -> None:
    import uvicorn

    parser = argparse.ArgumentParser(prog="python -m tests.fakes.github")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--host", default="127.0.0.1")
    chosen = parser.parse_args(arguments)
    config = uvicorn.Config(
        GitHub(), host=chosen.host, port=chosen.port, lifespan="off", access_log=False, log_level="error"
    )
    listening = config.bind_socket()
    listening.listen(2048)
    sys.stderr.write(f"listens on http://{chosen.host}:{listening.getsockname()[1]}\n")
    sys.stderr.flush()
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main(sys.argv[1:])
