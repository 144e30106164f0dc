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
    Account,
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
from worker.states import read_states, with_accounts
from worker.store import accounts, customers, grants
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
    leased: tuple[str, ...]
    until: datetime
    """When the leases run out; nothing is begun that might last longer."""
    refused: ConnectorError | None = None
    """Why there is nothing that could be given, though it is wanted: no account is known, say."""
    name: str | None = None
    """What the account is called whose id must be found first, at `platform`."""
    platform: str | None = None
    shared: Receipt | None = None
    """What another grant has of the same resource: so it was we who gave it."""
    kept_for: tuple[Receipt, ...] = ()
    """What other grants that want it have of the same that this one has."""
    heir: str | None = None
    """Another grant that wants what this one has, and has nothing yet: it gets the receipt."""
    is_last: bool = True
    """Whether nothing else in the scope of what this one has is wanted."""


@dataclass
class Result:
    """What acting on a claim came to."""

    claim: Claim
    what: Literal["granted", "pending", "seen", "named", "revoked", "moved", "failed"]
    receipt: Receipt | None
    error: ConnectorError | None = None
    heir: str | None = None
    """Which grant gets what this one had."""
    account: Account | None = None
    """Whose id was looked for."""


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
    renamed: list[str] = field(default_factory=list)
    """Customers of whom an account's id was found: they are to be reconciled."""
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
    states = read_states(connection, {row["customer_id"] for row in rows}, rules.settings)
    return claim_read(connection, [(row, states[row["customer_id"]]) for row in rows], rules, connectors, now)


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
            if isinstance(error, ActionRequired) and one.held:
                found.append(replace(one, refused=error))  # what is held is nobody's any more: it goes back first
            else:
                claimed.results.append(Result(one, "failed", one.held, error))
    # What is wanted goes first: then what is given up next to it sees that somebody still needs the resource.
    found.sort(key=lambda one: not one.row["wanted"])
    claimed.claims, claimed.later = _lease(connection, found, connectors, token, now)
    return claimed


def _wanting(row: Mapping[str, Any], state: CustomerState, rules: Rules, token: str, now: datetime) -> Claim | None:
    benefit = rules.catalogue.benefits.get(row["benefit"])
    part = benefit.parts.get(row["part"]) if benefit else None
    if row["wanted"] and part is None:
        return None
    to = recipient(state, row["member_id"], row["purchase"])
    held = _receipt(row["receipt"]) if row["receipt"] else None
    until = now + rules.settings.call_timeout + _LEASE_MARGIN
    return Claim(row, token, to, part.config if part else None, None, held, leased=(), until=until)


def _with_resource(one: Claim, connectors: Mapping[str, Connector[Any]]) -> Claim:
    """Name what the grant is about outside. Raises ConnectorError."""
    if not one.row["wanted"]:
        return one
    connector = connectors.get(one.row["connector"])
    if connector is None:
        raise ActionRequired(f"this version has no connector {one.row['connector']!r}", who="merchant")
    if connector.platform and connector.platform in one.to.names:
        return replace(one, name=one.to.names[connector.platform], platform=connector.platform)
    return replace(one, resource=connector.resource(one.to, one.config))


def _lease(
    connection: sa.Connection,
    found: Sequence[Claim],
    connectors: Mapping[str, Connector[Any]],
    token: str,
    now: datetime,
) -> tuple[list[Claim], list[str]]:
    """Lease what each grant has and what it is to have, and write down what is intended.

    Returns the claims, and the grants that another of them is in the way of.
    """
    until = max((one.until for one in found), default=now)
    scopes = {one.row["id"]: _scopes(one, connectors) for one in found}
    ours = grants.lease(connection, set().union(*scopes.values()), token, now, until)
    free = set(ours)
    claims, later = [], []
    for one in found:
        wanted = scopes[one.row["id"]]
        if wanted <= free:
            free -= wanted
            claims.append(replace(one, leased=tuple(sorted(wanted)), held=one.held or _intended(one, connectors)))
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
    return _among_others(connection, claims, connectors), later


