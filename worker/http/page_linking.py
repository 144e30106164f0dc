"""Linking an account from the customers' page: to the platform, back again, and forgetting it."""

from collections.abc import Mapping
from typing import Any

import structlog
from litestar import Request, Response, get, post
from litestar.datastructures import State
from litestar.params import FromPath

from worker.http.context import Context
from worker.http.oauth import TITLES, NotLinked, Platform, linked_account
from worker.http.page_look import PageProblem
from worker.http.page_session import Linking
from worker.http.page_visitor import Page, Visitor, posting, visitor_of
from worker.sealing import NotSealed

log = structlog.get_logger()

_CHANGES_A_DAY, _DAY_SECONDS = 20, 86_400
"""Each change of an account may cost one of a repository's fifty invitations a day."""


@post("/link/{platform:str}")
async def link(request: Request[Any, Any, State], platform: FromPath[str]) -> Response[None]:
    """Send the customer to the platform, to say who they are there."""
    context: Context = request.app.state.context
    page: Page = request.app.state.page
    known = _platform(page, platform)
    visitor = await posting(request)
    if not await visitor.may(context, "link", _CHANGES_A_DAY, _DAY_SECONDS):
        return page.back(notice="often")
    linking = Linking.begin()
    waiting = page.tokens.linking_cookie(linking, known.name, visitor.session, context.now())
    return page.redirect(known.question(linking, page.redirect_uri(known.name)), waiting)


@get("/callback/{platform:str}")
async def callback(request: Request[Any, Any, State], platform: FromPath[str]) -> Response[None]:
    """Take in what the platform says of the customer who comes back. Whatever fails changes nothing."""
    context: Context = request.app.state.context
    page: Page = request.app.state.page
    known = _platform(page, platform)
    visitor = await visitor_of(request)
    said = request.query_params
    linking = page.tokens.linking(request.cookies, known.name, visitor.session, said.get("state", ""), context.now())
    notice = "stale" if linking is None else await _take_in(context, page, known, visitor, linking, said)
    return page.back(page.tokens.without_linking(known.name), notice=f"{notice}.{known.name}")


async def _take_in(
    context: Context, page: Page, platform: Platform, visitor: Visitor, linking: Linking, said: Mapping[str, str]
) -> str:
    """Link the account that the platform tells of; returns the name of what to say."""
    if said.get("error") == "access_denied":
        return "denied"
    customer = visitor.session.customer_id
    try:
        account, token = await linked_account(
            platform, said.get("code", ""), linking, page.redirect_uri(platform.name), context.now(), page.transport
        )
        await context.accounts.link(customer, visitor.member_id, platform.name, account, source="linked", token=token)
    except (NotLinked, NotSealed) as error:
        log.warning("an account could not be linked", platform=platform.name, customer=customer, reason=str(error))
        return "failed"
    return "linked"


@post("/unlink/{platform:str}")
async def unlink(request: Request[Any, Any, State], platform: FromPath[str]) -> Response[None]:
    """Forget the account that the customer has linked, and its token."""
    context: Context = request.app.state.context
    page: Page = request.app.state.page
    if platform not in TITLES:
        raise PageProblem(404, "Nothing is here", "There is no such platform.")
    visitor = await posting(request)
    if not await visitor.may(context, "link", _CHANGES_A_DAY, _DAY_SECONDS):
        return page.back(notice="often")
    await context.accounts.unlink(visitor.session.customer_id, visitor.member_id, platform, source="linked")
    return page.back(notice=f"unlinked.{platform}")


def _platform(page: Page, name: str) -> Platform:
    if name not in page.platforms:
        raise PageProblem(404, "Nothing is here", "Accounts of this platform cannot be linked here.")
    return page.platforms[name]
