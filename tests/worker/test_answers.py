"""The ready answers: Polar's own state document, and what an app asks of each benefit."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from connectors.base import Receipt
from handlers.events import PolarBenefit, parse
from handlers.state import CustomerState
from tests.events import BENEFIT, DATA, PRODUCT, WORLD, catalogue, event, folded, history, state_of, story
from worker import simulated
from worker.answers import EDGES, entitlements, polar_state
from worker.simulate import SCENARIOS, Story, play
from worker.simulated import Object, iso
from worker.store.models import GrantStatus

SCHEMA = Draft202012Validator(
    json.loads((DATA / "customer_state.schema.json").read_text()), format_checker=Draft202012Validator.FORMAT_CHECKER
)
CATALOGUE = catalogue(
    f'[benefits.link]\nconnector = "custom_link"\nnote = "x"\ndescription = "A link"\n'
    f'for = {{ products = ["{PRODUCT}"] }}'
)
DAY = timedelta(days=1)
NOW = story().at
METER = "d23f0824-128b-4f33-8c5c-7fd0a6a3a450"


def shown_state(state: CustomerState, offered: dict[str, PolarBenefit] | None = None) -> dict[str, Any]:
    """Polar's document of this state, after checking it against Polar's own schema."""
    written = polar_state(state, offered or {})
    assert written is not None
    document: dict[str, Any] = json.loads(written)
    SCHEMA.validate(document)
    return document


def offered_now(**fields: Any) -> dict[str, PolarBenefit]:
    """A benefit as Polar last described it."""
    common: dict[str, Any] = {"id": BENEFIT, "created_at": NOW, "type": "feature_flag", "description": "A flag"}
    return {BENEFIT: PolarBenefit(**common | fields)}


def has_got(told: Story, type_: str, properties: Object, metadata: Object | None = None, **fields: Any) -> Object:
    """Polar has granted a benefit of this type."""
    benefit = told.shop.benefits[0] | {"type": type_, "metadata": metadata or {}}
    given = simulated.grant(told.ids, told.buyer, told.person, benefit, told.at, bought=(None, "order"))
    given |= {"properties": properties} | fields
    told.grants.append(given)
    told.send("benefit_grant.created", given)
    return given


def _no_offer(connector: str, receipt: Receipt) -> dict[str, Any]:
    pytest.fail(f"nothing was given by {connector}: {receipt}")


def answered(
    state: CustomerState,
    *rows: dict[str, Any],
    offered: dict[str, PolarBenefit] | None = None,
    offer: Callable[[str, Receipt], dict[str, Any]] = _no_offer,
    dynamic: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(entitlements(state, rows, CATALOGUE, offered or {}, offer, dynamic))
    return document


def polar_answer(told: Story, **more: Any) -> dict[str, Any]:
    answer: dict[str, Any] = answered(state_of(told), **more)[BENEFIT]
    return answer


def row(**fields: Any) -> dict[str, Any]:
    """A grant as it is stored."""
    because = '[{"source":"order","id":"o","delivery":"d","standing":"active"}]'
    receipt = msgspec.json.encode(Receipt("link/1", {"url": "https://example.com"})).decode()
    return {
        "id": "g", "benefit": "link", "connector": "custom_link", "member_id": None, "purchase": None, "part": "",
        "wanted": True, "status": GrantStatus.GRANTED, "standing": "active", "valid_until": None, "because": because,
        "receipt": receipt, "who": None, "reason": None, "granted_at": NOW, "revoked_at": None,
    } | fields  # fmt: skip


def gives(connector: str, receipt: Receipt) -> dict[str, Any]:
    return {"connector": connector, **receipt.data}


# Polar's state document.


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_story_shows_a_state_as_polars_schema_asks(scenario: str) -> None:
    told = play(scenario, WORLD, seed=1, now=NOW)
    state = folded([parse(one.webhook_id, one.body) for one in told], CustomerState(id=told[0].customer_id))
    if scenario == "delete-customer":
        assert polar_state(state, {}) is None
    else:
        assert shown_state(state)["id"] == told[0].customer_id


def _recorded_states() -> list[dict[str, Any]]:
    bodies = [json.loads(one["body"])["data"] for one in history() if one["type"] == "customer.state_changed"]
    return [data for data in bodies if not data["deleted_at"]]


@pytest.mark.parametrize("sent", _recorded_states(), ids=lambda data: f"{data['external_id']}@{data['modified_at']}")
def test_a_state_is_shown_just_as_polar_sent_it(sent: dict[str, Any]) -> None:
    state = folded([event("customer.state_changed", sent, NOW)], CustomerState(id=sent["id"]))
    shown = shown_state(state)
    for part in ("active_subscriptions", "granted_benefits"):
        shown[part].sort(key=lambda one: one["id"])
        sent = sent | {part: sorted(sent[part], key=lambda one: one["id"])}
    assert _moments(shown) == _moments(sent)


def _moments(document: dict[str, Any]) -> Any:
    """The document with its times written in one way."""
    return json.loads(json.dumps(document).replace(".000000Z", "Z"))


def test_the_state_is_kept_fresh_by_every_event_and_not_by_snapshots_alone() -> None:
    told = story()
    told.subscribe()
    told.events = [one for one in told.events if one.type != "customer.state_changed"]
    shown = shown_state(state_of(told))
    assert [one["id"] for one in shown["active_subscriptions"]] == [told.subscriptions[0]["id"]]
    assert [one["id"] for one in shown["granted_benefits"]] == [told.grants[0]["id"]]
    assert shown["active_meters"] == []
    told.end(told.subscriptions[0])
    told.take(told.grants)
    shown = shown_state(state_of(told))
    assert (shown["active_subscriptions"], shown["granted_benefits"]) == ([], [])


def test_a_subscription_is_shown_with_what_polars_state_has_and_no_more() -> None:
    told = story()
    meter = {"id": METER, "created_at": iso(NOW), "modified_at": None, "meter_id": METER, "consumed_units": 1,
             "credited_units": 2, "amount": 3}  # fmt: skip
    begun = simulated.subscription(told.ids, told.buyer, told.shop.products[0], NOW, seats=4, trial=False)
    told.send("subscription.active", begun | {"meters": [meter | {"meter": {"id": METER, "name": "Requests"}}]})
    (shown,) = shown_state(state_of(told))["active_subscriptions"]
    assert shown["meters"] == [meter]
    assert shown["seats"] == 4
    assert not {"customer", "product", "past_due_at", "pause_at_period_end", "customer_id", "ended_at"} & set(shown)


def test_lists_are_in_the_order_of_creation() -> None:
    told = story()
    for _ in range(3):
        told.subscribe()
    told.events.reverse()
    shown = shown_state(state_of(told))
    assert [one["id"] for one in shown["active_subscriptions"]] == [one["id"] for one in told.subscriptions]
    assert [one["id"] for one in shown["granted_benefits"]] == [one["id"] for one in told.grants]


def test_a_team_may_have_no_email() -> None:
    told = story(team=True)
    told.change(told.buyer, email=None)
    told.send("customer.updated", told.buyer)
    shown = shown_state(state_of(told))
    assert (shown["type"], shown["email"]) == ("team", None)


def test_every_nullable_field_is_there_since_polars_sdks_need_it() -> None:
    told = story()
    shown = shown_state(folded([event("customer.created", told.buyer, NOW)], CustomerState(id=told.buyer["id"])))
    assert set(shown) == {*told.buyer, "active_subscriptions", "granted_benefits", "active_meters"}


def test_an_edit_of_a_benefits_metadata_shows_though_polar_sends_no_state_for_it() -> None:
    told = story()
    has_got(told, "feature_flag", {}, {"limit": 1})
    (before,) = shown_state(state_of(told))["granted_benefits"]
    (after,) = shown_state(state_of(told), offered_now(metadata={"limit": 2}))["granted_benefits"]
    assert (before["benefit_metadata"], after["benefit_metadata"]) == ({"limit": 1}, {"limit": 2})


@pytest.mark.parametrize("name", ["guild_token", "user_provided_key"])
def test_secrets_in_a_grants_properties_are_not_shown(name: str) -> None:
    told = story()
    has_got(told, "discord", {"guild_id": "1", name: "the-secret"})
    state = state_of(told)
    assert shown_state(state)["granted_benefits"][0]["properties"] == {"guild_id": "1"}
    assert polar_answer(told)["gives"]["properties"] == {"guild_id": "1"}
    assert "the-secret" not in json.dumps(answered(state))


def test_there_is_no_state_of_a_customer_who_is_unknown_or_deleted_as_at_polar() -> None:
    assert polar_state(CustomerState(id="c"), {}) is None
    told = story()
    told.send("customer.deleted", {**told.buyer, "deleted_at": iso(told.at)})
    assert polar_state(state_of(told), {}) is None


# What we give ourselves.


def test_an_answer_has_everything_that_an_app_may_ask() -> None:
    told = story()
    state = state_of(told)
    ends = NOW + DAY
    answer = answered(state, row(valid_until=ends), offer=gives)["link"]
    assert state.as_of is not None
    assert datetime.fromisoformat(answer.pop("as_of")) == state.as_of
    assert datetime.fromisoformat(answer.pop("valid_until")) == ends
    (grant,) = answer.pop("grants")
    assert answer == {
        "benefit": "link",
        "connector": "custom_link",
        "description": "A link",
        "entitled": True,
        "status": "granted",
        "standing": "active",
        "because": [{"source": "order", "id": "o", "delivery": "d", "standing": "active"}],
        "gives": {"connector": "custom_link", "url": "https://example.com"},
        "problem": None,
    }
    assert datetime.fromisoformat(grant["granted_at"]) == NOW
    assert (grant["id"], grant["member_id"], grant["purchase"], grant["revoked_at"]) == ("g", None, None, None)


@pytest.mark.parametrize(
    ("status", "shown"),
    [(status, status in {GrantStatus.GRANTED, GrantStatus.PENDING}) for status in GrantStatus],
)
def test_what_a_customer_gets_is_shown_while_it_is_there(status: GrantStatus, shown: bool) -> None:
    answer = answered(CustomerState(id="c"), row(status=status), offer=gives if shown else _no_offer)["link"]
    assert (answer["gives"] is not None) is shown
    assert answer["status"] == status


def test_nothing_is_shown_without_a_receipt_or_once_it_is_not_wanted() -> None:
    assert answered(CustomerState(id="c"), row(receipt=None))["link"]["gives"] is None
    assert answered(CustomerState(id="c"), row(wanted=False))["link"]["gives"] is None


def test_what_is_being_taken_back_is_not_entitled_any_more() -> None:
    taken = row(wanted=False, status=GrantStatus.REVOKING, valid_until=NOW, because="[]")
    answer = answered(CustomerState(id="c"), taken)["link"]
    assert (answer["entitled"], answer["status"], answer["standing"]) == (False, "revoking", None)
    assert (answer["valid_until"], answer["because"]) == (None, [])
    assert answered(CustomerState(id="c"), taken)[EDGES]["until"] is None


def test_a_problem_says_who_must_act_and_what_to_do() -> None:
    stuck = row(status=GrantStatus.ACTION_REQUIRED, who="customer", reason="connect an account", receipt=None)
    answer = answered(CustomerState(id="c"), stuck)["link"]
    assert answer["problem"] == {"who": "customer", "message": "connect an account"}
    assert answer["entitled"] is True


def test_of_several_grants_the_best_news_speaks_and_all_are_listed() -> None:
    answer = answered(
        CustomerState(id="c"),
        row(id="1", wanted=False, status=GrantStatus.GRANTED, purchase="old"),
        row(id="2", status=GrantStatus.FAILED, purchase="broken", reason="a person must look"),
        row(id="3", status=GrantStatus.GRANTED, purchase="new"),
        row(id="4", status=GrantStatus.GRANTING, purchase="newer"),
        offer=gives,
    )["link"]
    assert (answer["entitled"], answer["status"], answer["problem"]) == (True, "granted", None)
    assert [grant["id"] for grant in answer["grants"]] == ["3", "4", "2", "1"]
    assert [grant["entitled"] for grant in answer["grants"]] == [True, True, True, False]


@pytest.mark.parametrize(
    ("ends", "until"),
    [([NOW, NOW + DAY], NOW + DAY), ([NOW, None], None), ([None], None)],
)
def test_several_grants_are_valid_as_long_as_the_last_of_them(
    ends: list[datetime | None], until: datetime | None
) -> None:
    rows = [row(id=str(number), valid_until=end) for number, end in enumerate(ends)]
    shown = answered(CustomerState(id="c"), *rows, offer=gives)["link"]["valid_until"]
    assert (datetime.fromisoformat(shown) if shown else None) == until


def test_a_members_grant_names_the_merchants_own_id_of_the_member() -> None:
    told = story(team=True)
    told.change(told.person, external_id="emp/7")
    told.send("member.updated", told.person)
    rows = [row(id="1", member_id=told.person["id"]), row(id="2", member_id="unknown")]
    grants = answered(state_of(told), *rows, offer=gives)["link"]["grants"]
    assert [grant["member_external_id"] for grant in grants] == ["emp/7", None]


def test_a_benefit_that_left_the_catalogue_is_still_answered_under_its_key() -> None:
    answer = answered(CustomerState(id="c"), row(benefit="gone"), offer=gives)["gone"]
    assert (answer["description"], answer["connector"]) == ("gone", "custom_link")


def test_the_document_says_when_it_changes_and_what_is_completed_when_it_is_read() -> None:
    rows = [
        row(id="1", valid_until=NOW + 2 * DAY),
        row(id="2", benefit="files", connector="file_download", valid_until=NOW + DAY),
        row(id="3", benefit="other", valid_until=None),
        row(id="4", benefit="past", wanted=False, valid_until=NOW - DAY),
    ]
    edges = answered(CustomerState(id="c"), *rows, offer=gives, dynamic=frozenset({"file_download"}))[EDGES]
    assert datetime.fromisoformat(edges["until"]) == NOW + DAY
    assert edges["dynamic"] == ["files"]


def test_a_customer_with_nothing_has_an_empty_document() -> None:
    assert answered(CustomerState(id="c")) == {
        EDGES: {"until": None, "dynamic": [], "owner": None, "owner_external_id": None}
    }


# What Polar fulfils itself, under Polar's own ids.


def test_a_benefit_of_polars_own_is_answered_like_one_of_ours() -> None:
    told = story()
    given = has_got(told, "feature_flag", {}, {"limit": 1})
    ours, polars = answered(state_of(told), row(), offer=gives)["link"], polar_answer(told)
    assert set(polars) == set(ours)
    assert set(polars["grants"][0]) == set(ours["grants"][0])
    assert (polars["entitled"], polars["status"], polars["standing"]) == (True, "granted", "active")
    assert polars["because"] == [
        {
            "source": "polar_grant",
            "id": given["id"],
            "delivery": told.events[-1].webhook_id,
            "subscription_id": None,
            "order_id": "order",
            "standing": "active",
        }
    ]


def test_a_feature_flag_is_answered_with_its_metadata_as_it_is_now() -> None:
    told = story()
    has_got(told, "feature_flag", {}, {"limit": 1})
    assert polar_answer(told)["gives"] == {"kind": "feature_flag", "metadata": {"limit": 1}, "properties": {}}
    edited = polar_answer(told, offered=offered_now(metadata={"limit": 2}))
    assert edited["gives"]["metadata"] == {"limit": 2}
    assert (edited["description"], edited["connector"]) == ("A flag", "polar:feature_flag")


def _credits(told: Story, *meters: dict[str, Any]) -> dict[str, Any]:
    has_got(told, "meter_credit", {"last_credited_meter_id": METER, "last_credited_units": 100})
    document = simulated.state(told.buyer, [], told.grants) | {"active_meters": list(meters)}
    told.send("customer.state_changed", document)
    given: dict[str, Any] = polar_answer(told)["gives"]
    return given


def test_credits_are_answered_with_the_balance_of_their_meter() -> None:
    mine = {"id": "1", "meter_id": METER, "consumed_units": 25.0, "credited_units": 100, "balance": 75.0}
    shown = _credits(story(), {"id": "2", "meter_id": "another", "balance": 1}, mine)
    assert shown["meter"] == mine
    assert shown["properties"]["last_credited_units"] == 100


def test_credits_without_their_meter_in_the_state_have_no_balance() -> None:
    assert _credits(story())["meter"] is None


def test_credits_before_any_state_have_no_balance_to_tell() -> None:
    told = story()
    has_got(told, "meter_credit", {"last_credited_meter_id": METER})
    told.events = [one for one in told.events if one.type != "customer.state_changed"]
    assert "meter" not in polar_answer(told)["gives"]


@pytest.mark.parametrize(
    ("type_", "properties"),
    [
        ("license_keys", {"license_key_id": "k", "display_key": "****-123456"}),
        ("discord", {"account_id": "4711", "granted_account_id": "4711", "guild_id": "100", "role_id": "101"}),
        (
            "github_repository",
            {"account_id": "42", "repository_owner": "acme", "repository_name": "pro", "permission": "pull"},
        ),
        ("downloadables", {"files": ["f1", "f2"]}),
        ("custom", {}),
    ],
)
def test_what_polar_gave_is_told_with_where_it_is(type_: str, properties: dict[str, Any]) -> None:
    told = story()
    has_got(told, type_, properties)
    answer = polar_answer(told)
    assert answer["connector"] == f"polar:{type_}"
    assert answer["gives"] == {"kind": type_, "metadata": {}, "properties": properties}


def test_a_benefit_that_polar_could_not_give_yet_says_what_the_customer_must_do() -> None:
    told = story()
    error = {"message": "connect an account", "type": "BenefitActionRequiredError", "timestamp": iso(NOW)}
    has_got(told, "discord", {}, is_granted=False, granted_at=None, error=error)
    answer = polar_answer(told)
    assert (answer["entitled"], answer["status"], answer["gives"]) == (False, "action_required", None)
    assert answer["problem"] == {"who": "customer", "message": "connect an account"}
    assert answer["grants"][0]["problem"] == answer["problem"]
    assert (answer["because"], answer["standing"]) == ([], None)


def test_an_error_of_the_past_is_no_problem_once_it_is_granted() -> None:
    told = story()
    has_got(told, "discord", {}, error={"message": "connect an account"})
    answer = polar_answer(told)
    assert (answer["status"], answer["problem"], answer["grants"][0]["problem"]) == ("granted", None, None)


def test_a_benefit_that_polar_took_back_is_answered_as_revoked() -> None:
    told = story()
    told.buy_once()
    told.take(told.grants)
    answer = polar_answer(told)
    assert (answer["entitled"], answer["status"], answer["gives"], answer["because"]) == (False, "revoked", None, [])


def test_of_several_grants_of_polars_the_one_that_holds_speaks() -> None:
    told = story()
    kept = has_got(told, "custom", {"kept": True})
    lost = has_got(told, "custom", {"kept": False}, is_granted=False, is_revoked=True)
    answer = polar_answer(told)
    assert (answer["entitled"], answer["gives"]["properties"]) == (True, {"kept": True})
    assert [one["id"] for one in answer["because"]] == [kept["id"]]
    holds, lies = answer["grants"]
    assert (holds["id"], holds["standing"], holds["purchase"]) == (kept["id"], "active", "order")
    assert (holds["gives"], holds["because"]) == (answer["gives"], answer["because"])
    assert (lies["id"], lies["entitled"], lies["status"]) == (lost["id"], False, "revoked")
    assert (lies["standing"], lies["gives"], lies["because"]) == (None, None, [])


def test_a_members_grant_of_polars_names_the_member() -> None:
    told = story(team=True)
    told.change(told.person, external_id="emp/7")
    given = has_got(told, "custom", {})
    other = has_got(told, "custom", {}, member_id=None, member=None)
    by_id = {grant["id"]: grant for grant in polar_answer(told)["grants"]}
    assert by_id[given["id"]]["member_external_id"] == "emp/7"
    assert (by_id[other["id"]]["member_id"], by_id[other["id"]]["member_external_id"]) == (None, None)


def test_nothing_of_polars_holds_for_a_deleted_customer_though_the_grants_are_still_there() -> None:
    told = story()
    told.buy_once()
    has_got(told, "discord", {}, is_granted=False, error={"message": "connect an account"})
    told.send("customer.deleted", {**told.buyer, "deleted_at": iso(told.at)})
    answer = polar_answer(told)
    assert (answer["entitled"], answer["status"], answer["standing"]) == (False, "revoked", None)
    assert (answer["gives"], answer["because"]) == (None, [])
    for grant in answer["grants"]:
        assert (grant["entitled"], grant["status"], grant["standing"]) == (False, "revoked", None)
        assert (grant["gives"], grant["because"]) == (None, [])
    assert [grant["problem"] for grant in answer["grants"]] == [None, None]
