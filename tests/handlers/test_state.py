"""The rules by which facts are merged, and every trap in Polar's events that we know of, each by its name.

What a trap would do to somebody is asked of `entitled`: one benefit here follows Polar's grants, the other the product.
"""

import itertools
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from handlers.events import Event, Member, Order, parse
from handlers.state import (
    CustomerState,
    Fact,
    ManualGrant,
    Stamp,
    accounts_of,
    customer_of,
    decode,
    encode,
    grants_now,
    is_active,
    is_deleted,
    owner_of,
    subscriptions_now,
    told_in_fields,
)
from tests.events import BENEFIT, BETTER, PRODUCT, catalogue, event, events_of, folded, state_of, story
from worker import simulated
from worker.reconcile import Entitlement, entitled
from worker.simulate import Story
from worker.simulated import Object, iso

SOLD = catalogue(f"""
[benefits.granted]
connector = "custom_link"
note = "for whom Polar grants it"
for = {{ benefits = ["{BENEFIT}"] }}
[benefits.bought]
connector = "custom_link"
note = "for whom has the product"
for = {{ products = ["{PRODUCT}"] }}
[benefits.better]
connector = "custom_link"
note = "for whom has the better product"
for = {{ products = ["{BETTER}"] }}
""")
BOTH = {("granted", None), ("bought", None)}

AT = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
NOBODY = CustomerState(id="c")


def due(told: Story, *, later: timedelta = timedelta()) -> dict[tuple[str, str | None], Entitlement]:
    """What the customer and the members ought to have, by benefit and member."""
    found = entitled(state_of(told), SOLD, told.at + later)
    return {(one.benefit, one.member_id): one for one in found}


def owed(told: Story, *, later: timedelta = timedelta()) -> set[tuple[str, str | None]]:
    return set(due(told, later=later))


def owed_in_any_order(told: Story) -> set[tuple[str, str | None]]:
    """As `owed`, after making sure that nothing depends on the order, in both directions and by halves."""
    events = events_of(told)
    half = len(events) // 2
    blank = CustomerState(id=told.buyer["id"])
    states = [folded(order, blank) for order in (events, events[::-1], events[half:] + events[:half])]
    assert states[0] == states[1] == states[2]
    return owed(told)


def unpaid(told: Story, product: Object, *, reason: str = "purchase", paid_for: Object | None = None) -> Object:
    made = simulated.order(told.ids, told.buyer, product, told.at, reason=reason, paid_for=paid_for)
    told.send("order.created", made)
    return made


def refund(told: Story, order: Object, **fields: Any) -> Object:
    returned = simulated.refund(told.ids, told.shop, order, told.at) | fields
    told.send("refund.created", returned)
    return returned


def assign(told: Story, subscription: Object, name: str, seat: Object | None = None) -> tuple[Object, Object]:
    """A seat is assigned to a new person; the row may be one that somebody else had."""
    person = simulated.member(told.ids, told.buyer, f"{name}@example.com", "member", told.at)
    told.send("member.created", person)
    taken = simulated.seat(told.ids, told.buyer, subscription, told.at) if seat is None else seat
    told.change(taken, status="pending", customer_id=told.buyer["id"], member_id=person["id"], member=person,
                email=person["email"])  # fmt: skip
    told.send("customer_seat.assigned", taken)
    return taken, person


def claim(told: Story, seat: Object) -> None:
    told.change(seat, status="claimed", claimed_at=iso(told.at))
    told.send("customer_seat.claimed", seat)


def clear(told: Story, seat: Object) -> None:
    """Polar clears the row first, then says that the seat is revoked."""
    told.change(seat, status="revoked", customer_id=None, member_id=None, member=None, email=None)
    told.send("customer_seat.revoked", seat)


def subscription_data(**fields: Any) -> dict[str, Any]:
    return {"id": "s", "created_at": iso(AT), "modified_at": None, "status": "active", "product_id": PRODUCT,
            "customer_id": "c"} | fields  # fmt: skip


def grant_data(**fields: Any) -> dict[str, Any]:
    benefit: dict[str, Any] = {
        "id": BENEFIT,
        "created_at": iso(AT),
        "modified_at": None,
        "type": "custom",
        "metadata": {},
    }
    return {"id": "g", "created_at": iso(AT), "modified_at": None, "is_granted": True, "is_revoked": False,
            "customer_id": "c", "benefit_id": BENEFIT, "benefit": benefit, "properties": {}} | fields  # fmt: skip


def state_data(**fields: Any) -> dict[str, Any]:
    return {"id": "c", "created_at": iso(AT), "modified_at": None, "email": "a@example.com", "type": "individual",
            "active_subscriptions": [], "granted_benefits": [], "active_meters": []} | fields  # fmt: skip


def listed(**fields: Any) -> dict[str, Any]:
    return {"id": "g", "created_at": iso(AT), "modified_at": None, "granted_at": iso(AT), "benefit_id": BENEFIT,
            "benefit_type": "custom", "benefit_metadata": {}, "properties": {}} | fields  # fmt: skip


def in_both_orders(*events: Event) -> CustomerState:
    """Fold in every order; there must be one result."""
    states = [folded(order, NOBODY) for order in itertools.permutations(events)]
    assert all(state == states[0] for state in states)
    return states[0]


# Which fact of two holds.


def test_the_fact_that_polar_modified_last_holds_though_it_was_sent_first() -> None:
    newer = event("subscription.updated", subscription_data(status="canceled", modified_at=iso(AT + HOUR)), AT + HOUR)
    older = event("subscription.updated", subscription_data(status="active", modified_at=iso(AT)), AT + 2 * HOUR)
    assert in_both_orders(newer, older).subscriptions["s"].data.status == "canceled"


def test_what_was_never_modified_is_as_old_as_its_creation() -> None:
    created = event("subscription.created", subscription_data(status="active"), AT + 2 * HOUR)
    changed = event("subscription.updated", subscription_data(status="canceled", modified_at=iso(AT + HOUR)), AT + HOUR)
    assert in_both_orders(created, changed).subscriptions["s"].data.status == "canceled"


