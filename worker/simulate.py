"""Play Polar's part: stories of customers, as the events that Polar would send, in its order, signed in its ways.

Pure: the same world, seed and time give the same events. The order of events is that of polar.md 1.6.
"""

import base64
import copy
import hmac
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from worker import simulated
from worker.simulated import PERIOD, Ids, Object, Shop, World, iso

_NAMES = ("Ada Lovelace", "Grace Hopper", "Søren Ærø", "Léa Müller", "山田 太郎", "Katherine Johnson")
_STEP = timedelta(milliseconds=700)


@dataclass(frozen=True)
class SimulatedEvent:
    """One event, ready to be signed and sent."""

    webhook_id: str
    type: str
    timestamp: datetime
    customer_id: str
    external_id: str
    body: bytes


@dataclass
class Story:
    """One customer's life so far. Every step moves the time on and may send an event."""

    shop: Shop
    ids: Ids
    at: datetime
    buyer: Object
    person: Object
    events: list[SimulatedEvent] = field(default_factory=list)
    subscriptions: list[Object] = field(default_factory=list)
    grants: list[Object] = field(default_factory=list)

    def send(self, type_: str, data: Object) -> None:
        """Send an event with the data as it is now."""
        self.at += _STEP
        payload = {"type": type_, "timestamp": iso(self.at), "api_version": "2026-10", "data": data}
        body = json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
        self.events.append(
            SimulatedEvent(self.ids.next(), type_, self.at, self.buyer["id"], self.buyer["external_id"] or "", body)
        )

    def change(self, thing: Object, **fields: object) -> None:
        """Change an object, as of now."""
        thing.update(fields, modified_at=iso(self.at))

    def send_state(self) -> None:
        """Send `customer.state_changed`."""
        self.send("customer.state_changed", simulated.state(self.buyer, self.subscriptions, self.grants))

    # What customers do.

    def arrive(self) -> None:
        """The customer is created, and the person behind it."""
        self.send("customer.created", self.buyer)
        self.send_state()
        self.send("member.created", self.person)

    def check_out(self, product: Object) -> Object:
        """The customer opens a checkout."""
        opened = simulated.checkout(self.ids, self.shop, self.buyer, product, self.at)
        self.send("checkout.created", opened)
        self.change(opened, status="confirmed")
        self.send("checkout.updated", opened)
        return opened

    def pay(self, product: Object, *, reason: str, paid_for: Object | None = None) -> Object:
        """An order is made and paid."""
        made = simulated.order(self.ids, self.buyer, product, self.at, reason=reason, paid_for=paid_for)
        self.send("order.created", made)
        self.change(made, status="paid", paid=True, due_amount=0)
        self.send("order.updated", made)
        self.send("order.paid", made)
        return made

    def give(self, bought: tuple[str | None, str | None], person: Object | None = None) -> None:
        """Polar grants every benefit of the product."""
        for benefit in self.shop.benefits:
            given = simulated.grant(self.ids, self.buyer, person or self.person, benefit, self.at, bought=bought)
            self.grants.append(given)
            self.send("benefit_grant.created", given)

    def give_again(self) -> None:
        """Polar grants again what it had taken back: the same grants."""
        for given in self.grants:
            self.change(given, is_granted=True, granted_at=iso(self.at), is_revoked=False, revoked_at=None)
            self.send("benefit_grant.created", given)
        self.send_state()

    def take(self, which: Iterable[Object]) -> None:
        """Polar takes grants back."""
        for given in which:
            if given["is_granted"]:
                self.change(given, is_granted=False, granted_at=None, is_revoked=True, revoked_at=iso(self.at))
                self.send("benefit_grant.revoked", given)

    def buy_once(self) -> Object:
        """A one-time purchase, from the checkout to the grants."""
        product = self.shop.products[0]
        opened = self.check_out(product)
        made = self.pay(product, reason="purchase")
        self.change(opened, status="succeeded")
        self.send("checkout.updated", opened)
        self.give((None, made["id"]))
        self.send_state()
        return made

    def subscribe(self, *, trial: bool = False, seats: int | None = None) -> Object:
        """A subscription starts, with or without a trial."""
        product = self.shop.products[0]
        opened = self.check_out(product)
        begun = simulated.subscription(self.ids, self.buyer, product, self.at, seats=seats, trial=trial)
        self.subscriptions.append(begun)
        self.send("subscription.created", begun)
        self.send("subscription.active", begun)
        self.send("subscription.updated", begun)
        self.pay(product, reason="subscription_create", paid_for=begun)
        self.change(opened, status="succeeded", subscription_id=begun["id"])
        self.send("checkout.updated", opened)
        if seats is None:
            self.give((begun["id"], None))
        self.send_state()
        return begun

    def cycle(self, subscription: Object) -> None:
        """A new period begins; nothing is said yet about paying for it."""
        start = subscription["current_period_end"]
        end = iso(datetime.fromisoformat(start) + PERIOD)
        self.at = max(self.at, datetime.fromisoformat(start))
        self.change(subscription, current_period_start=start, current_period_end=end, status="active")
        self.send("subscription.cycled", subscription)
        self.send("subscription.updated", subscription)

    def renew(self, subscription: Object) -> None:
        """The next period begins and is paid for."""
        self.cycle(subscription)
        self.pay(self.shop.products[0], reason="subscription_cycle", paid_for=subscription)
        for given in self.grants:
            self.send("benefit_grant.cycled", given)
        self.send_state()

    def end(self, subscription: Object, **fields: object) -> None:
        """The subscription is over, and what it gave is taken back."""
        self.change(subscription, status="canceled", ended_at=iso(self.at), **fields)
        for name in ("updated", "canceled", "revoked"):
            self.send(f"subscription.{name}", subscription)


