"""The catalogue's benefits and our grants, as Polar would show its own. Pure.

Shapes: Polar's OpenAPI, version 2026-10 (`Benefit`, `BenefitGrant`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

import msgspec
from msgspec import Raw, Struct

from config.catalogue import Benefit
from connectors import custom_link, discord_role, file_download, license_key
from connectors.base import Receipt
from connectors.github import terms as github
from connectors.github.given import RANKS
from handlers.events import Customer, Member
from handlers.state import Fact
from worker.benefit_ids import own_id
from worker.reconcile import Because
from worker.store.models import GrantStatus

Document = dict[str, Any]

TYPES = {
    "license_key": "license_keys", "github_repository": "github_repository", "discord_role": "discord",
    "file_download": "downloadables", "custom_link": "custom",
}  # fmt: skip
"""What Polar calls the kinds of benefits that our connectors give."""

METADATUM = "almoner_benefit"
"""Under this name the metadata of our benefits say their key in the catalogue."""

_receipt = msgspec.json.Decoder(Receipt).decode
_because = msgspec.json.Decoder(list[Because]).decode


@dataclass(frozen=True)
class Since:
    """When benefits began to be promised here, and when the file in force came."""

    first: datetime
    last: datetime
    organization_id: str


# Benefits.


def benefit_shown(benefit: Benefit, since: Since) -> Document:
    """Return a benefit of the catalogue. What Polar would edit cannot be edited there: it stands in the file."""
    shown = _benefit(benefit.key, benefit.connector, benefit.description, since)
    return shown | {"properties": _PROPERTIES[benefit.connector](benefit.config)}


def former_benefit(key: str, connector: str, since: Since) -> Document:
    """Return a benefit that is in the catalogue no more, as the benefit of grants that are left of it."""
    return _benefit(key, connector, key, since) | {"is_deleted": True, "properties": dict(_NOTHING[connector])}


def _benefit(key: str, connector: str, description: str, since: Since) -> Document:
    return {
        "id": own_id(key), "created_at": since.first, "modified_at": since.last, "type": TYPES[connector],
        "description": description, "selectable": False, "deletable": False, "is_deleted": False,
        "organization_id": since.organization_id, "metadata": {METADATUM: key}, "visibility": "public",
        "properties": {}, "visibility_configurable": False,
    }  # fmt: skip


def _of_key(config: license_key.Terms) -> Document:
    """Polar's keys last whole days at least: shorter times are rounded up."""
    days = math.ceil(config.expires / timedelta(days=1)) if config.expires else None
    limit = config.limit_activations
    return {
        "prefix": config.prefix or None,
        "expires": {"ttl": days, "timeframe": "day"} if days else None,
        "activations": {"limit": limit, "enable_customer_admin": False} if limit else None,
        "limit_usage": config.limit_usage,
    }


def _of_repository(config: github.Terms) -> Document:
    """Of several repositories Polar has the first; a role of the organization's own has no name there."""
    owner, _, name = config.names[0].partition("/")
    return {"repository_owner": owner, "repository_name": name, "permission": _permission(config.permission)}


def _permission(name: str) -> str:
    return name if name in RANKS else "pull"


def _of_role(config: discord_role.Terms) -> Document:
    kicks = config.on_revoke == "kick"
    return {"guild_id": config.guild, "role_id": config.role_ids()[0], "kick_member": kicks, "guild_token": ""}


def _of_files(config: file_download.Terms) -> Document:
    return {"files": [file_id(config.benefit, name) for name in config.files], "archived": {}}


def file_id(key: str, name: str) -> str:
    """Return an id for a file: at Polar they have UUIDs."""
    return str(uuid5(UUID(own_id(key)), name))


def _of_link(config: custom_link.Terms) -> Document:
    return {"note": config.note or config.url}


_PROPERTIES: dict[str, Callable[[Any], Document]] = {
    "license_key": _of_key, "github_repository": _of_repository, "discord_role": _of_role,
    "file_download": _of_files, "custom_link": _of_link,
}  # fmt: skip
_NOTHING: dict[str, Document] = {
    "license_key": {"prefix": None, "expires": None, "activations": None, "limit_usage": None},
    "github_repository": {"repository_owner": "", "repository_name": "", "permission": "pull"},
    "discord_role": {"guild_id": "", "role_id": "", "kick_member": False, "guild_token": ""},
    "file_download": {"files": [], "archived": {}},
    "custom_link": {"note": None},
}


# Grants.


class People(Struct):
    """The part of a customer's facts that a grant shows."""

    customer: Fact[Customer] | None = None
    customer_hint: Fact[Customer] | None = None
    members: dict[str, Fact[Member]] = {}
    subscriptions: dict[str, Raw] = {}


