"""Sessions of customers by token: an app asks for one, and the customer's own client uses it as bearer.

A token is signed and nothing is stored: the first of the signing keys signs, all verify. It names the customer, and the
member where it is a member's, and ends with them.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from itsdangerous import BadSignature, URLSafeSerializer
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from config.settings import Settings
from handlers import state as facts
from worker.http.context import Context
from worker.http.errors import ApiError
from worker.http.page_session import Session
from worker.http.page_visitor import Visitor, state_of

_SALT = "almoner.portal.session"
_CUSTOMER, _MEMBER = "almoner_cst_", "almoner_mst_"


@dataclass(frozen=True)
class PortalSession(Session):
    """The session of a customer in person, or of one of their members."""

    return_url: str | None
    """Where the app would have them back; only the app minds."""


@dataclass(frozen=True)
class PortalTokens:
    """Makes and reads the tokens of sessions. They are secrets, good for `page_session_ttl`."""

    settings: Settings

    def open(
        self, customer_id: str, member_id: str | None, return_url: str | None, now: datetime
    ) -> tuple[PortalSession, str]:
        """Return a new session and its token."""
        ends = (now + self.settings.page_session_ttl).replace(microsecond=0)
        session = PortalSession(customer_id, member_id, ends, str(uuid4()), return_url)
        content = [customer_id, member_id, int(ends.timestamp()), session.id, return_url]
        return session, f"{_CUSTOMER if member_id is None else _MEMBER}{self._serializer().dumps(content)}"

    def read(self, token: str, now: datetime) -> PortalSession | None:
        """Return the session that is still open; None for a token that has ended or is not ours."""
        prefix = next((one for one in (_CUSTOMER, _MEMBER) if token.startswith(one)), None)
        if prefix is None:
            return None
        try:
            customer_id, member_id, ends, session_id, return_url = self._serializer().loads(token.removeprefix(prefix))
        except (BadSignature, ValueError, TypeError):
            return None
        if ends <= now.timestamp() or (member_id is None) != (prefix == _CUSTOMER):
            return None
        return PortalSession(customer_id, member_id, datetime.fromtimestamp(ends, UTC), session_id, return_url)

    def _serializer(self) -> URLSafeSerializer:
        keys = [key.get_secret_value() for key in reversed(self.settings.signing_keys)]  # the last one signs
        return URLSafeSerializer(keys, salt=_SALT)


@dataclass(frozen=True)
class PortalVisitor(Visitor):
    """Whoever has the token of a session, and the facts of their customer."""

    session: PortalSession

    @property
    def since(self) -> datetime:
        """When the customer was made."""
        customer = facts.customer_of(self.state)
        return customer.created_at if customer else self.session.ends


async def portal_guard(connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
    """Let customers with a session pass. Raises ApiError (401): also for one whose customer or member is gone."""
    context: Context = connection.app.state.context
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    is_bearer = scheme.lower() == "bearer"
    session = PortalTokens(context.settings).read(token.strip(), context.now()) if is_bearer else None
    state = await state_of(context, session) if session else None
    if session is None or state is None:
        text = "Send `Authorization: Bearer <token>` with the token of a session: POST /v1/customer-sessions/ makes one"
        raise ApiError(401, text, **{"www-authenticate": "Bearer"})
    connection.scope["state"]["visitor"] = PortalVisitor(session, state)
