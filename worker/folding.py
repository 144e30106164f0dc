"""Process deliveries inside one transaction: fold, entitle, plan, and save what follows.

Everything here runs synchronously on a connection, with the customers' rows locked. Several deliveries of one
customer are folded together: the state is read, reconciled and written once.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa
import structlog

from config.catalogue import Catalogue
from config.settings import Settings
from handlers import HANDLERS, IGNORED, MIRRORED, UNKNOWN_TYPE
from handlers import state as facts
from handlers.events import Event, MalformedEvent, Offering, PolarBenefit, parse, read
from handlers.state import CustomerState
from worker import answers, mirror, told_keys
from worker.reconcile import Entitlement, Held, entitled, next_edge, plan, recipient, target_of
from worker.states import read_states, with_accounts, with_grants_by_hand
from worker.store import accounts, customers, grants, inbox, objects, polar_keys
from worker.store.inbox import Locked, Outcome
from worker.store.models import DeliveryStatus, GrantStatus

log = structlog.get_logger()

_encode = msgspec.json.Encoder().encode
_offering = msgspec.json.Decoder(PolarBenefit)

PURCHASE, SEAT, BENEFIT = "purchase", "seat", "benefit"


class UnknownOwner(Exception):
    """We cannot tell yet whose event this is; `object_id` is what must become known first."""

    def __init__(self, object_id: str) -> None:
        super().__init__(object_id)
        self.object_id = object_id


@dataclass(frozen=True)
class Rules:
    """What folding depends on besides the facts."""

    settings: Settings
    catalogue: Catalogue
    offer: answers.Offer
    dynamic: frozenset[str]


@dataclass
class Folded:
    """What a transaction came to: which grants to settle, which deliveries may go on now, and the counts."""

    planned: dict[str, tuple[Mapping[str, Any], CustomerState]] = field(default_factory=dict)
    """The grants whose will has changed, as they are now, and their customers."""
    awakened: list[int] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    benefits: dict[str, objects.Row] = field(default_factory=dict)
    """The newest descriptions of Polar's benefits that the deliveries carried."""
    given: int = 0
    taken: int = 0


@dataclass
class _Work:
    """A pending delivery on its way."""

    row: Locked
    event: Event
    customer_id: str
    is_handled: bool = False


class _Owned(msgspec.Struct):
    id: str | None = None
    customer_id: str | None = None
    subscription_id: str | None = None
    order_id: str | None = None


def process(connection: sa.Connection, ids: Sequence[int], rules: Rules, now: datetime) -> Folded:
    """Fold pending deliveries into their customers' states and plan what follows. Raises what the database raises."""
    folded = Folded()
    rows = inbox.lock_pending(connection, ids)
    if not rows:
        return folded
    work = _route(connection, rows, folded, rules, now)
    by_customer: dict[str, list[_Work]] = {}
    for item in work:
        by_customer.setdefault(item.customer_id, []).append(item)
    _reconcile(connection, by_customer, rules, now, folded)
    inbox.finish(connection, folded.outcomes, now)
    objects.keep_benefits(connection, folded.benefits)  # last of all: customers share them
    return folded


def refresh(connection: sa.Connection, customer_ids: Iterable[str], rules: Rules, now: datetime) -> Folded:
    """Reconcile customers without any event: time has passed, or the catalogue has changed."""
    folded = Folded()
    _reconcile(connection, {one: [] for one in customer_ids}, rules, now, folded)
    return folded


def _route(
    connection: sa.Connection, rows: Sequence[Locked], folded: Folded, rules: Rules, now: datetime
) -> list[_Work]:
    """Read each event and find its customer; what is nobody's is finished here."""
    owned: list[tuple[Locked, Event, _Owned]] = []
    for row in rows:
        try:
            event = parse(row.webhook_id, row.body)
            if event.type in MIRRORED:
                _mirror(connection, event)
                folded.benefits = mirror.newest(folded.benefits, mirror.benefits_of(event))
                folded.outcomes.append(_finished(row, DeliveryStatus.DONE, now))
            elif event.type in HANDLERS:
                owned.append((row, event, read(event, _Owned)))
            else:
                reason = IGNORED.get(event.type, UNKNOWN_TYPE)
                folded.outcomes.append(_finished(row, DeliveryStatus.IGNORED, now, reason=reason))
        except MalformedEvent as error:
            folded.outcomes.append(_finished(row, DeliveryStatus.DEAD, now, reason=str(error)))
    known = customers.owners(connection, {one for _, _, data in owned for one in _hints(data)})
    fresh = {one: data.customer_id for _, event, data in owned if data.customer_id for one in _declared(event, data)}
    work = []
    for row, event, data in owned:
        try:
            work.append(_Work(row, event, _owner(event, data, fresh | known)))
        except UnknownOwner as error:
            folded.outcomes.append(_waiting(row, error.object_id, rules.settings, now))
        except MalformedEvent as error:
            folded.outcomes.append(_finished(row, DeliveryStatus.DEAD, now, reason=str(error)))
    return work


