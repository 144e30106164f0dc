"""Entitlements against grants: pure functions of the facts, the catalogue and the time."""

import itertools
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest

from config.catalogue import Benefit, Catalogue
from connectors.base import Recipient
from handlers.state import CustomerState, ManualGrant
from tests.events import BENEFIT, BETTER, PRODUCT, catalogue, state_of, story
from worker import simulated
from worker.reconcile import (
    Because,
    Change,
    Entitlement,
    Held,
    entitled,
    grant_id,
    next_edge,
    plan,
    recipient,
    target_of,
)
from worker.simulate import Story
from worker.simulated import Object, iso

DAY = timedelta(days=1)
MOMENT = timedelta(microseconds=1)

PRODUCTS = f'products = ["{PRODUCT}"]'
BENEFITS = f'benefits = ["{BENEFIT}"]'


def sold(entitles: str = PRODUCTS, **terms: str) -> Catalogue:
    """A catalogue of one benefit, `it`, with these terms."""
    lines = "\n".join(f"{name} = {value}" for name, value in terms.items())
    return catalogue(f'[benefits.it]\nconnector = "custom_link"\nnote = "x"\nfor = {{ {entitles} }}\n{lines}\n')


BY_PRODUCT, BY_BENEFIT = sold(PRODUCTS), sold(BENEFITS)


def due(told: Story, terms: Catalogue, at: datetime | None = None) -> list[Entitlement]:
    return sorted(entitled(state_of(told), terms, at or told.at), key=lambda one: str(one.slot))


def only(told: Story, terms: Catalogue, at: datetime | None = None) -> Entitlement:
    (one,) = due(told, terms, at)
    return one


def has(told: Story, terms: Catalogue, at: datetime | None = None) -> bool:
    return bool(due(told, terms, at))


def subscribe(told: Story, **fields: Any) -> Object:
    """A subscription, and nothing else that Polar sends with it."""
    begun = simulated.subscription(told.ids, told.buyer, told.shop.products[0], told.at, seats=None, trial=False)
    begun |= fields
    told.subscriptions.append(begun)
    told.send("subscription.updated", begun)
    return begun


def give(told: Story, *, subscription: str | None = None, order: str | None = None, **fields: Any) -> Object:
    """Polar's grant for a purchase, and nothing else."""
    given = simulated.grant(told.ids, told.buyer, told.person, told.shop.benefits[0], told.at,
                            bought=(subscription, order))  # fmt: skip
    given |= fields
    told.grants.append(given)
    told.send("benefit_grant.updated", given)
    return given


def take_seat(told: Story, purchase: Object, name: str, *, of: str = "subscription_id") -> str:
    """A member claims a seat of a purchase; returns the member's id."""
    person = simulated.member(told.ids, told.buyer, f"{name}@example.com", "member", told.at)
    taken = simulated.seat(told.ids, told.buyer, purchase, told.at)
    taken |= {"subscription_id": None, "status": "claimed", "member_id": person["id"], "member": person}
    taken[of] = purchase["id"]
    told.send("customer_seat.claimed", taken)
    member_id: str = person["id"]
    return member_id


def by_hand(state: CustomerState, **fields: Any) -> CustomerState:
    manual = {"id": "hand", "benefit": "it", "reason": "lost a bet", "by": "ada"} | fields
    return msgspec.structs.replace(state, manual={**state.manual, manual["id"]: ManualGrant(**manual)})


# By Polar benefit.


def test_polars_grant_entitles_and_says_why() -> None:
    told = story()
    subscription = subscribe(told)
    given = give(told, subscription=subscription["id"])
    one = only(told, BY_BENEFIT)
    assert (one.benefit, one.member_id, one.purchase, one.standing, one.valid_until) == (
        "it", None, None, "active", None,
    )  # fmt: skip
    assert one.because == (
        Because(
            source="polar_grant",
            id=given["id"],
            delivery=told.events[-1].webhook_id,
            subscription_id=subscription["id"],
            standing="active",
        ),
    )


def test_a_grant_of_another_benefit_entitles_to_nothing() -> None:
    told = story()
    give(told, order="order", benefit_id="another")
    assert not has(told, BY_BENEFIT)


def test_a_grant_without_any_purchase_is_believed() -> None:
    told = story()
    give(told)
    assert only(told, BY_BENEFIT).because[0].order_id is None