def _among_others(
    connection: sa.Connection, claims: Sequence[Claim], connectors: Mapping[str, Connector[Any]]
) -> list[Claim]:
    """Note what other grants, of anybody, have and want of the same resources, and of the same scopes."""
    leaving = {one.held.resource for one in claims if one.held and one.held.resource != one.resource}
    # Only who looks first can mistake what another grant gave for what was there before.
    giving = {one.resource for one in claims if one.resource and connectors[one.row["connector"]].looks_first}
    others = grants.about(connection, leaving | giving)
    noted = []
    for one in claims:
        mine = one.row["id"]
        if one.held and one.held.resource != one.resource:
            resource = one.held.resource
            about = [row for row in others.get(resource, ()) if row["id"] != mine and row["wanted"]]
            having = tuple(receipt for row in about if (receipt := _telling(row, resource)))
            waiting = [row["id"] for row in about if row["resource"] == resource and row["held"] in {None, resource}]
            scope = _scope(one.held, connectors)
            is_last = scope == resource or not grants.wants_in(connection, scope, one.row)
            heir = min(waiting, default=None) if _tells(one.held) and not having else None
            noted.append(replace(one, kept_for=having, heir=heir, is_last=is_last))
        else:
            receipts = (_telling(row, one.resource) for row in others.get(one.resource or "", ()) if row["id"] != mine)
            noted.append(replace(one, shared=next((found for found in receipts if found), None)))
    return noted


def _telling(row: Mapping[str, Any], resource: str | None) -> Receipt | None:
    """Return another grant's receipt of a resource, if it says what was given, or what was there before."""
    receipt = _receipt(row["receipt"]) if row["receipt"] and row["held"] == resource else None
    return receipt if receipt and _tells(receipt) else None


def _tells(receipt: Receipt) -> bool:
    return bool(receipt.data) or not receipt.intended


def _scope(held: Receipt, connectors: Mapping[str, Connector[Any]]) -> str:
    connector = connectors.get(held.connector)
    return connector.scope(held.resource) if connector else held.resource


def _scopes(one: Claim, connectors: Mapping[str, Connector[Any]]) -> set[str]:
    """Return what nobody else may work on meanwhile."""
    scopes = {_scope(one.held, connectors)} if one.held else set()
    if one.resource:
        scopes.add(connectors[one.row["connector"]].scope(one.resource))
    return scopes


def _intended(one: Claim, connectors: Mapping[str, Connector[Any]]) -> Receipt | None:
    """Return the receipt that is written before anything is done; not where the first step only looks."""
    name = one.row["connector"]
    if one.resource is None or connectors[name].looks_first:
        return None
    return Receipt(one.resource, connector=name, intended=True)


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
    if one.name and one.config:
        return Result(one, "named", held, account=await _identify(one, connectors[name], one.name))
    if one.row["wanted"] and one.resource and one.config:
        if held and (held.resource, held.connector) != (one.resource, name):
            return Result(one, "moved", None, heir=await _take_back(one, connectors, held))
        return await _give(one, connectors[name], held)
    heir = await _take_back(one, connectors, held) if held else None
    if one.refused:
        return Result(one, "failed", None, one.refused, heir=heir)
    return Result(one, "revoked", None, heir=heir)


async def _identify(one: Claim, connector: Connector[Any], name: str) -> Account:
    """Find the account of a name; where there is none, whoever told it must act."""
    try:
        return await connector.identify(name, one.config)
    except ActionRequired as error:
        if one.to.sources.get(one.platform or "") == "set":
            raise ActionRequired(f"the app said so, but {error}", who="merchant") from None
        raise


async def _give(one: Claim, connector: Connector[Any], held: Receipt | None) -> Result:
    """Give, and read back. Where the connector has only looked so far, what it saw is written down first."""
    known = held if held and _tells(held) else one.shared
    receipt = await connector.grant(one.to, one.config, known)
    receipt = msgspec.structs.replace(receipt, connector=one.row["connector"])
    if receipt.intended:
        return Result(one, "seen", receipt)
    holding = await connector.holds(receipt)
    if holding == Holding.GONE:
        raise Unavailable("it was given, but is not there when read back")
    return Result(one, "granted" if holding == Holding.HELD else "pending", receipt)


