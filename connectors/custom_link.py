"""A link or a note with the customer's own data in it; a link can be signed, so that the page behind it can check."""

import hashlib
import hmac
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, ClassVar, Self
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import Field, field_validator, model_validator

from config.catalogue import BenefitConfig, Per
from config.durations import Duration
from config.settings import Settings
from connectors.base import Holding, Presentation, Receipt, Recipient, Serving, Tools

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
# RFC 3986, without ' which browsers encode in a query: what they would change breaks a signature.
_ADDRESS = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&()*+,;=%]*")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_MARKDOWN = re.compile(r"[\\`*_{}\[\]()#+\-.!|~]")
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
_HELPERS = {"signed", "expires_seconds"}

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
    note: str | None = Field(default=None, min_length=1, description="Markdown, with the same placeholders")
    sign: bool = Field(default=False, description="whether the address is signed with ALMONER_LINK_SECRET")
    expires: Duration = Field(
        default=timedelta(minutes=15),
        ge=timedelta(seconds=1),
        le=timedelta(days=365),
        description="how long a signed address is good for",
    )

    @field_validator("url", "note")
    @classmethod
    def _placeholders(cls, text: str | None) -> str | None:
        for name in _PLACEHOLDER.findall(text or ""):
            if name not in _VALUES:
                raise ValueError(f"{{{name}}} is not known; there are: {', '.join(f'{{{one}}}' for one in _VALUES)}")
        if set("{}") & set(_PLACEHOLDER.sub("", text or "")):
            raise ValueError("a brace that opens must close, and they stand around placeholders only")
        return text

    @field_validator("url")
    @classmethod
    def _address(cls, url: str | None) -> str | None:
        """Return the address as browsers write it: what they send is then what was signed."""
        if url is None:
            return None
        if not _ADDRESS.fullmatch(_PLACEHOLDER.sub("", url)):
            raise ValueError("write what a url cannot hold percent-encoded, like %20 for a space")
        parts = urlsplit(url)
        if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or set("{@") & set(parts.netloc):
            raise ValueError("a url starts with https:// (or http://) and a host, without placeholders or user names")
        if {".", ".."} & set(parts.path.lower().replace("%2e", ".").split("/")):  # %2e is a dot to browsers
            raise ValueError("a url has no . or .. between its slashes")
        if "almoner_expires" in url or "almoner_signature" in url:
            raise ValueError("almoner_expires and almoner_signature are added by signing")
        _ = parts.port  # raises ValueError, in words, where it is none
        place = parts.netloc.lower().removesuffix(_DEFAULT_PORTS[parts.scheme]).removesuffix(":")
        return urlunsplit(parts._replace(netloc=place, path=parts.path or "/"))

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if (self.url is None) == (self.note is None):
            raise ValueError("give exactly one of url and note")
        if self.url is None and self.sign:
            raise ValueError("only a url can be signed")
        if "expires" in self.model_fields_set and not self.sign:
            raise ValueError("only a signed url expires; add sign = true, or leave expires out")
        return self


class CustomLink(Serving):
    """Gives a link or a note; what it leads to is behind the merchant's own page, or behind nothing."""

    Config: ClassVar[type[BenefitConfig]] = Terms
    per: ClassVar[Per] = "customer"
    dynamic: ClassVar[bool] = True

    def __init__(self, tools: Tools) -> None:
        self._passes = tools.passes

    @staticmethod
    def missing(config: Terms, settings: Settings) -> list[str]:
        """Return what the settings lack for this benefit: the secret, where the link is to be signed."""
        if config.sign and not settings.link_secret.get_secret_value():
            return [
                "ALMONER_LINK_SECRET is missing: it signs the address, and your page checks it with the same secret"
            ]
        return []

    def resource(self, to: Recipient, config: Terms) -> str:
        """Return the name of this customer's link."""
        return ":".join(["custom_link", config.benefit, to.customer_id, to.member_id or "", to.purchase or ""])

    async def grant(self, to: Recipient, config: Terms, held: Receipt | None) -> Receipt:  # noqa: ARG002 - made anew each time
        """Write the customer's data into the link or note, and open the pass."""
        resource = self.resource(to, config)
        data: dict[str, Any] = {"note": _render(config.note, to, _in_markdown)}
        if config.url is not None:
            seconds = int(config.expires.total_seconds()) if config.sign else None
            data = {"url": _render(config.url, to, _in_url), "signed": config.sign, "expires_seconds": seconds}
        await self._passes.open(resource)
        return Receipt(resource, data)

    async def revoke(self, held: Receipt, *, last: bool = True) -> None:  # noqa: ARG002 - each stands alone
        """Close the pass: the link is shown no more, and a signed one ends by itself."""
        await self._passes.close(held.resource)

    async def holds(self, held: Receipt) -> Holding:
        """Read the pass back."""
        return Holding.HELD if await self._passes.is_open(held.resource) else Holding.GONE

    def offer(self, held: Receipt) -> dict[str, Any]:
        """Return the link or the note; a signature comes when it is asked for."""
        return {"kind": "link" if "url" in held.data else "note", **held.data}

    @staticmethod
    def present(offer: dict[str, Any], grant_id: str, at: Presentation) -> dict[str, Any]:  # noqa: ARG004 - as for all
        """Sign the address, if it is to be signed, and say until when it is good: `expires_at`."""
        shown = {name: value for name, value in offer.items() if name not in _HELPERS}
        if not offer.get("signed"):
            return shown
        ends = (at.now + timedelta(seconds=offer["expires_seconds"])).replace(microsecond=0)
        secret = at.settings.link_secret.get_secret_value()
        return shown | {"url": sign_link(offer["url"], secret, ends), "expires_at": ends.isoformat()}


def _in_url(value: str) -> str:
    return quote(value, safe="", errors="replace")


def _in_markdown(value: str) -> str:
    """Return a value that is only text in Markdown: one line, no markup, no HTML."""
    return _MARKDOWN.sub(r"\\\g<0>", " ".join(value.split())).translate(_HTML)


def _render(text: str | None, to: Recipient, escape: Callable[[str], str]) -> str:
    return _PLACEHOLDER.sub(lambda match: escape(_VALUES[match[1]](to) or ""), text or "")


def sign_link(url: str, secret: str, ends: datetime) -> str:
    """Add `almoner_expires` (unix seconds) and `almoner_signature` to an address, before its fragment.

    The signature is hex HMAC-SHA256 over the address up to it, without the fragment, which never reaches a page.
    """
    address, hash_sign, fragment = url.partition("#")
    signed = f"{address}{'&' if '?' in address else '?'}almoner_expires={int(ends.timestamp())}"
    signature = hmac.new(secret.encode(), signed.encode(), hashlib.sha256).hexdigest()
    return f"{signed}&almoner_signature={signature}{hash_sign}{fragment}"


def verify_link(url: str, secret: str, now: datetime) -> bool:
    """Whether an address was signed with this secret and has not expired: what the page behind a link asks.

    Give it the whole address as the browser shows it. Copy it into your page: it needs `hashlib` and `hmac` only.
    """
    signed, _, signature = url.partition("#")[0].rpartition("&almoner_signature=")
    expected = hmac.new(secret.encode(), signed.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()
    genuine = hmac.compare_digest(expected.encode(), signature.encode(errors="surrogatepass"))
    # An empty secret is one that everybody knows.
    return bool(secret) and genuine and int(signed.rpartition("almoner_expires=")[2]) > now.timestamp()
