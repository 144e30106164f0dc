"""What customers see of their things through the portal, in Polar's shapes."""

import mimetypes
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID, uuid5

import msgspec

from connectors.base import Receipt
from handlers import state as facts
from handlers.events import Customer
from handlers.state import CustomerState
from worker.benefit_ids import own_id
from worker.http.context import Context
from worker.http.polar_api import iso
from worker.http.portal_session import PortalVisitor
from worker.http.present import At
from worker.own_benefits import file_id
from worker.store.models import GrantStatus

_FILES = UUID("3d9a6c51-70b4-5e2f-8a16-c4d27f90b5e8")
_UNITS = ("B", "KB", "MB", "GB", "TB")
_receipt = msgspec.json.Decoder(Receipt).decode


def organization_id(context: Context, state: CustomerState) -> str:
    """Return the organization that a customer is of: as set, or as Polar says; empty if unknown."""
    customer = facts.customer_of(state)
    return context.settings.polar_organization_id or (customer and customer.organization_id) or ""


def customer_shown(context: Context, state: CustomerState) -> dict[str, Any]:
    """Return a customer who is there as Polar shows them to the merchant."""
    customer = _customer(state)
    shown = msgspec.structs.asdict(customer) | {"organization_id": organization_id(context, state)}
    return shown if customer.type == "team" else shown | {"email": customer.email or ""}  # only a team can have none


def user_shown(visitor: PortalVisitor) -> dict[str, Any]:
    """Return who has the session."""
    member = visitor.state.members.get(visitor.member_id or "")
    person = member.data if member else _customer(visitor.state)
    return {
        "type": "member" if member else "customer",
        "name": person.name,
        "email": person.email or "",
        "customer_id": visitor.session.customer_id,
        "member_id": visitor.member_id,
        "role": member.data.role if member else None,
    }


def _customer(state: CustomerState) -> Customer:
    customer = facts.customer_of(state)
    if customer is None:  # pragma: no cover - whoever has a session is there
        raise ValueError("no event has described the customer")
    return customer


def downloadables(
    context: Context, visitor: PortalVisitor, grants: Sequence[Mapping[str, Any]], benefits: set[str] | None
) -> list[dict[str, Any]]:
    """Return the files that these grants give the person now; of these benefits (keys), or of all."""
    now = context.now()
    live = [
        grant
        for grant in grants
        if visitor.is_theirs(grant) and _is_live(grant, now) and (benefits is None or grant["benefit"] in benefits)
    ]
    at = At(now, context.settings, context.tokens)
    return [
        _downloadable(context, visitor.state, grant, file, at)
        for grant in sorted(live, key=lambda grant: (grant["created_at"], grant["id"]), reverse=True)
        for file in _receipt(grant["receipt"]).data["files"]
    ]


def _is_live(grant: Mapping[str, Any], now: datetime) -> bool:
    """Whether the download route gives its files now (worker/http/downloads.py)."""
    is_over = grant["valid_until"] is not None and grant["valid_until"] <= now
    is_given = grant["wanted"] and grant["status"] == GrantStatus.GRANTED and bool(grant["receipt"])
    return bool(grant["connector"] == "file_download" and is_given and not is_over)


def _downloadable(
    context: Context, state: CustomerState, grant: Mapping[str, Any], file: Mapping[str, Any], at: At
) -> dict[str, Any]:
    name, benefit = file["name"], grant["benefit"]
    return {
        "id": str(uuid5(_FILES, f"{grant['id']}:{name}")),
        "created_at": iso(grant["created_at"]),
        "modified_at": None,
        "benefit_id": own_id(benefit),
        "file": {
            "id": file_id(benefit, name),
            "organization_id": organization_id(context, state),
            "name": PurePosixPath(name).name,
            "path": name,
            "mime_type": mimetypes.guess_type(name)[0] or "application/octet-stream",
            "size": file["size"],
            "size_readable": readable(file["size"]),
            # What is not told cheaply: the files lie where the merchant put them, and are read at the click.
            "storage_version": None,
            "checksum_etag": None,
            "checksum_sha256_base64": None,
            "checksum_sha256_hex": None,
            "last_modified_at": None,
            "version": None,
            "is_uploaded": True,
            "service": "downloadable",
            "download": {
                "url": at.download_url(grant["id"], name),
                "headers": {},
                "expires_at": iso((at.now + at.settings.download_ttl).replace(microsecond=0)),
            },
        },
    }


def readable(size: int) -> str:
    """Write a number of bytes for people."""
    amount, unit = float(size), 0
    while amount >= 1024 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{size} B" if unit == 0 else f"{amount:.1f} {_UNITS[unit]}"


def written(context: Context, grant: Mapping[str, Any] | None) -> str | None:
    """Return what a link or a note says to whom it was given; None where nothing was."""
    if grant is None or grant["connector"] != "custom_link" or grant["status"] != GrantStatus.GRANTED:
        return None
    connector = context.connectors["custom_link"]
    at = At(context.now(), context.settings, context.tokens)
    gives = connector.present(connector.offer(_receipt(grant["receipt"])), grant["id"], at)
    return str(gives.get("note") or gives.get("url"))