def test_a_grant_of_a_trial_says_that_it_is_one() -> None:
    told = story()
    give(told, subscription=subscribe(told, status="trialing")["id"])
    assert only(told, BY_BENEFIT).standing == "trialing"


def test_where_trials_do_not_count_a_trials_grant_entitles_to_nothing() -> None:
    told = story()
    give(told, subscription=subscribe(told, status="trialing")["id"])
    assert not has(told, sold(BENEFITS, trials="false"))


@pytest.mark.parametrize("terms", [BY_BENEFIT, sold(BENEFITS, grace='"3d"')], ids=["no grace", "grace"])
def test_a_grant_that_polar_keeps_through_its_own_grace_is_kept(terms: Catalogue) -> None:
    told = story()
    failed = subscribe(told, status="past_due", past_due_at=iso(told.at))
    give(told, subscription=failed["id"])
    assert only(told, terms, told.at + 10 * DAY).standing == "active"


def test_a_grant_that_a_failed_payment_took_lives_on_in_grace_and_not_a_moment_longer() -> None:
    told = story()
    subscription = subscribe(told)
    give(told, subscription=subscription["id"])
    failed_at = told.at
    told.change(subscription, status="past_due", past_due_at=iso(failed_at))
    told.send("subscription.past_due", subscription)
    told.take(told.grants)
    terms = sold(BENEFITS, grace='"3d"')
    one = only(told, terms, failed_at + 3 * DAY - MOMENT)
    assert (one.standing, one.valid_until) == ("grace", failed_at + 3 * DAY)
    assert one.because[0].until == failed_at + 3 * DAY
    assert not has(told, terms, failed_at + 3 * DAY)
    assert not has(told, BY_BENEFIT)


def test_grace_holds_too_when_only_a_state_told_that_the_grant_is_gone() -> None:
    told = story()
    subscription = subscribe(told)
    given = give(told, subscription=subscription["id"])
    told.change(subscription, status="past_due", past_due_at=iso(told.at))
    told.send("subscription.past_due", subscription)
    given["is_granted"] = False
    told.send_state()
    assert only(told, sold(BENEFITS, grace='"3d"')).standing == "grace"


def test_grace_holds_too_for_a_grant_taken_in_the_very_moment_in_which_the_payment_failed() -> None:
    told = story()
    at = iso(told.at)
    subscription = subscribe(told, status="past_due", past_due_at=at)
    give(told, subscription=subscription["id"], created_at=at, is_granted=False, is_revoked=True, revoked_at=at)
    assert only(told, sold(BENEFITS, grace='"3d"')).standing == "grace"


def test_where_polar_does_not_say_when_the_payment_failed_the_last_change_counts() -> None:
    told = story()
    subscription = subscribe(told)
    give(told, subscription=subscription["id"])
    told.change(subscription, status="past_due", past_due_at=None)
    told.send("subscription.past_due", subscription)
    changed = datetime.fromisoformat(subscription["modified_at"])
    told.take(told.grants)
    assert only(told, sold(BENEFITS, grace='"3d"')).valid_until == changed + 3 * DAY


def test_grace_does_not_give_back_what_was_lost_before_the_payment_failed() -> None:
    told = story()
    subscription = subscribe(told)
    give(told, subscription=subscription["id"])
    told.take(told.grants)
    told.at += 5 * DAY
    told.change(subscription, status="past_due", past_due_at=iso(told.at))
    told.send("subscription.past_due", subscription)
    assert not has(told, sold(BENEFITS, grace='"3d"'))


def test_grace_does_not_give_what_waits_for_the_customer() -> None:
    told = story()
    subscription = subscribe(told)
    give(told, subscription=subscription["id"], is_granted=False, granted_at=None, error={"message": "connect"})
    told.change(subscription, status="past_due", past_due_at=iso(told.at))
    told.send("subscription.past_due", subscription)
    assert not has(told, sold(BENEFITS, grace='"3d"'))
    told.send_state()
    assert not has(told, sold(BENEFITS, grace='"3d"'))


def test_grace_does_not_give_what_was_never_held_a_row_born_revoked() -> None:
    told = story()
    failed = subscribe(told, status="past_due", past_due_at=iso(told.at))
    give(told, subscription=failed["id"], is_granted=False, is_revoked=True, revoked_at=iso(told.at))
    assert not has(told, sold(BENEFITS, grace='"3d"'))


