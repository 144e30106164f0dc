"""The platforms' limits, for all workers together: which calls were made of late, and what is parked."""

from array import array
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from connectors.base import Rate
from worker.store.models import Limit
from worker.store.upsert import among, upsert

limits = Limit.__table__  # type: ignore[attr-defined]

_MARGIN = 0.02
_LONGEST_MARGIN_SECONDS = 2.0
"""How much later than ours a call may reach the platform, or its clock may run: so much longer is waited."""
_MOST_PROMISES = 5_000

_BLANK = upsert(limits, ("name", "calls", "promised"), ("name",), change=lambda _: {})
_LOCK = sa.select(limits).where(limits.c.name.in_(among("names"))).order_by(limits.c.name).with_for_update()
_TAKE = (
    limits.update()
    .where(limits.c.name == sa.bindparam("of"))
    .values(calls=sa.bindparam("calls"), promised=sa.bindparam("promised"))
)
_LEARN = upsert(limits, ("name", "most", "seconds", "calls", "promised"), ("name",),
                change=lambda new: {"most": new.most, "seconds": new.seconds})  # fmt: skip
_PARK = upsert(
    limits,
    ("name", "calls", "promised", "parked_until", "reason"),
    ("name",),
    change=lambda new: {"parked_until": new.parked_until, "reason": new.reason},
    where=lambda new: sa.or_(limits.c.parked_until.is_(None), limits.c.parked_until < new.parked_until),
)


@dataclass(frozen=True)
class Wait:
    """There is no place now: come again in so many seconds."""

    seconds: float
    reason: str
    is_short: bool
    """Whether it may be waited out: until the first place is free, for whoever is there then."""


def take(
    connection: sa.Connection, rates: Sequence[Rate], now: datetime, *, patience: float = 0.0, only_check: bool = False
) -> Wait | None:
    """Take one place for each of these limits, or none where one is used up or parked; then say how long to wait.

    Exact over any span of time, not only over fixed ones: whatever window the platform counts in holds no more than
    its limit. Whoever would have to wait longer than `patience` (seconds) is told a time of their own at which a place
    is free, so that they do not all come at once.
    """
    rows = _locked(connection, [rate.name for rate in rates])
    at = now.timestamp()
    windows = [_Window(rows[rate.name], rate, at, places) for rate, places in Counter(rates).items()]
    full = [window for window in windows if window.first_free > at]
    if not full and only_check:
        return None
    if not full:
        for window in windows:
            window.calls.extend([at] * window.places)
        connection.execute(_TAKE, [window.columns() for window in windows])
        return None
    last = max(full, key=lambda window: window.first_free)
    if last.first_free - at <= patience:
        return Wait(last.first_free - at, last.reason, is_short=True)
    waits = [Wait(window.promise() - at, window.reason, is_short=False) for window in full]
    connection.execute(_TAKE, [window.columns() for window in full])
    return max(waits, key=lambda wait: wait.seconds)


def _locked(connection: sa.Connection, names: Iterable[str]) -> dict[str, Any]:
    wanted = sorted(set(names))
    found = {row.name: row for row in connection.execute(_LOCK, {"names": wanted})}
    if len(found) < len(wanted):
        blank = [{"name": one, "calls": b"", "promised": b""} for one in wanted if one not in found]
        connection.execute(_BLANK(connection), blank)
        found = {row.name: row for row in connection.execute(_LOCK, {"names": wanted})}
    return found


class _Window:
    """The last while of one limit."""

    def __init__(self, row: Any, rate: Rate, at: float, places: int) -> None:  # noqa: ANN401 - a row
        self.places = places
        self._name = rate.name
        self._most = row.most or rate.limit
        seconds = row.seconds or rate.seconds
        self._seconds = seconds + min(seconds * _MARGIN, _LONGEST_MARGIN_SECONDS)
        self.calls = _after(row.calls, at - self._seconds)
        self._promised = _after(row.promised, at)
        self.first_free = at
        """When there is a place for whoever comes first."""
        self.reason = ""
        parked_until = row.parked_until.timestamp() if row.parked_until else at
        over = len(self.calls) + places - self._most
        if over > 0 and self.calls:
            self.first_free = self.calls[min(over, len(self.calls)) - 1] + self._seconds
            self.reason = f"{self._most} calls in {self._seconds:g} s are all that {self._name} allows"
        if parked_until > self.first_free:
            self.first_free = parked_until
            self.reason = row.reason or f"{self._name} is parked"

    def promise(self) -> float:
        """Return when there is a place for this one, behind all who were told a time already."""
        rounds, turn = divmod(len(self._promised), self._most)
        gone = len(self.calls) - self._most + turn
        free_at = self.calls[gone] + self._seconds if 0 <= gone < len(self.calls) else self.first_free
        free_at = max(free_at, self.first_free) + self._seconds * rounds
        if len(self._promised) < _MOST_PROMISES:
            insort(self._promised, free_at)
        return free_at

    def columns(self) -> dict[str, Any]:
        """Return the row's new columns."""
        return {"of": self._name, "calls": self.calls.tobytes(), "promised": self._promised.tobytes()}


def _after(stored: bytes, at: float) -> "array[float]":
    times = array("d", stored)
    return times[bisect_right(times, at) :]


def learn(connection: sa.Connection, rate: Rate) -> None:
    """Remember what the platform said that its limit is."""
    row = {"name": rate.name, "most": rate.limit, "seconds": rate.seconds, "calls": b"", "promised": b""}
    connection.execute(_LEARN(connection), row)


def park(connection: sa.Connection, name: str, until: datetime, reason: str) -> bool:
    """Have nobody take a place before `until`; says whether that is later than what was known."""
    row = {"name": name, "calls": b"", "promised": b"", "parked_until": until, "reason": reason}
    return connection.execute(_PARK(connection), row).rowcount > 0


def parked(connection: sa.Connection, now: datetime) -> dict[str, tuple[datetime, str]]:
    """Return what is parked: until when, and why."""
    found = connection.execute(sa.select(limits).where(limits.c.parked_until > now).order_by(limits.c.name))
    return {row.name: (row.parked_until, row.reason or "") for row in found}


def prune(connection: sa.Connection, now: datetime) -> None:
    """Forget limits that nobody has used for two days; the longest window lasts one. What was learned is kept."""
    old = (now - timedelta(days=2)).timestamp()
    rows = connection.execute(
        sa.select(limits.c.name, limits.c.calls).where(
            limits.c.most.is_(None), sa.or_(limits.c.parked_until.is_(None), limits.c.parked_until <= now)
        )
    )
    gone = [row.name for row in rows if row.calls and array("d", row.calls)[-1] < old]
    if gone:
        connection.execute(limits.delete().where(limits.c.name.in_(gone)))
