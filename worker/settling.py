"""Settle: make the outside world match one grant, under a lease of the external resource.

Two short transactions around the calls to a platform: `claim` rereads what is wanted and takes the leases, `save`
writes what came of it, unless somebody else holds the lease by then. Before the first attempt an *intended* receipt is
written, so that dying between the platform's act and our note of it leaves nothing that cannot be taken back.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import uuid4

import msgspec
import sqlalchemy as sa
import structlog

from config.catalogue import BenefitConfig
from connectors.base import (
    ActionRequired,
    Connector,
    ConnectorError,
    Holding,
    Receipt,
    Recipient,
    Rejected,
    Unavailable,
)
from handlers import state as facts
from handlers.state import CustomerState
from worker import answers
from worker.folding import Rules, backoff, offered_benefits
from worker.reconcile import recipient
from worker.store import customers, grants
from worker.store.models import GrantStatus

log = structlog.get_logger()

_encode = msgspec.json.Encoder().encode
_receipt = msgspec.json.Decoder(Receipt).decode

_LEASE_MARGIN = timedelta(seconds=5)
"""How much longer a lease lasts than the longest call, for the transaction that saves."""


@dataclass(frozen=True)
class Claim:
    """One grant that we may act on now."""

    row: Mapping[str, Any]
    token: str
    to: Recipient
    config: BenefitConfig | None
    resource: str | None
    held: Receipt | None
    kept_by_others: bool
    leased: tuple[str, ...]
    until: datetime
    """When the leases run out; nothing is begun that might last longer."""


@dataclass
class Result:
    """What acting on a claim came to."""

    claim: Claim
    what: Literal["granted", "pending", "revoked", "moved", "failed"]
    receipt: Receipt | None
    error: ConnectorError | None = None


@dataclass
class Claimed:
    """What to act on, what is settled without acting, and what can be claimed once these are saved."""

    claims: list[Claim] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    later: list[str] = field(default_factory=list)

    @property
    def ids(self) -> set[str]:
        """The grants that whoever claimed them takes care of."""
        return {one.row["id"] for one in self.claims} | {one.claim.row["id"] for one in self.results} | {*self.later}


@dataclass
class Settled:
    """What saving came to: grants to settle (again), and what was granted and revoked after how long."""

    again: list[str] = field(default_factory=list)
    took: list[tuple[str, str, float]] = field(default_factory=list)
    """(connector, outcome, seconds since it was asked for)"""


def claim(
    connection: sa.Connection,
    ids: Sequence[str],
    rules: Rules,
    connectors: Mapping[str, Connector[Any]],
    now: datetime,
) -> Claimed:
    """Take the leases of those of the grants that are due."""
    rows = [row for row in grants.by_ids(connection, ids) if row["next_attempt_at"] and row["next_attempt_at"] <= now]
    states = customers.facts(connection, {row["customer_id"] for row in rows})
    return claim_read(
        connection, [(row, facts.decode(states[row["customer_id"]])) for row in rows], rules, connectors, now
    )


def claim_read(
    connection: sa.Connection,
    rows: Iterable[tuple[Mapping[str, Any], CustomerState]],
    rules: Rules,
    connectors: Mapping[str, Connector[Any]],
    now: datetime,
) -> Claimed:
    """Take the leases of grants that were read just now, each with its customer's state.

    A grant whose resource another worker is at is left to the sweep.
    """
    found: list[Claim] = []
    claimed = Claimed()
    token = uuid4().hex
    for row, state in rows:
        one = _wanting(row, state, rules, token, now)
        if one is None:
            continue  # the catalogue has changed; refreshing its customers decides what becomes of it
        try:
            found.append(_with_resource(one, connectors))
        except ConnectorError as error:
            claimed.results.append(Result(one, "failed", one.held, error))
    # What is wanted goes first: then what is given up next to it sees that somebody still needs the resource.
    found.sort(key=lambda one: not one.row["wanted"])
    claimed.claims, claimed.later = _lease(connection, found, token, now)
    return claimed


def _wanting(row: Mapping[str, Any], state: CustomerState, rules: Rules, token: str, now: datetime) -> Claim | None:
    benefit = rules.catalogue.benefits.get(row["benefit"])
    if row["wanted"] and benefit is None:
        return None
    to = recipient(state, row["member_id"], row["purchase"])
    held = _receipt(row["receipt"]) if row["receipt"] else None
    until = now + rules.settings.call_timeout + _LEASE_MARGIN
    config = benefit.config if benefit else None
    return Claim(row, token, to, config, None, held, kept_by_others=False, leased=(), until=until)


def _with_resource(one: Claim, connectors: Mapping[str, Connector[Any]]) -> Claim:
    """Name what the grant is about outside. Raises ConnectorError."""
    if not one.row["wanted"]:
        return one
    connector = connectors.get(one.row["connector"])
    if connector is None:
        raise ActionRequired(f"this version has no connector {one.row['connector']!r}", who="merchant")
    return replace(one, resource=connector.resource(one.to, one.config))


def _lease(
    connection: sa.Connection, found: Sequence[Claim], token: str, now: datetime
) -> tuple[list[Claim], list[str]]:
    """Lease what each grant has and what it is to have, and write down what is intended.

    Returns the claims, and the grants that another of them is in the way of.
    """
    until = max((one.until for one in found), default=now)
    ours = grants.lease(connection, {name for one in found for name in _resources(one)}, token, now, until)
    free = set(ours)
    claims, later = [], []
    for one in found:
        wanted = _resources(one)
        if wanted <= free:
            free -= wanted
            claims.append(replace(one, leased=tuple(sorted(wanted)), held=one.held or _intended(one)))
        elif wanted <= ours:
            later.append(one.row["id"])
    unchanged = grants.unchanged(connection, [one.row for one in claims])
    free |= {name for one in claims if one.row["id"] not in unchanged for name in one.leased}
    claims = [one for one in claims if one.row["id"] in unchanged]
    grants.release(connection, free, token)
    grants.intend(
        connection,
        [
            {"row": one.row["id"], "resource": one.resource, "receipt": _encode(one.held).decode()}
            for one in claims
            if one.held and one.held.intended and not one.row["receipt"]
        ],
    )
    leaving = [one for one in claims if one.held and one.held.resource != one.resource]
    staying = grants.holding(connection, {one.held.resource for one in leaving if one.held})
    claims = [
        replace(one, kept_by_others=bool(staying.get(one.held.resource, set()) - {one.row["id"]}))
        if one.held and one in leaving
        else one
        for one in claims
    ]
    return claims, later


def _resources(one: Claim) -> set[str]:
    return {name for name in (one.resource, one.held.resource if one.held else None) if name}


def _intended(one: Claim) -> Receipt | None:
    return Receipt(one.resource, connector=one.row["connector"], intended=True) if one.resource else None


async def act(one: Claim, connectors: Mapping[str, Connector[Any]], limit: timedelta, now: datetime) -> Result:
    """Make one grant true at the platform, and read it back. Never raises: failing is a result."""
    if one.until - now < limit:  # it waited too long for its turn: somebody else may have the leases before it ends
        return Result(one, "failed", one.held, Unavailable("it had to wait for its turn", retry_after=0))
    try:
        async with asyncio.timeout(limit.total_seconds()):
            return await _act(one, connectors)
    except ConnectorError as error:
        return Result(one, "failed", one.held, error)
    except TimeoutError:
        late = Unavailable(f"no answer within {limit.total_seconds():g} s")
        return Result(one, "failed", one.held, late)
    except Exception as error:
        log.exception("a connector failed", connector=one.row["connector"], grant=one.row["id"])
        return Result(one, "failed", one.held, Unavailable(f"our connector failed: {type(error).__name__}"))


async def _act(one: Claim, connectors: Mapping[str, Connector[Any]]) -> Result:
    held, name = one.held, one.row["connector"]
    if one.row["wanted"] and one.resource and one.config:
        if held and (held.resource, held.connector) != (one.resource, name):
            await _take_back(one, connectors, held)
            return Result(one, "moved", None)
        connector = connectors[name]
        receipt = await connector.grant(one.to, one.config, None if held and held.intended else held)
        receipt = msgspec.structs.replace(receipt, connector=name)
        holding = await connector.holds(receipt)
        if holding == Holding.GONE:
            raise Unavailable("it was given, but is not there when read back")
        return Result(one, "granted" if holding == Holding.HELD else "pending", receipt)
    if held:
        await _take_back(one, connectors, held)
    return Result(one, "revoked", None)


async def _take_back(one: Claim, connectors: Mapping[str, Connector[Any]], held: Receipt) -> None:
    """Revoke by the receipt and prove that it is gone, unless another grant still holds the same resource.

    By the connector that gave it, whatever the benefit's connector is now.
    """
    if one.kept_by_others:
        return
    connector = connectors.get(held.connector)
    if connector is None:
        raise ActionRequired(f"this version has no connector {held.connector!r}, which gave it", who="merchant")
    await connector.revoke(held)
    if await connector.holds(held) != Holding.GONE:
        raise Unavailable("it was taken back, but is still there when read back")


def save(connection: sa.Connection, results: Iterable[Result], rules: Rules, now: datetime) -> Settled:
    """Write results, and the answers of their customers, in one transaction; give the leases back."""
    settled = Settled()
    results = list(results)
    # Customers before leases, as in processing: nobody waits in a circle.
    locked = customers.lock(connection, {result.claim.row["customer_id"] for result in results})
    by_token: dict[str, set[str]] = {}
    for result in results:
        by_token.setdefault(result.claim.token, set()).update(result.claim.leased)
    ours = {token: grants.leased(connection, names, token) for token, names in by_token.items()}
    results = [result for result in results if ours[result.claim.token].issuperset(result.claim.leased)]
    customer_ids = {result.claim.row["customer_id"] for result in results}
    found = grants.of_customers(connection, customer_ids, lock=True)
    held = {row["id"]: row for rows in found.values() for row in rows}
    written = []
    for result in results:
        row = held[result.claim.row["id"]]
        if not result.claim.leased and _has_changed(row, result.claim.row):
            settled.again.append(row["id"])
            continue
        columns = _columns(result, row, rules, now, settled)
        held[row["id"]] = row | columns
        written.append({"row": row["id"], **columns})
    grants.settle(connection, written)
    states = [facts.decode(locked[one].state) for one in sorted(customer_ids)]
    offered = offered_benefits(connection, states)
    by_customer: dict[str, list[dict[str, Any]]] = {}
    for row in held.values():
        by_customer.setdefault(row["customer_id"], []).append(row)
    customers.save_answers(
        connection,
        [
            {
                "row": state.id,
                "entitlements": answers.entitlements(
                    state, by_customer[state.id], rules.catalogue, offered, rules.offer, rules.dynamic
                ),
            }
            for state in states
        ],
    )
    for token in by_token:
        mine = [name for result in results if result.claim.token == token for name in result.claim.leased]
        grants.release(connection, mine, token)
    shared = {one for result in results for one in result.claim.leased}
    settled.again = sorted({*settled.again, *grants.due_on(connection, shared, now)})
    return settled


def _has_changed(row: Mapping[str, Any], claimed: Mapping[str, Any]) -> bool:
    """Whether somebody else was at this grant meanwhile; where there is no lease, only that tells."""
    return any(row[name] != claimed[name] for name in ("generation", "receipt"))


def _columns(result: Result, row: Mapping[str, Any], rules: Rules, now: datetime, settled: Settled) -> dict[str, Any]:
    """Return the grant's new columns. What was given or taken is noted even where the will has changed since."""
    kept = {name: row[name] for name in grants.SETTLED}
    kept["receipt"] = _encode(result.receipt).decode() if result.receipt else None
    kept["held"] = result.receipt.resource if result.receipt else None
    if result.claim.resource:
        kept["resource"] = result.claim.resource
    if row["generation"] != result.claim.row["generation"] or result.what == "moved":
        settled.again.append(row["id"])
        is_moving = result.what == "moved" and row["status"] == GrantStatus.GRANTED
        return kept | ({"status": GrantStatus.GRANTING} if is_moving else {})
    if result.error:
        return kept | _failure(result, result.error, row, rules, now)
    kept |= {
        "attempts": 0,
        "who": None,
        "reason": None,
        "settled_generation": row["generation"],
        "next_attempt_at": None,
    }
    was = row["status"]
    if result.what == "revoked":
        kept |= {"status": GrantStatus.REVOKED, "revoked_at": now, "resource": None}
    elif result.what == "pending":
        kept |= {"status": GrantStatus.PENDING, "next_attempt_at": now + rules.settings.recheck_every}
    else:
        kept |= {"status": GrantStatus.GRANTED, "granted_at": row["granted_at"] if was == "granted" else now}
    if kept["status"] != was:
        seconds = (now - row["asked_at"]).total_seconds()
        settled.took.append((row["connector"], str(kept["status"]), max(seconds, 0.0)))
    return kept


