"""Polar's API, as far as the sidecar asks it: stateful, over real HTTP, held to Polar's own document.

Other routes are methods with a line in `_ROUTES`. `tests/data/polar.openapi.json.gz` is Polar's document of 2026-10,
cut to the operations that a sidecar may need.
"""

import asyncio
import json
import re
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl
from uuid import uuid4

from tests.fakes.specification import Specification

DOCUMENT = Path(__file__).parents[1] / "data" / "polar.openapi.json.gz"
ORGANIZATION = "6513270e-269e-4d37-b2a7-4de452e6b438"
VERSIONS = ("2026-04", "2026-10", "2027-01")
ALL = ("license_keys:read", "license_keys:write")
_WINDOW_SECONDS = 60.0

_ANYWHERE = dict.fromkeys(
    (301, 400, 401, 403, 404, 429, 500, 502, 503), "limits, refusals and faults may come from every operation"
)

Object = dict[str, Any]


@dataclass
class Fault:
    """What happens to the next requests that fit (`METHOD /path`, a pattern), instead of or after the act."""

    line: str
    times: int
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    drops: bool = False
    acts: bool = False
    wait: float = 0.0
    then: Callable[[], None] | None = None


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    body: bytes
    headers: dict[str, str]
    status: int = 0

    @property
    def line(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Reply:
    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        return b"" if self.body is None else json.dumps(self.body).encode()


class Refused(Exception):
    def __init__(self, status: int, error: str, detail: str = "", **headers: str) -> None:
        super().__init__(error)
        self.reply = Reply(status, {"error": error, "detail": detail or error}, headers)


def not_found(detail: str = "Not found") -> Refused:
    return Refused(404, "ResourceNotFound", detail)


class FakePolar:
    """The fake. Its state is plain attributes; tests change it as merchants and customers would.

    `limit` is None, or how many calls a token has in a minute: 500 in production, 100 in the sandbox.
    """

    def __init__(self, *, clock: Callable[[], datetime] | None = None, is_checked: bool = True) -> None:
        self.specification = Specification(DOCUMENT, anywhere=_ANYWHERE) if is_checked else None
        self.lock = threading.RLock()
        self.reset(clock)

    def reset(self, clock: Callable[[], datetime] | None = None) -> None:
        """Forget everything."""
        self.clock = clock or (lambda: datetime.now(UTC))
        self.organization_id = ORGANIZATION
        self.tokens: dict[str, tuple[str, ...]] = {}
        self.keys: dict[str, Object] = {}
        self.limit: int | None = None
        self.calls: dict[str, deque[float]] = {}
        self.faults: list[Fault] = []
        self.log: list[Request] = []
        if self.specification:
            self.specification.violations.clear()

    # What people do at Polar.

    def token(self, *scopes: str) -> str:
        """An organization access token, with all scopes unless some are named."""
        token = f"polar_oat_{uuid4().hex}"
        self.tokens[token] = scopes or ALL
        return token

    def key(self, **more: Any) -> Object:
        """A license key, granted; its `conditions` by activation stay inside, as at Polar."""
        string = more.pop("key", f"ACME-{str(uuid4()).upper()}")
        at = _iso(self.clock())
        made = {
            "id": str(uuid4()), "created_at": at, "modified_at": None, "organization_id": self.organization_id,
            "customer_id": str(uuid4()), "member_id": None, "benefit_id": str(uuid4()), "key": string,
            "display_key": f"****-{string[-6:]}", "status": "granted", "limit_activations": None, "usage": 0,
            "limit_usage": None, "validations": 0, "last_validated_at": None, "expires_at": None, "activations": [],
        } | more  # fmt: skip
        self.keys[made["id"]] = made
        return made

    def activate(self, key: Object, label: str = "laptop", **more: Any) -> Object:
        at = _iso(self.clock())
        made = {
            "id": str(uuid4()), "license_key_id": key["id"], "label": label, "meta": {}, "created_at": at,
            "modified_at": None, "conditions": {},
        } | more  # fmt: skip
        key["activations"].append(made)
        return made

    def change(self, key: Object, /, **more: Any) -> None:
        """Edit a key, as the merchant; `key` rotates it."""
        if "key" in more:
            more["display_key"] = f"****-{more['key'][-6:]}"
        key.update(more, modified_at=_iso(self.clock()))

    def fail(self, line: str = ".*", status: int | None = None, *, times: int = 1, **more: Any) -> Fault:
        """Have the next requests that match go wrong."""
        fault = Fault(line, times, status, **more)
        self.faults.append(fault)
        return fault

    def lines(self) -> list[str]:
        """What was asked, as `METHOD /path`."""
        return [one.line for one in self.log]

    def counts(self) -> Counter[int]:
        """How often each status was answered."""
        return Counter(one.status for one in self.log)

    # The server.

    async def __call__(self, scope: Mapping[str, Any], receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        path = scope.get("raw_path", scope["path"].encode()).decode().split("?")[0]
        query = dict(parse_qsl(scope["query_string"].decode(), keep_blank_values=True))
        request = Request(scope["method"], path, query, body, headers)
        with self.lock:
            self.log.append(request)
            if self.specification:
                self.specification.check_request(request.method, path, query, body)
            fault = self._fault(request)
        if fault and fault.wait:
            await asyncio.sleep(fault.wait)
        reply = self._reply(request, fault)
        request.status = reply.status
        if fault and fault.drops:
            # Announced and not sent: uvicorn closes the connection then.
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
            return
        version = {"polar-version": headers["polar-version"]} if "polar-version" in headers else {}
        told = {"content-type": "application/json", "content-length": str(len(reply.content))} | version | reply.headers
        sent = [(name.encode(), value.encode()) for name, value in told.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": sent})
        await send({"type": "http.response.body", "body": reply.content})

    def _fault(self, request: Request) -> Fault | None:
        for fault in self.faults:
            if fault.times and re.fullmatch(fault.line, request.line):
                fault.times -= 1
                return fault
        return None

    def _reply(self, request: Request, fault: Fault | None) -> Reply:
        with self.lock:
            if fault and fault.then:
                fault.then()
            if fault and (fault.status or fault.drops) and not fault.acts:
                return Reply(fault.status or 0, fault.body, dict(fault.headers))
            try:
                reply = self._answer(request)
            except Refused as refused:
                reply = refused.reply
            if self.specification and reply.status != 429:
                self.specification.check_answer(request.method, request.path, reply.status, reply.content)
            if fault and fault.status:
                return Reply(fault.status, fault.body, dict(fault.headers))
            return reply

    def _answer(self, request: Request) -> Reply:
        if request.headers.get("polar-version", VERSIONS[0]) not in VERSIONS:
            return Reply(404, {"detail": "Not Found"})  # before anything else, and without a class: polar.md 1.1
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if wait := self._wait(token):
            return Reply(429, None, {"retry-after": str(wait)})
        for method, pattern, scopes, act in _ROUTES:
            if method == request.method and (match := pattern.fullmatch(request.path)):
                self._allow(token, scopes)
                return act(self, request, *match.groups())
        return Reply(404, {"detail": "Not Found"})

    def _wait(self, token: str) -> int:
        """Count a call of this token; returns the seconds to wait, or 0."""
        if self.limit is None:
            return 0
        at = self.clock().timestamp()
        calls = self.calls.setdefault(token, deque())
        while calls and calls[0] <= at - _WINDOW_SECONDS:
            calls.popleft()
        if len(calls) >= self.limit:
            return int(calls[0] + _WINDOW_SECONDS - at) + 1
        calls.append(at)
        return 0

    def _allow(self, token: str, scopes: tuple[str, ...]) -> None:
        """One of the scopes is enough: that is how Polar's document lists them."""
        if token not in self.tokens:
            raise Refused(401, "Unauthorized", "Not authenticated")
        if not set(scopes) & set(self.tokens[token]):
            challenge = f'Bearer error="insufficient_scope", scope="{" ".join(scopes)}"'
            raise Refused(
                403, "insufficient_scope", "More is needed than the token has", **{"www-authenticate": challenge}
            )

    # License keys. https://polar.sh/docs/api-reference/license-keys

    def list_keys(self, request: Request) -> Reply:
        names = ("organization_id", "benefit_id", "status")
        asked = {name: request.query[name] for name in names if name in request.query}
        found = [one for one in self.keys.values() if all(one[name] == value for name, value in asked.items())]
        found.sort(key=lambda one: str(one["created_at"]))
        return Reply(200, page_of([self._shown(one) for one in found], request.query))

    def get_key(self, _: Request, key_id: str) -> Reply:
        key = self.keys.get(key_id)
        if key is None:
            raise not_found()
        return Reply(200, self._shown(key) | {"activations": [_activation(one) for one in key["activations"]]})

    def validate_key(self, request: Request) -> Reply:
        """In Polar's order (polar.md 5.4)."""
        asked = json.loads(request.body)
        key = next((one for one in self.keys.values() if one["key"] == asked["key"]), None)
        if key is None or key["organization_id"] != asked["organization_id"]:
            raise not_found()
        if key["status"] != "granted":
            raise not_found("License key is no longer active.")
        if key["expires_at"] and datetime.fromisoformat(key["expires_at"]) <= self.clock():
            raise not_found("License key has expired.")
        activation = self._activated(key, asked)
        for name in ("benefit_id", "customer_id"):
            if asked.get(name) and asked[name] != key[name]:
                raise not_found(f"License key does not match the given {name}.")
        increment = asked.get("increment_usage") or 0
        if key["limit_usage"] and increment > key["limit_usage"] - key["usage"]:
            left = key["limit_usage"] - key["usage"]
            raise Refused(400, "BadRequest", f"License key only has {left} more usages.")
        key["validations"] += 1
        key["usage"] += increment
        key["last_validated_at"] = _iso(self.clock())
        return Reply(200, self._shown(key) | {"activation": _activation(activation) if activation else None})

    def _activated(self, key: Object, asked: Object) -> Object | None:
        if not asked.get("activation_id"):
            return None
        for one in key["activations"]:
            if one["id"] == asked["activation_id"]:
                if one["conditions"] and one["conditions"] != asked.get("conditions", {}):
                    raise not_found("License key does not match required conditions")
                found: Object = one
                return found
        raise not_found()

    def _shown(self, key: Object) -> Object:
        member = {"id": key["member_id"], "email": "m@example.com", "external_id": None} if key["member_id"] else None
        return {name: value for name, value in key.items() if name != "activations"} | {
            "customer": customer(key["customer_id"], key["created_at"], self.organization_id), "member": member,
        }  # fmt: skip


def customer(customer_id: str, created_at: str, organization_id: str) -> Object:
    return {
        "id": customer_id, "created_at": created_at, "modified_at": None, "metadata": {}, "external_id": None,
        "email": f"{customer_id[:8]}@example.com", "email_verified": True, "type": "individual", "name": None,
        "billing_name": None, "billing_address": None, "tax_id": None, "locale": None,
        "organization_id": organization_id, "default_payment_method_id": None, "deleted_at": None,
        "first_user_event_at": None, "avatar_url": None,
    }  # fmt: skip


def page_of(items: list[Object], query: Mapping[str, str]) -> Object:
    """One page, as Polar cuts them: by offset, at most a hundred."""
    size, number = min(int(query.get("limit", 10)), 100), int(query.get("page", 1))
    pages = -(-len(items) // size)
    found = items[(number - 1) * size : number * size]
    return {"items": found, "pagination": {"total_count": len(items), "max_page": pages}}


def _activation(one: Object) -> Object:
    return {name: value for name, value in one.items() if name != "conditions"}


def _iso(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


_ID = "([0-9a-f-]{36})"
_READ, _WRITE = ("license_keys:read", "license_keys:write"), ("license_keys:write",)
_ROUTES: list[tuple[str, re.Pattern[str], tuple[str, ...], Callable[..., Reply]]] = [
    (method, re.compile(pattern), scopes, act)
    for method, pattern, scopes, act in (
        ("GET", "/v1/license-keys/", _READ, FakePolar.list_keys),
        ("GET", f"/v1/license-keys/{_ID}", _READ, FakePolar.get_key),
        ("POST", "/v1/license-keys/validate", _WRITE, FakePolar.validate_key),
    )
]
