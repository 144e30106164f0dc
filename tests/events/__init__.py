"""Recorded payloads, one of each type, and the little that tests need to make, read and fold events."""

import gzip
import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from config.catalogue import Catalogue, parse_catalogue
from connectors import TERMS
from handlers import HANDLERS
from handlers.events import Event, parse
from handlers.state import CustomerState
from worker import simulated
from worker.simulate import Story
from worker.simulated import Ids, Shop, World

FOLDER = Path(__file__).parent
DATA = FOLDER.parent / "data"

BEGINS = datetime(2026, 10, 1, 12, 0, tzinfo=UTC)
PRODUCT = "9b1f6d2e-3c4a-4f5b-8d6e-7a8b9c0d1e2f"
BETTER = "0d6a3a9c-7f5e-4b2d-9c1a-3e4f5a6b7c8d"
BENEFIT = "2c7e5a90-1b3d-4e6f-9a8c-5d4e3f2a1b0c"
WORLD = World("6513270e-269e-4d37-b2a7-4de452e6b438", (PRODUCT, BETTER), (BENEFIT,))


def recorded(type_: str) -> bytes:
    """The recorded body of this type."""
    return (FOLDER / f"{type_}.json").read_bytes()


@cache
def history() -> tuple[dict[str, Any], ...]:
    """312 events of 13 stories in the order in which Polar would send them."""
    with gzip.open(DATA / "history.jsonl.gz", "rt", encoding="utf-8") as lines:
        return tuple(json.loads(line) for line in lines)


def event(type_: str, data: dict[str, Any], at: datetime, delivery: str = "delivery") -> Event:
    """Make an event of this type, sent at this time."""
    return parse(delivery, json.dumps({"type": type_, "timestamp": at.isoformat(), "data": data}).encode())


def folded(events: Iterable[Event], state: CustomerState) -> CustomerState:
    """Fold events into a state, those that concern no customer left out, as the worker does."""
    for one in events:
        if one.type in HANDLERS:
            state = HANDLERS[one.type](state, one)
    return state


def story(*, team: bool = False, seed: int = 1) -> Story:
    """A customer who has just arrived; what they do next, a test tells."""
    ids = Ids(Random(seed))
    shop = Shop(WORLD, ids, BEGINS - timedelta(days=90))
    buyer = simulated.customer(ids, shop, f"usr_{seed}", "Ada Lovelace", BEGINS, team=team)
    person = simulated.member(ids, buyer, buyer["email"], "owner", BEGINS)
    told = Story(shop, ids, BEGINS, buyer, person)
    told.arrive()
    return told


def events_of(told: Story) -> list[Event]:
    """The events of a story so far, read."""
    return [parse(one.webhook_id, one.body) for one in told.events]


def state_of(told: Story) -> CustomerState:
    """What we know after a story so far."""
    return folded(events_of(told), CustomerState(id=told.buyer["id"]))


def catalogue(text: str, grace: timedelta = timedelta()) -> Catalogue:
    """Read a catalogue."""
    return parse_catalogue(text, TERMS, grace)