def _failure(
    result: Result, error: ConnectorError, row: Mapping[str, Any], rules: Rules, now: datetime
) -> dict[str, Any]:
    """Return what a failure makes of a grant. A revocation never counts as done, and is never given up."""
    settings = rules.settings
    direction = GrantStatus.GRANTING if row["wanted"] else GrantStatus.REVOKING
    # Bringing up to date what is there can fail: the customer keeps what they have.
    held = result.receipt
    is_same = held is not None and not held.intended and held.resource == result.claim.resource
    is_there = row["wanted"] and row["status"] == GrantStatus.GRANTED and is_same
    if is_there:
        direction = GrantStatus.GRANTED
    columns: dict[str, Any] = {"reason": str(error), "who": None, "status": direction, "attempts": row["attempts"]}
    if isinstance(error, ActionRequired):
        status = GrantStatus.ACTION_REQUIRED if row["wanted"] and not is_there else direction
        return columns | {"status": status, "who": error.who, "next_attempt_at": now + settings.recheck_every}
    if isinstance(error, Unavailable) and error.retry_after is not None:
        return columns | {"next_attempt_at": now + timedelta(seconds=error.retry_after)}
    attempts = row["attempts"] + 1
    columns["attempts"] = attempts
    if isinstance(error, Rejected) or attempts >= settings.max_attempts:
        columns["who"] = "operator"
        if row["wanted"]:
            return columns | {"status": direction if is_there else GrantStatus.FAILED, "next_attempt_at": None}
        return columns | {"next_attempt_at": now + settings.retry_cap}
    return columns | {"next_attempt_at": now + backoff(attempts, settings)}