def test_of_two_facts_modified_at_once_the_one_sent_later_holds() -> None:
    first = event("subscription.revoked", subscription_data(status="canceled"), AT)
    second = event("subscription.updated", subscription_data(status="active"), AT + timedelta(microseconds=1))
    assert in_both_orders(first, second).subscriptions["s"].data.status == "active"


TRANSACTIONS = {
    "subscription": ["created", "updated", "cycled", "migrated", "active", "past_due", "canceled", "revoked"],
    "benefit_grant": ["created", "updated", "cycled", "revoked"],
    "customer_seat": ["assigned", "claimed", "revoked"],
    "order": ["created", "updated", "paid", "refunded"],
    "member": ["created", "updated"],
    "refund": ["created", "updated"],
}


@pytest.mark.parametrize(
    ("family", "earlier", "later"),
    [(family, *pair) for family, verbs in TRANSACTIONS.items() for pair in itertools.pairwise(verbs)],
)
def test_of_two_facts_of_one_moment_the_one_that_polar_emits_later_holds(family: str, earlier: str, later: str) -> None:
    common = {"order_id": "o", "product_id": PRODUCT, "status": "any", "billing_reason": "purchase"}
    data = grant_data(**common) | {"id": "it"}
    kind = {"benefit_grant": "grants", "customer_seat": "seats"}.get(family, f"{family}s")
    one = event(f"{family}.{earlier}", data, AT, "the earlier")
    other = event(f"{family}.{later}", data, AT, "the later")
    assert getattr(in_both_orders(one, other), kind)["it"].delivery == "the later"


def test_even_a_full_tie_has_one_winner() -> None:
    one = event("subscription.updated", subscription_data(status="active"), AT, "x")
    other = event("subscription.updated", subscription_data(status="canceled"), AT, "x")
    assert in_both_orders(one, other).subscriptions["s"].data.status == "canceled"


def test_times_are_compared_as_moments_whatever_their_zone() -> None:
    early = event(
        "subscription.updated", subscription_data(status="early", modified_at="2026-11-01T14:00:00+05:00"), AT
    )
    late = event("subscription.updated", subscription_data(status="late", modified_at="2026-11-01T10:00:00Z"), AT)
    assert in_both_orders(early, late).subscriptions["s"].data.status == "late"


def test_objects_do_not_touch_each_other() -> None:
    one = event("subscription.updated", subscription_data(id="one"), AT)
    other = event("subscription.updated", subscription_data(id="other", status="paused"), AT)
    state = in_both_orders(one, other)
    assert {known.data.id: known.data.status for known in state.subscriptions.values()} == {
        "one": "active",
        "other": "paused",
    }


def test_as_of_is_the_newest_envelope_even_when_older_ones_follow() -> None:
    newer = event("subscription.updated", subscription_data(modified_at=iso(AT)), AT + HOUR)
    older = event("subscription.created", subscription_data(), AT)
    assert in_both_orders(newer, older).as_of == AT + HOUR


def test_every_fact_keeps_the_delivery_that_told_it() -> None:
    told = story()
    told.buy_once()
    last = {one.type: one.webhook_id for one in told.events}
    state = state_of(told)
    assert {known.delivery for known in state.orders.values()} == {last["order.paid"]}
    assert {known.delivery for known in state.grants.values()} == {last["benefit_grant.created"]}
    assert state.snapshot is not None
    assert state.snapshot.delivery == last["customer.state_changed"]


# Who the customer is.


def test_a_customer_embedded_in_an_order_is_used_until_a_full_one_is_known() -> None:
    told = story()
    hint = {"id": "c", "created_at": iso(AT), "modified_at": iso(AT + HOUR), "email": "hint@example.com"}
    order = simulated.order(told.ids, told.buyer, told.shop.products[0], AT, reason="purchase", paid_for=None)
    embedded = event("order.created", order | {"customer": hint}, AT + HOUR)
    only = folded([embedded], NOBODY)
    known = customer_of(only)
    assert known is not None
    assert known.email == "hint@example.com"
    full = event("customer.created", {"id": "c", "created_at": iso(AT), "email": "full@example.com"}, AT)
    known = customer_of(in_both_orders(embedded, full))
    assert known is not None
    assert known.email == "full@example.com"


def test_nobody_is_known_before_any_event() -> None:
    assert customer_of(NOBODY) is None
    assert not is_deleted(NOBODY)
    assert owner_of(NOBODY) is None


@pytest.mark.parametrize("type_", ["order.paid", "subscription.updated", "benefit_grant.created"])
def test_an_event_without_the_customer_in_it_leaves_the_customer_as_known(type_: str) -> None:
    data = grant_data(status="paid", order_id="o", product_id=PRODUCT)
    assert folded([event(type_, data, AT)], NOBODY).customer is None


def test_a_deleted_customer_stays_deleted_whatever_is_said_later() -> None:
    told = story()
    told.send("customer.deleted", {**told.buyer, "deleted_at": iso(told.at)})
    told.change(told.buyer, name="somebody again")
    told.send("customer.updated", told.buyer)
    told.buy_once()
    assert owed_in_any_order(told) == set()
    assert is_deleted(state_of(told))


def test_a_deletion_without_its_time_is_one_all_the_same() -> None:
    told = story()
    told.buy_once()
    assert told.buyer["deleted_at"] is None
    told.send("customer.deleted", told.buyer)
    assert owed_in_any_order(told) == set()
    known = customer_of(state_of(told))
    assert known is not None
    assert known.deleted_at == told.at


def test_a_deletion_that_only_an_order_mentions_is_one_too() -> None:
    told = story()
    order = told.buy_once()
    gone = {**told.buyer, "deleted_at": iso(told.at)}
    told.change(order, customer=gone)
    told.send("order.updated", order)
    assert owed_in_any_order(told) == set()


def test_a_deleted_member_stays_deleted_for_polar_never_reuses_the_id() -> None:
    told = story(team=True)
    person = simulated.member(told.ids, told.buyer, "b@example.com", "member", told.at)
    told.send("member.deleted", person)
    told.change(person, name="again")
    told.send("member.updated", person)
    owed_in_any_order(told)
    assert state_of(told).members[person["id"]].data.deleted


def test_the_owner_is_who_the_customer_is_in_person() -> None:
    told = story()
    assert owner_of(state_of(told)) == told.person["id"]
    told.send("member.deleted", told.person)
    assert owner_of(state_of(told)) is None


