"""Who is looking at the customers' page: links that open it, the session after that, and proof that a form is ours.

All of it is signed and nothing is stored. The first of the signing keys signs, all verify.
"""

import hashlib
import secrets
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from itsdangerous import BadSignature, Signer, URLSafeSerializer
from litestar.datastructures import Cookie

from config.settings import Settings

_LINK, _SESSION, _FORM, _OAUTH = (f"almoner.page.{name}" for name in ("link", "session", "form", "oauth"))
_LINKING = timedelta(minutes=10)
_NOTICE_SECONDS = 60

SESSION_COOKIE = "almoner_session"
NOTICE_COOKIE = "almoner_notice"


@dataclass(frozen=True)
class Session:
    """Whoever opened the page: a customer in person, or one of their members."""

    customer_id: str
    member_id: str | None
    ends: datetime
    id: str


@dataclass(frozen=True)
class Linking:
    """A customer who is away at a platform, to link an account: what we must know when they come back."""

    state: str
    verifier: str

    @classmethod
    def begin(cls) -> "Linking":
        """Return a new one, that nobody can guess."""
        return cls(secrets.token_urlsafe(24), secrets.token_urlsafe(48))

    @property
    def challenge(self) -> str:
        """What the platform is told of the verifier (https://www.rfc-editor.org/rfc/rfc7636#section-4.2, S256)."""
        return urlsafe_b64encode(hashlib.sha256(self.verifier.encode()).digest()).rstrip(b"=").decode()


@dataclass(frozen=True)
class PageTokens:
    """Makes and reads all that the page signs."""

    settings: Settings

    @property
    def root(self) -> str:
        """The path under which customers reach the sidecar: empty, unless its public address has one."""
        return urlsplit(self.settings.base_url).path

    def make_link(self, customer_id: str, member_id: str | None, now: datetime) -> tuple[str, datetime]:
        """Return an address that opens the page, and when it ends (`page_link_ttl`)."""
        ends = (now + self.settings.page_link_ttl).replace(microsecond=0)
        token = self._sign(_LINK, [customer_id, member_id, int(ends.timestamp())])
        return f"{self.settings.base_url}/me/enter/{token}", ends

    def enter(self, token: str, now: datetime) -> Session | None:
        """Return a new session for whoever has this link; None where it has ended or is not ours."""
        known = self._read(_LINK, token, 3)
        if known is None or known[2] <= now.timestamp():
            return None
        ends = (now + self.settings.page_session_ttl).replace(microsecond=0)
        return Session(known[0], known[1], ends, secrets.token_urlsafe(16))

    def session_cookie(self, session: Session) -> Cookie:
        """Return the cookie that is the session."""
        content = [session.customer_id, session.member_id, int(session.ends.timestamp()), session.id]
        return self._cookie(SESSION_COOKIE, self._sign(_SESSION, content), self.settings.page_session_ttl)

    def session(self, cookies: dict[str, str], now: datetime) -> Session | None:
        """Return the session that is still open."""
        known = self._read(_SESSION, cookies.get(SESSION_COOKIE, ""), 4)
        if known is None or known[2] <= now.timestamp():
            return None
        return Session(known[0], known[1], datetime.fromtimestamp(known[2], UTC), known[3])

    def proof(self, session: Session) -> str:
        """Return what every form of this session carries: nobody else's page can know it."""
        return self._signer().get_signature(session.id).decode()

    def is_proof(self, session: Session, sent: str) -> bool:
        """Whether a form that was sent is ours."""
        return self._signer().verify_signature(session.id, sent)

    def linking_cookie(self, linking: Linking, platform: str, session: Session, now: datetime) -> Cookie:
        """Return the cookie that waits for the customer to come back, bound to the session and the platform."""
        ends = int((now + _LINKING).timestamp())
        content = [linking.state, linking.verifier, platform, session.id, ends]
        return self._cookie(_linking_name(platform), self._sign(_OAUTH, content), _LINKING)

    def linking(
        self, cookies: dict[str, str], platform: str, session: Session, state: str, now: datetime
    ) -> Linking | None:
        """Return what was begun in this session at this platform, if the platform's answer belongs to it."""
        known = self._read(_OAUTH, cookies.get(_linking_name(platform), ""), 5)
        if known is None or known[4] <= now.timestamp() or known[2:4] != [platform, session.id]:
            return None
        same = secrets.compare_digest(str(known[0]).encode(), state.encode())
        return Linking(known[0], known[1]) if same else None

    def without_linking(self, platform: str) -> Cookie:
        """Return the cookie that ends it: an answer counts once."""
        return self._cookie(_linking_name(platform), "", timedelta())

    def without_session(self) -> Cookie:
        """Return the cookie that ends the session in this browser."""
        return self._cookie(SESSION_COOKIE, "", timedelta())

    def notice_cookie(self, name: str) -> Cookie:
        """Return the cookie that names what the next page says, or that ends it."""
        return self._cookie(NOTICE_COOKIE, name, timedelta(seconds=_NOTICE_SECONDS if name else 0))

    def _cookie(self, name: str, value: str, lasts: timedelta) -> Cookie:
        # Lax, not strict: a customer who comes back from a platform must still be known.
        return Cookie(
            key=name, value=value, max_age=int(lasts.total_seconds()), path=f"{self.root}/me", httponly=True,
            samesite="lax", secure=self.settings.base_url.startswith("https://"),
        )  # fmt: skip

    def _keys(self) -> list[str]:
        return [key.get_secret_value() for key in reversed(self.settings.signing_keys)]  # the last one signs

    def _signer(self) -> Signer:
        return Signer(self._keys(), salt=_FORM, digest_method=hashlib.sha256)

    def _sign(self, salt: str, content: list[Any]) -> str:
        return str(URLSafeSerializer(self._keys(), salt=salt).dumps(content))

    def _read(self, salt: str, token: str, parts: int) -> list[Any] | None:
        try:
            content = URLSafeSerializer(self._keys(), salt=salt).loads(token)
        except (BadSignature, ValueError):
            return None
        return content if isinstance(content, list) and len(content) == parts else None


def _linking_name(platform: str) -> str:
    return f"almoner_link_{platform}"