def grant_shown(row: Mapping[str, Any], people: People, benefit: Document) -> Document:
    """Return one of our grants. The customer in person has no member id, as with us."""
    status = row["status"]
    is_granted, is_revoked = status == GrantStatus.GRANTED, status == GrantStatus.REVOKED
    subscription_id, order_id = _purchase(row, people)
    times = [at for at in (row["asked_at"], row["granted_at"], row["revoked_at"]) if at and at > row["created_at"]]
    member = people.members.get(row["member_id"] or "")
    return {
        "id": row["id"],
        "created_at": row["created_at"],
        "modified_at": max(times, default=None),
        "granted_at": row["granted_at"] if is_granted else None,
        "is_granted": is_granted,
        "revoked_at": row["revoked_at"] if is_revoked else None,
        "is_revoked": is_revoked,
        "subscription_id": subscription_id,
        "order_id": order_id,
        "customer_id": row["customer_id"],
        "member_id": row["member_id"],
        "benefit_id": benefit["id"],
        "error": None if is_granted or not row["reason"] else _error(row),
        "customer": _customer(row, people),
        "member": _member(member.data, row) if member else None,
        "benefit": benefit,
        "properties": _given(row),
    }


def _purchase(row: Mapping[str, Any], people: People) -> tuple[str | None, str | None]:
    """Return the subscription or the order: the one that the grant is for, or the best reason that there is."""
    purchase = row["purchase"]
    if purchase:
        return (purchase, None) if purchase in people.subscriptions else (None, purchase)
    for reason in _because(row["because"]):
        if reason.subscription_id or reason.order_id:
            return reason.subscription_id, None if reason.subscription_id else reason.order_id
    return None, None


_ERRORS = {
    GrantStatus.PENDING: "BenefitActionRequiredError",
    GrantStatus.ACTION_REQUIRED: "BenefitActionRequiredError",
    GrantStatus.FAILED: "BenefitServiceError",
}


def _error(row: Mapping[str, Any]) -> Document:
    """Say what is wrong, by the names that Polar's grants have for it (polar.md 3.5)."""
    name = _ERRORS.get(row["status"], "BenefitRetriableError")
    return {"message": row["reason"], "type": name, "timestamp": row["asked_at"]}


def _customer(row: Mapping[str, Any], people: People) -> Document:
    known = people.customer or people.customer_hint
    customer = known.data if known else Customer(id=row["customer_id"], created_at=row["created_at"])
    return msgspec.structs.asdict(customer)


def _member(member: Member, row: Mapping[str, Any]) -> Document:
    shown = {name: getattr(member, name) for name in ("id", "created_at", "modified_at", "name", "external_id", "role")}
    return shown | {"customer_id": row["customer_id"], "email": member.email or ""}


def _given(row: Mapping[str, Any]) -> Document:
    """Return what the receipt says that was given, or was taken back."""
    written = row["receipt"] or row["taken"]
    if not written:
        return {}
    receipt = _receipt(written)
    give = _GIVEN.get(row["connector"])
    is_there = row["status"] in {GrantStatus.GRANTED, GrantStatus.PENDING}
    return give(receipt, row["benefit"], is_there) if give else {}


def _given_key(receipt: Receipt, _key: str, _is_there: bool) -> Document:  # noqa: FBT001 - as for all
    return {name: receipt.data[name] for name in ("license_key_id", "display_key") if receipt.data.get(name)}


def _given_repository(receipt: Receipt, _key: str, is_there: bool) -> Document:  # noqa: FBT001 - as for all
    _, resource, account = receipt.resource.split(":")
    owner, _, name = str(receipt.data.get("repository", resource)).partition("/")
    shown = {"account_id": account, "repository_owner": owner, "repository_name": name}
    shown["permission"] = _permission(str(receipt.data.get("permission")))
    return shown | ({"granted_account_id": account} if is_there else {})


def _given_role(receipt: Receipt, _key: str, is_there: bool) -> Document:  # noqa: FBT001 - as for all
    place = discord_role.Place.of(receipt.resource)
    shown = {"account_id": place.account, "guild_id": place.guild, "role_id": place.role}
    return shown | ({"granted_account_id": place.account} if is_there else {})


def _given_files(receipt: Receipt, key: str, _is_there: bool) -> Document:  # noqa: FBT001 - as for all
    return {"files": [file_id(key, one["name"]) for one in receipt.data.get("files", ())]}


_GIVEN: dict[str, Callable[[Receipt, str, bool], Document]] = {
    "license_key": _given_key, "github_repository": _given_repository, "discord_role": _given_role,
    "file_download": _given_files,
}  # fmt: skip