@pytest.mark.parametrize("status", ["canceled", "unpaid", "paused", "incomplete_expired"])
def test_a_grant_revoked_with_its_subscription_has_no_grace(status: str) -> None:
    told = story()
    subscription = subscribe(told)
    give(told, subscription=subscription["id"])
    told.change(subscription, status=status, past_due_at=iso(told.at))
    told.send("subscription.updated", subscription)
    told.take(told.grants)
    assert not has(told, sold(BENEFITS, grace='"3d"'))


def test_two_grants_are_one_entitlement_for_two_reasons() -> None:
    told = story()
    give(told, order="one")
    give(told, order="two")
    assert {reason.order_id for reason in only(told, BY_BENEFIT).because} == {"one", "two"}


def test_given_per_purchase_each_purchase_has_its_own() -> None:
    told = story()
    give(told, order="one")
    give(told, subscription=subscribe(told)["id"])
    terms = sold(BENEFITS, per='"purchase"')
    assert {one.purchase for one in due(told, terms)} == {"one", told.subscriptions[0]["id"]}
    assert all(len(one.because) == 1 for one in due(told, terms))


def test_the_owner_is_the_customer_and_members_have_their_own() -> None:
    told = story(team=True)
    other = simulated.member(told.ids, told.buyer, "b@example.com", "member", told.at)
    give(told, order="order")
    give(told, order="order", member_id=other["id"], member=other)
    assert {one.member_id for one in due(told, BY_BENEFIT)} == {None, other["id"]}


def test_who_has_left_gets_nothing_however_long_the_grants_take_to_follow() -> None:
    told = story(team=True)
    other = simulated.member(told.ids, told.buyer, "b@example.com", "member", told.at)
    give(told, order="order", member_id=other["id"], member=other)
    told.send("member.deleted", other)
    assert not has(told, BY_BENEFIT)


# By product: subscriptions.


def test_an_active_subscription_entitles_and_says_why() -> None:
    told = story()
    subscription = subscribe(told)
    one = only(told, BY_PRODUCT)
    assert (one.standing, one.valid_until, one.member_id, one.purchase) == ("active", None, None, None)
    assert one.because == (
        Because(
            source="subscription",
            id=subscription["id"],
            delivery=told.events[-1].webhook_id,
            subscription_id=subscription["id"],
            standing="active",
        ),
    )


def test_a_subscription_to_another_product_entitles_to_nothing() -> None:
    told = story()
    subscribe(told, product_id=BETTER)
    assert not has(told, BY_PRODUCT)


@pytest.mark.parametrize("status", ["canceled", "unpaid", "paused", "incomplete", "incomplete_expired", "past_due"])
def test_no_other_status_entitles_where_there_is_no_grace(status: str) -> None:
    told = story()
    subscribe(told, status=status, past_due_at=iso(told.at))
    assert not has(told, BY_PRODUCT)


def test_a_trial_counts_unless_the_catalogue_says_otherwise() -> None:
    told = story()
    subscribe(told, status="trialing")
    assert only(told, BY_PRODUCT).standing == "trialing"
    assert not has(told, sold(trials="false"))


def test_past_due_keeps_it_in_grace_and_not_a_moment_longer() -> None:
    told = story()
    failed_at = told.at
    subscribe(told, status="past_due", past_due_at=iso(failed_at))
    terms = sold(grace='"3d"')
    one = only(told, terms, failed_at + 3 * DAY - MOMENT)
    assert (one.standing, one.valid_until) == ("grace", failed_at + 3 * DAY)
    assert not has(told, terms, failed_at + 3 * DAY)


def test_canceled_at_the_end_of_the_period_it_lasts_until_then_even_if_no_event_comes() -> None:
    told = story()
    ends = told.at + 10 * DAY
    subscribe(told, cancel_at_period_end=True, ends_at=iso(ends))
    assert only(told, BY_PRODUCT, ends - MOMENT).valid_until == ends
    assert not has(told, BY_PRODUCT, ends)


def test_where_the_end_is_not_said_it_is_the_periods() -> None:
    told = story()
    ends = told.at + 10 * DAY
    subscribe(told, cancel_at_period_end=True, ends_at=None, current_period_end=iso(ends))
    assert only(told, BY_PRODUCT).valid_until == ends


