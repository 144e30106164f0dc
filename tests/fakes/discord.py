"""Discord's REST API v10 and OAuth, as far as roles need them: servers with a hierarchy, members, tokens, limits.

    python -m tests.fakes.discord --port 0

It says on standard error where it listens. `POST /_fake/NAME` with a JSON object calls the method of that name, `GET
/_fake/state` and `GET /_fake/log` tell what there is and what was asked.
"""

import argparse
import asyncio
import base64
import hashlib
import json
import re
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlencode

BOT_TOKEN = "bot-token-of-the-fake-1"
CLIENT_ID = "1015034326372454400"
CLIENT_SECRET = "client-secret-of-the-fake-1"
BOT = "1015034326372454401"
GUILD = "197038439483310086"

CREATE_INVITE, KICK_MEMBERS, ADMINISTRATOR, MANAGE_ROLES = 1, 2, 8, 1 << 28
# What Polar asks for: Manage Roles, Kick Members and Create Instant Invite.
PERMISSIONS = 268435459

_API = "/api/v10"
_JOINED = "2026-01-02T03:04:05.000000+00:00"

Answer = tuple[int, Any]


@dataclass
class User:
    id: str
    name: str
    discriminator: str = "0"
    guilds: int = 1
    most_guilds: int = 100
    is_bot: bool = False


@dataclass
class Role:
    id: str
    position: int
    permissions: int = 0
    managed: bool = False


@dataclass
class Guild:
    id: str
    roles: dict[str, Role] = field(default_factory=dict)
    members: dict[str, set[str]] = field(default_factory=dict)
    """The roles of each member."""
    bans: set[str] = field(default_factory=set)
    owner: str = "80351110224678000"


@dataclass
class Token:
    """What a customer allowed. A refresh token works once, and takes its access token with it."""

    user: str
    scopes: tuple[str, ...]
    access: str
    refresh: str
    is_expired: bool = False


