"""Pages of Polar's objects, and of our grants among Polar's.

Ids are found first, by an index where the order is the usual one, and then the bodies of one page.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from worker.store.customers import customers
from worker.store.filters import SHOWN, Filters, externally, order, ordered, where
from worker.store.grants import grants
from worker.store.models import GrantStatus
from worker.store.objects import bodies, objects


@dataclass(frozen=True)
class Asked:
    """Which part of a list: filters, the names to sort by (with `-` descending), and from where, how many."""

    filters: Filters
    sorting: Sequence[str]
    offset: int
    limit: int


def page(connection: sa.Connection, kind: str, asked: Asked) -> tuple[list[str], int]:
    """Return the JSON of the objects of one page, and how many there are on all."""
    dialect = connection.dialect.name
    conditions = where(dialect, kind, asked.filters)
    by = order(dialect, kind, asked.sorting)
    statement = sa.select(objects.c.id).where(*conditions).order_by(*by).offset(asked.offset).limit(asked.limit)
    ids = list(connection.execute(statement).scalars())
    found = bodies(connection, kind, ids)
    return [found[one] for one in ids if one in found], _count(connection, objects, conditions)


def _count(connection: sa.Connection, table: sa.Table, conditions: Iterable[Any]) -> int:
    statement = sa.select(sa.func.count()).select_from(table).where(*conditions)
    return int(connection.execute(statement).scalar_one())


def first(connection: sa.Connection, kind: str, filters: Filters) -> str | None:
    """Return the JSON of the object that these filters find."""
    conditions = where(connection.dialect.name, kind, filters)
    statement = sa.select(objects.c.body).where(*conditions).order_by(objects.c.id.desc()).limit(1)
    body: str | None = connection.execute(statement).scalar_one_or_none()
    return body


def by_external_id(connection: sa.Connection, external_id: str) -> str | None:
    """Return the JSON of the customer with this external id."""
    found = sa.select(customers.c.id).where(customers.c.external_id == external_id)
    statement = sa.select(objects.c.body).where(objects.c.kind == "customer", SHOWN, objects.c.id.in_(found))
    body: str | None = connection.execute(statement.order_by(objects.c.id.desc()).limit(1)).scalar_one_or_none()
    return body


@dataclass(frozen=True)
class Head:
    """What a benefit is sorted by."""

    id: str
    created_at: datetime
    name: str
    type: str


def benefit_heads(connection: sa.Connection, asked: Asked) -> tuple[list[Head], int]:
    """Return the beginning of the list of benefits, to its page's end: ours are still to be put among them."""
    dialect = connection.dialect.name
    conditions = where(dialect, "benefit", asked.filters)
    by = order(dialect, "benefit", asked.sorting, asked.filters.get("id") or ())
    statement = sa.select(objects.c.id, objects.c.created_at, objects.c.name, objects.c.type).where(*conditions)
    rows = connection.execute(statement.order_by(*by).limit(asked.offset + asked.limit))
    return [Head(*row) for row in rows], _count(connection, objects, conditions)


def organization(connection: sa.Connection) -> str | None:
    """Return the organization that Polar's objects are of."""
    of = objects.c.organization_id
    known = sa.select(of).where(objects.c.kind.in_(("customer", "benefit")), of.is_not(None)).limit(1)
    found: str | None = connection.execute(known).scalar_one_or_none()
    return found


# Our grants among Polar's.


@dataclass(frozen=True)
class OurGrants:
    """Which of our grants are in the list: none, where they cannot be; those of some benefits; or all."""

    are_asked: bool = True
    benefits: Sequence[str] | None = None


@dataclass
class GrantPage:
    """A page of grants: for each whether it is ours, and its id; and how many there are on all."""

    keys: list[tuple[bool, str]] = field(default_factory=list)
    total: int = 0


_GRANTED_AT = sa.case((grants.c.status == GrantStatus.GRANTED.value, grants.c.granted_at))
_REVOKED_AT = sa.case((grants.c.status == GrantStatus.REVOKED.value, grants.c.revoked_at))
_OUR_FILTERS: dict[str, Callable[[Any], Any]] = {
    "customer_id": grants.c.customer_id.in_,
    "member_id": grants.c.member_id.in_,
    "external_customer_id": lambda ids: externally(grants, ids),
    "is_granted": lambda flag: (
        grants.c.status == GrantStatus.GRANTED.value if flag else grants.c.status != GrantStatus.GRANTED.value
    ),
}


def grant_page(connection: sa.Connection, asked: Asked, ours: OurGrants) -> GrantPage:
    """Return a page of Polar's grants and ours together: two tables, merged by their indexes in the usual order."""
    filters = {name: value for name, value in asked.filters.items() if value is not None}
    conditions = where(connection.dialect.name, "benefit_grant", filters)
    sides = [_Side(0, objects, conditions, {"granted_at": objects.c.granted_at, "revoked_at": objects.c.revoked_at})]
    if ours.are_asked:
        conditions = [_OUR_FILTERS[name](value) for name, value in filters.items() if name in _OUR_FILTERS]
        if ours.benefits is not None:
            conditions.append(grants.c.benefit.in_(ours.benefits))
        sides.append(_Side(1, grants, conditions, {"granted_at": _GRANTED_AT, "revoked_at": _REVOKED_AT}))
    names = dict.fromkeys(one.removeprefix("-") for one in asked.sorting)
    both: Any = sa.union_all(*(side.keys(names) for side in sides)) if len(sides) > 1 else sides[0].keys(names)
    columns = both.selected_columns
    by = ordered(asked.sorting, columns.__getitem__, columns["id"])
    rows = connection.execute(both.order_by(*by).offset(asked.offset).limit(asked.limit))
    keys = [(bool(row.is_ours), row.id) for row in rows]
    return GrantPage(keys, sum(_count(connection, side.table, side.conditions) for side in sides))


@dataclass(frozen=True)
class _Side:
    """One of two tables, and what of it is in the list."""

    is_ours: int
    table: sa.Table
    conditions: Sequence[Any]
    times: Mapping[str, Any]

    def keys(self, names: Iterable[str]) -> Any:  # noqa: ANN401 - a Select
        """Return the statement of ids, with what is sorted by and nothing else: then an index has it all."""
        times = [self.times.get(name, self.table.c.created_at).label(name) for name in names]
        is_ours: Any = sa.literal_column(str(self.is_ours)).label("is_ours")
        return sa.select(is_ours, self.table.c.id, *times).where(*self.conditions)
