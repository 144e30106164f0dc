"""Replay: process stored deliveries again, as new attempts. Deduplication plays no part in it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from worker.pipeline import PROCESS_BATCH, Pipeline
from worker.store import inbox
from worker.store.inbox import Filter


@dataclass
class Replayed:
    """What a replay came to."""

    deliveries: int = 0
    given: int = 0
    taken: int = 0
    statuses: Counter[str] = field(default_factory=Counter)


async def replay(pipeline: Pipeline, chosen: Filter, *, progress: Callable[[int], None] = lambda _: None) -> Replayed:
    """Process all chosen deliveries again, oldest first, a batch at a time; memory stays flat.

    `progress` is called with the size of each finished batch. What grants must change is settled as always: by a
    worker, at once where the queue is up, else by the sweep.
    """
    done = Replayed()
    last = 0
    # Fixed at the start: what is received meanwhile is processed anyway.
    until = await pipeline.database.read(inbox.last_id)
    while True:
        chunk = partial(inbox.reopen, chosen=chosen, now=pipeline.now(), after=last, until=until, limit=PROCESS_BATCH)
        ids = await pipeline.database.write(chunk)
        if not ids:
            return done
        folded = await pipeline.process(ids)
        done.deliveries += len(ids)
        done.given += folded.given
        done.taken += folded.taken
        done.statuses.update(outcome.status.value for outcome in folded.outcomes)
        last = ids[-1]
        progress(len(ids))
