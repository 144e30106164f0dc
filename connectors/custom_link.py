"""A link or a note with the customer's own data in it; a link can be signed, so that the page behind it can check."""

import hashlib
import hmac
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, ClassVar, Self
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from pydantic import Field, model_validator

from config.catalogue import BenefitConfig, Per
from config.durations import Duration
from config.settings import Settings
from connectors.base import Holding, Presentation, Receipt, Recipient, Tools

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>~])")

_VALUES: dict[str, Callable[[Recipient], str | None]] = {
    "customer.id": lambda to: to.customer_id,
    "customer.external_id": lambda to: to.external_id,
    "customer.email": lambda to: to.email,
    "customer.name": lambda to: to.name,
    "member.id": lambda to: to.member_id,
    "purchase": lambda to: to.purchase,
}


class Terms(BenefitConfig):
    """A link, or a note in Markdown."""

    url: str | None = Field(default=None, description="an address, with placeholders like {customer.email}")
    note: str | None = Field(default=None, description="Markdown, with the same placeholders")
    sign: bool = Field(default=False, description="whether the address is signed with ALMONER_LINK_SECRET")
    expires: Duration = Field(default=timedelta(minutes=15), description="how long a signed address is good for")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.url is None) == (self.note is None):
            raise ValueError("give exactly one of url and note")
        if self.url is None and self.sign:
            raise ValueError("only a url can be signed")
        for name in _PLACEHOLDER.findall(self.url or self.note or ""):
            if name not in _VALUES:
                raise ValueError(f"{{{name}}} is not known; there are: {', '.join(f'{{{one}}}' for one in _VALUES)}")
        if self.url is not None:
            parts = urlsplit(self.url)
            if parts.scheme not in {"http", "https"} or not parts.netloc or "{" in parts.netloc:
                raise ValueError("a url starts with https:// (or http://) and a host without placeholders")
        return self


class CustomLink:
    """Gives a link or a note; what it leads to is behind the merchant's own page, or behind nothing."""

    Config: ClassVar[type[BenefitConfig]] = Terms
    per: ClassVar[Per] = "customer"
    dynamic: ClassVar[bool] = True

    def __init__(self, tools: Tools) -> None:
        self._passes = tools.passes

    @staticmethod
    def missing(config: Terms, settings: Settings) -> list[str]:
        """Return what the settings lack for this benefit."""
        if config.sign and not settings.link_secret.get_secret_value():
            return [
                "ALMONER_LINK_SECRET is missing: it signs the address, and your page checks it with the same secret"
            ]
        return []

    def resource(self, to: Recipient, config: Terms) -> str:
        """Return the name of this customer's link."""
        return ":".join(["custom_link", config.benefit, to.customer_id, to.member_id or "", to.purchase or ""])

    async def grant(self, to: Recipient, config: Terms, held: Receipt | None) -> Receipt:  # noqa: ARG002 - made anew each time
        """Write the customer's data into the link, and open the pass."""
        resource = self.resource(to, config)
        data: dict[str, Any] = {"note": _render(config.note, to, _in_markdown)}
        if config.url is not None:
            seconds = config.expires.total_seconds() if config.sign else None
            data = {"url": _render(config.url, to, _in_url), "expires_seconds": seconds}
        await self._passes.open(resource)
        return Receipt(resource, data)

    async def revoke(self, held: Receipt) -> None:
        """Close the pass."""
        await self._passes.close(held.resource)

    async def holds(self, held: Receipt) -> Holding:
        """Read the pass back."""
        return Holding.HELD if await self._passes.is_open(held.resource) else Holding.GONE

    def offer(self, held: Receipt) -> dict[str, Any]:
        """Return the link or the note; a signature comes when it is asked for."""
        return {"kind": "link" if "url" in held.data else "note", **held.data}

    @staticmethod
    def present(offer: dict[str, Any], grant_id: str, at: Presentation) -> dict[str, Any]:  # noqa: ARG004 - as for all
        """Sign the address, if it is to be signed."""
        seconds = offer.get("expires_seconds")
        shown = {name: value for name, value in offer.items() if name != "expires_seconds"}
        if not seconds:
            return shown
        ends = at.now + timedelta(seconds=seconds)
        secret = at.settings.link_secret.get_secret_value()
        return shown | {"url": sign_link(offer["url"], secret, ends), "expires_at": ends.isoformat()}


def _in_url(value: str) -> str:
    return quote(value, safe="", errors="replace")


def _in_markdown(value: str) -> str:
    return _MARKDOWN.sub(r"\\\1", value)


def _render(text: str | None, to: Recipient, escape: Callable[[str], str]) -> str:
    return _PLACEHOLDER.sub(lambda match: escape(_VALUES[match[1]](to) or ""), text or "")


def sign_link(url: str, secret: str, ends: datetime) -> str:
    """Add `almoner_expires` (unix seconds) and `almoner_signature` to an address, before its fragment."""
    unsigned = _with_query(url, [("almoner_expires", str(int(ends.timestamp())))])
    return _with_query(unsigned, [("almoner_signature", _signature(unsigned, secret))])


def verify_link(url: str, secret: str, now: datetime) -> bool:
    """Whether an address was signed with this secret and has not expired: what the page behind a link asks.

    Copy it into your page: it needs the standard library only.
    """
    parts = urlsplit(url)
    head, separator, signature = parts.query.rpartition("almoner_signature=")
    if not separator:
        return False
    unsigned = urlunsplit(parts._replace(query=head.rstrip("&")))
    if not hmac.compare_digest(_signature(unsigned, secret).encode(), signature.encode()):
        return False
    ends = dict(parse_qsl(parts.query)).get("almoner_expires", "")
    return ends.isdigit() and int(ends) > now.timestamp()


def _signature(unsigned: str, secret: str) -> str:
    # The fragment never reaches the page, so it is not signed.
    return hmac.new(
        secret.encode(), urlsplit(unsigned)._replace(fragment="").geturl().encode(), hashlib.sha256
    ).hexdigest()


def _with_query(url: str, pairs: list[tuple[str, str]]) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(query="&".join(part for part in (parts.query, urlencode(pairs)) if part)))
