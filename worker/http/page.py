"""The customers' own page: what they bought, how far it is, and what they can do themselves.

An app makes a link that opens it (worker/http/accounts.py). What is done on it is done by forms: it works without
JavaScript.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from litestar import Request, Response, Router, get, post
from litestar.datastructures import State
from litestar.params import FromPath

from worker.http.context import Context
from worker.http.customers import name_of
from worker.http.page_answers import NO_KEYS, answers_of
from worker.http.page_licences import licence, shown_once
from worker.http.page_linking import callback, link, unlink
from worker.http.page_look import PREFIX, PageProblem
from worker.http.page_session import NOTICE_COOKIE
from worker.http.page_view import Person, is_retried, shown
from worker.http.page_visitor import Page, Visitor, notice_of, posting, state_of, visitor_of
from worker.store import grants
from worker.store.models import GrantStatus

_MOST_BYTES = 16 * 1024
_CHECK_SECONDS = 30
_DAY_SECONDS = 86_400
_AGAIN_A_DAY = 2


@get("/enter/{token:str}")
async def enter(request: Request[Any, Any, State], token: FromPath[str]) -> Response[Any]:
    """Open the page: a session in a cookie, and an address without the token."""
    context: Context = request.app.state.context
    page: Page = request.app.state.page
    session = page.tokens.enter(name_of(token), context.now())
    if session is None or await state_of(context, session) is None:
        text = "Links to this page are good for a short time. Go back to where you found it, and ask for a new one."
        raise PageProblem(410, "This link has ended", text)
    open_now = page.tokens.session(request.cookies, context.now())
    if open_now and (open_now.customer_id, open_now.member_id) != (session.customer_id, session.member_id):
        # A link from somebody else must not put another's page in place of theirs unseen: what they then link would
        # be linked there.
        entering = await state_of(context, session)
        whose = Visitor(session, entering).name if entering else None
        return page.look.page("switch.html", token=token, proof=page.tokens.proof(open_now), whose=whose)
    return page.back(page.tokens.session_cookie(session))


@post("/enter/{token:str}")
async def switch(request: Request[Any, Any, State], token: FromPath[str]) -> Response[Any]:
    """Open another person's page in place of the one that is open, as was just agreed to."""
    context: Context = request.app.state.context
    page: Page = request.app.state.page
    await posting(request)
    session = page.tokens.enter(name_of(token), context.now())
    if session is None or await state_of(context, session) is None:
        raise PageProblem(410, "This link has ended", "Go back to where you found it, and ask for a new one.")
    return page.back(page.tokens.session_cookie(session))


@get("/")
async def show(request: Request[Any, Any, State]) -> Response[str]:
    """Return the page of whoever has opened it."""
    return await _page_of(request, await visitor_of(request))


@post("/keys/{key_id:str}", status_code=200)
async def show_key(request: Request[Any, Any, State], key_id: FromPath[str]) -> Response[Any]:
    """Return the page with a key that is kept as a digest only: whole, this once."""
    page: Page = request.app.state.page
    visitor, key = await shown_once(request, name_of(key_id))
    return await _page_of(request, visitor, {name_of(key_id): key}) if key else page.back(notice="shown")


async def _page_of(
    request: Request[Any, Any, State], visitor: Visitor, once: Mapping[str, str] = NO_KEYS
) -> Response[str]:
    """Return the page of a visitor; `once` are whole keys, by id, that are shown in this answer and never again."""
    context: Context = request.app.state.context
    page: Page = request.app.state.page
    answers = await answers_of(context, visitor, once)
    names = {one.data.id: one.data.name or one.data.email or "A member" for one in visitor.state.members.values()}
    person = Person(
        visitor.is_theirs,
        await context.accounts.known(visitor.session.customer_id, visitor.member_id),
        frozenset(page.platforms),
        names if visitor.member_id is None else None,
    )
    platforms = {name: connector.platform for name, connector in context.connectors.items()}
    answer = page.look.page(
        "page.html",
        visitor=visitor,
        shown=shown(answers, context.pipeline.catalogue, platforms, person),
        proof=page.tokens.proof(visitor.session),
        linkable=person.linkable,
        notice=notice_of(request.cookies.get(NOTICE_COOKIE, "")),
    )
    answer.cookies = [page.tokens.notice_cookie("")] if NOTICE_COOKIE in request.cookies else []
    return answer


@post("/check")
async def check(request: Request[Any, Any, State]) -> Response[None]:
    """Look again at what waits for this person, twice a minute at most."""
    context: Context = request.app.state.context
    page: Page = request.app.state.page
    visitor = await posting(request)
    waiting = {
        grant["id"]: grant["status"]
        for answer in await answers_of(context, visitor)
        if not answer["connector"].startswith("polar:")
        for grant in answer["grants"]
        if visitor.is_theirs(grant) and is_retried(grant)
    }
    if not waiting:
        return page.back(notice="settled")
    if not await visitor.may(context, "check", 1, _CHECK_SECONDS):
        return page.back(notice="early")
    ids, pending = list(waiting), GrantStatus.PENDING
    # Who lets invitations end is invited again, but not without end: a repository has fifty a day for everybody.
    is_asked_again = any(status != pending for status in waiting.values())
    afresh = is_asked_again and await visitor.may(context, "again", _AGAIN_A_DAY, _DAY_SECONDS)
    await context.database.write(partial(grants.retry, ids=ids, now=context.now(), afresh=afresh))
    await context.pipeline.trigger.settle(ids)
    return page.back(notice="checking")


@post("/leave")
async def leave(request: Request[Any, Any, State]) -> Response[str]:
    """End the session in this browser."""
    page: Page = request.app.state.page
    await posting(request)
    answer = page.look.problem(200, "You have signed out", "Open the page again from where you came when you like.")
    answer.cookies = [page.tokens.without_session()]
    return answer


@get("/style.css", media_type="text/css")
async def style(request: Request[Any, Any, State]) -> str:
    """Return how it looks."""
    page: Page = request.app.state.page
    return page.look.style


@get("/page.js", media_type="text/javascript")
async def script(request: Request[Any, Any, State]) -> str:
    """Return what makes its copy buttons work."""
    page: Page = request.app.state.page
    return page.look.script


@get("/logo")
async def logo(request: Request[Any, Any, State]) -> Response[bytes]:
    """Return the merchant's logo."""
    page: Page = request.app.state.page
    return page.look.logo_answer()


@get("/icon.svg")
async def icon(request: Request[Any, Any, State]) -> Response[str]:
    """Return an icon in the merchant's colour."""
    page: Page = request.app.state.page
    return page.look.icon_answer()


PAGE = Router(
    path=PREFIX,
    route_handlers=[enter, switch, show, show_key, licence, check, leave, link, callback, unlink,
                    style, script, logo, icon],
    include_in_schema=False,
    request_max_body_size=_MOST_BYTES,
)  # fmt: skip
