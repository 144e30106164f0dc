"""Audit: what the platforms hold against what the grants say, both ways; and mending what is ours.

It asks and compares, and acts by nothing of its own: what is to be mended becomes due, and is settled and proven as
everything else.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal, TypeVar
from uuid import uuid4

import msgspec
import structlog
from msgspec import Struct

from config.catalogue import Benefit, BenefitConfig
from connectors.base import ActionRequired, Connector, ConnectorError, Holding, Receipt, Unavailable
from worker import metrics
from worker.pipeline import Pipeline
from worker.store import audits, grants

log = structlog.get_logger()

T = TypeVar("T")

Kind = Literal["missing", "left", "foreign", "unknown"]
KINDS: Mapping[Kind, str] = {
    "missing": "should have it, and has not",
    "left": "has it and should not: given by us",
    "foreign": "has it and should not: not given by us",
    "unknown": "could not be looked at",
}

_PAGE = 500
_AT_ONCE = 16
_PATIENCE = 10
_LONGEST_WAIT_SECONDS = 60.0
_LEASE = "almoner:audit"
_LEASE_LASTS = timedelta(minutes=30)
_LOOK_SECONDS = 30.0
PULSE = "audit"

_encode = msgspec.json.Encoder().encode
_receipt = msgspec.json.Decoder(Receipt).decode


class Finding(Struct, frozen=True, kw_only=True):
    """Something that is not as the grants say."""

    kind: Kind
    benefit: str
    connector: str
    resource: str = ""
    grant_id: str | None = None
    customer_id: str | None = None
    who: str | None = None
    """Who must act, where it could not be looked at."""
    detail: str = ""


class Report(Struct, kw_only=True):
    """What an audit found, and what was mended."""

    at: datetime
    checked: int = 0
    """Grants that were compared."""
    findings: list[Finding] = []
    mended: int = 0

    def of(self, *kinds: Kind) -> list[Finding]:
        """Return the findings of these kinds."""
        return [one for one in self.findings if one.kind in kinds]


@dataclass
class Audit:
    """Compares all grants of the benefits file in force with the world outside."""

    pipeline: Pipeline
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    _left: dict[str, Receipt] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    async def look(self, benefit: str | None = None, progress: Callable[[str], None] = lambda _: None) -> Report:
        """Compare, and change nothing. `progress` is told what is looked at."""
        await self.pipeline.follow()
        report = Report(at=self.pipeline.now())
        self._left.clear()
        self._told.clear()
        for one in self.pipeline.catalogue.benefits.values():
            if benefit in {None, one.key}:
                for part, config in ((name, part.config) for name, part in one.parts.items()):
                    progress(f"{one.key} {part}".strip())
                    await self._compare(one, part, config, report)
        if benefit is None:
            await self._look_for_open_doors(report)
        return report

    async def mend(self, report: Report, *kinds: Kind) -> int:
        """Have what is missing given again, and what is left taken back; returns how many grants are settled again."""
        now = self.pipeline.now()
        again = [one.grant_id for one in report.of("missing") if one.grant_id and "missing" in kinds]
        if again:
            await self.pipeline.database.write(partial(grants.retry, ids=again, now=now))
        for one in report.of("left") if "left" in kinds else ():
            receipt = self._left.get(one.resource)
            if receipt is None:
                continue
            if one.grant_id is None:  # our own door, without any grant behind it
                report.mended += await self._close(one, receipt)
                continue
            take = partial(grants.take_again, grant_id=one.grant_id, receipt=receipt, now=now)
            if await self.pipeline.database.write(take):
                again.append(one.grant_id)
        await self.pipeline.trigger.settle(again)
        report.mended += len(again)
        return len(again)

    async def _close(self, finding: Finding, receipt: Receipt) -> bool:
        """Close a door of ours, unless a grant has come to stand behind it since."""
        wanted = await self.pipeline.database.read(partial(grants.spoken_for, resources=[finding.resource]))
        if not wanted:
            await self.pipeline.connectors[finding.connector].revoke(receipt)
        return not wanted

    async def keep(self, report: Report) -> None:
        """Keep the report, and say in the log what it found."""
        await self.pipeline.database.write(
            partial(audits.keep, at=report.at, findings=len(report.findings), report=_encode(report))
        )
        for kind in KINDS:
            metrics.AUDITED.labels(kind).set(len(report.of(kind)))
        say = log.error if report.of("left", "unknown") else log.info
        say("audited", grants=report.checked, mended=report.mended,
            **{kind: len(report.of(kind)) for kind in KINDS}, next="see `almoner audit --last`")  # fmt: skip

    async def _compare(self, benefit: Benefit, part: str, config: BenefitConfig, report: Report) -> None:
        connector = self.pipeline.connectors[benefit.connector]
        try:
            there = await self._patiently(lambda: connector.survey(config))
            await self._look_for_missing(benefit, part, connector, there, report)
            if there is not None:
                await self._look_for_left(benefit, connector, there, report)
        except ConnectorError as error:
            who = error.who if isinstance(error, ActionRequired) else None
            report.findings.append(
                Finding(kind="unknown", benefit=benefit.key, connector=benefit.connector, who=who, detail=str(error))
            )

    async def _look_for_missing(
        self, benefit: Benefit, part: str, connector: Connector[Any], there: Mapping[str, Holding] | None,
        report: Report,
    ) -> None:  # fmt: skip
        """Look for grants that say granted while the platform says no."""
        after = ""
        while True:
            page = partial(grants.given, benefit=benefit.key, part=part, after=after, limit=_PAGE)
            rows = await self.pipeline.database.read(page)
            if not rows:
                return
            after = rows[-1]["id"]
            report.checked += len(rows)
            # A list may leave out who has it in another way, as organization owners: those are asked about alone.
            unlisted = [row for row in rows if row["receipt"] and not (there and row["held"] in there)]
            for some in _chunks(unlisted, _AT_ONCE):
                held = await asyncio.gather(*(self._holds(connector, _receipt(row["receipt"])) for row in some))
                report.findings += [
                    _finding("missing", benefit, row["held"], row)
                    for row, holding in zip(some, held, strict=True)
                    if holding == Holding.GONE
                ]

    async def _look_for_left(
        self, benefit: Benefit, connector: Connector[Any], there: Mapping[str, Holding], report: Report
    ) -> None:
        """Look for what is there though no grant wants it."""
        for some in _chunks(sorted(there), _PAGE):
            spoken_for = await self.pipeline.database.read(partial(grants.spoken_for, resources=some))
            extra = [one for one in some if one not in spoken_for]
            ours = await self.pipeline.database.read(partial(grants.touched, resources=extra)) if extra else {}
            for resource in extra:
                if resource not in self._told:  # another benefit may give it too
                    self._told.add(resource)
                    await self._judge(benefit, connector, resource, ours.get(resource), report)

    async def _judge(
        self, benefit: Benefit, connector: Connector[Any], resource: str, row: Mapping[str, Any] | None,
        report: Report,
    ) -> None:  # fmt: skip
        """Tell what we left behind from somebody else's gift, from what they had before us, and from what just went."""
        receipt = _last_receipt(row, benefit.connector) if row else None
        if receipt and await self._holds(connector, receipt) == Holding.GONE:
            return  # it was taken back since the list was made
        if receipt and await self._left_behind(connector, receipt):
            self._left[resource] = receipt
            report.findings.append(_finding("left", benefit, resource, row))
        else:
            report.findings.append(_finding("foreign", benefit, resource, row))

    async def _look_for_open_doors(self, report: Report) -> None:
        """Look for what we serve ourselves though no grant has it."""
        for what in ("passes", "keys"):
            after = ""
            while found := await self.pipeline.database.read(
                partial(grants.left_open, what=what, after=after, limit=_PAGE)
            ):
                after = found[-1]
                ours = await self.pipeline.database.read(partial(grants.touched, resources=found))
                report.findings += [self._door(resource, ours.get(resource)) for resource in found]

    def _door(self, resource: str, row: Mapping[str, Any] | None) -> Finding:
        connector, benefit = resource.split(":")[:2]
        self._left[resource] = Receipt(resource, connector=connector, intended=True)
        return Finding(
            kind="left", benefit=benefit, connector=connector, resource=resource,
            grant_id=row["id"] if row else None, customer_id=row["customer_id"] if row else None,
        )  # fmt: skip

    async def _holds(self, connector: Connector[Any], receipt: Receipt) -> Holding:
        return await self._patiently(lambda: connector.holds(receipt))

    async def _left_behind(self, connector: Connector[Any], receipt: Receipt) -> bool:
        return await self._patiently(lambda: connector.left(receipt))

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call, and again when the platform asked to wait: an audit has time. Raises ConnectorError."""
        for _ in range(_PATIENCE):
            try:
                return await call()
            except Unavailable as error:
                if error.retry_after is None or error.retry_after > _LONGEST_WAIT_SECONDS:
                    raise
                await self.sleep(error.retry_after)
        return await call()

    # in the background

    async def audit_for_ever(self, stopping: asyncio.Event) -> None:
        """Audit every `audit_every`, one worker of all; survives every failure."""
        while not stopping.is_set():
            try:
                if await self._is_due():
                    await self.run()
            except Exception:
                log.exception("the audit failed; it is tried again at its next time")
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await stopping.wait()
            except TimeoutError:
                continue

    async def run(self) -> Report:
        """Audit, mend what ALMONER_AUDIT_REPAIRS says, and keep the report."""
        report = await self.look()
        repairs = self.pipeline.settings.audit_repairs
        if repairs != "nothing":
            await self.mend(report, "missing", *(("left",) if repairs == "all" else ()))
        await self.keep(report)
        return report

    async def _is_due(self) -> bool:
        """Whether it is time, and the turn of this worker. The first is due one interval after the first start."""
        every, now = self.pipeline.settings.audit_every, self.pipeline.now()
        if not every:
            return False

        def decide(connection: Any) -> bool:  # noqa: ANN401 - a connection
            last = grants.last_beat(connection, PULSE)
            if last is not None and now - last < every:
                return False
            if not grants.lease(connection, [_LEASE], uuid4().hex, now, now + min(_LEASE_LASTS, every)):
                return False
            grants.beat(connection, PULSE, now)
            return last is not None

        return await self.pipeline.database.write(decide)


def _finding(kind: Kind, benefit: Benefit, resource: str, row: Mapping[str, Any] | None) -> Finding:
    return Finding(
        kind=kind,
        benefit=benefit.key,
        connector=benefit.connector,
        resource=resource,
        grant_id=row["id"] if row else None,
        customer_id=row["customer_id"] if row else None,
    )


def _last_receipt(row: Mapping[str, Any], connector: str) -> Receipt:
    """Return what was taken back last, or where that was never noted, what may have been given."""
    taken = _receipt(row["taken"]) if row["taken"] else None
    if taken and taken.resource == row["touched"]:
        return taken
    return Receipt(row["touched"], connector=connector, intended=True)


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
