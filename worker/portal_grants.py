"""The grants that a customer has, as Polar's portal shows them: less of the benefit than a merchant sees. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from config.settings import Settings
from handlers.state import KnownAccount

Document = dict[str, Any]

FIRST: datetime = datetime.min.replace(tzinfo=UTC)

_CUSTOMER = (
    "id", "created_at", "modified_at", "email", "email_verified", "name", "billing_name", "billing_address", "tax_id",
    "default_payment_method_id", "type", "locale",
)  # fmt: skip
_GRANT = (
    "id", "created_at", "modified_at", "granted_at", "revoked_at", "customer_id", "member_id", "benefit_id",
    "subscription_id", "order_id", "is_granted", "is_revoked", "properties",
)  # fmt: skip
_BENEFIT = (
    "id", "created_at", "modified_at", "type", "description", "selectable", "deletable", "is_deleted",
    "organization_id",
)  # fmt: skip
_OURS_TO_MEND = "It could not be given yet; whoever sold it is looking into it."


@dataclass(frozen=True)
class Wanted:
    """Which grants to list: each condition that is None lets all through."""

    query: str | None = None
    """A part of the benefit's description."""
    types: Sequence[str] | None = None
    benefit_ids: Sequence[str] | None = None
    purchases: Sequence[str] | None = None
    """Subscriptions and orders of the checkouts that are asked for."""
    order_ids: Sequence[str] | None = None
    subscription_ids: Sequence[str] | None = None
    member_ids: Sequence[str] | None = None

    def lets_through(self, grant: Mapping[str, Any]) -> bool:
        """Whether a grant is in the list."""
        benefit = grant["benefit"]
        asked = (
            (self.types, {benefit["type"]}),
            (self.benefit_ids, {grant["benefit_id"]}),
            (self.purchases, {grant.get("order_id"), grant.get("subscription_id")}),
            (self.order_ids, {grant.get("order_id")}),
            (self.subscription_ids, {grant.get("subscription_id")}),
            (self.member_ids, {grant.get("member_id")}),
        )
        is_found = self.query is None or self.query.lower() in (benefit.get("description") or "").lower()
        return is_found and all(wanted is None or has & set(wanted) for wanted, has in asked)


@dataclass(frozen=True)
class Around:
    """What every grant of a customer shows, whatever it gives."""

    organization: Document
    accounts: Document

    @classmethod
    def of(cls, settings: Settings, since: datetime, accounts: Iterable[KnownAccount]) -> "Around":
        """`since` is when the customer was made: by then there was the organization, and more is not known of it."""
        organization = {
            "created_at": since,
            "modified_at": None,
            "name": settings.page_name,
            "slug": "",
            "avatar_url": f"{settings.base_url}/me/logo" if settings.page_logo else None,
            # What customers may change of subscriptions is Polar's to know; here they can change nothing.
            "proration_behavior": "prorate",
            "allow_customer_updates": False,
        }
        known = {
            f"{one.platform}:{one.account_id}": {"account_id": one.account_id, "account_username": one.name}
            for one in accounts
            if one.account_id
        }
        return cls(organization, known)


def grant_shown(grant: Mapping[str, Any], ours: Mapping[str, Any] | None, note: str | None, around: Around) -> Document:
    """Return a grant as the merchant sees it (`grant`) as its customer does.

    `ours` is its row where it is one of ours, and `note` then what a link or a note says to this customer.
    """
    benefit = grant["benefit"]
    properties = _PROPERTIES.get(benefit["type"], _nothing)(benefit.get("properties") or {})
    if ours and "note" in properties:
        properties = {"note": note}
    organization = around.organization | {"id": benefit.get("organization_id")}
    customer = {name: grant["customer"].get(name) for name in _CUSTOMER} | {"oauth_accounts": around.accounts}
    return {
        **{name: grant.get(name) for name in _GRANT},
        "error": _error(grant.get("error"), ours),
        "customer": customer,
        "benefit": {
            **{name: benefit.get(name) for name in _BENEFIT},
            "organization": organization,
            "properties": properties,
        },
    }


def _error(error: Mapping[str, Any] | None, ours: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What only the merchant can mend is told to them: it can name paths of the server."""
    is_hidden = error and ours and ours["who"] != "customer"
    return {**error, "message": _OURS_TO_MEND} if error and is_hidden else error


def _nothing(_properties: Mapping[str, Any]) -> Document:
    return {}


def _named(*names: str) -> Callable[[Mapping[str, Any]], Document]:
    return lambda properties: {name: properties.get(name) for name in names}


def _files(properties: Mapping[str, Any]) -> Document:
    archived = properties.get("archived") or {}
    return {"active_files": [one for one in properties.get("files") or () if not archived.get(one)]}


_PROPERTIES: dict[str, Callable[[Mapping[str, Any]], Document]] = {
    "custom": _named("note"),
    "discord": _named("guild_id"),
    "github_repository": _named("repository_owner", "repository_name"),
    "downloadables": _files,
    "license_keys": _named("prefix", "expires", "activations", "limit_usage"),
    "meter_credit": _named("units", "rollover", "meter_id"),
}


def is_shown(grant: Mapping[str, Any], ours: Mapping[str, Any] | None, now: datetime) -> bool:
    """Whether a customer sees a grant: not when it was taken back, or is about to be, nor of what is private."""
    if grant["is_revoked"] or grant["benefit"].get("visibility", "public") == "private":
        return False
    if ours is None:
        return True
    return bool(ours["wanted"]) and (ours["valid_until"] is None or ours["valid_until"] > now)


_SORTED_BY: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "granted_at": lambda grant: (grant["granted_at"] is None, _time(grant["granted_at"])),  # nulls last, as at Polar
    "type": lambda grant: grant["benefit"]["type"],
    "organization": lambda _: "",
    # Which place a benefit has in a product is not known here; their ages say it, unless a merchant moved them.
    "product_benefit": lambda grant: (_time(grant["benefit"]["created_at"]), grant["benefit"]["id"]),
}


def ordered(shown: Iterable[Document], sorting: Sequence[str]) -> list[Document]:
    """Return grants in this order: the names of what is sorted by, with `-` descending."""
    found = sorted(shown, key=lambda grant: str(grant["id"]))
    for one in reversed(sorting):
        found.sort(key=_SORTED_BY[one.removeprefix("-")], reverse=one.startswith("-"))
    return found


def _time(at: str | datetime | None) -> datetime:
    """Polar's objects have times as text, ours as such."""
    return datetime.fromisoformat(at) if isinstance(at, str) else at or FIRST