def test_an_end_that_is_no_cancellation_is_none() -> None:
    told = story()
    subscribe(told, cancel_at_period_end=False, ends_at=iso(told.at + DAY))
    assert only(told, BY_PRODUCT, told.at + 10 * DAY).valid_until is None


def test_a_pause_takes_effect_with_the_period_even_if_no_event_comes() -> None:
    told = story()
    ends = told.at + 10 * DAY
    subscribe(told, pause_at_period_end=True, current_period_end=iso(ends))
    assert only(told, BY_PRODUCT).valid_until == ends
    assert not has(told, BY_PRODUCT, ends)


def test_a_trial_canceled_lasts_to_its_end() -> None:
    told = story()
    ends = told.at + 10 * DAY
    subscribe(told, status="trialing", cancel_at_period_end=True, ends_at=iso(ends))
    one = only(told, BY_PRODUCT)
    assert (one.standing, one.valid_until) == ("trialing", ends)


# By product: orders.


def test_a_paid_order_entitles_for_good_and_says_why() -> None:
    told = story()
    order = told.pay(told.shop.products[0], reason="purchase")
    one = only(told, BY_PRODUCT, told.at + 10_000 * DAY)
    assert one.valid_until is None
    assert one.because == (
        Because(
            source="order",
            id=order["id"],
            delivery=told.events[-1].webhook_id,
            order_id=order["id"],
            standing="active",
        ),
    )


@pytest.mark.parametrize(
    ("fields", "is_entitled"),
    [
        ({}, True),
        ({"status": "refunded"}, True),
        ({"status": "partially_refunded"}, True),
        ({"status": "void"}, False),
        ({"status": "pending", "paid": False}, False),
        ({"status": "draft", "paid": False}, False),
        ({"product_id": BETTER}, False),
        ({"product_id": None}, False),
        ({"subscription_id": "subscription"}, False),
    ],
)
def test_which_orders_entitle(fields: dict[str, Any], is_entitled: bool) -> None:
    told = story()
    order = told.pay(told.shop.products[0], reason="purchase")
    told.change(order, **fields)
    told.send("order.updated", order)
    assert has(told, BY_PRODUCT) is is_entitled


@pytest.mark.parametrize(("revoke", "is_entitled"), [(True, False), (False, True)])
def test_a_refund_ends_it_where_it_takes_the_benefits(revoke: bool, is_entitled: bool) -> None:
    told = story()
    order = told.pay(told.shop.products[0], reason="purchase")
    give(told, order=order["id"])
    told.send("refund.created", simulated.refund(told.ids, told.shop, order, told.at) | {"revoke_benefits": revoke})
    assert has(told, BY_PRODUCT) is is_entitled
    assert has(told, BY_BENEFIT) is is_entitled


def test_a_product_and_a_benefit_are_one_entitlement_for_two_reasons() -> None:
    told = story()
    order = told.pay(told.shop.products[0], reason="purchase")
    give(told, order=order["id"])
    assert [reason.source for reason in only(told, sold(f"{PRODUCTS}, {BENEFITS}")).because] == ["order", "polar_grant"]


# Seats.


def test_each_member_who_claimed_a_seat_has_their_own_and_the_buyer_has_none() -> None:
    told = story(team=True)
    subscription = subscribe(told, seats=3)
    members = {take_seat(told, subscription, name) for name in ("a", "b")}
    assert {one.member_id for one in due(told, BY_PRODUCT)} == members
    one = due(told, BY_PRODUCT)[0].because[0]
    assert (one.source, one.subscription_id, one.standing) == ("seat", subscription["id"], "active")
    assert one.delivery in {event.webhook_id for event in told.events}


def test_the_buyer_who_claims_a_seat_has_it_as_the_customer() -> None:
    told = story(team=True)
    subscription = subscribe(told, seats=3)
    taken = simulated.seat(told.ids, told.buyer, subscription, told.at)
    told.send("customer_seat.claimed", taken | {"status": "claimed", "member_id": told.person["id"]})
    assert only(told, BY_PRODUCT).member_id is None


def test_seats_of_a_one_time_purchase_work_alike() -> None:
    told = story(team=True)
    order = told.pay(told.shop.products[0], reason="purchase")
    told.change(order, seats=2)
    told.send("order.updated", order)
    member = take_seat(told, order, "a", of="order_id")
    one = only(told, sold(per='"purchase"'))
    assert one.slot == ("it", member, order["id"], "")
    assert one.because[0].order_id == order["id"]