def test_of_two_owners_one_is_chosen_for_good() -> None:
    people = [Member(id=one, created_at=AT, role="owner") for one in ("b", "a")]
    events = [event("member.created", msgspec.to_builtins(one), AT) for one in people]
    assert owner_of(in_both_orders(*events)) == "a"


# Snapshots.


def test_a_snapshot_decides_over_what_is_older_than_it() -> None:
    older = [
        event("subscription.updated", subscription_data(), AT),
        event("benefit_grant.created", grant_data(), AT),
    ]
    state = in_both_orders(*older, event("customer.state_changed", state_data(), AT + HOUR, "snapshot"))
    assert not subscriptions_now(state)["s"].active
    assert not grants_now(state)["g"].granted
    assert grants_now(state)["g"].delivery == subscriptions_now(state)["s"].delivery == "snapshot"


def test_a_snapshot_decides_over_what_is_as_old_as_it() -> None:
    grant = event("benefit_grant.created", grant_data(), AT)
    subscription = event("subscription.updated", subscription_data(), AT)
    state = in_both_orders(grant, subscription, event("customer.state_changed", state_data(), AT))
    assert not grants_now(state)["g"].granted
    assert not subscriptions_now(state)["s"].active


def test_a_snapshot_describes_the_customer_in_full() -> None:
    created = event("customer.created", {"id": "c", "created_at": iso(AT), "email": "old@example.com"}, AT)
    said = state_data(modified_at=iso(AT + HOUR), email="new@example.com")
    known = customer_of(in_both_orders(created, event("customer.state_changed", said, AT + HOUR)))
    assert known is not None
    assert known.email == "new@example.com"


def test_a_snapshot_says_nothing_about_what_is_newer_than_it() -> None:
    newer = [
        event("subscription.updated", subscription_data(), AT + HOUR),
        event("benefit_grant.created", grant_data(), AT + HOUR, "the grant"),
    ]
    state = in_both_orders(*newer, event("customer.state_changed", state_data(), AT))
    assert subscriptions_now(state)["s"].active
    assert grants_now(state)["g"].granted
    assert grants_now(state)["g"].delivery == "the grant"


def test_a_snapshot_brings_back_what_an_older_event_took() -> None:
    revoked = event("benefit_grant.revoked", grant_data(is_granted=False, is_revoked=True), AT)
    canceled = event("subscription.revoked", subscription_data(status="canceled"), AT)
    said = state_data(granted_benefits=[listed()], active_subscriptions=[subscription_data()])
    state = in_both_orders(revoked, canceled, event("customer.state_changed", said, AT + HOUR))
    assert grants_now(state)["g"].granted
    assert not grants_now(state)["g"].taken_back
    assert subscriptions_now(state)["s"].active


def test_a_snapshot_tells_of_grants_and_subscriptions_that_no_event_told_of() -> None:
    said = state_data(granted_benefits=[listed(properties={"a": 1})], active_subscriptions=[subscription_data()])
    state = folded([event("customer.state_changed", said, AT, "snapshot")], NOBODY)
    grant = grants_now(state)["g"]
    assert (grant.granted, grant.person_known, grant.properties, grant.delivery) == (True, False, {"a": 1}, "snapshot")
    assert (grant.taken_back, grant.error) == (False, None)
    assert subscriptions_now(state)["s"].active


def test_a_snapshot_has_the_last_word_on_a_grants_properties_and_errors() -> None:
    waiting = grant_data(is_granted=False, error={"message": "connect an account"}, member_id="m", order_id="o")
    said = state_data(granted_benefits=[listed(properties={"account_id": "42"}, benefit_metadata={"plan": "pro"})])
    state = in_both_orders(
        event("benefit_grant.created", waiting, AT), event("customer.state_changed", said, AT + HOUR)
    )
    grant = grants_now(state)["g"]
    assert (grant.granted, grant.error, grant.properties) == (True, None, {"account_id": "42"})
    assert grant.benefit_metadata == {"plan": "pro"}
    assert (grant.member_id, grant.order_id, grant.person_known) == ("m", "o", True)


def test_an_error_is_not_forgotten_because_a_snapshot_does_not_list_the_grant() -> None:
    waiting = grant_data(is_granted=False, error={"message": "connect an account"})
    state = in_both_orders(
        event("benefit_grant.created", waiting, AT), event("customer.state_changed", state_data(), AT + HOUR)
    )
    grant = grants_now(state)["g"]
    assert (grant.granted, grant.taken_back, grant.error) == (False, False, "connect an account")


def test_a_grant_that_a_snapshot_does_not_list_any_more_was_taken_back() -> None:
    fact = event("benefit_grant.created", grant_data(), AT)
    state = in_both_orders(fact, event("customer.state_changed", state_data(), AT + HOUR))
    grant = grants_now(state)["g"]
    assert (grant.granted, grant.taken_back, grant.revoked_at) == (False, True, None)


def test_a_snapshot_leaves_the_pause_of_its_own_period_standing() -> None:
    end = iso(AT + 24 * HOUR)
    pausing = subscription_data(pause_at_period_end=True, current_period_end=end)
    said = state_data(active_subscriptions=[subscription_data(current_period_end=end)])
    state = in_both_orders(event("subscription.updated", pausing, AT), event("customer.state_changed", said, AT + HOUR))
    assert subscriptions_now(state)["s"].data.pause_at_period_end


def test_a_pause_ends_with_the_period_that_it_was_for() -> None:
    pausing = subscription_data(pause_at_period_end=True, current_period_end=iso(AT + 24 * HOUR))
    said = state_data(active_subscriptions=[subscription_data(current_period_end=iso(AT + 48 * HOUR))])
    state = in_both_orders(
        event("subscription.updated", pausing, AT), event("customer.state_changed", said, AT + 25 * HOUR)
    )
    assert not subscriptions_now(state)["s"].data.pause_at_period_end


def test_a_snapshot_from_an_endpoint_that_knows_no_seats_does_not_turn_a_team_into_one_person() -> None:
    said = state_data(active_subscriptions=[subscription_data()])
    assert "seats" not in said["active_subscriptions"][0]
    state = in_both_orders(
        event("subscription.updated", subscription_data(seats=3), AT), event("customer.state_changed", said, AT + HOUR)
    )
    assert subscriptions_now(state)["s"].data.seats == 3
    assert entitled(state, SOLD, AT + HOUR) == frozenset()


