"""What an app does for customers' accounts: open their page, and say who they are at GitHub or Discord."""

import re
from functools import partial
from typing import Annotated, Any

from litestar import Controller, Request, delete, get, post, put
from litestar.datastructures import State
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, JSONBody, QueryParameter
from msgspec import Struct

from connectors.base import Account
from handlers import state as facts
from handlers.state import CustomerState, KnownAccount
from worker.accounts import PLATFORMS
from worker.http.auth import app_guard
from worker.http.context import Context
from worker.http.customers import ByExternalId, ById, name_of
from worker.http.errors import ApiError
from worker.http.oauth import TITLES
from worker.http.page_visitor import Page, is_there
from worker.http.polar_api import Problem
from worker.store import customers

MemberId = Annotated[str | None, QueryParameter(name="member_id", description="the member whose it is")]
ExternalMemberId = Annotated[
    str | None, QueryParameter(name="external_member_id", description="the same, by your own id of the member")
]
Asking = Request[Any, Any, State]

_ID = re.compile(r"[0-9]{1,20}")
_LOGINS = {
    # Enterprise Managed Users have an underscore before their company's code.
    "github": (re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,58}[A-Za-z0-9])?"), "letters, digits and single hyphens"),
    "discord": (re.compile(r"[a-z0-9._]{2,32}"), "2 to 32 small letters, digits, dots and underscores"),
}


class PageLink(Struct):
    """An address that opens a customer's page, and when it ends."""

    url: str
    expires_at: str


class WantedAccount(Struct, forbid_unknown_fields=True):
    """An account at a platform: its numeric id, or its name there. Exactly one of them."""

    id: str | None = None
    login: str | None = None


class ShownAccount(Struct):
    """An account of a customer. Without `account_id` only its name is known yet."""

    platform: str
    account_id: str | None
    name: str | None
    source: str


class Accounts(Struct):
    """All accounts that are known of a person, the most trusted first: it is the first of a platform that counts."""

    customer_id: str
    member_id: str | None
    accounts: list[ShownAccount]


def _fails(more: dict[int, str] | None = None) -> dict[int, ResponseSpec]:
    known = {401: "No token, or an unknown one", 404: "No such customer, or no such member"} | (more or {})
    return {status: ResponseSpec(Problem, generate_examples=False, description=text) for status, text in known.items()}


_SET_FAILS = _fails({
    404: "No such customer, member or platform",
    422: "Not exactly one of `id` and `login`, or one that there cannot be",
})  # fmt: skip
_FORGET_FAILS = _fails({404: "No such customer, member or platform, or no app has set an account"})


class AccountController(Controller):
    """By either id of the customer; for a member with `member_id` or `external_member_id`."""

    path = "/v1/customers"
    guards = [app_guard]
    tags = ["accounts"]

    @post("/{customer_id:str}/page-link", summary="Make a link to the customer's own page", responses=_fails())
    async def page_link(
        self, request: Asking, customer_id: FromPath[str], member_id: MemberId = None,
        external_member_id: ExternalMemberId = None,
    ) -> PageLink:  # fmt: skip
        """Return an address that opens the page, for a few minutes. Whoever has it sees what the customer sees."""
        return _page_link(request, await _person(request, ById, customer_id, member_id, external_member_id))

    @post("/external/{external_id:str}/page-link", summary="The same, by your own id", responses=_fails())
    async def page_link_external(
        self, request: Asking, external_id: FromPath[str], member_id: MemberId = None,
        external_member_id: ExternalMemberId = None,
    ) -> PageLink:  # fmt: skip
        """Return an address that opens the page of the customer with this external id."""
        return _page_link(request, await _person(request, ByExternalId, external_id, member_id, external_member_id))

    @get("/{customer_id:str}/accounts", summary="A customer's accounts at platforms", responses=_fails())
    async def accounts(
        self, request: Asking, customer_id: FromPath[str], member_id: MemberId = None,
        external_member_id: ExternalMemberId = None,
    ) -> Accounts:  # fmt: skip
        """Return what is known, and who told it: `linked`, `set` by an app, `polar`, or a `field`."""
        return await _known(request, await _person(request, ById, customer_id, member_id, external_member_id))

    @get("/external/{external_id:str}/accounts", summary="The same, by your own id", responses=_fails())
    async def accounts_external(
        self, request: Asking, external_id: FromPath[str], member_id: MemberId = None,
        external_member_id: ExternalMemberId = None,
    ) -> Accounts:  # fmt: skip
        """Return the accounts of the customer with this external id."""
        return await _known(request, await _person(request, ByExternalId, external_id, member_id, external_member_id))

    @put("/{customer_id:str}/accounts/{platform:str}", summary="Say which account a customer has",
         responses=_SET_FAILS)  # fmt: skip
    async def set_account(
        self, request: Asking, customer_id: FromPath[str], platform: FromPath[str], data: JSONBody[WantedAccount],
        member_id: MemberId = None, external_member_id: ExternalMemberId = None,
    ) -> Accounts:  # fmt: skip
        """Set the account. What was given to another moves to it, unless the customer has linked one themselves."""
        person = await _person(request, ById, customer_id, member_id, external_member_id)
        return await _set(request, person, platform, data)

    @put("/external/{external_id:str}/accounts/{platform:str}", summary="The same, by your own id",
         responses=_SET_FAILS)  # fmt: skip
    async def set_account_external(
        self, request: Asking, external_id: FromPath[str], platform: FromPath[str], data: JSONBody[WantedAccount],
        member_id: MemberId = None, external_member_id: ExternalMemberId = None,
    ) -> Accounts:  # fmt: skip
        """Set the account of the customer with this external id."""
        person = await _person(request, ByExternalId, external_id, member_id, external_member_id)
        return await _set(request, person, platform, data)

    @delete("/{customer_id:str}/accounts/{platform:str}", summary="Forget an account that an app has set",
            responses=_FORGET_FAILS)  # fmt: skip
    async def forget_account(
        self, request: Asking, customer_id: FromPath[str], platform: FromPath[str], member_id: MemberId = None,
        external_member_id: ExternalMemberId = None,
    ) -> None:  # fmt: skip
        """Forget it; what the customer has linked stays."""
        person = await _person(request, ById, customer_id, member_id, external_member_id)
        await _forget(request, person, platform)

    @delete("/external/{external_id:str}/accounts/{platform:str}", summary="The same, by your own id",
            responses=_FORGET_FAILS)  # fmt: skip
    async def forget_account_external(
        self, request: Asking, external_id: FromPath[str], platform: FromPath[str], member_id: MemberId = None,
        external_member_id: ExternalMemberId = None,
    ) -> None:  # fmt: skip
        """Forget the account that was set for the customer with this external id."""
        person = await _person(request, ByExternalId, external_id, member_id, external_member_id)
        await _forget(request, person, platform)


