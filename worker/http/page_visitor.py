"""Who looks at the customers' page, and whether a form that came is theirs."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
from litestar import Request, Response
from litestar.datastructures import Cookie, State
from litestar.enums import MediaType

from connectors.base import Rate, Unavailable
from handlers import state as facts
from handlers.state import CustomerState
from worker.http.context import Context
from worker.http.oauth import TITLES, platforms_of
from worker.http.page_look import PREFIX, Look, PageProblem
from worker.http.page_session import PageTokens, Session
from worker.store import customers

# What the next page says, by the name that the cookie has; `{}` is the platform.
_NOTICES = {
    "linked": ("good", "Your {} account is linked. What waited for it is being set up."),
    "unlinked": ("good", "Your {} account is not linked any more."),
    "denied": ("bad", "You did not agree at {}, so nothing has changed."),
    "stale": ("bad", "That took too long, or was begun in another window. Nothing has changed; please try again."),
    "failed": ("bad", "{} did not answer as it should. Nothing has changed; please try again in a moment."),
    "checking": ("good", "We are checking again. Reload this page in a moment."),
    "often": ("bad", "You have changed your accounts very often today. Please try again tomorrow."),
    "early": ("bad", "You have checked just now. Please wait half a minute, then try again."),
    "settled": ("good", "There is nothing that waits for you."),
    "shown": ("bad", "This key was shown before, and cannot be shown again."),
    "licences": ("bad", "You have downloaded very many licences today. Please try again tomorrow."),
}


class Page:
    """What the page's handlers share: its look, what it signs, and the platforms that accounts can be linked at."""

    def __init__(self, context: Context, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """`transport` reaches the platforms; None is the network."""
        self.look = Look(context.settings)
        self.tokens = PageTokens(context.settings)
        self.platforms = platforms_of(context.settings)
        self.transport = transport

    def back(self, *cookies: Cookie, notice: str = "") -> Response[None]:
        """Send the browser to the page, which then says this."""
        told = [self.tokens.notice_cookie(notice)] if notice else []
        return self.redirect(f"{self.tokens.root}{PREFIX}", *cookies, *told)

    def redirect(self, address: str, *cookies: Cookie) -> Response[None]:
        """Send the browser somewhere, by GET."""
        headers = {"location": address}
        return Response(None, status_code=303, headers=headers, cookies=cookies, media_type=MediaType.TEXT)

    def redirect_uri(self, platform: str) -> str:
        """Where a platform sends the customer back."""
        return f"{self.tokens.settings.base_url}{PREFIX}/callback/{platform}"


@dataclass(frozen=True)
class Visitor:
    """Whoever looks at the page, and the facts of their customer."""

    session: Session
    state: CustomerState

    @property
    def member_id(self) -> str | None:
        """The member; None is the customer in person."""
        return self.session.member_id

    @property
    def name(self) -> str | None:
        """What to call them."""
        member = self.state.members.get(self.member_id or "")
        person = member.data if member else facts.customer_of(self.state)
        return (person.email or person.name) if person else None

    def is_theirs(self, grant: Mapping[str, Any]) -> bool:
        """Whether a grant is theirs. Those of no member are the owner's; only a team has others'."""
        owner = facts.owner_of(self.state)
        if self.member_id is not None:
            return bool((grant["member_id"] or owner) == self.member_id)
        customer = facts.customer_of(self.state)
        is_alone = owner is None and customer is not None and customer.type != "team"
        return is_alone or grant["member_id"] in {None, owner}

    async def may(self, context: Context, what: str, often: int, seconds: float) -> bool:
        """Whether they may do this now; at most so often in so many seconds. It counts as done then."""
        name = f"page:{what}:{self.session.customer_id}:{self.member_id or ''}"
        try:
            await context.limits.take(Rate(name, often, seconds))
        except Unavailable:
            return False
        return True


async def visitor_of(request: Request[Any, Any, State]) -> Visitor:
    """Return whose session this is. Raises PageProblem (403) where it has ended, or the person is gone."""
    context: Context = request.app.state.context
    page: Page = request.app.state.page
    session = page.tokens.session(request.cookies, context.now())
    state = await state_of(context, session) if session else None
    if session is None or state is None:
        raise PageProblem(403, "This page is closed", "Your visit has ended. Open the page again from where you came.")
    return Visitor(session, state)


async def state_of(context: Context, session: Session) -> CustomerState | None:
    """Return the facts of the session's customer, while they and the member are there."""
    found = await context.database.read(partial(customers.facts, ids=[session.customer_id]))
    state = facts.decode(found[session.customer_id]) if session.customer_id in found else None
    return state if state and is_there(state, session.member_id) else None


def is_there(state: CustomerState, member_id: str | None) -> bool:
    """Whether there is such a person: a customer who is not deleted, and their member."""
    member = state.members.get(member_id or "")
    is_member = member_id is None or (member is not None and not member.data.deleted)
    return is_member and facts.customer_of(state) is not None and not facts.is_deleted(state)


async def posting(request: Request[Any, Any, State]) -> Visitor:
    """Return who has sent a form of this page. Raises PageProblem (403)."""
    visitor = await visitor_of(request)
    form = await request.form()
    page: Page = request.app.state.page
    if not page.tokens.is_proof(visitor.session, str(form.get("proof", ""))):
        raise PageProblem(403, "That did not work", "Go back to your page, reload it, and try again.")
    return visitor


def notice_of(written: str) -> tuple[str, str] | None:
    """Return tone and sentence of a notice. Only sentences of ours are ever shown."""
    name, _, platform = written.partition(".")
    tone, text = _NOTICES.get(name, ("", ""))
    return (tone, text.format(TITLES.get(platform, "The platform"))) if text else None