def test_the_snapshots_own_word_on_seats_holds() -> None:
    said = state_data(active_subscriptions=[subscription_data(seats=5)])
    state = in_both_orders(
        event("subscription.updated", subscription_data(seats=3), AT), event("customer.state_changed", said, AT + HOUR)
    )
    assert subscriptions_now(state)["s"].data.seats == 5


@pytest.mark.parametrize(
    ("status", "active"),
    [("active", True), ("trialing", True), ("past_due", False), ("canceled", False), ("unpaid", False),
     ("paused", False), ("incomplete", False), ("incomplete_expired", False), ("something_new", False)],
)  # fmt: skip
def test_which_statuses_are_active(status: str, active: bool) -> None:
    state = folded([event("subscription.updated", subscription_data(status=status), AT)], NOBODY)
    assert is_active(state.subscriptions["s"].data) is active
    assert subscriptions_now(state)["s"].active is active


# Accounts, learned from Polar's own grants.


def _grant_of(type_: str, grant_id: str, account: str | None, at: datetime, member: str | None = None) -> Event:
    data = grant_data(id=grant_id, modified_at=iso(at), member_id=member)
    data["benefit"] = {**data["benefit"], "type": type_}
    data["properties"] = {"account_id": account} if account else {}
    return event("benefit_grant.updated", data, at)


def test_accounts_are_the_providers_numeric_ids_by_platform() -> None:
    events = [_grant_of("github_repository", "1", "42", AT), _grant_of("discord", "2", "4711", AT)]
    assert accounts_of(in_both_orders(*events), None) == {"github": "42", "discord": "4711"}


def test_the_account_that_was_picked_last_holds() -> None:
    events = [_grant_of("github_repository", "1", "43", AT + HOUR), _grant_of("github_repository", "2", "42", AT)]
    assert accounts_of(in_both_orders(*events), None) == {"github": "43"}


def test_a_grant_without_an_account_and_a_benefit_without_a_platform_teach_nothing() -> None:
    events = [_grant_of("github_repository", "1", None, AT + HOUR), _grant_of("custom", "2", "42", AT)]
    assert accounts_of(in_both_orders(*events), None) == {}


def test_every_person_has_accounts_of_their_own() -> None:
    told = story(team=True)
    events = [
        *events_of(told),
        _grant_of("github_repository", "1", "1", AT, told.person["id"]),
        _grant_of("github_repository", "2", "2", AT, "member"),
    ]
    state = folded(events, NOBODY)
    assert accounts_of(state, None) == {"github": "1"}
    assert accounts_of(state, "member") == {"github": "2"}
    assert accounts_of(state, "somebody else") == {}


# Keeping a state.


def test_a_state_is_read_back_as_it_was_written() -> None:
    told = story(team=True)
    subscription = told.subscribe(seats=2)
    seat, _ = assign(told, subscription, "bo")
    claim(told, seat)
    refund(told, told.buy_once())
    state = state_of(told)
    assert all(getattr(state, kind) for kind in ("orders", "subscriptions", "refunds", "grants", "seats", "members"))
    assert decode(encode(state)) == state


def test_the_same_facts_are_written_as_the_same_bytes() -> None:
    told = story()
    told.buy_once()
    told.subscribe()
    events = events_of(told)
    blank = CustomerState(id=told.buyer["id"])
    assert encode(folded(events, blank)) == encode(folded(events[::-1], blank))


def test_grants_by_hand_are_not_written_since_they_have_a_table_of_their_own() -> None:
    manual = {"1": ManualGrant(id="1", benefit="key", reason="sorry", by="ops")}
    assert encode(CustomerState(id="c", manual=manual)) == encode(CustomerState(id="c"))


# What grant events mean (polar.md 1.5).


def waiting_for_the_customer(told: Story, **fields: Any) -> Object:
    """Polar's first attempt ends in "the customer must act"."""
    order = told.pay(told.shop.products[0], reason="purchase")
    given = simulated.grant(
        told.ids, told.buyer, told.person, told.shop.benefits[0], told.at, bought=(None, order["id"])
    )
    given |= {
        "is_granted": False,
        "granted_at": None,
        "error": {"message": "connect an account", "type": "BenefitActionRequiredError", "timestamp": iso(told.at)},
    } | fields
    told.send("benefit_grant.created", given)
    told.grants.append(given)
    return given


def test_benefit_grant_created_does_not_mean_granted() -> None:
    told = story()
    given = waiting_for_the_customer(told)
    assert owed_in_any_order(told) == {("bought", None)}
    assert grants_now(state_of(told))[given["id"]].error == "connect an account"


def test_benefit_grant_updated_is_the_moment_of_granting_once_an_account_is_connected() -> None:
    told = story()
    given = waiting_for_the_customer(told)
    told.change(given, is_granted=True, granted_at=iso(told.at), error=None)
    told.send("benefit_grant.updated", given)
    assert owed_in_any_order(told) == BOTH


def test_benefit_grant_created_again_for_the_same_id_grants_again() -> None:
    told = story()
    told.buy_once()
    told.take(told.grants)
    assert owed(told) == {("bought", None)}
    told.give_again()
    assert owed_in_any_order(told) == BOTH
    assert len(state_of(told).grants) == 1


def test_benefit_grant_revoked_may_be_the_first_that_we_hear_of_a_grant() -> None:
    told = story()
    told.buy_once()
    told.events = [one for one in told.events if not one.type.startswith("benefit_grant.")]
    told.take(told.grants)
    assert owed_in_any_order(told) == {("bought", None)}


def test_a_grant_revoked_does_not_end_what_another_grant_of_the_benefit_gives() -> None:
    told = story()
    told.buy_once()
    told.subscribe()
    told.take(told.grants[:1])
    assert due(told)["granted", None].because[0].subscription_id == told.subscriptions[0]["id"]


def test_benefit_grant_cycled_keeps_the_grant() -> None:
    told = story()
    told.renew(told.subscribe())
    assert owed_in_any_order(told) == BOTH