class _Person(Struct, frozen=True):
    customer_id: str
    member_id: str | None


async def _person(
    request: Asking, key: str, written: str, member_id: str | None, external_member_id: str | None
) -> _Person:
    """Return who is meant. Raises ApiError (404)."""
    context: Context = request.app.state.context
    ready = await context.ready.state(key, name_of(written))
    if ready is None or ready.document is None:
        raise ApiError(404, "No such customer is known here: no event has told of them yet.")
    if member_id is None and external_member_id is None:
        return _Person(ready.customer_id, None)
    found = await context.database.read(partial(customers.facts, ids=[ready.customer_id]))
    member = _member(facts.decode(found[ready.customer_id]), member_id, external_member_id)
    if member is None:
        raise ApiError(404, "The customer has no such member, or not any more.")
    return _Person(ready.customer_id, member)


def _member(state: CustomerState, member_id: str | None, external_id: str | None) -> str | None:
    if member_id is None:
        named = (one.data for one in state.members.values() if one.data.external_id == external_id)
        member_id = next((one.id for one in named if not one.deleted), None)
    return member_id if member_id is not None and is_there(state, member_id) else None


def _page_link(request: Asking, person: _Person) -> PageLink:
    context: Context = request.app.state.context
    page: Page = request.app.state.page
    url, ends = page.tokens.make_link(person.customer_id, person.member_id, context.now())
    return PageLink(url, ends.isoformat().replace("+00:00", "Z"))


async def _known(request: Asking, person: _Person) -> Accounts:
    context: Context = request.app.state.context
    known = await context.accounts.known(person.customer_id, person.member_id)
    return Accounts(person.customer_id, person.member_id, [_shown(one) for one in known])


def _shown(one: KnownAccount) -> ShownAccount:
    return ShownAccount(one.platform, one.account_id, one.name, one.source)


async def _set(request: Asking, person: _Person, platform: str, wanted: WantedAccount) -> Accounts:
    context: Context = request.app.state.context
    _check_platform(platform)
    _check(platform, wanted)
    if wanted.id is not None:
        account = Account(wanted.id)
        await context.accounts.link(person.customer_id, person.member_id, platform, account, source="set")
    elif wanted.login is not None:
        await context.accounts.name(person.customer_id, person.member_id, platform, wanted.login)
    return await _known(request, person)


async def _forget(request: Asking, person: _Person, platform: str) -> None:
    context: Context = request.app.state.context
    _check_platform(platform)
    if not await context.accounts.unlink(person.customer_id, person.member_id, platform, source="set"):
        raise ApiError(404, f"No app has set a {TITLES[platform]} account here; what customers link stays theirs")


def _check_platform(platform: str) -> None:
    if platform not in PLATFORMS:
        raise ApiError(404, f"There is no platform {name_of(platform)!r}; there are: {', '.join(PLATFORMS)}")


def _check(platform: str, wanted: WantedAccount) -> None:
    """Raises ApiError (422)."""
    title = TITLES[platform]
    if (wanted.id is None) == (wanted.login is None):
        raise ApiError(422, "Send exactly one of `id` (the account's number) and `login` (its name)")
    if wanted.id is not None and not _ID.fullmatch(wanted.id):
        raise ApiError(422, f"`id` is the number of the {title} account, in digits, as a string; a name is a `login`")
    pattern, words = _LOGINS[platform]
    if wanted.login is not None and not pattern.fullmatch(wanted.login):
        raise ApiError(422, f"`login` is the name of the {title} account: {words}, without @ or address")