@dataclass
class Code:
    user: str
    scopes: tuple[str, ...]
    redirect_uri: str
    challenge: str | None


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    body: Any
    reason: str | None
    status: int = 0

    @property
    def line(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Script:
    """What the next requests of a route are answered instead, after so many seconds.

    `drop`: the connection ends before or after acting. A header that is None is left out.
    """

    route: str
    times: int = 1
    status: int = 500
    headers: dict[str, str | None] = field(default_factory=dict)
    body: Any = None
    drop: Literal["before", "after"] | None = None
    seconds: float = 0.0


class Refused(Exception):
    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.answer = status, {"code": code, "message": message}


class FakeDiscord:
    """The whole of it. Tests change it by its attributes and methods, in whatever thread."""

    def __init__(self) -> None:
        self.specification: Any = None
        self.reset()

    def reset(self) -> None:
        """One server with the bot in it, and nobody else."""
        self.users = {BOT: User(BOT, "Almoner", discriminator="4821", is_bot=True)}
        self.guilds: dict[str, Guild] = {}
        self.tokens: list[Token] = []
        self.codes: dict[str, Code] = {}
        self.approves_as: str | None = None
        self.has_members_intent = True
        self.checks_cap_first = False
        """As it was until 2024: https://github.com/discord/discord-api-docs/issues/6888."""
        self.limits_on = False
        self.scale = 1.0
        """All windows of time are so much longer."""
        self.bucket_limit, self.bucket_seconds = 10, 10.0
        self.global_limit, self.global_seconds = 50, 1.0
        self.invalid_requests = 0
        self.log: list[Request] = []
        self.scripts: list[Script] = []
        self._windows: dict[str, tuple[int, float]] = {}
        self._count = 0
        self.add_guild(GUILD)

    # What tests arrange.

    def add_guild(self, guild: str, *, permissions: int = PERMISSIONS, position: int = 10) -> None:
        """A server where the bot has one role, at this position."""
        made = Guild(guild)
        mine = str(int(guild) + 1)
        made.roles[guild] = Role(guild, 0)
        made.roles[mine] = Role(mine, position, permissions, managed=True)
        made.members[BOT] = {mine}
        self.guilds[guild] = made

    def bot_role(self, guild: str = GUILD) -> Role:
        return self.guilds[guild].roles[str(int(guild) + 1)]

    def add_role(
        self, role: str, *, guild: str = GUILD, position: int = 1, permissions: int = 0, managed: bool = False
    ) -> None:
        self.guilds[guild].roles[role] = Role(role, position, permissions, managed)

    def delete_role(self, role: str, *, guild: str = GUILD) -> None:
        self.guilds[guild].roles.pop(role)
        for roles in self.guilds[guild].members.values():
            roles.discard(role)

    def add_user(self, user: str, name: str, *, guilds: int = 1, discriminator: str = "0") -> None:
        self.users[user] = User(user, name, discriminator, guilds)

    def delete_user(self, user: str) -> None:
        self.users.pop(user)
        for guild in self.guilds.values():
            guild.members.pop(user, None)

    def join(self, user: str, *, guild: str = GUILD) -> None:
        self.guilds[guild].members.setdefault(user, set())

    def leave(self, user: str, *, guild: str = GUILD) -> None:
        self.guilds[guild].members.pop(user, None)

    def ban(self, user: str, *, guild: str = GUILD) -> None:
        self.leave(user, guild=guild)
        self.guilds[guild].bans.add(user)

    def approve_as(self, user: str | None) -> None:
        """Who approves on the page; nobody: they cancel."""
        self.approves_as = user

    def issue(self, user: str, scopes: tuple[str, ...] = ("identify", "guilds.join")) -> Token:
        """A token, as if the customer had just approved."""
        self._count += 1
        mark = hashlib.sha256(f"{user} {self._count}".encode()).hexdigest()[:20]
        token = Token(user, scopes, f"access-{mark}", f"refresh-{mark}")
        self.tokens.append(token)
        return token

    def script(self, route: str, **more: Any) -> None:
        """Answer the next requests otherwise: `route` is a regular expression for `METHOD /path`."""
        self.scripts.append(Script(route, **more))

    def configure(self, **more: Any) -> None:
        for name, value in more.items():
            if not hasattr(self, name):
                raise AttributeError(name)
            setattr(self, name, value)

    def roles_of(self, user: str, *, guild: str = GUILD) -> set[str] | None:
        """The roles of a member; None: not in the server."""
        return self.guilds[guild].members.get(user)

    def lines(self) -> list[str]:
        """What was asked, as `METHOD /path`, without logging in."""
        return [one.line for one in self.log if one.path != "/users/@me"]

    # HTTP.

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        raw = b""
        while True:
            message = await receive()
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        method, path = scope["method"], scope["path"]
        query = dict(parse_qsl(scope["query_string"].decode(), keep_blank_values=True))
        if path.startswith("/_fake/"):
            await _reply(send, *self._control(method, path.removeprefix("/_fake/"), raw))
        elif path == "/oauth2/authorize":
            await self._authorize(send, query)
        elif path.startswith(_API + "/"):
            await self._api(receive, send, method, path.removeprefix(_API), query, headers, raw)
        else:
            await _reply(send, 404, {"code": 0, "message": "404: Not Found"})

    async def _api(
        self,
        receive: Any,
        send: Any,
        method: str,
        path: str,
        query: dict[str, str],
        headers: dict[str, str],
        raw: bytes,
    ) -> None:
        reason = headers.get("x-audit-log-reason")
        asked = Request(method, path, query, _body(headers, raw), unquote(reason) if reason else None)
        self.log.append(asked)
        if self.specification:
            self.specification.check_request(method, path, query, raw)
        script = self._scripted(asked.line)
        if script and script.drop == "before":
            await _drop(receive, send)
            return
        more: dict[str, str | None] = {}
        if script:
            await asyncio.sleep(script.seconds)
        if script and script.drop is None:
            status, document, more = script.status, script.body, script.headers
        else:
            status, document = self._limited(method, path, more) or self._answer(asked, headers)
        if script and script.drop == "after":
            asked.status = status
            await _drop(receive, send)
            return
        asked.status = status
        self.invalid_requests += status in {401, 403, 429}
        body = (
            b"" if status == 204 else document.encode() if isinstance(document, str) else json.dumps(document).encode()
        )
        if self.specification and not isinstance(document, str):
            self.specification.check_answer(method, path, status, body)
        # As Discord has it: what says `application/json` is read as such, and an empty body is none.
        kind = "application/json" if body and not isinstance(document, str) else "text/html; charset=utf-8"
        await _send(send, status, body, {"Via": "1.1 google", "Content-Type": kind} | more)

    def _scripted(self, line: str) -> Script | None:
        for script in self.scripts:
            if script.times > 0 and re.fullmatch(script.route, line):
                script.times -= 1
                return script
        return None

    def _limited(self, method: str, path: str, headers: dict[str, str | None]) -> Answer | None:
        """Count, tell by the headers, and refuse what is too much."""
        if not self.limits_on:
            return None
        until, count = self._window("global", self.global_seconds)
        if count > self.global_limit:
            headers |= {"X-RateLimit-Global": "true", "X-RateLimit-Scope": "global"}
            return self._too_many(until, headers, is_global=True)
        bucket, place = _bucket(method, path)
        until, count = self._window(f"{bucket}:{place}", self.bucket_seconds)
        headers |= {
            "X-RateLimit-Limit": str(self.bucket_limit),
            "X-RateLimit-Remaining": str(max(self.bucket_limit - count, 0)),
            "X-RateLimit-Reset": f"{time.time() + until:.3f}",
            "X-RateLimit-Reset-After": f"{until:.3f}",
            "X-RateLimit-Bucket": bucket,
        }
        if count > self.bucket_limit:
            headers["X-RateLimit-Scope"] = "user"
            return self._too_many(until, headers, is_global=False)
        return None

    def _window(self, name: str, seconds: float) -> tuple[float, int]:
        """Count one more: how long the window lasts still, and how many there are in it."""
        now = time.monotonic()
        count, ends = self._windows.get(name, (0, 0.0))
        if ends <= now:
            count, ends = 0, now + seconds * self.scale
        self._windows[name] = count + 1, ends
        return ends - now, count + 1

    def _too_many(self, seconds: float, headers: dict[str, str | None], *, is_global: bool) -> Answer:
        headers["Retry-After"] = str(int(seconds) + 1)
        return 429, {
            "message": "You are being rate limited.", "retry_after": round(seconds, 3), "global": is_global, "code": 0,
        }  # fmt: skip

    def _answer(self, asked: Request, headers: Mapping[str, str]) -> Answer:
        who = headers.get("authorization", "")
        try:
            if asked.line == "POST /oauth2/token":
                return self._token(asked.body, headers)
            if asked.line == "GET /users/@me" and who.startswith("Bearer "):
                return 200, _as_self(self.users[self._bearer(who.removeprefix("Bearer "), "identify").user])
            return self._answer_bot(asked, who)
        except Refused as refused:
            return refused.answer

    def _answer_bot(self, asked: Request, who: str) -> Answer:
        if who != f"Bot {BOT_TOKEN}":
            raise Refused(401, 0, "401: Unauthorized")
        if asked.line == "GET /users/@me":
            return 200, _as_self(self.users[BOT])
        for pattern, method, handler in _ROUTES:
            if method == asked.method and (match := re.fullmatch(pattern, asked.path)):
                names = match.groupdict()
                return handler(self, self._guild(names.pop("guild")), asked, **names)
        raise Refused(404, 0, "404: Not Found")

    def _guild(self, guild: str) -> Guild:
        if guild not in self.guilds:
            raise Refused(404, 10004, "Unknown Guild")
        if BOT not in self.guilds[guild].members:
            raise Refused(403, 50001, "Missing Access")
        return self.guilds[guild]

    # The bot's calls.

    def get_roles(self, guild: Guild, _: Request) -> Answer:
        return 200, [_role(role) for role in guild.roles.values()]

    def get_member(self, guild: Guild, _: Request, user: str) -> Answer:
        self._person(guild, user)
        return 200, self._member(guild, user)

    def list_members(self, guild: Guild, asked: Request) -> Answer:
        if not self.has_members_intent:
            raise Refused(403, 50001, "Missing Access")
        after, most = int(asked.query.get("after", 0)), int(asked.query.get("limit", 1))
        ids = sorted((one for one in guild.members if int(one) > after), key=int)[:most]
        return 200, [self._member(guild, one) for one in ids]

    def search_members(self, guild: Guild, asked: Request) -> Answer:
        wanted, most = asked.query["query"].lower(), int(asked.query.get("limit", 1))
        ids = [one for one in guild.members if self.users[one].name.lower().startswith(wanted)]
        return 200, [self._member(guild, one) for one in ids[:most]]

    def put_role(self, guild: Guild, _: Request, user: str, role: str) -> Answer:
        self._may_give(guild, role)
        self._person(guild, user)
        guild.members[user].add(role)
        return 204, None

    def delete_role_of(self, guild: Guild, _: Request, user: str, role: str) -> Answer:
        self._may_give(guild, role)
        self._person(guild, user)
        guild.members[user].discard(role)
        return 204, None

    def put_member(self, guild: Guild, asked: Request, user: str) -> Answer:
        self._must(guild, CREATE_INVITE)
        if user not in self.users:
            raise Refused(404, 10013, "Unknown User")
        token = next((one for one in self.tokens if one.access == asked.body.get("access_token")), None)
        if not token or token.is_expired or token.user != user or "guilds.join" not in token.scopes:
            raise Refused(403, 50025, "Invalid OAuth2 access token")
        person = self.users[user]
        is_full = person.guilds >= person.most_guilds
        if user in guild.members and not (is_full and self.checks_cap_first):
            return 204, None
        if user in guild.bans:
            raise Refused(403, 40007, "The user is banned from this guild.")
        if is_full:
            raise Refused(400, 30001, f"Maximum number of guilds reached ({person.most_guilds})")
        for role in asked.body.get("roles", ()):
            self._may_give(guild, role)
        guild.members[user] = set(asked.body.get("roles", ()))
        person.guilds += 1
        return 201, self._member(guild, user)

    def delete_member(self, guild: Guild, _: Request, user: str) -> Answer:
        self._must(guild, KICK_MEMBERS)
        self._person(guild, user)
        if user == guild.owner or self._highest(guild, user) >= self._highest(guild, BOT):
            raise Refused(403, 50013, "Missing Permissions")
        guild.members.pop(user)
        self.users[user].guilds -= 1
        return 204, None

    def _person(self, guild: Guild, user: str) -> None:
        if user not in self.users:
            raise Refused(404, 10013, "Unknown User")
        if user not in guild.members:
            raise Refused(404, 10007, "Unknown Member")

    def _may_give(self, guild: Guild, role: str) -> None:
        if role not in guild.roles:
            raise Refused(404, 10011, "Unknown Role")
        self._must(guild, MANAGE_ROLES)
        if guild.roles[role].managed or _rank(guild.roles[role]) >= self._highest(guild, BOT):
            raise Refused(403, 50013, "Missing Permissions")

    def _must(self, guild: Guild, permission: int) -> None:
        allowed = guild.roles[guild.id].permissions
        for role in guild.members[BOT]:
            allowed |= guild.roles[role].permissions
        if not allowed & (permission | ADMINISTRATOR):
            raise Refused(403, 50013, "Missing Permissions")

    def _highest(self, guild: Guild, user: str) -> tuple[int, int]:
        return max((_rank(guild.roles[role]) for role in guild.members[user]), default=(0, -int(guild.id)))

    def _member(self, guild: Guild, user: str) -> dict[str, Any]:
        return {
            "avatar": None, "banner": None, "communication_disabled_until": None, "flags": 0, "joined_at": _JOINED,
            "nick": None, "pending": False, "premium_since": None, "roles": sorted(guild.members[user]),
            "user": _user(self.users[user]), "mute": False, "deaf": False,
        }  # fmt: skip

    # OAuth.

    async def _authorize(self, send: Any, query: dict[str, str]) -> None:
        """Approve at once as who was chosen, or ask who it is."""
        chosen = query.pop("as", None) or self.approves_as
        back, state = query.get("redirect_uri", ""), query.get("state", "")
        if query.get("client_id") != CLIENT_ID or query.get("response_type") != "code" or not back:
            await _reply(send, 400, {"error": "invalid_request"})
        elif chosen in self.users:
            self._count += 1
            code = f"code-{self._count}"
            scopes = tuple(query.get("scope", "").split())
            self.codes[code] = Code(str(chosen), scopes, back, query.get("code_challenge"))
            await _send(send, 302, b"", {"Location": f"{back}?{urlencode({'code': code, 'state': state})}"})
        elif chosen:
            denied = urlencode({"error": "access_denied", "state": state})
            await _send(send, 302, b"", {"Location": f"{back}?{denied}"})
        else:
            links = "".join(
                f'<li><a href="?{urlencode(query | {"as": one.id}).replace("&", "&amp;")}">{one.name}</a></li>'
                for one in self.users.values()
                if not one.is_bot
            )
            cancel = urlencode(query | {"as": "-"}).replace("&", "&amp;")
            links += f'<li><a href="?{cancel}">nobody, cancel</a></li>'
            page = f"<!doctype html><title>Discord</title><h1>Who are you?</h1><ul>{links}</ul>"
            await _send(send, 200, page.encode(), {"Content-Type": "text/html; charset=utf-8"})

    def _token(self, form: Any, headers: Mapping[str, str]) -> Answer:
        if not headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            return 400, {"error": "invalid_request"}
        client = form.get("client_id"), form.get("client_secret")
        if headers.get("authorization", "").startswith("Basic "):
            client = tuple(base64.b64decode(headers["authorization"][6:]).decode().split(":", 1))  # type: ignore[assignment]
        if client != (CLIENT_ID, CLIENT_SECRET):
            return 401, {"error": "invalid_client"}
        if form.get("grant_type") == "authorization_code":
            code = self.codes.pop(form.get("code", ""), None)
            if code is None or code.redirect_uri != form.get("redirect_uri") or not _proves(form, code.challenge):
                return 400, {"error": "invalid_grant", "error_description": 'Invalid "code" in request.'}
            return 200, _granted(self.issue(code.user, code.scopes))
        old = next((one for one in self.tokens if one.refresh == form.get("refresh_token")), None)
        if form.get("grant_type") != "refresh_token" or old is None:
            return 400, {"error": "invalid_grant"}
        self.tokens.remove(old)
        return 200, _granted(self.issue(old.user, old.scopes))

    def _bearer(self, access: str, scope: str) -> Token:
        for one in self.tokens:
            if one.access == access and scope in one.scopes and not one.is_expired:
                return one
        raise Refused(401, 0, "401: Unauthorized")

    # From outside.

    def _control(self, method: str, name: str, raw: bytes) -> Answer:
        if method == "GET" and name == "state":
            people = {
                one.id: {user: sorted(roles) for user, roles in one.members.items()} for one in self.guilds.values()
            }
            return 200, {"members": people, "invalid_requests": self.invalid_requests, "requests": len(self.log)}
        if method == "GET" and name == "log":
            return 200, [asdict(one) for one in self.log]
        if method != "POST" or name not in _CONTROLS:
            return 404, {"message": f"there are GET state, log and POST {', '.join(sorted(_CONTROLS))}"}
        try:
            made = getattr(self, name)(**json.loads(raw or b"{}"))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            return 400, {"message": f"{type(error).__name__}: {error}"}
        return 200, asdict(made) if isinstance(made, Token) else {}


_CONTROLS = {
    "reset", "add_guild", "add_role", "delete_role", "add_user", "delete_user", "join", "leave", "ban", "approve_as",
    "issue", "script", "configure",
}  # fmt: skip

Handler = Callable[..., Answer]
_G = r"/guilds/(?P<guild>[0-9]+)"
_U = r"/members/(?P<user>[0-9]+)"
_ROUTES: list[tuple[str, str, Handler]] = [
    (_G + "/roles", "GET", FakeDiscord.get_roles),
    (_G + "/members", "GET", FakeDiscord.list_members),
    (_G + "/members/search", "GET", FakeDiscord.search_members),
    (_G + _U, "GET", FakeDiscord.get_member),
    (_G + _U, "PUT", FakeDiscord.put_member),
    (_G + _U, "DELETE", FakeDiscord.delete_member),
    (_G + _U + r"/roles/(?P<role>[0-9]+)", "PUT", FakeDiscord.put_role),
    (_G + _U + r"/roles/(?P<role>[0-9]+)", "DELETE", FakeDiscord.delete_role_of),
]


def _bucket(method: str, path: str) -> tuple[str, str]:
    """A bucket's name and the server it is counted for. Giving and removing roles share one."""
    template = re.sub(r"[0-9]{5,}", "ID", path)
    shared = "" if template.endswith("/roles/ID") else method
    match = re.match(r"/guilds/([0-9]+)", path)
    return hashlib.sha256(f"{shared}{template}".encode()).hexdigest()[:32], match[1] if match else ""


def _rank(role: Role) -> tuple[int, int]:
    return role.position, -int(role.id)


def _role(role: Role) -> dict[str, Any]:
    return {
        "id": role.id, "name": f"role {role.id}", "permissions": str(role.permissions), "position": role.position,
        "color": 0, "colors": {"primary_color": 0, "secondary_color": None, "tertiary_color": None}, "hoist": False,
        "managed": role.managed, "mentionable": False, "icon": None, "unicode_emoji": None, "flags": 0,
    }  # fmt: skip


def _user(user: User) -> dict[str, Any]:
    return {
        "id": user.id, "username": user.name, "avatar": None, "discriminator": user.discriminator, "public_flags": 0,
        "flags": 0, "global_name": None, "primary_guild": None, "bot": user.is_bot,
    }  # fmt: skip


def _as_self(user: User) -> dict[str, Any]:
    return _user(user) | {"mfa_enabled": True, "locale": "en-US"}


def _granted(token: Token) -> dict[str, Any]:
    return {
        "access_token": token.access, "token_type": "Bearer", "expires_in": 604800, "refresh_token": token.refresh,
        "scope": " ".join(token.scopes),
    }  # fmt: skip


def _proves(form: Mapping[str, str], challenge: str | None) -> bool:
    """PKCE by S256: https://www.rfc-editor.org/rfc/rfc7636#section-4.6."""
    if challenge is None:
        return True
    digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == challenge


def _body(headers: Mapping[str, str], raw: bytes) -> Any:
    if headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return dict(parse_qsl(raw.decode()))
    try:
        return json.loads(raw) if raw else {}
    except ValueError:
        return raw.decode(errors="replace")


async def _reply(send: Any, status: int, document: Any) -> None:
    await _send(send, status, json.dumps(document).encode(), {"Content-Type": "application/json"})


async def _send(
    send: Callable[[Any], Awaitable[None]], status: int, body: bytes, headers: Mapping[str, str | None]
) -> None:
    listed = [(name.lower().encode(), value.encode()) for name, value in headers.items() if value is not None]
    if status != HTTPStatus.NO_CONTENT:
        listed.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": listed})
    await send({"type": "http.response.body", "body": body})


async def _drop(receive: Any, send: Any) -> None:
    """End the connection without a word: uvicorn's own transport is behind `send`."""
    send.__self__.transport.abort()
    while (await receive())["type"] != "http.disconnect":
        pass


@contextmanager
def serve() -> Iterator[tuple[FakeDiscord, str]]:
    """Serve one on a free port; gives it and the address of its API."""
    from tests.fakes.serving import serving

    fake = FakeDiscord()
    with serving(fake) as address:
        yield fake, address + _API


def main() -> None:
    import socket

    import uvicorn

    parser = argparse.ArgumentParser(description="A Discord to try things on.")
    parser.add_argument("--port", type=int, default=0)
    listening = socket.create_server(("127.0.0.1", parser.parse_args().port))
    sys.stderr.write(f"listens on http://127.0.0.1:{listening.getsockname()[1]}\n")
    sys.stderr.flush()
    config = uvicorn.Config(FakeDiscord(), lifespan="off", access_log=False, log_level="warning")
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