def _purchase(story: Story) -> None:
    story.buy_once()


def _subscription(story: Story) -> None:
    story.subscribe()


def _renewal(story: Story) -> None:
    story.renew(story.subscribe())


def _trial(story: Story) -> None:
    story.renew(story.subscribe(trial=True))


def _cancel_scheduled(story: Story) -> None:
    _schedule(story, story.subscribe())


def _schedule(story: Story, subscription: Object) -> None:
    ends = subscription["current_period_end"]
    story.change(subscription, cancel_at_period_end=True, canceled_at=iso(story.at), ends_at=ends)
    story.send("subscription.updated", subscription)
    story.send("subscription.canceled", subscription)
    story.send_state()


def _cancel(story: Story) -> None:
    subscription = story.subscribe()
    _schedule(story, subscription)
    story.at = datetime.fromisoformat(subscription["ends_at"])
    story.end(subscription)
    story.take(story.grants)
    story.send_state()


def _fail_to_pay(story: Story) -> tuple[Object, Object]:
    subscription = story.subscribe()
    story.cycle(subscription)
    made = simulated.order(story.ids, story.buyer, story.shop.products[0], story.at, reason="subscription_cycle",
                           paid_for=subscription)  # fmt: skip
    story.send("order.created", made)
    story.change(subscription, status="past_due", past_due_at=iso(story.at))
    story.send("subscription.updated", subscription)
    story.send("subscription.past_due", subscription)
    story.take(story.grants)
    story.send_state()
    return subscription, made


def _past_due(story: Story) -> None:
    _fail_to_pay(story)


def _recovery(story: Story) -> None:
    subscription, made = _fail_to_pay(story)
    story.change(made, status="paid", paid=True, due_amount=0)
    story.send("order.updated", made)
    story.send("order.paid", made)
    story.change(subscription, status="active", past_due_at=None)
    story.send("subscription.updated", subscription)
    story.send("subscription.active", subscription)
    story.give_again()


def _pause(story: Story) -> None:
    subscription = story.subscribe()
    story.change(subscription, pause_at_period_end=True)
    story.send("subscription.updated", subscription)
    story.at = datetime.fromisoformat(subscription["current_period_end"])
    story.change(subscription, status="paused", paused_at=iso(story.at), pause_at_period_end=False)
    story.send("subscription.updated", subscription)
    story.send("subscription.paused", subscription)
    story.take(story.grants)
    story.send_state()


def _refund(story: Story) -> None:
    made = story.buy_once()
    returned = simulated.refund(story.ids, story.shop, made, story.at)
    story.send("refund.created", returned)
    story.change(made, status="refunded", refunded_amount=made["total_amount"])
    story.send("order.updated", made)
    story.send("order.refunded", made)
    story.take(story.grants)
    story.send_state()


def _upgrade(story: Story) -> None:
    subscription = story.subscribe()
    better = story.shop.products[1]
    story.pay(better, reason="subscription_update", paid_for=subscription)
    story.change(subscription, product_id=better["id"], product={**better, "benefits": []})
    story.send("subscription.updated", subscription)
    story.take(story.grants)
    story.send_state()


def _seats(story: Story) -> None:
    subscription = story.subscribe(seats=3)
    seats = []
    for number in range(1, 4):
        email = f"{story.buyer['external_id']}-{number}@example.com"
        person = simulated.member(story.ids, story.buyer, email, "member", story.at)
        story.send("member.created", person)
        taken = simulated.seat(story.ids, story.buyer, subscription, story.at)
        taken |= {"member_id": person["id"], "member": person, "email": email}
        story.send("customer_seat.assigned", taken)
        story.change(taken, status="claimed", claimed_at=iso(story.at), invitation_token_expires_at=None)
        story.send("customer_seat.claimed", taken)
        story.give((subscription["id"], None), person)
        seats.append(taken)
    last = seats[-1]
    gone = last["member_id"]
    # Polar clears the row before it says that the seat is revoked (polar.md 1.6).
    story.change(last, status="revoked", revoked_at=iso(story.at), customer_id=None, member_id=None, member=None,
                 email=None)  # fmt: skip
    story.send("customer_seat.revoked", last)
    story.take([given for given in story.grants if given["member_id"] == gone])
    story.send_state()