def _owner(event: Event, data: _Owned, known: Mapping[str, str]) -> str:
    if event.type.startswith("customer."):
        if data.id:
            return data.id
    elif data.customer_id:
        return data.customer_id
    else:
        for hint in _hints(data):
            if hint in known:
                return known[hint]
        hints = _hints(data)
        if hints:
            raise UnknownOwner(hints[-1])
    raise MalformedEvent(f"{event.type} does not say which customer it is about")


def _hints(data: _Owned) -> list[str]:
    """Return what a revoked seat still has of its owner: the seat itself, and the purchase that it is of."""
    if data.customer_id:
        return []
    return [one for one in (data.id, data.subscription_id, data.order_id) if one]


def _declared(event: Event, data: _Owned) -> list[str]:
    family = event.type.partition(".")[0]
    return [data.id] if data.id and family in {"subscription", "order", "customer_seat"} else []


def _mirror(connection: sa.Connection, event: Event) -> None:
    offering: Offering = read(event, Offering)
    kind = MIRRORED[event.type]
    body = bytes(event.data)
    if kind == "benefits":
        body = _encode(read(event, PolarBenefit))
    row = {
        "spread_after": "" if kind == "benefits" else None,
        "id": offering.id,
        "kind": kind,
        "modified_at": offering.modified_at or offering.created_at,
        "sent_at": event.timestamp,
        "body": body,
    }
    customers.offer(connection, row)


def _finished(
    row: Locked, status: DeliveryStatus, now: datetime, *, reason: str | None = None, customer_id: str | None = None
) -> Outcome:
    return Outcome(row.id, status, row.attempts + 1, now, customer_id, reason)


def _waiting(row: Locked, object_id: str, settings: Settings, now: datetime) -> Outcome:
    """Wait for the object to become known, and in the end say that it never did."""
    reason = f"nobody is known yet as the owner of {object_id}; it is processed as soon as an event tells"
    return _later(row, settings, now, reason=reason, waits_for=object_id)


def _later(
    row: Locked, settings: Settings, now: datetime, *, reason: str, waits_for: str | None = None,
    customer_id: str | None = None,
) -> Outcome:  # fmt: skip
    attempts = row.attempts + 1
    if attempts >= settings.max_attempts:
        return Outcome(row.id, DeliveryStatus.DEAD, attempts, now, customer_id, reason)
    at = now + backoff(attempts, settings)
    return Outcome(row.id, DeliveryStatus.PENDING, attempts, at, customer_id, reason, waits_for)


def backoff(attempts: int, settings: Settings) -> timedelta:
    """Return how long to wait after this many failed attempts: doubled each time, capped, 50 to 100 % of it drawn."""
    full = min(settings.retry_base * 2 ** min(attempts - 1, 30), settings.retry_cap)
    return timedelta(seconds=full.total_seconds() * random.uniform(0.5, 1))  # noqa: S311 - hides nothing


def _reconcile(
    connection: sa.Connection, by_customer: Mapping[str, list[_Work]], rules: Rules, now: datetime, folded: Folded
) -> None:
    if not by_customer:
        return
    rows = customers.lock(connection, by_customer)
    held = grants.of_customers(connection, by_customer)
    known = {one: facts.decode(row.state) for one, row in rows.items() if row.state}
    states = {one: known.get(one) or CustomerState(id=one) for one in by_customer}
    states = with_grants_by_hand(states, connection)
    kept = accounts.of_customers(connection, by_customer)
    saved: list[_Saved] = []
    for customer_id, work in by_customer.items():
        row = rows.get(customer_id)
        before = with_accounts(states[customer_id], kept.get(customer_id, ()), rules.settings)
        after = _fold(before, work, rules.settings, now, folded)
        if after is before and customer_id not in known and work:
            continue  # nothing of it could be read: there is no customer to save
        if after is not before:  # an event may have told of an account in a field
            after = with_accounts(after, kept.get(customer_id, ()), rules.settings)
        one = _plan(after, before, row.version if row else 0, held.get(customer_id, []), rules, now)
        one.events = [item.event for item in work if item.is_handled]
        saved.append(one)
    _save(connection, saved, rules, folded, now)