async def _take_back(one: Claim, connectors: Mapping[str, Connector[Any]], held: Receipt) -> str | None:
    """Revoke by the receipt and prove that it is gone; or return the grant that gets the receipt instead.

    What another grant wants stays. A receipt is let go only where another grant has one: somebody must always know
    that it was we who gave it. By the connector that gave it, whatever the benefit's connector is now.
    """
    if one.heir:
        return one.heir
    connector = connectors.get(held.connector)
    if connector is None:
        raise ActionRequired(f"this version has no connector {held.connector!r}, which gave it", who="merchant")
    if one.kept_for:
        await connector.let_go(held, one.kept_for)
        return None
    await connector.revoke(held, last=one.is_last)
    if await connector.left(held):
        raise Unavailable("it was taken back, but is still there when read back")
    return None


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
    results = [_handed_over(connection, result) for result in results]
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
    named = [result for result in results if result.account]
    for result in named:
        _identified(connection, result, locked, rules, now)
    settled.renamed = sorted({result.claim.row["customer_id"] for result in named})
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
    whole = {result.claim.resource for result in results} | {one.row["held"] for one in (r.claim for r in results)}
    settled.again = sorted({*settled.again, *grants.due_on(connection, shared, shared - whole, now)})
    return settled


def _handed_over(connection: sa.Connection, result: Result) -> Result:
    """Give the receipt to the grant that is to have it; if somebody is at that one just now, come again."""
    held = result.claim.held
    if result.heir is None or held is None or grants.inherit(connection, result.heir, held):
        return result
    busy = Unavailable("another grant of the same access was about to take it over", retry_after=1.0)
    return replace(result, what="failed", receipt=held, error=busy)


def _identified(
    connection: sa.Connection, result: Result, locked: Mapping[str, Any], rules: Rules, now: datetime
) -> None:
    """Bind the name under which a customer is known to the id that it had just now."""
    row, account = result.claim.row, result.account
    state = with_accounts(
        facts.decode(locked[row["customer_id"]].state),
        accounts.of_customers(connection, [row["customer_id"]]).get(row["customer_id"], ()),
        rules.settings,
    )
    for one in state.accounts:
        wanted = (result.claim.platform, result.claim.name, None)
        if account and (one.platform, one.name, one.account_id) == wanted:
            found = msgspec.structs.replace(one, account_id=account.id)
            accounts.identify(connection, row["customer_id"], found, now)


def _has_changed(row: Mapping[str, Any], claimed: Mapping[str, Any]) -> bool:
    """Whether somebody else was at this grant meanwhile; where there is no lease, only that tells."""
    return any(row[name] != claimed[name] for name in ("generation", "receipt"))


def _columns(result: Result, row: Mapping[str, Any], rules: Rules, now: datetime, settled: Settled) -> dict[str, Any]:
    """Return the grant's new columns. What was given or taken is noted even where the will has changed since."""
    kept = {name: row[name] for name in grants.SETTLED}
    kept["receipt"] = _encode(result.receipt).decode() if result.receipt else None
    kept["held"] = result.receipt.resource if result.receipt else None
    kept["touched"] = kept["held"] or row["touched"]
    if result.receipt is None and result.claim.held:
        kept["taken"] = _encode(result.claim.held).decode()
    if result.claim.resource or result.claim.refused:
        kept["resource"] = result.claim.resource
    if row["generation"] != result.claim.row["generation"] or result.what in {"moved", "seen"}:
        settled.again.append(row["id"])
        is_moving = result.what == "moved" and row["status"] == GrantStatus.GRANTED
        return kept | ({"status": GrantStatus.GRANTING} if is_moving else {})
    if result.what == "named":  # reconciling with the id makes it due; if that is lost, it is looked for again
        return kept | {"next_attempt_at": now + _LEASE_MARGIN}
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
        waiting = result.receipt.waiting if result.receipt else None
        kept |= {"status": GrantStatus.PENDING, "next_attempt_at": now + rules.settings.recheck_every,
                 "who": "customer" if waiting else None, "reason": waiting}  # fmt: skip
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
