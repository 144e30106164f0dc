"""The one path: accept, process, settle, and the sweep that finds whatever was left behind.

The database is the truth at every step. Triggers only make things quick: each may be lost, repeated or late, and the
sweep, which needs no queue, brings the same result.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol

import sqlalchemy as sa
import structlog

from config.catalogue import Catalogue, CatalogueError
from config.settings import Settings
from connectors.base import ActionRequired, Connector, Receipt, Unavailable
from worker import folding, metrics, settling
from worker.folding import Folded, Rules
from worker.settling import Claim, Claimed, Result
from worker.store import catalogues, customers, grants, inbox, limits, polar_keys, quotas
from worker.store.database import Database
from worker.store.inbox import Accepted, Arrival, Locked, Outcome
from worker.store.models import DeliveryStatus

log = structlog.get_logger()

PROCESS_BATCH = 32
SETTLE_BATCH = 32
SWEEP_PULSE = "sweep"

_NEAR = 8
"""Batches that are settled near at once; with more of them other workers shall help."""
_STORE_SECONDS = 5.0
"""Polar waits 10 s for an answer; a database that takes longer than this is down for our purpose."""
_TRIGGER_GAP_SECONDS = 0.005
"""The first trigger goes out at once; under load those that follow carry what came meanwhile."""
_FOLLOW_SECONDS = 2.0
_SECRET_NOTES = timedelta(seconds=10)
_PRUNE_EVERY, _PRUNE_PULSE = timedelta(hours=1), "prune"


class Trigger(Protocol):
    """Starts work soon, somewhere. It may fail or be lost; it never raises."""

    async def process(self, delivery_ids: Sequence[int]) -> None:
        """Have these deliveries processed."""

    async def settle(self, grant_ids: Sequence[str]) -> None:
        """Have these grants settled."""


@dataclass
class Swept:
    """What a sweep found that nothing else had done."""

    deliveries: int = 0
    grants: int = 0
    customers: int = 0

    def __bool__(self) -> bool:
        """Whether it found anything."""
        return bool(self.deliveries or self.grants or self.customers)


@dataclass
class Pipeline:
    """Everything that happens to a delivery and to a grant. Holds no state of its own but the catalogue in force."""

    database: Database
    settings: Settings
    connectors: Mapping[str, Connector[Any]]
    parse_catalogue: Callable[[str, timedelta], Catalogue]
    """Reads a stored benefits file, with the grace of benefits that name none. Raises CatalogueError."""
    trigger: Trigger
    now: Callable[[], datetime]
    catalogue: Catalogue
    works_near: bool = False
    """Whether what is accepted or planned here is worked on here, unless there is much of it: then any worker may."""
    _is_processing: bool = False
    _near: set[asyncio.Task[None]] = field(default_factory=set)
    _calls: dict[str, asyncio.Semaphore] = field(default_factory=dict)
    _arrivals: list[tuple[Arrival, asyncio.Future[Accepted]]] = field(default_factory=list)
    _accepting: asyncio.Task[None] | None = None
    _after: set[asyncio.Task[None]] = field(default_factory=set)
    _untriggered: list[int] = field(default_factory=list)
    _triggering: asyncio.Task[None] | None = None
    _secrets_noted: dict[tuple[str, str], datetime] = field(default_factory=dict)

    @property
    def rules(self) -> Rules:
        """What folding and answering depend on besides the facts."""
        dynamic = frozenset(name for name, connector in self.connectors.items() if connector.dynamic)
        return Rules(self.settings, self.catalogue, self._offer, dynamic)

    def _offer(self, connector: str, receipt: Receipt) -> dict[str, Any]:
        return self.connectors[connector].offer(receipt) if connector in self.connectors else {}

    # accept

    async def accept(self, arrival: Arrival) -> Accepted:
        """Store an arrival durably, together with all others that are waiting, then trigger its processing.

        Raises what the database raises; then nothing of it is stored.
        """
        done: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        self._arrivals.append((arrival, done))
        if self._accepting is None or self._accepting.done():
            self._accepting = asyncio.create_task(self._accept_waiting())
        return await done

    async def _accept_waiting(self) -> None:
        while self._arrivals:
            group, self._arrivals = self._arrivals, []
            arrivals = [arrival for arrival, _ in group]
            try:
                async with asyncio.timeout(_STORE_SECONDS):
                    answers = await self.database.write(partial(inbox.take_in, arrivals=arrivals))
                self._note_secrets(arrivals)
            except Exception as error:  # noqa: BLE001 - each sender gets it
                if len(group) > 1 and not isinstance(error, TimeoutError):
                    await asyncio.gather(*(self._accept_alone(arrival, done) for arrival, done in group))
                else:
                    _fail(group, error)
                continue
            for (_, done), answer in zip(group, answers, strict=True):
                if not done.done():
                    done.set_result(answer)
            self._after_answering([answer.id for answer in answers if answer.id is not None])

    async def _accept_alone(self, arrival: Arrival, done: asyncio.Future[Accepted]) -> None:
        """Store one arrival by itself, so that one bad row does not spoil those it came with."""
        try:
            [answer] = await self.database.write(lambda connection: inbox.take_in(connection, [arrival]))
        except Exception as error:  # noqa: BLE001 - its sender gets it
            if not done.done():
                done.set_exception(error)
        else:
            if not done.done():
                done.set_result(answer)
            self._after_answering([answer.id] if answer.id is not None else [])

    def _after_answering(self, ids: list[int]) -> None:
        """Trigger what was accepted, all that came meanwhile together."""
        self._untriggered += ids
        if self._untriggered and (self._triggering is None or self._triggering.done()):
            self._triggering = self._soon(self._trigger_waiting())

    async def _trigger_waiting(self) -> None:
        while self._untriggered:
            ids, self._untriggered = self._untriggered, []
            if self.works_near and not self._is_processing:
                self._is_processing = True
                self._soon(self._process_near(ids))
            else:
                await self.trigger.process(ids)
            await asyncio.sleep(_TRIGGER_GAP_SECONDS)

    async def _process_near(self, ids: Sequence[int]) -> None:
        try:
            await self.process(ids)
        except Exception:
            log.exception("deliveries could not be processed; the sweep will do it", count=len(ids))
        finally:
            self._is_processing = False

    def _soon(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._after.add(task)
        task.add_done_callback(self._after.discard)
        return task

    def _note_secrets(self, arrivals: Sequence[Arrival]) -> None:
        """Remember which secrets are in use, each at most every few seconds: it is for deciding which can go."""
        uses = {(one.secret, one.scheme): one.received_at for one in arrivals}
        old = [
            (*use, at) for use, at in uses.items()
            if use not in self._secrets_noted or at - self._secrets_noted[use] >= _SECRET_NOTES
        ]  # fmt: skip
        if old:
            self._secrets_noted |= {(secret, scheme): at for secret, scheme, at in old}
            self._soon(self._write_secrets(old))

    async def _write_secrets(self, uses: Sequence[tuple[str, str, datetime]]) -> None:
        try:
            await self.database.write(partial(inbox.note_secrets, uses=uses))
        except Exception as error:  # noqa: BLE001 - it is noted again in a few seconds
            log.warning("the use of a secret could not be noted", error=type(error).__name__)

    # process

    async def process(self, ids: Sequence[int]) -> Folded:
        """Process pending deliveries, and have what follows done. What is not pending any more is left alone."""
        rules, now = self.rules, self.now()
        near = self.works_near and len(self._near) < _NEAR

        def work(connection: sa.Connection) -> tuple[Folded, Claimed]:
            folded = folding.process(connection, ids, rules, now)
            if not near:
                return folded, Claimed()
            mine = list(folded.planned.values())[:SETTLE_BATCH]
            # Claimed in the same transaction: what is planned here alone is granted one commit sooner.
            return folded, settling.claim_read(connection, mine, rules, self.connectors, now)

        try:
            folded, claimed = await self.database.write(work)
        except Exception as error:
            if len(ids) == 1:
                return await self._postpone(ids[0], error)
            log.exception("a batch of deliveries failed; each is tried alone", count=len(ids))
            return _merged([await self.process([one]) for one in ids])
        for outcome in folded.outcomes:
            metrics.PROCESSED.labels(outcome.status.value).inc()
            if outcome.status == DeliveryStatus.DEAD:
                log.error("a delivery is dead", delivery=outcome.id, reason=outcome.reason,
                          next="look at `almoner deliveries list --status dead`")  # fmt: skip
        if claimed.ids:
            task = self._soon(self._settle_near(claimed))
            self._near.add(task)
            task.add_done_callback(self._near.discard)
        await self._follow(folded, [one for one in folded.planned if one not in claimed.ids])
        return folded

    async def _postpone(self, row_id: int, error: Exception) -> Folded:
        """Our own fault, or the database's: the delivery stays, with one attempt more."""
        log.error("a delivery could not be processed", delivery=row_id, exc_info=error)
        now = self.now()

        def note(connection: sa.Connection) -> Folded:
            outcomes = [_failed(row, error, self.settings, now) for row in inbox.lock_pending(connection, [row_id])]
            inbox.finish(connection, outcomes, now)
            return Folded(outcomes=outcomes)

        return await self.database.write(note)

    async def refresh(self, customer_ids: Sequence[str]) -> Folded:
        """Reconcile customers without an event, and trigger what follows."""
        rules, now = self.rules, self.now()
        folded = await self.database.write(lambda connection: folding.refresh(connection, customer_ids, rules, now))
        await self._follow(folded, list(folded.planned))
        return folded

    async def _follow(self, folded: Folded, unsettled: Sequence[str]) -> None:
        if unsettled:
            await self.trigger.settle(unsettled)
        if folded.awakened:
            await self.trigger.process(folded.awakened)

    # settle

    async def settle(self, ids: Sequence[str]) -> int:
        """Settle grants that are due; returns how many were acted upon."""
        rules, now = self.rules, self.now()
        claimed = await self.database.write(
            lambda connection: settling.claim(connection, ids, rules, self.connectors, now)
        )
        await self._settle(claimed)
        return len(claimed.claims) + len(claimed.results)

    async def _settle_near(self, claimed: Claimed) -> None:
        try:
            await self._settle(claimed)
        except Exception:
            log.exception("grants could not be settled; the sweep will do it", count=len(claimed.ids))

    async def _settle(self, claimed: Claimed) -> None:
        """Act on claims and save what came of it. Slow ones do not hold up quick ones."""
        again = [*claimed.later]
        if claimed.results:
            again += await self._save(claimed.results)
        acting = {asyncio.create_task(self._act(one)) for one in claimed.claims}
        while acting:
            finished, acting = await asyncio.wait(acting, return_when=asyncio.FIRST_COMPLETED)
            try:
                again += await self._save([task.result() for task in finished])
            except Exception:  # what was done is found out when the leases have run out
                log.exception("what came of grants could not be saved", count=len(finished))
        if again:
            await self.trigger.settle(again)

    async def _act(self, one: Claim) -> Result:
        name = one.row["connector"]
        slots = self._calls.setdefault(name, asyncio.Semaphore(self.settings.connector_calls))
        async with slots:
            return await settling.act(one, self.connectors, self.settings.call_timeout, self.now())

    async def _save(self, results: list[Result]) -> list[str]:
        rules, now = self.rules, self.now()
        settled = await self.database.write(lambda connection: settling.save(connection, results, rules, now))
        for connector, outcome, seconds in settled.took:
            metrics.settled(connector, outcome, seconds)
        for result in results:
            if result.error:
                metrics.REFUSED.labels(result.claim.row["connector"], type(result.error).__name__).inc()
                is_refused = not result.claim.row["wanted"] and not isinstance(result.error, Unavailable)
                # Whoever waits for a turn under a limit is one of many; that there is a wait was said once.
                is_turn = isinstance(result.error, Unavailable) and result.error.retry_after is not None
                is_news = str(result.error) != result.claim.row["reason"]
                waits = isinstance(result.error, ActionRequired) and result.error.who == "customer"
                say = log.info if waits else log.warning
                say = log.error if is_refused else say if is_news and not is_turn else log.debug
                say(
                    "access that has ended cannot be taken back" if is_refused else "a grant could not be settled",
                    grant=result.claim.row["id"],
                    customer=result.claim.row["customer_id"],
                    benefit=result.claim.row["benefit"],
                    outcome=type(result.error).__name__,
                    reason=str(result.error),
                    **({"next": f"almoner grants retry {result.claim.row['id']}"} if is_refused else {}),
                )
        if settled.renamed:
            await self.refresh(settled.renamed)
        return settled.again

    # sweep

    async def sweep(self, *, at_once: bool = False) -> Swept:
        """Do whatever is due and was left behind; `at_once` also what a trigger may be about to do."""
        now = self.now()
        since = now if at_once else now - self.settings.sweep_after
        swept = Swept()

        if await self.database.peek(customers.is_spreading):
            some = partial(customers.spread, now=now, limit=PROCESS_BATCH)
            swept.customers = await self.database.write(some)

        def look(connection: sa.Connection) -> tuple[Any, list[int], list[str], list[str], list[str]]:
            in_force = catalogues.in_force(connection)
            return (
                in_force,
                inbox.due(connection, now, untouched_since=since, limit=PROCESS_BATCH),
                customers.due(connection, now, limit=PROCESS_BATCH),
                customers.made_with_another(connection, in_force["digest"], limit=PROCESS_BATCH) if in_force else [],
                grants.due(connection, now, untouched_since=since, limit=SETTLE_BATCH),
            )

        in_force, deliveries, timely, outdated, unsettled = await self.database.peek(look)
        if in_force:
            self._take_up(in_force)
            outdated = outdated if in_force["digest"] == self.catalogue.digest else []
        if deliveries:
            swept.deliveries = len((await self.process(deliveries)).outcomes)
        if stale := sorted({*timely, *outdated}):
            await self.refresh(stale)
            swept.customers += len(stale)
        if unsettled:
            swept.grants = await self.settle(unsettled)
        if swept:
            log.debug("swept", deliveries=swept.deliveries, grants=swept.grants, customers=swept.customers)
        return swept

    async def sweep_for_ever(self, stopping: asyncio.Event) -> None:
        """Sweep every `sweep_every`, or at once again while there is more; survives every failure."""
        beaten = datetime.min.replace(tzinfo=self.now().tzinfo)
        while not stopping.is_set():
            swept = Swept()
            try:
                swept = await self.sweep()
                if abs(self.now() - beaten) >= timedelta(seconds=5):  # the clock may be set back
                    beaten = self.now()
                    await self.database.write(_housekeeping(beaten))
            except Exception:
                log.exception("the sweep failed; it goes on")
            if not swept:
                try:
                    async with asyncio.timeout(self.settings.sweep_every.total_seconds()):
                        await stopping.wait()
                except TimeoutError:
                    continue

    async def follow(self) -> bool:
        """Take up the benefits file that is in force, whoever put it there; returns whether there is one."""
        in_force = await self.database.peek(catalogues.in_force)
        if in_force:
            self._take_up(in_force)
        return in_force is not None

    async def follow_for_ever(self, stopping: asyncio.Event) -> None:
        """Follow every few seconds, where no sweep does it: what license keys allow is in the benefits file."""
        while not stopping.is_set():
            try:
                await self.follow()
            except Exception as error:  # noqa: BLE001 - the next time will do
                log.warning("the benefits file in force could not be read", error=type(error).__name__)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FOLLOW_SECONDS):
                    await stopping.wait()

    def _take_up(self, in_force: Mapping[str, Any]) -> None:
        if in_force["digest"] == self.catalogue.digest:
            return
        try:
            grace = timedelta(seconds=in_force["grace_seconds"])
            self.catalogue = self.parse_catalogue(in_force["text"], grace)
        except CatalogueError as error:  # put there by a newer version
            log.error("the benefits file in force cannot be read here; upgrade this process", problems=error.problems)

    async def propose(self, catalogue: Catalogue, *, accept: bool = False) -> str | None:
        """Put a benefits file in force, unless it would revoke too large a share of the live grants.

        Returns None when it is in force now, else why it is held; then the one before stays in force. `accept`: a
        person has looked, and it is put in force whatever it revokes.
        """
        now = self.now()
        while True:
            before = await self.database.read(catalogues.in_force)
            is_new = before is None or before["digest"] != catalogue.digest
            because = await self._too_much(catalogue) if before and is_new and not accept else None
            if await self.database.write(
                partial(_decide, catalogue=catalogue, before=before, because=because, now=now)
            ):
                break  # else another process has decided meanwhile: look again at what is in force
        if because and before:
            self._take_up(before)
            return because
        self.catalogue = catalogue
        return None

    async def _too_much(self, catalogue: Catalogue) -> str | None:
        taken, live = await self.preview(catalogue)
        share = self.settings.max_revoke_share
        if live and taken > max(share * live, 1):
            return (
                f"it would revoke {taken} of {live} live grants ({taken / live:.0%}), more than "
                f"ALMONER_MAX_REVOKE_SHARE ({share:.0%}) allows"
            )
        return None

    async def preview(self, catalogue: Catalogue) -> tuple[int, int]:
        """Return how many grants a benefits file would take back, of how many live ones. Changes nothing."""
        rules, now = Rules(self.settings, catalogue, self._offer, frozenset()), self.now()
        taken = live = 0
        after = ""
        while True:
            others = partial(customers.made_with_another, digest=catalogue.digest, limit=500, after=after)
            ids = await self.database.read(others)
            if not ids:
                return taken, live
            part = await self.database.read(partial(folding.would_take, customer_ids=ids, rules=rules, now=now))
            taken, live, after = taken + part[0], live + part[1], ids[-1]

    async def drain(self, *, rounds: int = 1000) -> None:
        """Do all that is due now, with no queue: for tests, and for commands that act by themselves."""
        for _ in range(rounds):
            if not await self.sweep(at_once=True):
                return

    async def close(self) -> None:
        """Wait for what is on its way, and for what follows from it."""
        while self._after:
            await asyncio.gather(*self._after, return_exceptions=True)


