"""Polar's benefits and ours in one list, and Polar's grants and ours. Queries and shapes only; no I/O of its own."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from config.catalogue import Catalogue
from config.settings import Settings
from worker.benefit_ids import own_id
from worker.own_benefits import METADATUM, TYPES, People, Since, benefit_shown, former_benefit
from worker.own_benefits import grant_shown as our_grant_shown
from worker.polar_shapes import Document, customer_shown, grant_shown
from worker.store import catalogues, customers, grants, lists, objects
from worker.store.filters import Filters
from worker.store.lists import Asked, Head, OurGrants

_decode = msgspec.json.Decoder().decode
_people = msgspec.json.Decoder(People).decode

Page = tuple[list[Document], int]


class Benefits:
    """The catalogue's benefits as they are in a list, read with one connection."""

    def __init__(self, connection: sa.Connection, catalogue: Catalogue, settings: Settings, now: datetime) -> None:
        self._connection = connection
        self._catalogue = catalogue
        organization = settings.polar_organization_id or lists.organization(connection) or ""
        first, last = catalogues.since(connection)
        self._since = Since(first or now, last or now, organization)
        self.organization_id = organization

    def page(self, asked: Asked) -> Page:
        """Return a page of benefits, Polar's and ours."""
        known, total = lists.benefit_heads(self._connection, asked)
        ours = [head for head in self._heads() if _matches(head, asked.filters, self.organization_id)]
        found = _sorted([*known, *ours], asked)[asked.offset : asked.offset + asked.limit]
        return self._shown(found), total + len(ours)

    def one(self, benefit_id: str) -> Document | None:
        """Return a benefit; None where there is none."""
        mine = self._mine(benefit_id)
        if mine:
            return mine
        body = lists.first(self._connection, "benefit", {"id": [benefit_id]})
        return _decode(body) if body else None

    def grants(self, asked: Asked, benefit_id: str | None = None) -> Page:
        """Return a page of grants, Polar's and ours; with `benefit_id` only those of this benefit."""
        keys = [key for key in self._catalogue.benefits if own_id(key) == benefit_id]
        of = asked.filters.get("organization_id")
        is_mine = of is None or self.organization_id in of
        ours = OurGrants(is_mine and (benefit_id is None or bool(keys)), keys if benefit_id else None)
        page = lists.grant_page(self._connection, asked, ours)
        shown = self._polars([one for is_ours, one in page.keys if not is_ours])
        shown |= self._ours([one for is_ours, one in page.keys if is_ours])
        return [shown[one] for _, one in page.keys if one in shown], page.total

    def _heads(self) -> Iterable[Head]:
        for key, benefit in self._catalogue.benefits.items():
            yield Head(own_id(key), self._since.first, benefit.description, TYPES[benefit.connector])

    def _mine(self, benefit_id: str) -> Document | None:
        found = (benefit for key, benefit in self._catalogue.benefits.items() if own_id(key) == benefit_id)
        return next((benefit_shown(benefit, self._since) for benefit in found), None)

    def _shown(self, heads: Sequence[Head]) -> list[Document]:
        bodies = objects.bodies(self._connection, "benefit", [head.id for head in heads])
        found = [_decode(bodies[head.id]) if head.id in bodies else self._mine(head.id) for head in heads]
        return [one for one in found if one]

    def _polars(self, ids: Sequence[str]) -> dict[str, Document]:
        """Return grants of Polar's by id, with the customer and the benefit as they are now."""
        found = {one: grant_shown(_decode(body)) for one, body in self._bodies("benefit_grant", ids).items()}
        payers = self._bodies("customer", {one["customer_id"] for one in found.values()})
        benefits = self._bodies("benefit", {one["benefit_id"] for one in found.values()})
        for grant in found.values():
            payer, benefit = payers.get(grant["customer_id"]), benefits.get(grant["benefit_id"])
            customer = _decode(payer) if payer else grant.get("customer") or {}
            grant["customer"] = customer_shown(customer, self.organization_id)
            grant["benefit"] = _decode(benefit) if benefit else grant["benefit"]
        return found

    def _bodies(self, kind: str, ids: Iterable[str]) -> dict[str, str]:
        return objects.bodies(self._connection, kind, ids)

    def _ours(self, ids: Sequence[str]) -> dict[str, Document]:
        """Return grants of ours by id."""
        rows = grants.by_ids(self._connection, ids) if ids else []
        facts = customers.facts(self._connection, {row["customer_id"] for row in rows}) if rows else {}
        people = {one: _people(state) for one, state in facts.items()}
        found = {}
        for row in rows:
            benefit = self._catalogue.benefits.get(row["benefit"])
            shown = benefit_shown(benefit, self._since) if benefit else self._former(row)
            grant = our_grant_shown(row, people.get(row["customer_id"], People()), shown)
            grant["customer"] = customer_shown(grant["customer"], self.organization_id)
            found[row["id"]] = grant
        return found

    def _former(self, row: Mapping[str, Any]) -> Document:
        return former_benefit(row["benefit"], row["connector"], self._since)


_OURS_MATCH: dict[str, Callable[[Head, Any], bool]] = {
    "type": lambda head, types: head.type in types,
    "id": lambda head, ids: head.id in ids,
    "exclude_id": lambda head, ids: head.id not in ids,
    "description": lambda head, query: query.lower() in head.name.lower(),
    "metadata": lambda head, wanted: all(
        name == METADATUM and any(own_id(key) == head.id for key in keys) for name, keys in wanted.items()
    ),
}


def _matches(head: Head, filters: Filters, organization_id: str) -> bool:
    """Whether one of our benefits is asked for: as worker/store/filters.py says of Polar's."""
    of = filters.get("organization_id")
    if of is not None and organization_id not in of:
        return False
    asked = {name: value for name, value in filters.items() if value is not None and name in _OURS_MATCH}
    return all(_OURS_MATCH[name](head, value) for name, value in asked.items())


def _sorted(heads: list[Head], asked: Asked) -> list[Head]:
    """Sort as the database does: the last criterion first, and then what was equal stays as it was."""
    places = {one: place for place, one in enumerate(asked.filters.get("id") or ())}
    by: dict[str, Callable[[Head], Any]] = {
        "created_at": lambda head: head.created_at,
        "description": lambda head: head.name,
        "type": lambda head: head.type,
        "user_order": lambda head: places[head.id] if places else head.created_at,
    }
    found = sorted(heads, key=lambda head: head.id, reverse=asked.sorting[0].startswith("-"))
    for one in reversed(asked.sorting):
        found.sort(key=by[one.removeprefix("-")], reverse=one.startswith("-"))
    return found