def test_a_seat_of_another_purchase_or_without_a_member_gives_nothing() -> None:
    told = story(team=True)
    subscription = subscribe(told, seats=3)
    take_seat(told, subscribe(told, seats=1, product_id=BETTER), "a")
    empty = simulated.seat(told.ids, told.buyer, subscription, told.at) | {"status": "claimed"}
    told.send("customer_seat.claimed", empty)
    assert not has(told, BY_PRODUCT)


def test_members_share_the_trial_the_grace_and_the_end_of_their_subscription() -> None:
    told = story(team=True)
    subscription = subscribe(told, seats=1, status="trialing")
    take_seat(told, subscription, "a")
    assert only(told, BY_PRODUCT).standing == "trialing"
    assert not has(told, sold(trials="false"))
    failed_at = told.at
    told.change(subscription, status="past_due", past_due_at=iso(failed_at))
    told.send("subscription.past_due", subscription)
    one = only(told, sold(grace='"3d"'))
    assert (one.standing, one.valid_until) == ("grace", failed_at + 3 * DAY)
    assert not has(told, BY_PRODUCT)


# By hand.


def test_a_grant_by_hand_holds_until_its_end_and_names_who_gave_it_and_why() -> None:
    told = story()
    ends = told.at + DAY
    state = by_hand(state_of(told), ends_at=ends)
    (one,) = entitled(state, BY_PRODUCT, ends - MOMENT)
    assert (one.standing, one.valid_until) == ("manual", ends)
    assert one.because == (
        Because(source="manual", id="hand", standing="manual", until=ends, note="lost a bet (by ada)"),
    )
    assert not entitled(state, BY_PRODUCT, ends)


def test_a_grant_by_hand_without_an_end_lasts_and_can_be_for_a_member() -> None:
    told = story()
    (one,) = entitled(by_hand(state_of(told), member_id="m"), BY_PRODUCT, told.at + 10_000 * DAY)
    assert (one.member_id, one.valid_until) == ("m", None)


def test_a_grant_by_hand_of_another_benefit_is_not_this_one() -> None:
    told = story()
    assert not entitled(by_hand(state_of(told), benefit="another"), BY_PRODUCT, told.at)


def test_a_grant_by_hand_outlives_the_purchase_and_is_shown_behind_it() -> None:
    told = story()
    told.pay(told.shop.products[0], reason="purchase")
    (one,) = entitled(by_hand(state_of(told), ends_at=told.at + DAY), BY_PRODUCT, told.at)
    assert [reason.source for reason in one.because] == ["order", "manual"]
    assert (one.standing, one.valid_until) == ("active", None)


def test_deleting_the_customer_ends_everything_what_was_given_by_hand_too() -> None:
    told = story()
    told.buy_once()
    told.send("customer.deleted", {**told.buyer, "deleted_at": iso(told.at)})
    assert entitled(by_hand(state_of(told)), sold(f"{PRODUCTS}, {BENEFITS}"), told.at) == frozenset()


# Reasons together.


def test_the_strongest_reason_stands_first_and_the_last_end_counts() -> None:
    told = story()
    first, last = told.at + DAY, told.at + 9 * DAY
    trial = subscribe(told, status="trialing", cancel_at_period_end=True, ends_at=iso(last))
    failed_at = told.at
    failed = subscribe(told, status="past_due", past_due_at=iso(failed_at))
    (one,) = entitled(by_hand(state_of(told), ends_at=first), sold(grace='"3d"'), told.at)
    assert [(reason.standing, reason.until) for reason in one.because] == [
        ("trialing", last),
        ("manual", first),
        ("grace", failed_at + 3 * DAY),
    ]
    assert [reason.id for reason in one.because] == [trial["id"], "hand", failed["id"]]
    assert (one.standing, one.valid_until) == ("trialing", last)


def test_an_active_reason_without_an_end_means_that_no_end_is_known() -> None:
    told = story()
    subscribe(told, cancel_at_period_end=True, ends_at=iso(told.at + DAY))
    subscribe(told)
    assert only(told, BY_PRODUCT).valid_until is None


# Time edges.