def test_benefit_grant_cycled_may_be_the_first_that_we_hear_of_a_grant() -> None:
    told = story()
    told.renew(told.subscribe())
    told.events = [one for one in told.events if one.type == "benefit_grant.cycled"]
    assert owed(told) == {("granted", None)}


def test_a_grant_that_fails_hard_sends_nothing_so_the_product_entitles_by_itself() -> None:
    told = story()
    told.pay(told.shop.products[0], reason="purchase")
    assert owed_in_any_order(told) == {("bought", None)}


def test_a_grant_says_revoked_and_granted_at_once_and_is_not_granted() -> None:
    state = folded([event("benefit_grant.updated", grant_data(is_revoked=True), AT)], NOBODY)
    assert not grants_now(state)["g"].granted


# The order of events by flow (polar.md 1.6).


def test_an_order_created_unpaid_gives_nothing_until_it_is_paid() -> None:
    told = story()
    order = unpaid(told, told.shop.products[0])
    assert owed(told) == set()
    told.change(order, status="paid", paid=True)
    told.send("order.updated", order)
    told.send("order.paid", order)
    assert owed_in_any_order(told) == {("bought", None)}


def test_a_draft_gives_nothing_and_an_order_without_a_product_neither() -> None:
    told = story()
    unpaid(told, told.shop.products[0]).update(status="draft")
    extra = unpaid(told, told.shop.products[0])
    told.change(extra, status="paid", paid=True, product_id=None, product=None)
    told.send("order.paid", extra)
    assert owed_in_any_order(told) == set()


def test_an_order_voided_arrives_as_an_update_and_takes_what_it_gave() -> None:
    told = story()
    order = told.pay(told.shop.products[0], reason="purchase")
    told.change(order, status="void")
    told.send("order.updated", order)
    assert owed_in_any_order(told) == set()


def test_a_subscription_gives_from_its_start() -> None:
    told = story()
    told.subscribe()
    assert owed_in_any_order(told) == BOTH


def test_a_trial_gives_at_once() -> None:
    told = story()
    told.subscribe(trial=True)
    assert owed_in_any_order(told) == BOTH
    assert {one.standing for one in due(told).values()} == {"trialing"}


def test_a_trial_is_converted_without_subscription_active() -> None:
    told = story()
    subscription = told.subscribe(trial=True)
    told.cycle(subscription)
    assert {one.standing for one in due(told).values()} == {"active"}
    assert owed_in_any_order(told) == BOTH


def test_a_cycle_says_nothing_about_payment_so_an_unpaid_renewal_changes_nothing_yet() -> None:
    told = story()
    subscription = told.subscribe()
    told.cycle(subscription)
    unpaid(told, told.shop.products[0], reason="subscription_cycle", paid_for=subscription)
    assert owed_in_any_order(told) == BOTH


def fail_to_pay(told: Story) -> Object:
    subscription = told.subscribe()
    told.cycle(subscription)
    told.change(subscription, status="past_due", past_due_at=iso(told.at))
    told.send("subscription.updated", subscription)
    told.send("subscription.past_due", subscription)
    return subscription


def test_a_renewal_that_fails_takes_everything_where_there_is_no_grace() -> None:
    told = story()
    fail_to_pay(told)
    told.take(told.grants)
    told.send_state()
    assert owed_in_any_order(told) == set()


def test_a_payment_that_succeeds_after_all_brings_everything_back() -> None:
    told = story()
    subscription = fail_to_pay(told)
    told.take(told.grants)
    told.change(subscription, status="active", past_due_at=None)
    told.send("subscription.updated", subscription)
    told.send("subscription.active", subscription)
    told.give_again()
    assert owed_in_any_order(told) == BOTH


def test_when_dunning_is_exhausted_all_is_over_even_before_the_grants_are_revoked() -> None:
    told = story()
    subscription = fail_to_pay(told)
    told.end(subscription)
    assert owed_in_any_order(told) == set()


def schedule_the_end(told: Story, subscription: Object) -> None:
    ends = subscription["current_period_end"]
    told.change(subscription, cancel_at_period_end=True, canceled_at=iso(told.at), ends_at=ends)
    told.send("subscription.updated", subscription)
    told.send("subscription.canceled", subscription)


def test_subscription_canceled_may_only_announce_the_end_of_the_period() -> None:
    told = story()
    subscription = told.subscribe()
    schedule_the_end(told, subscription)
    assert owed_in_any_order(told) == BOTH
    assert due(told)["bought", None].valid_until == datetime.fromisoformat(subscription["ends_at"])


def test_subscription_canceled_is_sent_again_when_the_period_is_over() -> None:
    told = story()
    subscription = told.subscribe()
    schedule_the_end(told, subscription)
    told.at = datetime.fromisoformat(subscription["ends_at"])
    told.end(subscription)
    told.take(told.grants)
    assert owed_in_any_order(told) == set()


def test_uncanceling_takes_the_end_away() -> None:
    told = story()
    subscription = told.subscribe()
    schedule_the_end(told, subscription)
    told.change(subscription, cancel_at_period_end=False, canceled_at=None, ends_at=None)
    told.send("subscription.updated", subscription)
    told.send("subscription.uncanceled", subscription)
    assert owed_in_any_order(told) == BOTH
    assert due(told)["bought", None].valid_until is None


def test_a_subscription_reinstated_after_its_end_comes_without_uncanceled() -> None:
    told = story()
    subscription = told.subscribe()
    told.end(subscription)
    told.take(told.grants)
    told.change(subscription, status="active", ended_at=None)
    told.send("subscription.updated", subscription)
    told.send("subscription.active", subscription)
    told.give_again()
    assert owed_in_any_order(told) == BOTH


def test_a_subscription_revoked_at_once_gives_nothing_any_more() -> None:
    told = story()
    told.end(told.subscribe(), ends_at=None)
    assert owed_in_any_order(told) == set()