def _fold(
    state: CustomerState, work: Sequence[_Work], settings: Settings, now: datetime, folded: Folded
) -> CustomerState:
    for item in work:
        try:
            state = HANDLERS[item.event.type](state, item.event)
        except MalformedEvent as error:
            outcome = _finished(item.row, DeliveryStatus.DEAD, now, reason=str(error), customer_id=item.customer_id)
        except Exception as error:
            log.exception("a handler failed", delivery=item.event.delivery, type=item.event.type)
            reason = f"our handler failed: {type(error).__name__}"
            outcome = _later(item.row, settings, now, reason=reason, customer_id=item.customer_id)
        else:
            item.is_handled = True
            outcome = _finished(item.row, DeliveryStatus.DONE, now, customer_id=item.customer_id)
        folded.outcomes.append(outcome)
    return state


@dataclass
class _Saved:
    """One customer, reconciled, before it is written."""

    state: CustomerState
    before: CustomerState
    version: int
    due_at: datetime | None
    grants: dict[str, dict[str, Any]]
    added: list[str]
    changed: list[str]
    explained: list[str]
    taken: int = 0
    events: list[Event] = field(default_factory=list)


def _plan(
    state: CustomerState, before: CustomerState, version: int, held: list[dict[str, Any]], rules: Rules, now: datetime
) -> _Saved:
    due = entitled(state, rules.catalogue, now)
    existing = {grant["id"]: grant for grant in held}
    seen = [
        Held(id=grant["id"], benefit=grant["benefit"], member_id=grant["member_id"], purchase=grant["purchase"],
             part=grant["part"], wanted=grant["wanted"], target=grant["target"])
        for grant in held
    ]  # fmt: skip
    reasons = {one.slot: one for one in due}
    made = plan(state, due, seen, rules.catalogue)
    saved = _Saved(state, before, version, next_edge(due), existing, [], [], [], made.taken)
    touched = {change.grant_id for change in made.changes}
    for change in made.changes:
        known = existing.get(change.grant_id)
        row = _wanted(change.action, known, reasons.get(change.slot), change.target, rules, now)
        if known is None:
            benefit, member_id, purchase, part = change.slot
            row |= {
                "id": change.grant_id, "customer_id": state.id, "benefit": benefit, "member_id": member_id,
                "purchase": purchase, "part": part, "created_at": now, "settled_generation": 0, "held": None,
                "receipt": None, "granted_at": None, "revoked_at": None,
            }  # fmt: skip
            saved.added.append(change.grant_id)
        else:
            saved.changed.append(change.grant_id)
        existing[change.grant_id] = (known or {}) | row
    for grant in list(existing.values()):
        reason = reasons.get((grant["benefit"], grant["member_id"], grant["purchase"], grant["part"]))
        if reason and grant["id"] not in touched:
            proof = _proof(reason)
            if any(grant[name] != value for name, value in proof.items()):
                existing[grant["id"]] = grant | proof
                saved.explained.append(grant["id"])
    return saved


def _proof(entitlement: Entitlement) -> dict[str, Any]:
    return {
        "standing": entitlement.standing,
        "valid_until": entitlement.valid_until,
        "because": _encode(entitlement.because).decode(),
    }


def _wanted(
    action: str, known: Mapping[str, Any] | None, reason: Entitlement | None, target: str, rules: Rules, now: datetime
) -> dict[str, Any]:
    """Return the columns of a grant whose will has changed: a new generation, to be settled now."""
    common = {
        "target": target, "attempts": 0, "next_attempt_at": now, "asked_at": now, "who": None, "reason": None,
        "generation": known["generation"] + 1 if known else 1, "resource": known["resource"] if known else None,
    }  # fmt: skip
    if action == "take":
        if known is None:
            raise ValueError("only a grant that exists can be taken back")
        return common | {
            "connector": known["connector"],
            "wanted": False,
            "status": GrantStatus.REVOKING,
            "standing": None,
            "valid_until": None,
            "because": "[]",
        }
    if reason is None:
        raise ValueError("a grant is given only for a reason")
    connector = rules.catalogue.benefits[reason.benefit].connector
    is_there = (
        known is not None
        and action == "renew"
        and (known["status"], known["connector"]) == (GrantStatus.GRANTED, connector)
    )
    return (
        common
        | _proof(reason)
        | {
            "connector": connector,
            "wanted": True,
            "status": GrantStatus.GRANTED if is_there else GrantStatus.GRANTING,
        }
    )