def _with_ends(*ends: datetime | None) -> Entitlement:
    reasons = [Because(source="order", id=str(number), standing="active", until=end) for number, end in enumerate(ends)]
    return Entitlement(
        benefit="it", member_id=None, purchase=None, standing="active", valid_until=None, because=tuple(reasons)
    )


def test_the_next_edge_is_the_first_end_of_any_reason_of_any_entitlement() -> None:
    at = story().at
    assert next_edge([_with_ends(at + 3 * DAY, at + 2 * DAY), _with_ends(None, at + DAY)]) == at + DAY


@pytest.mark.parametrize("none", [[], [_with_ends(None)]])
def test_where_nothing_ends_by_itself_there_is_no_edge(none: list[Entitlement]) -> None:
    assert next_edge(none) is None


def test_nothing_changes_before_the_next_edge_and_something_does_at_it() -> None:
    told = story()
    subscribe(told, cancel_at_period_end=True, ends_at=iso(told.at + 2 * DAY))
    subscribe(told, status="past_due", past_due_at=iso(told.at))
    state = by_hand(state_of(told), ends_at=told.at + DAY)
    terms, now = sold(grace='"3d"'), told.at
    for _ in range(3):
        before = entitled(state, terms, now)
        edge = next_edge(before)
        assert edge is not None
        assert entitled(state, terms, edge - MOMENT) == before
        assert entitled(state, terms, edge) != before
        now = edge
    assert entitled(state, terms, now) == frozenset()


# Who it is for.


def test_the_customer_as_platforms_know_them() -> None:
    told = story()
    give(told, order="o", properties={"account_id": "42"}, benefit=told.shop.benefits[0] | {"type": "discord"})
    assert recipient(state_of(told), None, "o") == Recipient(
        customer_id=told.buyer["id"],
        external_id=told.buyer["external_id"],
        email=told.buyer["email"],
        name=told.buyer["name"],
        purchase="o",
        organization_id=told.buyer["organization_id"],
        accounts={"discord": "42"},
        sources={"discord": "polar"},
    )


def test_a_member_as_platforms_know_them_and_not_the_buyer() -> None:
    told = story(team=True)
    member = take_seat(told, subscribe(told, seats=1), "bo")
    to = recipient(state_of(told), member, None)
    assert (to.email, to.external_id, to.name, to.member_id) == ("bo@example.com", None, None, member)
    assert (to.customer_id, to.organization_id) == (told.buyer["id"], told.buyer["organization_id"])


def test_a_member_whom_we_do_not_know_yet_is_not_taken_for_the_buyer() -> None:
    told = story(team=True)
    to = recipient(state_of(told), "unknown", None)
    assert (to.email, to.external_id, to.name) == (None, None, None)


def test_a_customer_whom_no_event_described_has_an_id_and_nothing_else() -> None:
    assert recipient(CustomerState(id="c"), None, None) == Recipient(customer_id="c")


def _it(terms: Catalogue) -> Benefit:
    return terms.benefits["it"]


def test_the_target_changes_with_what_the_grant_is_made_from_and_with_nothing_else() -> None:
    to = Recipient(customer_id="c", email="a@example.com", accounts={"github": "1", "discord": "2"})
    same = target_of(_it(BY_PRODUCT), "", to)
    elsewhere = msgspec.structs.replace(
        to, accounts={"discord": "3"}, sources={"discord": "set"}, names={"github": "a"}
    )
    assert target_of(_it(BY_PRODUCT), "", elsewhere) == same, "a link needs no account"
    assert target_of(_it(sold(BENEFITS, grace='"9d"', trials="false", description='"new"')), "", to) == same
    assert target_of(_it(BY_PRODUCT), "", msgspec.structs.replace(to, email="b@example.com")) != same
    at_github = replace(_it(BY_PRODUCT), platform="github")
    moved = msgspec.structs.replace(to, accounts={"discord": "9", "github": "1"})
    assert target_of(at_github, "", moved) == target_of(at_github, "", to)
    for changed in ({"accounts": {"github": "7"}}, {"sources": {"github": "set"}}, {"names": {"github": "a"}}):
        assert target_of(at_github, "", msgspec.structs.replace(to, **changed)) != target_of(at_github, "", to)
    other = catalogue('[benefits.it]\nconnector = "custom_link"\nnote = "y"\n')
    assert target_of(_it(other), "", to) != same