def test_a_pause_takes_at_the_end_of_the_period_and_resuming_gives_again() -> None:
    told = story()
    subscription = told.subscribe()
    told.change(subscription, pause_at_period_end=True)
    told.send("subscription.updated", subscription)
    assert owed(told) == BOTH
    told.change(subscription, status="paused", pause_at_period_end=False)
    told.send("subscription.updated", subscription)
    told.send("subscription.paused", subscription)
    assert owed_in_any_order(told) == set()
    told.change(subscription, status="active")
    told.send("subscription.updated", subscription)
    told.send("subscription.resumed", subscription)
    told.give_again()
    assert owed_in_any_order(told) == BOTH


def test_a_product_changed_now_moves_what_the_product_gives_and_keeps_the_grant_that_both_products_have() -> None:
    told = story()
    subscription = told.subscribe()
    told.change(subscription, product_id=BETTER, product=told.shop.products[1])
    told.send("subscription.updated", subscription)
    assert owed_in_any_order(told) == {("better", None), ("granted", None)}


def test_a_product_changed_for_the_next_period_changes_nothing_yet() -> None:
    told = story()
    subscription = told.subscribe()
    told.change(subscription, pending_update={"id": "1", "product_id": BETTER, "applies_at": iso(told.at)})
    told.send("subscription.updated", subscription)
    assert owed_in_any_order(told) == BOTH


@pytest.mark.parametrize("status", ["pending", "succeeded", "failed", "canceled"])
def test_a_refund_with_its_benefits_takes_them_at_once_and_even_if_it_fails_later(status: str) -> None:
    told = story()
    returned = refund(told, told.buy_once(), status="pending")
    assert owed(told) == set()
    told.change(returned, status=status)
    told.send("refund.updated", returned)
    assert owed_in_any_order(told) == set()


def test_a_refund_without_its_benefits_leaves_them() -> None:
    told = story()
    order = told.buy_once()
    refund(told, order, revoke_benefits=False)
    told.change(order, status="refunded", refunded_amount=order["total_amount"])
    told.send("order.updated", order)
    told.send("order.refunded", order)
    assert owed_in_any_order(told) == BOTH


def test_a_refund_takes_only_what_its_own_order_gave() -> None:
    told = story()
    told.buy_once()
    refund(told, told.buy_once())
    assert owed_in_any_order(told) == BOTH


def test_a_refund_of_a_subscriptions_order_never_takes_anything() -> None:
    told = story()
    subscription = told.subscribe()
    order = told.pay(told.shop.products[0], reason="subscription_cycle", paid_for=subscription)
    refund(told, order, subscription_id=subscription["id"])
    assert owed_in_any_order(told) == BOTH


def test_a_subscriptions_order_gives_nothing_that_outlives_the_subscription() -> None:
    told = story()
    told.end(told.subscribe())
    assert any(one.data.paid for one in state_of(told).orders.values())
    assert owed_in_any_order(told) == set()


def test_a_dispute_is_a_refund_that_takes_the_benefits() -> None:
    told = story()
    refund(told, told.buy_once(), reason="dispute_prevention")
    assert owed_in_any_order(told) == set()


def test_a_subscription_embedded_in_an_order_may_be_stale_and_is_not_believed() -> None:
    told = story()
    subscription = told.subscribe()
    stale = {**subscription, "modified_at": iso(told.at + HOUR)}
    told.end(subscription)
    order = simulated.order(told.ids, told.buyer, told.shop.products[0], told.at, reason="subscription_cycle",
                            paid_for=stale)  # fmt: skip
    told.send("order.paid", order)
    assert order["subscription"]["status"] == "active"
    assert owed_in_any_order(told) == set()


def test_a_seat_assigned_gives_nothing_until_it_is_claimed() -> None:
    told = story(team=True)
    seat, person = assign(told, told.subscribe(seats=3), "bo")
    assert owed(told) == set()
    claim(told, seat)
    assert owed_in_any_order(told) == {("bought", person["id"])}


def test_a_seat_claimed_immediately_was_never_assigned() -> None:
    told = story(team=True)
    seat, person = assign(told, told.subscribe(seats=3), "bo")
    claim(told, seat)
    told.events = [one for one in told.events if one.type not in {"customer_seat.assigned", "member.created"}]
    assert owed_in_any_order(told) == {("bought", person["id"])}


def test_a_revoked_seat_is_sent_after_it_was_cleared_and_ends_what_its_person_had() -> None:
    told = story(team=True)
    seat, person = assign(told, told.subscribe(seats=3), "bo")
    claim(told, seat)
    told.give((told.subscriptions[0]["id"], None), person)
    clear(told, seat)
    assert seat["customer_id"] is None
    assert owed(told) == {("granted", person["id"])}
    told.take(told.grants)
    assert owed_in_any_order(told) == set()


def test_a_revoked_seat_sent_with_its_member_still_in_it_ends_it_too() -> None:
    told = story(team=True)
    seat, _ = assign(told, told.subscribe(seats=3), "bo")
    claim(told, seat)
    told.change(seat, status="revoked")
    told.send("customer_seat.revoked", seat)
    assert owed_in_any_order(told) == set()


def test_a_seat_reused_is_the_next_persons_and_not_the_last_ones() -> None:
    told = story(team=True)
    subscription = told.subscribe(seats=1)
    seat, _ = assign(told, subscription, "first")
    claim(told, seat)
    clear(told, seat)
    seat, second = assign(told, subscription, "second", seat)
    claim(told, seat)
    assert owed_in_any_order(told) == {("bought", second["id"])}


def test_when_a_seat_subscription_ends_everybody_in_it_loses_everything_whatever_arrives_first() -> None:
    told = story(team=True)
    subscription = told.subscribe(seats=3)
    seats = []
    for name in ("a", "b", "c"):
        seat, person = assign(told, subscription, name)
        claim(told, seat)
        told.give((subscription["id"], None), person)
        seats.append(seat)
    assert len(owed(told)) == 6
    told.end(subscription)
    assert owed_in_any_order(told) == set()
    for seat in seats:
        clear(told, seat)
    told.take(told.grants)
    assert owed_in_any_order(told) == set()


def test_a_failed_card_empties_the_seats_and_paying_later_does_not_fill_them() -> None:
    told = story(team=True)
    subscription = told.subscribe(seats=1)
    seat, person = assign(told, subscription, "bo")
    claim(told, seat)
    told.give((subscription["id"], None), person)
    told.change(subscription, status="past_due", past_due_at=iso(told.at))
    told.send("subscription.past_due", subscription)
    clear(told, seat)
    told.take(told.grants)
    told.change(subscription, status="active", past_due_at=None)
    told.send("subscription.active", subscription)
    assert owed_in_any_order(told) == set()


