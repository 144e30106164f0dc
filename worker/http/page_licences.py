"""License keys on the customers' page: a licence to use without a network, and a key that is shown once."""

from typing import Any

import structlog
from litestar import Request, Response, post
from litestar.datastructures import State
from litestar.params import FromPath

from worker.http.context import Context
from worker.http.customers import name_of
from worker.http.errors import ApiError
from worker.http.offline import as_file, issue
from worker.http.page_answers import owns
from worker.http.page_look import PageProblem
from worker.http.page_visitor import Page, Visitor, posting
from worker.offline import Asked
from worker.sealing import NotSealed

log = structlog.get_logger()

_LICENCES_A_DAY, _DAY_SECONDS = 50, 86_400


@post("/licences/{key_id:str}", status_code=200)
async def licence(request: Request[Any, Any, State], key_id: FromPath[str]) -> Response[Any]:
    """Answer an offline licence of the visitor's own key, as a file."""
    context: Context = request.app.state.context
    page: Page = request.app.state.page
    visitor, key_id = await posting(request), name_of(key_id)
    await check_owner(context, visitor, key_id)
    if not await visitor.may(context, "licence", _LICENCES_A_DAY, _DAY_SECONDS):
        return page.back(notice="licences")
    device = str((await request.form()).get("activation") or "") or None
    try:
        return as_file(await issue(context, request.app.state.signing_keys, key_id, Asked(device)))
    except ApiError as error:
        text = "Go back to your page, reload it, and try again. If that does not help, ask where you bought this."
        raise PageProblem(error.status_code, "There is no licence right now", text) from None


async def shown_once(request: Request[Any, Any, State], key_id: str) -> tuple[Visitor, str | None]:
    """Return the visitor, and their whole key, which then is forgotten; None where it was shown before.

    Raises PageProblem (403, 404, 503).
    """
    context: Context = request.app.state.context
    visitor = await posting(request)
    await check_owner(context, visitor, key_id)
    try:
        return visitor, await context.license_keys.show(key_id)
    except NotSealed as error:
        log.error("a license key that was never shown cannot be read; rotate it", license_key=key_id, reason=str(error))
        text = "It is our fault, and we have been told. Your key is not lost; try again a little later."
        raise PageProblem(503, "That did not work", text) from None


async def check_owner(context: Context, visitor: Visitor, key_id: str) -> None:
    """Raise PageProblem (404) for a key that is not the visitor's own."""
    if not await owns(context, visitor, key_id):
        raise PageProblem(404, "Nothing is here", "You do not have this license key, or not any more.")
