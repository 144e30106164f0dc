"""License keys that Polar issued: read there when its events tell of them, and looked up there when asked for.

The events say whose a key is and whether it is given (worker/told_keys.py), never the key: it must be read.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

import sqlalchemy as sa
import structlog
from msgspec import Struct

from config.settings import Settings
from connectors.base import ActionRequired, ConnectorError, Rate, Unavailable
from worker import folding
from worker.polar import NotFound, Polar
from worker.store import polar_keys
from worker.store.database import Database
from worker.store.licenses import digest_of
from worker.store.polar_keys import Claimed, SameKey
from worker.told_keys import ReadKey

log = structlog.get_logger()

READ_BATCH = 8
"""Keys that one worker reads at a time."""
_READS, _WRITES = "license_keys:read", "license_keys:write"

# Whoever invents keys costs a call for each: so many a minute, and the rest of Polar's limit is for reading. Callers
# whom nobody knows have a share of their own, so that they shut nobody else out.
_LOOKUPS = {True: Rate("polar-lookup", 60, 60.0), False: Rate("polar-lookup-public", 30, 60.0)}
_FORGET_AFTER = timedelta(days=1)
"""How long a key that Polar does not know is not asked for again."""
_LONGEST_KEY = 255
_CLOSED_SECONDS, _LONGEST_CLOSED_SECONDS = 5.0, 60.0
"""How long nothing is looked up after Polar could not be asked, so that nobody else waits for it in vain."""
_SAY_EVERY = timedelta(minutes=1)


class _Validated(Struct):
    id: str


@dataclass(frozen=True)
class Next:
    """When a key that could not be read is read again, None for never, and how many attempts count as used up."""

    at: datetime | None
    attempts: int


def after(error: Exception, attempts: int, settings: Settings, now: datetime) -> Next:
    """Return what follows when reading a key has failed for the `attempts` + 1st time.

    Nothing but Polar's word that there is no such key ends it, until a worker starts with perhaps another token:
    whoever has paid for one must get it in the end.
    """
    if isinstance(error, NotFound | SameKey):
        return Next(None, attempts + 1)
    if isinstance(error, Unavailable) and error.retry_after is not None:  # a turn that is waited for is no attempt
        return Next(now + timedelta(seconds=max(error.retry_after, 1.0)), attempts)
    if isinstance(error, ActionRequired):
        return Next(now + settings.recheck_every, attempts + 1)
    return Next(now + folding.backoff(attempts + 1, settings), attempts + 1)


class PolarKeys:
    """Reads and looks up the keys that Polar issued. Without a client it does nothing."""

    def __init__(
        self, database: Database, polar: Polar | None, settings: Settings, now: Callable[[], datetime]
    ) -> None:
        self._database = database
        self._polar = polar
        self._settings = settings
        self._now = now
        self._asking: dict[str, asyncio.Task[bool]] = {}
        self._closed: dict[bool, tuple[datetime, str]] = {}
        """Until when nothing is looked up, and why; for known callers, and for others."""
        self._said_at: datetime | None = None

    async def close(self) -> None:
        """Give up what is being looked up."""
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    # reading

    async def read_for_ever(self, stopping: asyncio.Event) -> None:
        """Read what is due every `sweep_every`, or at once again while there is more; survives every failure."""
        if self._polar is None:
            return
        missed: int | None = None
        while not stopping.is_set():
            count = 0
            try:
                if missed is None:
                    missed = await self._database.write(partial(polar_keys.catch_up, now=self._now()))
                count = await self.read_due()
            except Exception:
                log.exception("license keys could not be read at Polar; it goes on")
            if count < READ_BATCH:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._settings.sweep_every.total_seconds()):
                        await stopping.wait()

    async def read_due(self, limit: int = READ_BATCH) -> int:
        """Read keys that are due, at most so many, all at once; returns how many were tried."""
        polar, now = self._polar, self._now()
        if polar is None or not await self._database.peek(partial(polar_keys.is_due, now=now)):
            return 0
        until = now + 2 * self._settings.call_timeout + timedelta(seconds=30)  # a call, its turn, and the saving
        claimed = await self._database.write(partial(polar_keys.claim, now=now, until=until, limit=limit))
        await asyncio.gather(*(self._read(polar, one) for one in claimed))
        return len(claimed)

    async def _read(self, polar: Polar, one: Claimed) -> None:
        try:
            read = await polar.get(f"/v1/license-keys/{one.id}", scope=_READS, form=ReadKey)
            await self._keep(read, one)
        except (ConnectorError, SameKey) as error:
            await self._postpone(one, error)
        except Exception:
            log.exception("a license key of Polar's could not be saved; it is read again", license_key_id=one.id)

    async def _keep(self, read: ReadKey, claimed: Claimed | None) -> None:
        """Save what was read. Raises SameKey."""
        save = partial(polar_keys.save, read=read, claimed=claimed, now=self._now())
        try:
            await self._database.write(save)
        except sa.exc.IntegrityError:  # another has kept the same id or key since we looked: now it is seen
            await self._database.write(save)

    async def _postpone(self, one: Claimed, error: Exception) -> None:
        then, problem = after(error, one.attempts, self._settings, self._now()), str(error)
        write = partial(polar_keys.postpone, claimed=one, at=then.at, attempts=then.attempts, problem=problem)
        is_ours = await self._database.write(write)
        waits_for_turn = isinstance(error, Unavailable) and error.retry_after is not None
        if not is_ours or waits_for_turn or problem == one.problem:
            return
        say = log.warning if isinstance(error, Unavailable) else log.error
        say(
            "a license key that Polar issued could not be read there; it cannot be validated here",
            customer=one.customer_id,
            license_key_id=one.id,
            reason=problem,
            again_at=then.at.isoformat() if then.at else "never",
            next=_next_step(error, one),
        )

    # looking up

    @property
    def looks_up(self) -> bool:
        """Whether unknown keys are looked up at all."""
        return self._polar is not None and self._settings.polar_lookup

    async def look_up(self, key: str, organization_id: str, *, known: bool = True) -> bool:
        """Ask Polar for a key that is unknown here; says whether it is known now.

        Where that is not switched on, or it was asked of late, nobody is asked. Raises Unavailable, always with
        `retry_after` (seconds), where Polar should be asked and cannot: the key may be good. `known` is whether whoever
        asks has a token.
        """
        if self._polar is None or not self._settings.polar_lookup or not self._may_be(key, organization_id):
            return False
        # A wrong organization shall not make a key unknown for the right one.
        is_ours = bool(self._settings.polar_organization_id)
        digest = digest_of(key if is_ours else f"{organization_id}:{key}")
        task = self._asking.get(digest)
        if task is None:
            task = asyncio.create_task(self._ask(self._polar, key, organization_id, digest, known=known))
            self._asking[digest] = task
            task.add_done_callback(partial(self._asked, digest))
        return await asyncio.shield(task)  # who hangs up takes the answer from nobody else

    def _may_be(self, key: str, organization_id: str) -> bool:
        """Whether it could be a key of ours at all: what Polar would only stumble over is not sent."""
        mine = self._settings.polar_organization_id
        try:
            is_id = str(UUID(organization_id)) == organization_id
        except ValueError:
            return False
        return is_id and (not mine or mine == organization_id) and key.isprintable() and 0 < len(key) <= _LONGEST_KEY

    def _asked(self, digest: str, task: asyncio.Task[bool]) -> None:
        del self._asking[digest]
        if not task.cancelled():
            task.exception()  # whoever asked may have gone: then nobody else takes it

    async def _ask(self, polar: Polar, key: str, organization_id: str, digest: str, *, known: bool) -> bool:
        now = self._now()
        if await self._database.peek(partial(polar_keys.is_unknown, digest=digest, now=now)):
            return False
        until, because = self._closed.get(known, (now, ""))
        if now < until:
            raise Unavailable(because, retry_after=(until - now).total_seconds())
        try:
            read = await _found(polar, key, organization_id, _LOOKUPS[known])
        except NotFound:
            until = now + _FORGET_AFTER
            await self._database.write(partial(polar_keys.note_unknown, digest=digest, until=until))
            return False
        except ConnectorError as error:
            raise self._cannot(error, known=known) from None
        with suppress(SameKey):  # read or looked up by another meanwhile
            await self._keep(read, None)
        log.info("a license key was found at Polar", license_key_id=read.id, customer=read.customer_id)
        return True

    def _cannot(self, error: ConnectorError, *, known: bool) -> Unavailable:
        """Return what to tell whoever asked; nothing else is looked up for a moment."""
        now = self._now()
        wait = error.retry_after if isinstance(error, Unavailable) else None
        wait = min(max(_CLOSED_SECONDS if wait is None else wait, 1.0), _LONGEST_CLOSED_SECONDS)
        self._closed[known] = now + timedelta(seconds=wait), str(error)
        if self._said_at is None or abs(now - self._said_at) >= _SAY_EVERY:  # the clock may be set back
            self._said_at = now
            say = log.warning if isinstance(error, Unavailable) else log.error
            say("license keys that are unknown here cannot be looked up at Polar", reason=str(error), next=_LOOK)
        return Unavailable(str(error), retry_after=wait)


_LOOK = "those who ask are answered 503; check ALMONER_POLAR_ACCESS_TOKEN, ALMONER_POLAR_BASE_URL and Polar itself"


async def _found(polar: Polar, key: str, organization_id: str, rate: Rate) -> ReadKey:
    """Return a granted key of the organization, whole and with its activations. Raises as Polar's client does.

    To find it by its string Polar must be asked to validate it, which counts there as one more validation.
    """
    asked = {"key": key, "organization_id": organization_id}
    found = await polar.post("/v1/license-keys/validate", asked, scope=_WRITES, form=_Validated, rates=[rate])
    return await polar.get(f"/v1/license-keys/{found.id}", scope=_READS, form=ReadKey)


def _next_step(error: Exception, one: Claimed) -> str:
    """Return what a person can do."""
    if isinstance(error, ActionRequired):
        return "give ALMONER_POLAR_ACCESS_TOKEN a token that may, and restart; it is read again by itself"
    if isinstance(error, Unavailable):
        return "nothing: it is read again by itself"
    return f"almoner deliveries list --customer {one.customer_id}; it is tried once more when a worker starts"