def test_there_is_one_grant_id_for_each_customer_and_slot() -> None:
    slots = list(itertools.product(("x", "y"), (None, "m"), (None, "p"), ("", "q")))
    ids = {grant_id(customer, slot) for customer in ("c", "d") for slot in slots}
    assert len(ids) == 2 * len(slots)
    assert all(UUID(one).version == 5 for one in ids)
    assert grant_id("c", ("x", None, None, "")) == grant_id("c", ("x", None, None, ""))
    assert grant_id("c", ("x", "m", None, "")) != grant_id("c", ("x", None, "m", ""))


# The plan.

STATE = CustomerState(id="c")
SLOT = ("it", None, None, "")
TARGET = target_of(_it(BY_PRODUCT), "", recipient(STATE, None, None))


def wanted(*members: str | None) -> list[Entitlement]:
    because = (Because(source="order", id="o", standing="active"),)
    return [
        Entitlement(benefit="it", member_id=one, purchase=None, standing="active", valid_until=None, because=because)
        for one in members
    ]


def held(**fields: Any) -> Held:
    known = {"id": grant_id("c", SLOT), "benefit": "it", "member_id": None, "purchase": None, "wanted": True,
             "target": TARGET} | fields  # fmt: skip
    return Held(**known)


def changes(
    entitlements: Iterable[Entitlement], grants: Iterable[Held], terms: Catalogue = BY_PRODUCT
) -> list[tuple[str, str]]:
    return [(one.action, one.grant_id) for one in plan(STATE, entitlements, grants, terms).changes]


def test_what_is_owed_and_not_there_is_given() -> None:
    made = plan(STATE, wanted(None), [], BY_PRODUCT)
    assert made.changes == (Change(action="give", grant_id=grant_id("c", SLOT), slot=SLOT, target=TARGET),)
    assert made.taken == 0


def test_what_was_taken_back_is_given_again_as_the_same_grant() -> None:
    assert changes(wanted(None), [held(wanted=False)]) == [("give", held().id)]


def test_what_is_owed_and_there_is_left_alone() -> None:
    assert changes(wanted(None), [held()]) == []


def test_what_is_made_from_something_else_is_renewed() -> None:
    made = plan(STATE, wanted(None), [held(id="old", target="stale")], BY_PRODUCT)
    assert made.changes == (Change(action="renew", grant_id="old", slot=SLOT, target=TARGET),)
    assert made.taken == 0


def test_what_is_not_owed_any_more_is_taken_as_it_was_given() -> None:
    made = plan(STATE, [], [held(target="as given")], BY_PRODUCT)
    assert made.changes == (Change(action="take", grant_id=held().id, slot=SLOT, target="as given"),)
    assert made.taken == 1


def test_what_left_the_catalogue_is_taken_without_asking_the_catalogue() -> None:
    gone = held(id="gone", benefit="gone")
    assert changes(wanted(None), [held(), gone]) == [("take", "gone")]


def test_what_was_taken_and_is_not_owed_stays_so() -> None:
    assert changes([], [held(wanted=False)]) == []


def test_each_member_is_planned_alone() -> None:
    gone, kept = (held(id=one, member_id=one, target=_target_for(one)) for one in ("gone", "kept"))
    slot = ("it", "new", None, "")
    assert changes(wanted("kept", "new"), [gone, kept]) == [("give", grant_id("c", slot)), ("take", "gone")]


def _target_for(member: str) -> str:
    return target_of(_it(BY_PRODUCT), "", recipient(STATE, member, None))


def test_the_plan_is_the_same_in_whatever_order_it_is_asked() -> None:
    due_, grants = wanted(None, "a", "b", "c"), [held(id=one, member_id=one) for one in ("b", "x", "y", "z")]
    assert plan(STATE, due_, grants, BY_PRODUCT) == plan(STATE, due_[::-1], grants[::-1], BY_PRODUCT)


def test_carrying_out_a_plan_leaves_nothing_to_do() -> None:
    due_ = wanted(None, "a")
    made = plan(STATE, due_, [held(id="x", member_id="x")], BY_PRODUCT)
    after = [
        held(id=one.grant_id, member_id=one.slot[1], wanted=one.action != "take", target=one.target)
        for one in made.changes
    ]
    assert plan(STATE, due_, after, BY_PRODUCT).changes == ()
