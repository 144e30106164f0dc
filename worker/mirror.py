"""Polar's objects as they were last sent, for the lists in Polar's shape. Pure, but for `keep`.

Which delivery said the newest of a subscription, an order or a grant was decided by the fold (handlers/state.py), by
rules that do not depend on order: where that delivery is at hand, its object is kept as it came, without secrets. What
a newer snapshot overrules is written over it, always by the same fields, so that here too any order ends in the same
rows. A customer is written as the facts have them. Of a benefit the newest description is kept: one that is deleted
over all others, then the one with the newest `modified_at` (else `created_at`), then the one whose JSON is the greater
text.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from handlers import state as facts
from handlers.events import Event
from handlers.state import CustomerState, Fact
from worker.mirror_rows import (
    Document,
    benefit_row,
    corrected,
    customer_row,
    grant_over,
    grant_row,
    order_row,
    subscription_over,
    subscription_row,
)
from worker.store import objects
from worker.store.objects import Row

Key = tuple[str, str]
"""The kind of an object, and its id."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

_FACTS = {"subscription": "subscriptions", "order": "orders", "benefit_grant": "grants"}
"""The kinds that are kept as they came, and where the state has their facts. Kind = family of events."""
_READ = {*_FACTS, "benefit", "product"}


class Step(NamedTuple):
    """What a customer's facts were, what they are now, and the events that made the difference."""

    before: CustomerState
    after: CustomerState
    events: Sequence[Event]


Told = tuple[Event, Document | None]
"""An event, and the object that it is about, where that is one to be kept."""


def keep(connection: sa.Connection, steps: Iterable[Step]) -> dict[str, Row]:
    """Write what follows from these steps; the customers' rows are locked.

    Returns the benefits that the events carried: they are written last in the transaction, since customers share them.
    """
    rows: list[Row] = []
    overruled: dict[Key, Document] = {}
    benefits: dict[str, Row] = {}
    for step in steps:
        if step.events:
            said = [(event, _data(event)) for event in step.events]
            new = rows_of(step, said)
            rows += new
            overruled |= overruled_by(step, {(row["kind"], row["id"]) for row in new})
            benefits = newest(benefits, benefits_in(said))
    if overruled:
        rows += [corrected(row, overruled[row["kind"], row["id"]]) for row in objects.read(connection, overruled)]
    objects.keep(connection, rows)
    return benefits


def rows_of(step: Step, told: Sequence[Told]) -> list[Row]:
    """Return the rows of the objects whose newest word is among the events."""
    said: dict[Key, tuple[Document, Fact[Any]]] = {}
    for event, data in told:
        kind = family(event)
        if data is None or kind not in _FACTS:
            continue
        held: Fact[Any] | None = getattr(step.after, _FACTS[kind]).get(data["id"])
        if held and held.delivery == event.delivery:
            said[kind, held.data.id] = data, held
    subscriptions = facts.subscriptions_now(step.after) if any(kind == "subscription" for kind, _ in said) else {}
    grants = facts.grants_now(step.after) if any(kind == "benefit_grant" for kind, _ in said) else {}
    rows = [_customer(step)]
    for (kind, one), (data, held) in said.items():
        if kind == "subscription":
            rows.append(subscription_row(step.after.id, data, held, subscriptions[one]))
        elif kind == "benefit_grant":
            rows.append(grant_row(step.after.id, data, held, grants[one]))
        else:
            rows.append(order_row(step.after.id, data, held))
    return [row for row in rows if row]


def _customer(step: Step) -> Row | None:
    """Return the row of the customer, if an event told of them, or of their end."""
    before, after, events = step
    known = after.customer or after.customer_hint
    gone = facts.is_deleted(after)
    if known is None:
        return None
    if gone == facts.is_deleted(before) and not any(event.delivery == known.delivery for event in events):
        return None
    return customer_row(after.id, known.data, gone=gone)


def overruled_by(step: Step, written: set[Key]) -> dict[Key, Document]:
    """Return, of objects that are not written anyway, what a new snapshot changes of them."""
    before, after, _ = step
    if after.snapshot is before.snapshot:
        return {}
    changed: dict[Key, Document] = {}
    was, now = facts.subscriptions_now(before), facts.subscriptions_now(after)
    for one in after.subscriptions:
        if ("subscription", one) not in written and one in before.subscriptions:
            changed |= _difference(("subscription", one), subscription_over(was[one]), subscription_over(now[one]))
    had, has = facts.grants_now(before), facts.grants_now(after)
    for one in after.grants:
        if ("benefit_grant", one) not in written and one in before.grants:
            changed |= _difference(("benefit_grant", one), grant_over(had[one]), grant_over(has[one]))
    return changed


def _difference(key: Key, was: Document, now: Document) -> dict[Key, Document]:
    return {key: now} if _encode(was) != _encode(now) else {}


def benefits_of(event: Event) -> dict[str, Row]:
    """Return the benefits that an event which is nobody's tells of, or has embedded."""
    return benefits_in([(event, _data(event))])


def benefits_in(told: Iterable[Told]) -> dict[str, Row]:
    """Return the newest description of every benefit that is told of or embedded in these events."""
    found: dict[str, Row] = {}
    for event, data in told:
        for benefit in _benefits(family(event), data):
            row = benefit_row(benefit)
            if row:
                found[row["id"]] = max(row, found.get(row["id"], row), key=objects.rank)
    return found


def newest(known: Mapping[str, Row], said: Mapping[str, Row]) -> dict[str, Row]:
    """Return the newer one of two descriptions of each benefit."""
    return {**known, **{one: max(row, known.get(one, row), key=objects.rank) for one, row in said.items()}}


def family(event: Event) -> str:
    """Return what kind of object an event is about."""
    return event.type.partition(".")[0]


# What is said.


def _data(event: Event) -> Document | None:
    """Return an event's object, if it is one that can be kept."""
    if family(event) not in _READ:
        return None
    try:
        data = _decode(event.data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return data if isinstance(data, dict) and isinstance(data.get("id"), str) else None


def _benefits(kind: str, data: Document | None) -> Iterator[object]:
    if data is None or kind == "order":
        return
    if kind == "benefit":
        yield data
    elif kind == "benefit_grant":
        yield data.get("benefit")
    else:
        product = data if kind == "product" else data.get("product")
        benefits = product.get("benefits") if isinstance(product, dict) else None
        yield from benefits if isinstance(benefits, list) else ()