def _delete_customer(story: Story) -> None:
    subscription = story.subscribe()
    story.send("member.deleted", {**story.person, "modified_at": iso(story.at)})
    story.change(story.buyer, deleted_at=iso(story.at))
    story.send("customer.deleted", story.buyer)
    story.send_state()
    story.end(subscription)
    story.take(story.grants)
    story.send_state()


@dataclass(frozen=True)
class Scenario:
    """A story that can be played."""

    about: str
    tell: Callable[[Story], None]
    lasts: timedelta = timedelta()
    """How long before now it begins, so that it ends now."""
    team: bool = False


SCENARIOS: dict[str, Scenario] = {
    "purchase": Scenario("a one-time purchase", _purchase),
    "subscription": Scenario("a subscription starts", _subscription),
    "trial": Scenario("a trial, and its first paid period", _trial, PERIOD),
    "renewal": Scenario("a subscription, renewed once", _renewal, PERIOD),
    "cancel-scheduled": Scenario("a subscription that is to end with its period", _cancel_scheduled),
    "cancel": Scenario("a subscription, canceled, and ended with its period", _cancel, PERIOD),
    "past-due": Scenario("a renewal that fails to be paid", _past_due, PERIOD),
    "recovery": Scenario("a renewal that fails, and is paid after all", _recovery, PERIOD),
    "pause": Scenario("a subscription, paused at the end of its period", _pause, PERIOD),
    "refund": Scenario("a one-time purchase, refunded with its benefits", _refund),
    "upgrade": Scenario("a subscription that moves to another product", _upgrade),
    "seats": Scenario("a team of three seats, one of them revoked", _seats, team=True),
    "delete-customer": Scenario("a subscriber who is deleted at Polar", _delete_customer),
}


def play(scenario: str, world: World, *, seed: int, now: datetime) -> list[SimulatedEvent]:
    """Return the events of one customer who lives through the scenario; the last is sent at `now`.

    Raises KeyError for a scenario that there is not.
    """
    told = SCENARIOS[scenario]
    events = _tell(told, world, seed, now - told.lasts)
    # How long a story takes beyond its periods is known once it is told: tell it again, that much earlier.
    return _tell(told, world, seed, now - told.lasts - (events[-1].timestamp - now))


def _tell(told: Scenario, world: World, seed: int, begins: datetime) -> list[SimulatedEvent]:
    # Not for secrets: a story must be the same each time.
    ids = Ids(random.Random(f"{told.about}/{seed}"))  # noqa: S311
    shop = Shop(world, ids, begins - timedelta(days=90))
    name = _NAMES[seed % len(_NAMES)]
    buyer = simulated.customer(ids, shop, f"user-{told.about.split()[-1]}-{seed}", name, begins, team=told.team)
    buyer["external_id"] = f"usr_{ids.next()[:8]}_{seed}"
    buyer["email"] = f"{buyer['external_id']}@example.com"
    person = simulated.member(ids, buyer, buyer["email"], "owner", begins)
    story = Story(copy.deepcopy(shop), ids, begins, buyer, person)
    story.arrive()
    told.tell(story)
    return story.events


def arrange(events: Sequence[SimulatedEvent], *, shuffle: bool, duplicate: float, seed: int) -> list[SimulatedEvent]:
    """Return the events out of order, and a share of them twice: what Polar does on a bad day."""
    drawn = random.Random(seed)  # noqa: S311 - as above
    arranged = list(events)
    arranged += [event for event in events if drawn.random() < duplicate]
    if shuffle:
        drawn.shuffle(arranged)
    return arranged


def headers(
    event: SimulatedEvent, secret: str, *, scheme: Literal["standard", "legacy"], at: datetime
) -> dict[str, str]:
    """Return the headers with which Polar would send an event at this time.

    Raises ValueError where the secret cannot be used under the scheme.
    """
    timestamp = str(int(at.timestamp()))
    content = f"{event.webhook_id}.{timestamp}.".encode() + event.body
    signature = base64.b64encode(hmac.digest(_key(secret, scheme), content, "sha256")).decode()
    return {
        "webhook-id": event.webhook_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{signature}",
        "webhook-api-version": "2026-10",
        "content-type": "application/json",
        "user-agent": "polar.sh webhooks",
    }


def _key(secret: str, scheme: Literal["standard", "legacy"]) -> bytes:
    if scheme == "legacy":
        return secret.encode()
    before, prefix, key = secret.partition("whsec_")
    try:
        return base64.b64decode(key if prefix and not before else "*", validate=True)
    except ValueError:
        raise ValueError(
            "a standard signature needs a secret of the form whsec_<base64>; use the legacy scheme"
        ) from None


def default_scheme(secret: str) -> Literal["standard", "legacy"]:
    """Return the scheme that Polar would use for a secret of this form."""
    try:
        _key(secret, "standard")
    except ValueError:
        return "legacy"
    return "standard"