def test_customer_deleted_is_enough_when_nothing_else_arrives() -> None:
    told = story()
    told.subscribe()
    told.send("customer.deleted", {**told.buyer, "deleted_at": iso(told.at)})
    assert owed_in_any_order(told) == set()


def test_a_member_deleted_loses_their_seat_and_nobody_else_does() -> None:
    told = story(team=True)
    subscription = told.subscribe(seats=2)
    people = []
    for name in ("a", "b"):
        seat, person = assign(told, subscription, name)
        claim(told, seat)
        people.append(person)
    told.send("member.deleted", people[0])
    assert owed_in_any_order(told) == {("bought", people[1]["id"])}


def test_a_benefit_deleted_ends_with_the_grants_and_not_before() -> None:
    told = story()
    told.buy_once()
    deleted = {**told.shop.benefits[0], "is_deleted": True}
    told.send("benefit.updated", deleted)
    assert owed(told) == BOTH
    told.change(told.grants[0], benefit=deleted)
    told.take(told.grants)
    assert owed_in_any_order(told) == {("bought", None)}


def test_a_products_new_set_of_benefits_trickles_in_grant_by_grant() -> None:
    told = story()
    told.buy_once()
    told.subscribe()
    told.take(told.grants[:1])
    assert owed(told) == BOTH
    told.take(told.grants[1:])
    assert owed_in_any_order(told) == {("bought", None)}


def test_a_key_revoked_by_hand_at_polar_ends_the_grant_while_the_purchase_stands() -> None:
    told = story()
    told.buy_once()
    told.change(told.grants[0], properties={"license_key_id": "k", "display_key": "****-123456"})
    told.take(told.grants)
    assert owed_in_any_order(told) == {("bought", None)}


# Shared access and the known holes (polar.md 3.6).


def test_3_6_a_another_benefit_keeps_what_it_gives_when_one_is_revoked() -> None:
    told = story()
    told.buy_once()
    other = {**told.shop.benefits[0], "id": "7d8c9b0a-1f2e-4d3c-8b4a-5f6e7d8c9b0a"}
    second = simulated.grant(told.ids, told.buyer, told.person, other, told.at, bought=(None, "another order"))
    told.send("benefit_grant.created", second)
    sold = catalogue(
        "\n".join(
            f'[benefits.{name}]\nconnector = "custom_link"\nurl = "https://example.com/same"\n'
            f'for = {{ benefits = ["{benefit}"] }}'
            for name, benefit in (("one", BENEFIT), ("other", other["id"]))
        )
    )
    told.take(told.grants)
    assert [one.benefit for one in entitled(state_of(told), sold, told.at)] == ["other"]


def test_3_6_b_revoking_one_members_grant_is_not_skipped_because_another_member_has_one() -> None:
    told = story(team=True)
    subscription = told.subscribe(seats=2)
    people = []
    for name in ("a", "b"):
        seat, person = assign(told, subscription, name)
        claim(told, seat)
        told.give((subscription["id"], None), person)
        people.append(person["id"])
    told.take(told.grants[:1])
    assert ("granted", people[0]) not in owed(told)
    assert ("granted", people[1]) in owed(told)


def test_3_6_d_what_a_grant_says_was_given_is_kept_and_not_what_the_benefit_says_now() -> None:
    given = {"account_id": "42", "granted_account_id": "42", "repository_owner": "acme", "repository_name": "old"}
    data = grant_data(properties=given)
    data["benefit"] = {**data["benefit"], "type": "github_repository", "properties": {"repository_name": "new"}}
    state = folded([event("benefit_grant.updated", data, AT)], NOBODY)
    assert grants_now(state)["g"].properties == given
    assert b"new" not in encode(state)


def test_3_6_e_a_person_is_known_by_the_numeric_id_and_never_by_a_user_name() -> None:
    data = grant_data(properties={"account_id": "42", "username": "was-renamed"})
    data["benefit"] = {**data["benefit"], "type": "github_repository"}
    state = folded([event("benefit_grant.updated", data, AT)], NOBODY)
    assert accounts_of(state, None) == {"github": "42"}


@pytest.mark.parametrize("status", ["canceled", "unpaid", "paused", "incomplete_expired"])
def test_3_6_f_an_account_connected_after_the_end_brings_nothing_back(status: str) -> None:
    told = story()
    subscription = told.subscribe()
    waiting = told.grants[0]
    told.change(waiting, is_granted=False, granted_at=None, error={"message": "connect", "type": "x"})
    told.send("benefit_grant.updated", waiting)
    told.change(subscription, status=status)
    told.send("subscription.updated", subscription)
    told.change(waiting, is_granted=True, granted_at=iso(told.at), error=None)
    told.send("benefit_grant.updated", waiting)
    assert owed_in_any_order(told) == set()
    told.send_state()
    assert owed_in_any_order(told) == set()


def test_3_6_g_a_refunded_buyer_gets_nothing_from_a_product_that_was_edited_later() -> None:
    told = story()
    refund(told, told.buy_once())
    told.take(told.grants)
    told.give_again()
    assert owed_in_any_order(told) == set()


def test_3_6_h_a_deletion_that_clears_the_accounts_still_ends_everything() -> None:
    told = story()
    told.buy_once()
    told.send("customer.deleted", {**told.buyer, "deleted_at": iso(told.at), "email": None, "name": None})
    told.change(told.grants[0], properties={})
    told.take(told.grants)
    assert owed_in_any_order(told) == set()


def test_3_6_i_revoking_a_grant_that_never_was_leaves_its_granted_sibling() -> None:
    told = story()
    told.buy_once()
    waiting = waiting_for_the_customer(told)
    told.change(waiting, is_revoked=True, revoked_at=iso(told.at), error=None)
    told.send("benefit_grant.revoked", waiting)
    assert owed_in_any_order(told) == BOTH


