"""How lists of Polar's objects are filtered and sorted: one entry a filter, one a name to sort by.

Nulls stand last in an ascending order and first in a descending one, as on Polar's database. What is equal is in the
order of its ids, so that no page repeats what another had. What is not a column is looked up in the JSON: that reads
every object of the kind, and is rare.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from worker.store.customers import customers
from worker.store.objects import objects

Filters = Mapping[str, Any]
"""What to look for, by name; each name is one of FILTERS. What is None is not asked."""

SHOWN = objects.c.deleted.is_(sa.false())
"""What Polar has deleted is in no list."""


def _in(name: str) -> Callable[[str, Any], Any]:
    return lambda _, values: objects.c[name].in_(values)


def _at_least(name: str) -> Callable[[str, datetime], Any]:
    return lambda _, at: objects.c[name] >= at


def _at_most(name: str) -> Callable[[str, datetime], Any]:
    return lambda _, at: objects.c[name] <= at


def _in_body(*path: str) -> Callable[[str, Any], Any]:
    return lambda dialect, values: _part(dialect, *path).in_(values)


def _part(dialect: str, *path: str) -> Any:  # noqa: ANN401 - a column expression
    """Return a text inside the body. Not indexed: the kind is always asked too, and the rest is rare."""
    if dialect == "sqlite":
        return sa.func.json_extract(objects.c.body, "$." + ".".join(path), type_=sa.Text)
    return sa.func.json_extract_path_text(sa.cast(objects.c.body, sa.JSON), *path, type_=sa.Text)


def _is_true(dialect: str, *path: str) -> Any:  # noqa: ANN401 - as above
    found = _part(dialect, *path)
    return sa.func.coalesce(found == (sa.literal_column("1") if dialect == "sqlite" else "true"), sa.false())


def _has_metadata(dialect: str, wanted: Mapping[str, Sequence[str]]) -> Any:  # noqa: ANN401 - as above
    """Every key has one of its values, compared as text: `10`, `true`."""
    return sa.and_(*(_metadatum(dialect, key, values) for key, values in wanted.items()))


def _metadatum(dialect: str, key: str, values: Sequence[str]) -> Any:  # noqa: ANN401 - as above
    if dialect != "sqlite":
        return _part(dialect, "metadata", key).in_(values)
    # A key may have any characters, and no path of SQLite's can hold them all.
    entry = sa.func.json_each(objects.c.body, "$.metadata").table_valued("key", "type", "atom").alias()
    is_flag = entry.c.type.in_(("true", "false"))
    value = sa.case((is_flag, entry.c.type), else_=sa.cast(entry.c.atom, sa.Text))
    return sa.exists(sa.select(sa.literal(1)).select_from(entry).where(entry.c.key == key, value.in_(values)))


def externally(table: sa.Table, external_ids: Sequence[str]) -> Any:  # noqa: ANN401 - as above
    """Return the condition that the customer has one of these external ids."""
    return table.c.customer_id.in_(sa.select(customers.c.id).where(customers.c.external_id.in_(external_ids)))


_purchases = objects.alias("purchases")
_ACTIVE = ("trialing", "active")


def _has_active(is_active: bool) -> Any:  # noqa: ANN401, FBT001 - as above
    found = sa.exists(
        sa.select(sa.literal(1)).where(
            _purchases.c.customer_id == objects.c.id,
            _purchases.c.kind == "subscription",
            _purchases.c.status.in_((*_ACTIVE, "past_due")),
        )
    )
    return found if is_active else ~found


def _found_in_customer(query: str) -> Any:  # noqa: ANN401 - as above
    return sa.or_(
        objects.c.email.icontains(query, autoescape=True),
        objects.c.name.icontains(query, autoescape=True),
        objects.c.external_id.istartswith(query, autoescape=True),
    )


FILTERS: dict[str, Callable[[str, Any], Any]] = {
    **{name: _in(name) for name in ("id", "organization_id", "product_id", "customer_id", "subscription_id",
                                    "benefit_id", "member_id", "status", "type")},
    **{name: _in_body(name) for name in ("discount_id", "checkout_id", "customer_cancellation_reason")},
    "exclude_id": lambda _, ids: objects.c.id.not_in(ids),
    "external_customer_id": lambda _, ids: externally(objects, ids),
    "email": lambda _, email: objects.c.email == email.lower(),
    "query": lambda _, query: _found_in_customer(query),
    "description": lambda _, query: objects.c.name.icontains(query, autoescape=True),
    "has_active": lambda _, flag: _has_active(flag),
    "is_granted": lambda _, flag: objects.c.is_granted == (sa.true() if flag else sa.false()),
    "has_started": lambda _, __: objects.c.started_at.is_not(None),
    "active": lambda _, flag: objects.c.status.in_(_ACTIVE) if flag else objects.c.status.not_in(_ACTIVE),
    "cancel_at_period_end": lambda dialect, flag: _is_true(dialect, "cancel_at_period_end") == (
        sa.true() if flag else sa.false()
    ),
    "recurring": lambda dialect, flag: _is_true(dialect, "product", "is_recurring") == (
        sa.true() if flag else sa.false()
    ),
    "canceled_at_after": _at_least("canceled_at"),
    "canceled_at_before": _at_most("canceled_at"),
    "started_after": _at_least("started_at"),
    "started_before": _at_most("started_at"),
    "created_after": _at_least("created_at"),
    "created_before": _at_most("created_at"),
    "metadata": _has_metadata,
}  # fmt: skip

_payers = objects.alias("payers")
_PAYER_EMAIL = (
    sa.select(_payers.c.email)
    .where(_payers.c.kind == "customer", _payers.c.id == objects.c.customer_id)
    .scalar_subquery()
)
# The order in which Polar puts them; what it leaves out stands last.
_STATUSES = {
    "subscription": ("incomplete", "incomplete_expired", "trialing", "active", "past_due", "canceled", "unpaid",
                     "paused"),
    "order": ("draft", "pending", "paid", "refunded", "partially_refunded", "void"),
}  # fmt: skip


def _status_of(kind: str) -> Any:  # noqa: ANN401 - as above
    ranks = {status: rank for rank, status in enumerate(_STATUSES[kind], start=1)}
    return sa.case(ranks, value=objects.c.status, else_=len(ranks) + 1)


_SORTED_BY: dict[str, Callable[[str], Any]] = {
    "customer": lambda _: _PAYER_EMAIL,
    "product": lambda _: objects.c.name,
    "description": lambda _: objects.c.name,
    "user_order": lambda _: objects.c.created_at,
    "net_amount": lambda _: objects.c.amount,
    "subscription": lambda _: objects.c.subscription_id,
    "discount": lambda dialect: _part(dialect, "discount", "name"),
    "invoice_number": lambda dialect: _part(dialect, "invoice_number"),
}
"""What is sorted by, where it is not a column of that name."""
_NEVER_NULL = {"created_at", "started_at", "user_order"}


def order(dialect: str, kind: str, sorting: Sequence[str], positions: Sequence[str] = ()) -> list[Any]:
    """Return the clauses of an order; `positions` are ids in the order in which they were asked for."""

    def find(name: str) -> Any:  # noqa: ANN401 - as above
        if name == "status":
            return _status_of(kind)
        if name == "user_order" and positions:
            return sa.case({one: place for place, one in enumerate(positions)}, value=objects.c.id)
        return _SORTED_BY[name](dialect) if name in _SORTED_BY else objects.c[name]

    return ordered(sorting, find, objects.c.id)


def ordered(sorting: Sequence[str], find: Callable[[str], Any], by_id: Any) -> list[Any]:  # noqa: ANN401 - as above
    """Return the clauses of an order; `find` returns what a name sorts by."""
    clauses = []
    for one in dict.fromkeys(sorting):  # the same twice changes nothing
        name = one.removeprefix("-")
        clauses.append(_directed(find(name), one, is_nullable=name not in _NEVER_NULL))
    return [*clauses, _directed(by_id, sorting[0] if sorting else "-")]


def _directed(expression: Any, name: str, *, is_nullable: bool = False) -> Any:  # noqa: ANN401 - as above
    if name.startswith("-"):
        return expression.desc().nulls_first() if is_nullable else expression.desc()
    return expression.asc().nulls_last() if is_nullable else expression.asc()


def where(dialect: str, kind: str, filters: Filters) -> list[Any]:
    """Return the conditions of a list of one kind."""
    asked = {name: value for name, value in filters.items() if value is not None}
    of_kind = objects.c.kind == kind
    if dialect == "sqlite" and _NARROW & asked.keys():
        # Without statistics it would walk the whole kind in its order, instead of sorting the few that are meant. What
        # has a plus before it is looked up by no index: https://www.sqlite.org/optoverview.html#uplus
        of_kind = sa.literal_column("+objects.kind") == kind
    return [of_kind, SHOWN, *(FILTERS[name](dialect, value) for name, value in asked.items())]


_NARROW = {"customer_id", "external_customer_id", "email"}
"""Filters that leave few."""