def _decide(
    connection: sa.Connection,
    catalogue: Catalogue,
    before: Mapping[str, Any] | None,
    because: str | None,
    now: datetime,
) -> bool:
    """Hold a file or put it in force, if what is in force is still what the decision was made on."""
    catalogues.lock(connection)
    in_force = catalogues.in_force(connection)
    if (in_force and in_force["digest"]) != (before and before["digest"]):
        return False
    if because:
        catalogues.hold(connection, catalogue, because, now)
    else:
        catalogues.put_in_force(connection, catalogue, now)
    return True


def _fail(group: Sequence[tuple[Arrival, asyncio.Future[Accepted]]], error: Exception) -> None:
    for _, done in group:
        if not done.done():
            done.set_exception(error)


def _housekeeping(now: datetime) -> Callable[[sa.Connection], None]:
    def keep(connection: sa.Connection) -> None:
        grants.beat(connection, SWEEP_PULSE, now)
        last = grants.last_beat(connection, _PRUNE_PULSE)
        if last is None or now - last >= _PRUNE_EVERY:
            grants.beat(connection, _PRUNE_PULSE, now)
            limits.prune(connection, now)
            polar_keys.prune(connection, now)
            quotas.prune(connection, now)
        inbox.compact_ledger(connection)

    return keep


def _failed(row: Locked, error: Exception, settings: Settings, now: datetime) -> Outcome:
    attempts = row.attempts + 1
    # Class 22 is PostgreSQL's "data exception", like NUL inside an id: waiting changes nothing.
    state = str(getattr(error.orig, "sqlstate", "")) if isinstance(error, sa.exc.DBAPIError) else ""
    if state.startswith("22"):
        reason = f"the database cannot hold what it says (SQLSTATE {state})"
        return Outcome(row.id, DeliveryStatus.DEAD, attempts, now, reason=reason)
    reason = f"processing failed: {type(error).__name__}"
    if attempts >= settings.max_attempts:
        return Outcome(row.id, DeliveryStatus.DEAD, attempts, now, reason=reason)
    return Outcome(row.id, DeliveryStatus.PENDING, attempts, now + folding.backoff(attempts, settings), reason=reason)


def _merged(parts: Iterable[Folded]) -> Folded:
    merged = Folded()
    counts: Counter[str] = Counter()
    for part in parts:
        merged.outcomes += part.outcomes
        counts["given"] += part.given
        counts["taken"] += part.taken
    merged.given, merged.taken = counts["given"], counts["taken"]
    return merged