def test_3_6_j_rows_that_are_born_revoked_give_nobody_anything_and_take_nothing() -> None:
    told = story(team=True)
    subscription = told.subscribe(seats=2)
    seat, person = assign(told, subscription, "a")
    claim(told, seat)
    told.give((subscription["id"], None), person)
    before = owed(told)
    stranger = simulated.member(told.ids, told.buyer, "b@example.com", "member", told.at)
    born = simulated.grant(told.ids, told.buyer, stranger, told.shop.benefits[0], told.at,
                           bought=(subscription["id"], None))  # fmt: skip
    born |= {"is_granted": False, "granted_at": None, "is_revoked": True, "revoked_at": iso(told.at)}
    told.send("benefit_grant.revoked", born)
    assert owed_in_any_order(told) == before


def test_3_7_in_polars_own_grace_the_state_lists_no_subscription_and_the_grants_still_count() -> None:
    told = story()
    fail_to_pay(told)
    told.send_state()
    last = parse("", told.events[-1].body)
    assert b'"active_subscriptions":[]' in bytes(last.data)
    assert owed_in_any_order(told) == {("granted", None)}


# When a customer's state is sent (polar.md 4).


def test_4_1_a_teams_state_does_not_say_whose_a_grant_is_so_the_buyer_does_not_get_it() -> None:
    told = story(team=True)
    subscription = told.subscribe(seats=2)
    seat, person = assign(told, subscription, "a")
    claim(told, seat)
    told.give((subscription["id"], None), person)
    told.send_state()
    told.events, grants = _without(told.events, "benefit_grant.")
    assert grants
    assert owed(told) == {("bought", person["id"])}
    told.events += grants
    assert owed_in_any_order(told) == {("bought", person["id"]), ("granted", person["id"])}


def test_4_1_a_single_persons_state_is_enough_when_the_grants_own_events_were_lost() -> None:
    told = story()
    told.subscribe()
    told.events, _ = _without(told.events, "benefit_grant.", "subscription.")
    assert owed(told) == BOTH


def test_4_2_an_older_state_delivered_late_is_dropped() -> None:
    told = story()
    told.buy_once()
    told.take(told.grants)
    told.send_state()
    others, states = _without(told.events, "customer.state_changed")
    told.events = [*others, states[-1], *states[:-1]]
    assert owed(told) == {("bought", None)}
    assert owed_in_any_order(told) == {("bought", None)}


def test_4_2_which_state_is_newer_is_said_by_the_envelope_and_not_by_the_customers_own_time() -> None:
    newer = event("customer.state_changed", state_data(modified_at=None), AT + HOUR)
    said = state_data(modified_at=iso(AT + 2 * HOUR), granted_benefits=[listed()])
    older = event("customer.state_changed", said, AT)
    assert grants_now(in_both_orders(newer, older)) == {}


def test_4_2_states_skipped_in_between_are_not_missed() -> None:
    told = story()
    subscription = told.subscribe()
    told.end(subscription)
    told.take(told.grants)
    told.send_state()
    told.events = [told.events[-1]]
    assert owed(told) == set()


def test_4_2_a_deleted_customers_state_may_still_list_grants_and_gives_nothing() -> None:
    told = story()
    told.subscribe()
    told.change(told.buyer, deleted_at=iso(told.at))
    told.send_state()
    assert b'"granted_benefits":[{' in told.events[-1].body
    assert owed_in_any_order(told) == set()
    told.events = told.events[-1:]
    assert owed(told) == set()


def test_4_2_the_external_id_of_a_deleted_customer_is_still_known() -> None:
    told = story()
    told.change(told.buyer, deleted_at=iso(told.at), metadata={"__external_id": told.buyer["external_id"]})
    told.send("customer.deleted", told.buyer)
    told.send_state()
    known = customer_of(state_of(told))
    assert known is not None
    assert known.external_id == told.buyer["external_id"]


def test_4_2_what_sends_no_state_is_folded_all_the_same() -> None:
    told = story()
    told.send_state()
    told.pay(told.shop.products[0], reason="purchase")
    assert owed_in_any_order(told) == {("bought", None)}


def test_4_2_meters_follow_the_newest_state() -> None:
    full = event("customer.state_changed", state_data(active_meters=[{"id": "1", "balance": 100}]), AT)
    used = event("customer.state_changed", state_data(active_meters=[{"id": "1", "balance": 25}]), AT + HOUR)
    snapshot = in_both_orders(used, full).snapshot
    assert snapshot is not None
    assert snapshot.data.active_meters == [{"id": "1", "balance": 25}]


def _without(events: Iterable[Any], *prefixes: str) -> tuple[list[Any], list[Any]]:
    kept: list[Any] = []
    dropped: list[Any] = []
    for one in events:
        (dropped if one.type.startswith(prefixes) else kept).append(one)
    return kept, dropped


@pytest.mark.parametrize(
    ("platform", "value", "account", "name"),
    [
        ("github", "octocat", None, "octocat"), ("github", " https://github.com/octocat/ ", None, "octocat"),
        ("github", 583231, "583231", None), ("github", 583231.0, "583231", None), ("github", "583231", None, "583231"),
        ("discord", "80351110224678912", "80351110224678912", None), ("discord", "@nelly", None, "nelly"),
        ("discord", 80351110224678912, "80351110224678912", None),
    ],
)  # fmt: skip
def test_a_field_tells_an_id_or_a_name(platform: str, value: object, account: str | None, name: str | None) -> None:
    state = CustomerState(id="c", orders={"o": _ordered({"who": value})})
    [told] = told_in_fields(state, platform, ["nickname", "who"])
    assert (told.account_id, told.name, told.member_id, told.source) == (account, name, None, "field")


@pytest.mark.parametrize("value", [True, False, None, "", "  ", 1.5, 8.0351110224678912e16, -3, ["a"], {"a": 1}, "@"])
def test_a_field_that_tells_neither_tells_nothing(value: object) -> None:
    state = CustomerState(id="c", orders={"o": _ordered({"who": value})})
    assert told_in_fields(state, "discord", ["who"]) == []


def _ordered(fields: dict[str, Any]) -> Fact[Order]:
    at = datetime(2026, 11, 1, tzinfo=UTC)
    order = Order(id="o", created_at=at, status="paid", customer_id="c", custom_field_data=fields)
    return Fact(Stamp(False, at, at, 0), "d", order)