def _save(connection: sa.Connection, saved: Sequence[_Saved], rules: Rules, folded: Folded, now: datetime) -> None:
    if not saved:
        return
    offered = offered_benefits(connection, (one.state for one in saved))
    grants.add(connection, [one.grants[grant_id] for one in saved for grant_id in one.added])
    grants.change(connection, [_changed(one.grants[grant_id]) for one in saved for grant_id in one.changed])
    grants.explain(connection, [_explained(one.grants[grant_id]) for one in saved for grant_id in one.explained])
    customers.save(connection, [_customer_row(one, rules, offered) for one in saved])
    carried = mirror.keep(connection, [mirror.Step(one.before, one.state, one.events) for one in saved])
    folded.benefits = mirror.newest(folded.benefits, carried)
    new = [link for one in saved for link in links_of(one.state) - links_of(one.before)]
    customers.link(connection, new)
    told = [key for one in saved for key in told_keys.news(one.before, one.state)]
    reads = bool(rules.settings.polar_access_token.get_secret_value())
    polar_keys.tell(connection, told, now, reads=reads)
    accounts.forget_people(connection, *_gone(saved))
    owned = [object_id for kind, object_id, _ in new if kind != BENEFIT]
    folded.awakened += [row_id for row_id in inbox.awaken(connection, owned, now) if not _is_done(row_id, folded)]
    for one in saved:
        folded.planned |= {grant_id: (one.grants[grant_id], one.state) for grant_id in one.added + one.changed}
        folded.given += len(one.added) + len(one.changed) - one.taken
        folded.taken += one.taken


def _gone(saved: Sequence[_Saved]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the customers who have just been deleted, and the members: their accounts and tokens are forgotten."""
    deleted = [one.state.id for one in saved if facts.is_deleted(one.state) and not facts.is_deleted(one.before)]
    members = [
        (one.state.id, member.data.id)
        for one in saved
        for member in one.state.members.values()
        if member.data.deleted and member is not one.before.members.get(member.data.id)
    ]
    return deleted, members


def _is_done(row_id: int, folded: Folded) -> bool:
    return any(outcome.id == row_id and outcome.status != DeliveryStatus.PENDING for outcome in folded.outcomes)


def offered_benefits(connection: sa.Connection, states: Iterable[CustomerState]) -> dict[str, PolarBenefit]:
    """Return the newest descriptions of all Polar benefits that these states speak of."""
    ids = {grant.benefit_id for state in states for grant in facts.grants_now(state).values()}
    found = customers.offered(connection, ids) if ids else {}
    return {one: _offering.decode(body) for one, body in found.items()}


def _customer_row(one: _Saved, rules: Rules, offered: Mapping[str, PolarBenefit]) -> dict[str, Any]:
    customer = facts.customer_of(one.state)
    gone = facts.is_deleted(one.state)
    return {
        "id": one.state.id,
        "external_id": customer.external_id if customer and not gone else None,
        "deleted": gone,
        "version": one.version + 1,
        "as_of": one.state.as_of,
        "due_at": one.due_at,
        "catalogue": rules.catalogue.digest,
        "polar_state": answers.polar_state(one.state, offered),
        "entitlements": answers.entitlements(
            one.state, list(one.grants.values()), rules.catalogue, offered, rules.offer, rules.dynamic
        ),
        "state": facts.encode(one.state),
    }


def _changed(grant: Mapping[str, Any]) -> dict[str, Any]:
    names = ("connector", "wanted", "status", "standing", "valid_until", "because", "target", "generation", "attempts",
             "next_attempt_at", "asked_at", "who", "reason", "resource")  # fmt: skip
    return {"row": grant["id"], **{name: grant[name] for name in names}}


def _explained(grant: Mapping[str, Any]) -> dict[str, Any]:
    return {"row": grant["id"], **{name: grant[name] for name in ("standing", "valid_until", "because")}}


def links_of(state: CustomerState) -> set[tuple[str, str, str]]:
    """Return which of Polar's objects this customer is known to own."""
    purchases = [*state.subscriptions, *state.orders]
    benefits = {grant.benefit_id for grant in facts.grants_now(state).values()}
    return {
        *((PURCHASE, one, state.id) for one in purchases),
        *((SEAT, one, state.id) for one in state.seats),
        *((BENEFIT, one, state.id) for one in benefits),
    }


def would_take(connection: sa.Connection, customer_ids: Sequence[str], rules: Rules, now: datetime) -> tuple[int, int]:
    """Return how many grants of these customers the catalogue would take back, of how many live ones."""
    states = with_grants_by_hand(read_states(connection, customer_ids, rules.settings), connection)
    held = grants.of_customers(connection, customer_ids)
    taken = live = 0
    for customer_id, state in states.items():
        rows = held.get(customer_id, [])
        taken += _plan(state, state, 0, rows, rules, now).taken
        live += sum(row["wanted"] for row in rows)
    return taken, live


__all__ = ["Folded", "Rules", "backoff", "links_of", "process", "recipient", "refresh", "target_of", "would_take"]
