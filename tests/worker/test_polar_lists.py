"""Polar's own read routes, served from local data: shapes, pages, orders, filters and refusals."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import msgspec
import pytest
import sqlalchemy as sa
from polar import v2026_04, v2026_10, v2027_01
from polar.base import deserialize

from config.catalogue import Catalogue
from connectors.base import Receipt
from tests.conftest import ORGANIZATION, POLAR_BENEFIT, PRODUCT, SECOND_PRODUCT, Running
from tests.events import catalogue, history
from tests.test_polar_sdk import listening
from tests.worker.test_customers_api import with_external_id
from worker.benefit_ids import own_id
from worker.http.shortcut import _parts
from worker.own_benefits import People, Since, benefit_shown, former_benefit, grant_shown
from worker.polar_shapes import customer_shown, order_shown, subscription_shown
from worker.simulate import SCENARIOS, SimulatedEvent
from worker.simulated import iso
from worker.store import grants
from worker.store.models import GrantStatus

VERSIONS: dict[str, Any] = {"2026-04": v2026_04, "2026-10": v2026_10, "2027-01": v2027_01}
LISTS = {
    "/v1/customers/": "Customer", "/v1/subscriptions/": "Subscription", "/v1/orders/": "Order",
    "/v1/benefit-grants/": "BenefitGrant", "/v1/benefits/": "Benefit",
}  # fmt: skip


async def page(running: Running, path: str, **headers: str) -> dict[str, Any]:
    answer = await running.get(path, **headers)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


async def items(running: Running, path: str, **headers: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await page(running, with_query(path, "limit=100"), **headers))["items"]
    return found


def with_query(path: str, query: str) -> str:
    return f"{path}{'&' if '?' in path else '?'}{query}"


async def live_all(running: Running) -> dict[str, list[SimulatedEvent]]:
    """A customer for every scenario, each beginning at another time."""
    told = {}
    for number, scenario in enumerate(SCENARIOS):
        told[scenario] = running.story(scenario, seed=number)
        await running.receive(told[scenario])
        running.clock.move(hours=1)
    return told


async def all_of(running: Running, told: Any) -> None:
    for one in told:
        arrived = SimulatedEvent(
            one["webhook_id"], one["type"], datetime.now(UTC), "", "", one["body"].encode()
        )  # fmt: skip
        answer = await running.post(arrived)
        assert answer.status_code == 202
    await running.service.pipeline.drain()


def read_by_sdk(version: Any, name: str, documents: Sequence[dict[str, Any]]) -> list[Any]:
    return [deserialize(one, getattr(version.outputs, name)) for one in documents]


# Polar's SDK.


@pytest.mark.parametrize("told", ["simulated", "recorded"])
async def test_every_item_of_every_list_is_read_by_every_version_of_polars_sdk(running: Running, told: str) -> None:
    await (live_all(running) if told == "simulated" else all_of(running, history()))
    for path, name in LISTS.items():
        for number, version in VERSIONS.items():
            found = await items(running, path, **{"polar-version": number})
            assert len(found) >= 4
            read = read_by_sdk(version, name, found)
            assert [one.id for one in read] == [one["id"] for one in found]
    for one in await items(running, "/v1/benefits/"):
        for number, version in VERSIONS.items():
            found = await items(running, f"/v1/benefits/{one['id']}/grants", **{"polar-version": number})
            assert {grant["benefit_id"] for grant in found} <= {one["id"]}
            read_by_sdk(version, "BenefitGrant", found)


@pytest.mark.parametrize("version", VERSIONS.values())
async def test_an_app_that_uses_polars_sdk_changes_the_address_only(on_sqlite: Running, version: Any) -> None:
    told = await live_all(on_sqlite)
    payer = told["subscription"][0]
    async with listening(on_sqlite) as address, version.PolarAsync("app-token-1", base_url=address) as polar:
        people = [one async for one in polar.customers.iter_list(limit=3)]
        assert len(people) == len(SCENARIOS) - 1
        assert len({one.id for one in people}) == len(people)
        assert (await polar.customers.get(payer.customer_id)).external_id == payer.external_id
        assert (await polar.customers.get_external(payer.external_id)).id == payer.customer_id
        [subscription] = (await polar.subscriptions.list(customer_id=payer.customer_id, active=True)).items
        assert (await polar.subscriptions.get(subscription.id)).status == "active"
        orders = (await polar.orders.list(external_customer_id=[payer.external_id], status=["paid"])).items
        assert [one.subscription_id for one in orders] == [subscription.id]
        assert (await polar.orders.get(orders[0].id)).customer.id == payer.customer_id
        held = [one async for one in polar.benefit_grants.iter_list(is_granted=True, customer_id=payer.customer_id)]
        assert {one.benefit_id for one in held} == {POLAR_BENEFIT, own_id("key"), own_id("files"), own_id("link")}
        benefits = (await polar.benefits.list(type=["license_keys"], query="KEY")).items
        assert [one.id for one in benefits] == [own_id("key")]
        grants_of_it = (await polar.benefits.grants(benefits[0].id, customer_id=[payer.customer_id])).items
        assert [one.subscription_id for one in grants_of_it] == [subscription.id]
        found = (await polar.customers.list(metadata={"plan": ["pro", "x"]}, sorting=["name", "-email"])).items
        assert found == []
        with pytest.raises(version.errors.HTTPValidationError):
            await polar.benefits.get("no-id")
        with pytest.raises(version.errors.ResourceNotFound):
            await polar.orders.get(str(uuid4()))


# Customers.


async def test_a_customer_is_the_same_in_the_list_by_either_id_and_in_the_state(running: Running) -> None:
    events = running.story("purchase")
    await running.receive(events)
    [listed] = await items(running, "/v1/customers/")
    state = await page(running, f"/v1/customers/{events[0].customer_id}/state")
    assert listed == {name: state[name] for name in listed}
    assert await page(running, f"/v1/customers/{events[0].customer_id}") == listed
    assert await page(running, f"/v1/customers/{events[0].customer_id.upper()}") == listed
    assert await page(running, f"/v1/customers/external/{events[0].external_id}") == listed


@pytest.mark.parametrize("external_id", ["a/b", "state", "entitlements", "a%2Fb", "über straße", "external", "x'; --"])
async def test_a_customer_is_found_by_any_external_id(on_sqlite: Running, external_id: str) -> None:
    await on_sqlite.receive(with_external_id(on_sqlite.story("purchase"), external_id))
    found = await page(on_sqlite, f"/v1/customers/external/{quote(external_id, safe='')}")
    assert found["external_id"] == external_id


async def test_a_deleted_customer_is_nowhere_but_their_orders_are(running: Running) -> None:
    told = await live_all(running)
    gone = told["delete-customer"][0]
    for path in (gone.customer_id, f"external/{gone.external_id}"):
        answer = await running.get(f"/v1/customers/{path}")
        assert (answer.status_code, answer.json()["error"]) == (404, "ResourceNotFound")
    assert gone.customer_id not in {one["id"] for one in await items(running, "/v1/customers/")}
    [order] = await items(running, f"/v1/orders/?customer_id={gone.customer_id}")
    assert order["customer"]["deleted_at"]
    assert await items(running, f"/v1/orders/?external_customer_id={gone.external_id}") == []
    held = await items(running, f"/v1/benefit-grants/?customer_id={gone.customer_id}")
    assert {one["is_revoked"] for one in held} == {True}


async def test_customers_are_filtered(running: Running) -> None:
    told = await live_all(running)
    first = told["purchase"]
    known = json.loads(first[0].body)["data"]
    changed = known | {"metadata": {"plan": "pro", "seats": 5, "vip": True, 'a"]b': "x"}, "name": "100%_Ada",
                       "modified_at": iso(running.clock.at)}  # fmt: skip
    await say(running, first[0], "customer.updated", changed)

    async def ids(query: str) -> list[str]:
        return [one["id"] for one in await items(running, f"/v1/customers/?{query}")]

    mine = [known["id"]]
    for query in (f"email={quote(known['email'].upper())}", "metadata[plan]=pro", "metadata[seats]=5",
                  "metadata[vip]=true", "metadata[plan]=basic&metadata[plan]=pro", "query=100%25_aDA",
                  f"query={known['external_id'][:9]}", f"query={known['email'][2:]}",
                  f"metadata[plan]=pro&organization_id={ORGANIZATION}"):  # fmt: skip
        assert await ids(query) == mine, query
    for query in ("email=ada", "metadata[plan]=basic", "metadata[plan]=pro&metadata[vip]=false", "metadata[seats]=50",
                  "query=100x", f"query={known['external_id'][1:9]}&email={known['email']}x",
                  f"organization_id={uuid4()}", "metadata[none]=x"):  # fmt: skip
        assert await ids(query) == [], query
    # past_due counts; ended and paused ones, and those who never subscribed, do not.
    active = {told[one][0].customer_id for one in ("subscription", "trial", "renewal", "cancel-scheduled", "past-due",
                                                   "recovery", "upgrade", "seats")}  # fmt: skip
    assert set(await ids("active=true")) == active
    everybody = set(await ids(""))
    assert set(await ids("active=false")) == everybody - active
    twice = await ids(f"organization_id={uuid4()}&organization_id={ORGANIZATION}")
    assert set(twice) == everybody


async def say(running: Running, like: SimulatedEvent, type_: str, data: dict[str, Any]) -> None:
    """Have Polar say something new."""
    at = running.clock.at
    body = json.dumps({"type": type_, "timestamp": iso(at), "api_version": "2026-10", "data": data}).encode()
    await running.receive([SimulatedEvent(str(uuid4()), type_, at, like.customer_id, like.external_id, body)])


# Orders of lists, and pages.


def sorted_as_polar(found: list[dict[str, Any]], sorting: list[str], key: Any) -> list[str]:
    """Nulls are the greatest; what is equal is in the order of ids, downward where the first criterion is."""
    documents = sorted(found, key=lambda one: one["id"], reverse=sorting[0].startswith("-"))
    for one in reversed(sorting):
        documents.sort(key=lambda document, one=one: ranked(key(document, one.lstrip("-"))),  # type: ignore[misc]
                       reverse=one.startswith("-"))  # fmt: skip
    return [one["id"] for one in documents]


def ranked(value: Any) -> tuple[bool, Any]:
    if isinstance(value, str) and value.endswith("Z"):
        value = datetime.fromisoformat(value).timestamp()
    return value is None, value if value is not None else 0


_SUBSCRIPTION_STATUS = ["trialing", "active", "past_due", "canceled", "unpaid", "paused"]
_ORDER_STATUS = ["draft", "pending", "paid", "refunded", "partially_refunded", "void"]


def value_of(document: dict[str, Any], name: str) -> Any:
    if name == "customer":
        return document["customer"]["email"]
    if name in {"product", "discount"}:
        return (document[name] or {}).get("name")
    if name == "status":
        order = _SUBSCRIPTION_STATUS if "started_at" in document else _ORDER_STATUS
        return order.index(document["status"])
    if name == "amount" and "net_amount" in document:
        return document["net_amount"]
    return document["subscription_id"] if name == "subscription" else document[name]


SORTS = {
    "/v1/customers/": ["created_at", "email", "name"],
    "/v1/subscriptions/": ["customer", "status", "started_at", "current_period_end", "ended_at", "ends_at", "amount",
                           "product", "discount"],
    "/v1/orders/": ["created_at", "status", "invoice_number", "amount", "net_amount", "customer", "product", "discount",
                    "subscription"],
    "/v1/benefit-grants/": ["created_at", "granted_at", "revoked_at"],
    "/v1/benefits/": ["created_at", "description", "type", "user_order"],
}  # fmt: skip


async def test_every_list_is_sorted_as_asked_and_its_pages_make_it_whole(running: Running) -> None:
    await live_all(running)
    for path, names in SORTS.items():
        everything = await items(running, path)
        usual = "-started_at" if path == "/v1/subscriptions/" else "-created_at"
        assert [one["id"] for one in everything] == sorted_as_polar(everything, [usual], _value)
        choices = [[name] for name in names] + [[f"-{name}"] for name in names]
        choices += [[names[-1], f"-{names[0]}"], [f"-{names[1]}", names[0], names[-1]]]
        for sorting in choices:
            query = "&".join(f"sorting={one}" for one in sorting)
            found = await items(running, f"{path}?{query}")
            expected = sorted_as_polar(everything, sorting, _value)
            assert [one["id"] for one in found] == expected, (path, sorting)
            assert await in_pages(running, f"{path}?{query}", 7) == expected, (path, sorting)


def _value(document: dict[str, Any], name: str) -> Any:
    return document["created_at"] if name == "user_order" else value_of(document, name)


async def in_pages(running: Running, path: str, limit: int) -> list[str]:
    found, number, last = [], 1, 1
    while number <= last:
        one = await page(running, f"{path}&limit={limit}&page={number}")
        found += [item["id"] for item in one["items"]]
        last = one["pagination"]["max_page"]
        number += 1
    assert one["pagination"]["total_count"] == len(found)
    return found


async def test_a_page_has_ten_unless_told_and_a_hundred_at_most_and_there_is_none_beyond_the_last(
    running: Running,
) -> None:
    await live_all(running)
    orders = "/v1/benefit-grants/"
    total = (await page(running, orders))["pagination"]["total_count"]
    assert len((await page(running, orders))["items"]) == 10
    assert (await page(running, f"{orders}?limit=1000"))["pagination"] == {
        "total_count": total, "max_page": -(-total // 100),
    }  # fmt: skip
    for path in LISTS:
        for number in (1000, 10**12, 10**30):
            beyond = await page(running, f"{path}?page={number}&limit={number}")
            assert beyond["items"] == []
            assert beyond["pagination"]["total_count"] > 0
    assert (await page(running, f"/v1/orders/?customer_id={uuid4()}"))["pagination"] == {
        "total_count": 0, "max_page": 0,
    }  # fmt: skip


# Subscriptions and orders.


async def test_subscriptions_are_filtered(running: Running) -> None:
    told = await live_all(running)
    everything = await items(running, "/v1/subscriptions/")
    by_story = {story: events[0] for story, events in told.items()}
    one = next(found for found in everything if found["customer_id"] == by_story["cancel"].customer_id)
    changed = one | {"metadata": {"a": "b"}, "discount_id": str(uuid4()), "customer_cancellation_reason": "unused",
                     "modified_at": iso(running.clock.at)}  # fmt: skip
    await say(running, by_story["cancel"], "subscription.updated", changed)

    async def stories(query: str) -> set[str]:
        payers = {found["customer_id"] for found in await items(running, f"/v1/subscriptions/?{query}")}
        return {story for story, event in by_story.items() if event.customer_id in payers}

    async def only_cancel(query: str) -> None:
        assert await stories(query) == {"cancel"}, query

    ended = {"cancel", "delete-customer"}
    assert await stories("status=canceled") == ended
    assert await stories("status=canceled&status=paused") == {*ended, "pause"}
    assert await stories("active=false") == {*ended, "pause", "past-due"}
    assert await stories("active=true") == {"subscription", "trial", "renewal", "cancel-scheduled", "recovery",
                                            "upgrade", "seats"}  # fmt: skip
    assert await stories(f"product_id={SECOND_PRODUCT}") == {"upgrade"}
    assert len(await stories(f"product_id={SECOND_PRODUCT}&product_id={PRODUCT}")) == len(everything)
    assert await stories("cancel_at_period_end=true") == {"cancel-scheduled", "cancel"}
    assert "pause" in await stories("cancel_at_period_end=false")
    await only_cancel(f"customer_id={one['customer_id']}&customer_id={uuid4()}")
    await only_cancel(f"external_customer_id={by_story['cancel'].external_id}&external_customer_id=x")
    await only_cancel(f"discount_id={changed['discount_id']}")
    await only_cancel("customer_cancellation_reason=unused&customer_cancellation_reason=other")
    await only_cancel("metadata[a]=b")
    canceled = quote(one["canceled_at"])
    await only_cancel(f"canceled_at_after={canceled}&canceled_at_before={canceled}")
    for written in ("2026-01-01", "2026-01-01T00:00:00", "2026-01-01T00:00:00Z", "0001-01-01T00:00:00Z"):
        assert await stories(f"canceled_at_after={written}") == {"cancel", "cancel-scheduled"}
        assert await stories(f"canceled_at_before={written}") == set()
    assert await stories(f"started_after={quote(one['started_at'])}&started_before={quote(one['started_at'])}") == {
        "cancel"
    }
    assert await stories(f"organization_id={uuid4()}") == set()
    assert len(await stories(f"organization_id={ORGANIZATION}")) == len(everything)
    for query in ("discount_id={0}", "customer_id={0}", "product_id={0}", "external_customer_id={0}"):
        assert await stories(query.format(uuid4())) == set()


async def test_a_subscription_that_has_not_started_is_not_shown(running: Running) -> None:
    events = running.story("subscription")
    await running.receive(events)
    [one] = await items(running, "/v1/subscriptions/")
    running.clock.move(seconds=1)
    waiting = one | {"status": "incomplete", "started_at": None, "modified_at": iso(running.clock.at)}
    await say(running, events[0], "subscription.updated", waiting)
    assert await items(running, "/v1/subscriptions/") == []
    assert (await running.get(f"/v1/subscriptions/{one['id']}")).status_code == 404


async def test_orders_are_filtered(running: Running) -> None:
    told = await live_all(running)
    payer = told["refund"][0]
    [one] = await items(running, f"/v1/orders/?customer_id={payer.customer_id}")
    once = {**one["product"], "is_recurring": False}
    changed = one | {"metadata": {"n": 7}, "discount_id": str(uuid4()), "checkout_id": str(uuid4()), "product": once,
                     "modified_at": iso(running.clock.at)}  # fmt: skip
    await say(running, payer, "order.updated", changed)
    everything = await items(running, "/v1/orders/")

    async def ids(query: str) -> list[str]:
        return [found["id"] for found in await items(running, f"/v1/orders/?{query}")]

    for query in ("status=refunded", "status=refunded&status=void", "metadata[n]=7", "product_billing_type=one_time",
                  f"discount_id={changed['discount_id']}", f"checkout_id={changed['checkout_id']}",
                  f"external_customer_id={payer.external_id}", f"customer_id={payer.customer_id}",
                  f"created_after={quote(one['created_at'])}&created_before={quote(one['created_at'])}"):  # fmt: skip
        assert await ids(query) == [one["id"]], query
    assert len(await ids("product_billing_type=recurring")) == len(everything) - 1
    assert len(await ids("product_billing_type=recurring&product_billing_type=one_time")) == len(everything)
    renewed = next(found for found in everything if found["customer_id"] == told["renewal"][0].customer_id)
    assert len(await ids(f"subscription_id={renewed['subscription_id']}")) == 2
    assert set(await ids("status=pending")) == {
        found["id"] for found in everything if found["customer_id"] == told["past-due"][0].customer_id
        and found["billing_reason"] == "subscription_cycle"
    }  # fmt: skip
    for name in ("discount_id", "checkout_id", "subscription_id", "product_id", "organization_id", "customer_id"):
        assert await ids(f"{name}={uuid4()}") == []


async def test_the_customer_inside_an_order_and_the_benefit_inside_a_grant_are_as_they_are_now(
    running: Running,
) -> None:
    events = running.story("purchase")
    await running.receive(events)
    known = json.loads(events[0].body)["data"] | {"name": "Another", "modified_at": iso(running.clock.at)}
    await say(running, events[0], "customer.updated", known)
    [grant] = await items(running, f"/v1/benefits/{POLAR_BENEFIT}/grants")
    benefit = grant["benefit"] | {"description": "Renamed", "modified_at": iso(running.clock.at)}
    await say(running, events[0], "benefit.updated", benefit)
    [order] = await items(running, "/v1/orders/")
    assert order["customer"]["name"] == "Another"
    assert (await page(running, f"/v1/orders/{order['id']}")) == order
    [grant] = await items(running, f"/v1/benefits/{POLAR_BENEFIT}/grants")
    assert (grant["customer"]["name"], grant["benefit"]["description"]) == ("Another", "Renamed")
    assert (await page(running, f"/v1/benefits/{POLAR_BENEFIT}"))["description"] == "Renamed"


# Benefits and grants.


async def test_our_benefits_are_among_polars(running: Running) -> None:
    await running.receive(running.story("subscription"))
    found = {one["id"]: one for one in await items(running, "/v1/benefits/")}
    assert set(found) == {POLAR_BENEFIT, *map(own_id, ("key", "files", "link", "better"))}
    assert found[own_id("key")]["properties"] == {
        "prefix": "ACME", "expires": None, "activations": {"limit": 3, "enable_customer_admin": False},
        "limit_usage": None,
    }  # fmt: skip
    for one, document in found.items():
        assert await page(running, f"/v1/benefits/{one}") == document

    async def keys(query: str) -> set[str]:
        return {found[one["id"]]["description"] for one in await items(running, f"/v1/benefits/?{query}")}

    assert await keys("type=license_keys") == {"key"}
    assert await keys("type=license_keys&type=custom") == {"key", "link", "better", "Access"}
    assert await keys("query=E") == {"key", "files", "better", "Access"}
    assert await keys(f"id={POLAR_BENEFIT}&id={own_id('link')}&id={uuid4()}") == {"Access", "link"}
    assert await keys(f"exclude_id={POLAR_BENEFIT}&exclude_id={own_id('link')}") == {"key", "files", "better"}
    assert await keys("metadata[almoner_benefit]=key&metadata[almoner_benefit]=x") == {"key"}
    assert await keys("metadata[almoner_benefit]=key&metadata[x]=y") == set()
    assert await keys(f"organization_id={uuid4()}") == set()
    assert len(await keys(f"organization_id={ORGANIZATION}")) == 5
    asked = [own_id("link"), POLAR_BENEFIT, own_id("key")]
    query = "&".join(f"id={one}" for one in asked)
    for sorting, expected in (("user_order", asked), ("-user_order", asked[::-1])):
        found_ids = [one["id"] for one in await items(running, f"/v1/benefits/?{query}&sorting={sorting}")]
        assert found_ids == expected


async def test_a_benefit_that_polar_has_deleted_is_not_shown(running: Running) -> None:
    events = running.story("subscription")
    await running.receive(events)
    gone = await page(running, f"/v1/benefits/{POLAR_BENEFIT}") | {
        "is_deleted": True, "modified_at": iso(running.clock.at),
    }  # fmt: skip
    await say(running, events[0], "benefit.updated", gone)
    assert POLAR_BENEFIT not in {one["id"] for one in await items(running, "/v1/benefits/")}
    for path in (f"/v1/benefits/{POLAR_BENEFIT}", f"/v1/benefits/{POLAR_BENEFIT}/grants"):
        assert (await running.get(path)).status_code == 404
    held = await items(running, "/v1/benefit-grants/")
    assert POLAR_BENEFIT in {one["benefit_id"] for one in held}


async def test_grants_are_filtered_both_polars_and_ours(running: Running) -> None:
    told = await live_all(running)
    team = [one["member_id"] for one in await items(running, f"/v1/benefits/{POLAR_BENEFIT}/grants")]
    everything = await items(running, "/v1/benefit-grants/")
    rows = await running.service.database.read(
        lambda connection: connection.execute(sa.select(grants.grants.c.id)).scalars().all()
    )
    assert set(rows) < {one["id"] for one in everything}

    async def found(path: str) -> list[dict[str, Any]]:
        return await items(running, f"/v1/{path}")

    for state in (True, False):
        flag = str(state).lower()
        expected = [one["id"] for one in everything if one["is_granted"] is state]
        assert [one["id"] for one in await found(f"benefit-grants/?is_granted={flag}")] == expected
    payer = told["subscription"][0]
    mine = [one["id"] for one in everything if one["customer_id"] == payer.customer_id]
    assert len(mine) == 4
    for query in (
        f"customer_id={payer.customer_id}&customer_id={uuid4()}",
        f"external_customer_id={payer.external_id}",
    ):
        assert [one["id"] for one in await found(f"benefit-grants/?{query}")] == mine
    assert await found(f"benefit-grants/?organization_id={uuid4()}") == []
    assert len(await found(f"benefit-grants/?organization_id={ORGANIZATION}")) == len(everything)
    [member] = {one for one in team if one} - {
        one["member_id"] for one in everything if one["customer_id"] != told["purchase"][0].customer_id
    }  # fmt: skip
    [grant] = await found(f"benefits/{POLAR_BENEFIT}/grants?member_id={member}")
    assert grant["customer_id"] == told["purchase"][0].customer_id
    seats = [one for one in everything if one["benefit_id"] == own_id("key") and one["member_id"]]
    assert len({one["member_id"] for one in seats}) == 2
    [one] = await found(f"benefits/{own_id('key')}/grants?member_id={seats[0]['member_id']}&is_granted=true")
    assert one["member"]["email"]
    assert await found(f"benefits/{own_id('key')}/grants?is_granted=true&customer_id={uuid4()}") == []


async def test_our_grants_say_what_was_given_for_what_and_to_whom(running: Running) -> None:
    events = running.story("subscription")
    await running.receive(events)
    [subscription] = await items(running, "/v1/subscriptions/")
    [key] = await items(running, f"/v1/benefits/{own_id('key')}/grants")
    assert (key["is_granted"], key["is_revoked"], key["error"]) == (True, False, None)
    assert (key["subscription_id"], key["order_id"]) == (subscription["id"], None)
    assert key["customer"] == await page(running, f"/v1/customers/{events[0].customer_id}")
    assert set(key["properties"]) == {"license_key_id", "display_key"}
    assert key["granted_at"]
    [files] = await items(running, f"/v1/benefits/{own_id('files')}/grants")
    assert files["properties"]["files"] == files["benefit"]["properties"]["files"]
    assert files["subscription_id"] == subscription["id"], "the reason, where it is given once for all purchases"


async def test_what_was_taken_back_is_shown_as_revoked(running: Running) -> None:
    events = running.story("refund")
    refunded = [event.type for event in events].index("refund.created")
    await running.receive(events[:refunded])
    await running.receive(events[refunded:])
    [order] = await items(running, "/v1/orders/")
    for grant in await items(running, "/v1/benefit-grants/"):
        assert (grant["is_granted"], grant["is_revoked"], grant["granted_at"]) == (False, True, None)
        assert grant["revoked_at"]
    [key] = await items(running, f"/v1/benefits/{own_id('key')}/grants")
    assert (key["subscription_id"], key["order_id"]) == (None, order["id"])
    assert key["properties"]["display_key"].startswith("****-")


async def test_what_is_left_of_a_benefit_that_is_in_the_file_no_more_is_shown_too(running: Running) -> None:
    await running.receive(running.story("subscription"))
    smaller = catalogue('[benefits.other]\nconnector = "custom_link"\nnote = "x"')
    await running.service.pipeline.propose(smaller, accept=True)
    await running.service.pipeline.drain()
    found = await items(running, "/v1/benefit-grants/")
    ours = [one for one in found if one["benefit_id"] != POLAR_BENEFIT]
    assert len(ours) == 3
    assert all(one["benefit"]["is_deleted"] and one["is_revoked"] for one in ours)
    for version in VERSIONS.values():
        read_by_sdk(version, "BenefitGrant", found)
    assert (await running.get(f"/v1/benefits/{own_id('key')}/grants")).status_code == 404
    assert {one["id"] for one in await items(running, "/v1/benefits/")} == {POLAR_BENEFIT, own_id("other")}


SINCE = Since(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC), ORGANIZATION)
EVERY_KIND = """
[benefits.key]
connector = "license_key"
expires = "36h"
limit_usage = 7
[benefits.repositories]
connector = "github_repository"
repositories = ["acme/pro", "acme/docs"]
permission = "our-own-role"
[benefits.roles]
connector = "discord_role"
guild = "197038439483310086"
roles = ["1100000000000000001", "1100000000000000002"]
on_revoke = "kick"
[benefits.files]
connector = "file_download"
folder = "x"
files = ["a.txt", "b/c.txt"]
[benefits.note]
connector = "custom_link"
note = "Hello"
[benefits.link]
connector = "custom_link"
url = "https://example.com/"
"""


def test_a_benefit_of_every_connector_is_read_by_polars_sdk() -> None:
    known: Catalogue = catalogue(EVERY_KIND)
    shown = {key: as_sent(benefit_shown(benefit, SINCE)) for key, benefit in known.benefits.items()}
    for version in VERSIONS.values():
        for one in shown.values():
            [read] = read_by_sdk(version, "Benefit", [one])
            assert (read.type, read.id) == (one["type"], one["id"])
            former = former_benefit("x", known.benefits[one["metadata"]["almoner_benefit"]].connector, SINCE)
            read_by_sdk(version, "Benefit", [as_sent(former)])
    properties = {key: one["properties"] for key, one in shown.items()}
    assert properties["key"]["expires"] == {"ttl": 2, "timeframe": "day"}
    assert properties["repositories"] == {"repository_owner": "acme", "repository_name": "pro", "permission": "pull"}
    assert properties["roles"] == {
        "guild_id": "197038439483310086", "role_id": "1100000000000000001", "kick_member": True, "guild_token": "",
    }  # fmt: skip
    assert len(set(properties["files"]["files"])) == 2
    assert (properties["note"], properties["link"]) == ({"note": "Hello"}, {"note": "https://example.com/"})


def as_sent(document: dict[str, Any]) -> dict[str, Any]:
    sent: dict[str, Any] = json.loads(msgspec.json.encode(document))
    return sent


RECEIPTS = [
    ("github_repository", "github_repository:acme/pro:42", {"repository": "Acme/Pro", "permission": "push"},
     {"account_id": "42", "granted_account_id": "42", "repository_owner": "Acme", "repository_name": "Pro",
      "permission": "push"}),
    ("github_repository", "github_repository:acme/pro:42", {},
     {"account_id": "42", "granted_account_id": "42", "repository_owner": "acme", "repository_name": "pro",
      "permission": "pull"}),
    ("discord_role", "discord_role:1:2:3", {},
     {"guild_id": "1", "account_id": "2", "granted_account_id": "2", "role_id": "3"}),
    ("custom_link", "custom_link:x:y::", {"note": "x"}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("connector", "resource", "data", "properties"), RECEIPTS)
def test_a_grant_of_every_connector_is_read_by_polars_sdk(
    connector: str, resource: str, data: dict[str, Any], properties: dict[str, str]
) -> None:
    benefit = former_benefit("x", connector, SINCE)
    receipt = msgspec.json.encode(Receipt(resource, data)).decode()
    given = grant_row(connector, receipt=receipt, granted_at=SINCE.last)
    shown = as_sent(grant_shown(given, People(), benefit))
    assert shown["properties"] == properties
    shown["customer"] = customer_shown(shown["customer"], ORGANIZATION)
    for version in VERSIONS.values():
        read_by_sdk(version, "BenefitGrant", [shown])
    taken = grant_row(connector, taken=receipt, status=GrantStatus.REVOKED, revoked_at=SINCE.last)
    assert "granted_account_id" not in grant_shown(taken, People(), benefit)["properties"]


def grant_row(connector: str, **fields: Any) -> dict[str, Any]:
    return {
        "id": str(uuid4()), "customer_id": str(uuid4()), "benefit": "x", "connector": connector, "member_id": None,
        "purchase": None, "status": GrantStatus.GRANTED, "because": "[]", "receipt": None, "taken": None,
        "who": None, "reason": None, "asked_at": SINCE.first, "created_at": SINCE.first, "granted_at": None,
        "revoked_at": None,
    } | fields  # fmt: skip


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (GrantStatus.ACTION_REQUIRED, "BenefitActionRequiredError"),
        (GrantStatus.PENDING, "BenefitActionRequiredError"),
        (GrantStatus.FAILED, "BenefitServiceError"), (GrantStatus.GRANTING, "BenefitRetriableError"),
        (GrantStatus.GRANTED, None),
    ],
)  # fmt: skip
def test_a_grant_that_is_held_up_says_why(status: GrantStatus, name: str | None) -> None:
    row = grant_row("custom_link", status=status, reason="link your account")
    shown = as_sent(grant_shown(row, People(), former_benefit("x", "custom_link", SINCE)))
    error = {"message": "link your account", "type": name, "timestamp": iso(SINCE.first).replace(".000000", "")}
    assert shown["error"] == (error if name else None)


# Versions.

_BY_SEATS = {
    "amount_type": "seat_based",
    "seat_tiers": {
        "seat_tier_type": "graduated", "minimum_seats": 2, "maximum_seats": None,
        "tiers": [{"min_seats": 2, "max_seats": 10, "price_per_seat": 900},
                  {"min_seats": 11, "max_seats": None, "price_per_seat": 700}],
    },
}  # fmt: skip
_BY_UNITS = {
    "amount_type": "seat_based", "minimum_units": 2, "maximum_units": None,
    "tiers": {"type": "graduated", "tiers": [{"bound": 10, "unit_amount": "900"},
                                             {"bound": None, "unit_amount": "700"}]},
}  # fmt: skip


@pytest.mark.parametrize("sent", [_BY_SEATS, _BY_UNITS])
async def test_the_price_of_seats_is_shown_as_the_version_has_it(on_sqlite: Running, sent: dict[str, Any]) -> None:
    events = on_sqlite.story("seats")
    await on_sqlite.receive(events)
    [one] = await items(on_sqlite, "/v1/subscriptions/")
    common = {"id": str(uuid4()), "created_at": iso(on_sqlite.clock.at), "modified_at": None, "source": "catalog",
              "price_currency": "usd", "tax_behavior": None, "is_archived": False, "product_id": PRODUCT}  # fmt: skip
    price = common | sent
    changed = one | {"prices": [price], "product": one["product"] | {"prices": [price]},
                     "modified_at": iso(on_sqlite.clock.at)}  # fmt: skip
    await say(on_sqlite, events[0], "subscription.updated", changed)
    for number, version in VERSIONS.items():
        [shown] = await items(on_sqlite, "/v1/subscriptions/", **{"polar-version": number})
        expected = common | (_BY_UNITS if number == "2027-01" else _BY_SEATS)
        assert shown["prices"] == shown["product"]["prices"] == [expected]
        [read] = read_by_sdk(version, "Subscription", [shown])
        assert type(read.prices[0]).__name__ == "ProductPriceSeatBased"


@pytest.mark.parametrize("prices", [None, 5, [None], [{"amount_type": "seat_based", "tiers": 5}],
                                    [{"amount_type": "seat_based"}]])  # fmt: skip
@pytest.mark.parametrize("version", VERSIONS)
def test_prices_of_no_known_form_are_shown_as_they_came(prices: Any, version: str) -> None:
    shown = subscription_shown({"prices": prices, "product": {"prices": prices}}, version)
    assert shown["prices"] == (prices if isinstance(prices, list) else [])


def test_fields_that_came_later_are_shown_as_null() -> None:
    assert subscription_shown({}, "2026-10")["units"] is None
    assert order_shown({"subscription": {"id": "x"}})["subscription"]["resumes_at"] is None
    assert order_shown({})["subscription"] is None
    person = customer_shown({"type": None, "email": None, "organization_id": None}, ORGANIZATION)
    assert person == {"type": "individual", "email": "", "organization_id": ORGANIZATION}
    assert customer_shown({"type": "team", "email": None}, ORGANIZATION)["email"] is None


# Refusals.


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/v1/customers/nope", ["path", "id"]), ("/v1/subscriptions/nope", ["path", "id"]),
        ("/v1/orders/%00", ["path", "id"]), ("/v1/benefits/1", ["path", "id"]),
        ("/v1/benefits/nope/grants", ["path", "id"]), ("/v1/customers/?sorting=id", ["query", "sorting"]),
        ("/v1/subscriptions/?sorting=created_at", ["query", "sorting"]),
        ("/v1/orders/?sorting=-", ["query", "sorting"]), ("/v1/benefits/?sorting=name", ["query", "sorting"]),
        ("/v1/benefit-grants/?sorting=created_at&sorting=x", ["query", "sorting"]),
        ("/v1/customers/?page=0", ["query", "page"]), ("/v1/orders/?page=x", ["query", "page"]),
        ("/v1/benefits/?limit=0", ["query", "limit"]), ("/v1/orders/?limit=-1", ["query", "limit"]),
        ("/v1/orders/?customer_id=x", ["query", "customer_id"]),
        (f"/v1/orders/?product_id={PRODUCT}&product_id=", ["query", "product_id"]),
        ("/v1/orders/?status=active", ["query", "status"]), ("/v1/subscriptions/?status=paid", ["query", "status"]),
        ("/v1/subscriptions/?active=perhaps", ["query", "active"]),
        ("/v1/subscriptions/?canceled_at_after=yesterday", ["query", "canceled_at_after"]),
        ("/v1/subscriptions/?started_before=", ["query", "started_before"]),
        ("/v1/orders/?created_after=0001-01-01T00:00:00%2B05:00", ["query", "created_after"]),
        ("/v1/benefits/?type=link", ["query", "type"]), ("/v1/benefits/?id=x", ["query", "id"]),
        ("/v1/benefit-grants/?is_granted=2", ["query", "is_granted"]),
    ],
)  # fmt: skip
async def test_what_is_malformed_is_422_and_says_where(on_sqlite: Running, path: str, place: list[str]) -> None:
    answer = await on_sqlite.get(path)
    document = answer.json()
    assert answer.status_code == 422
    assert document["error"] == "RequestValidationError"
    assert [one["loc"] for one in document["detail"]] == [place]
    assert {"loc", "msg", "type"} <= set(document["detail"][0])


@pytest.mark.parametrize("path", ["customers/{}", "customers/external/{}", "subscriptions/{}", "orders/{}",
                                  "benefits/{}", "benefits/{}/grants"])  # fmt: skip
async def test_what_is_unknown_is_404(on_sqlite: Running, path: str) -> None:
    answer = await on_sqlite.get(f"/v1/{path.format(uuid4())}")
    assert (answer.status_code, answer.json()["error"]) == (404, "ResourceNotFound")


@pytest.mark.parametrize("path", [*LISTS, "/v1/customers/x", "/v1/customers/external/x", "/v1/orders/x",
                                  "/v1/subscriptions/x", "/v1/benefits/x", "/v1/benefits/x/grants"])  # fmt: skip
async def test_without_a_token_nothing_is_told(on_sqlite: Running, path: str) -> None:
    answer = await on_sqlite.client.get(path)
    assert (answer.status_code, answer.json()["error"]) == (401, "Unauthorized")


async def test_before_any_event_the_lists_have_our_benefits_only(running: Running) -> None:
    for path in LISTS:
        assert len(await items(running, path)) == (4 if path == "/v1/benefits/" else 0)
    [one] = await items(running, f"/v1/benefits/?id={own_id('key')}")
    assert one["organization_id"] == ""


async def test_nul_in_a_question_is_only_a_character(running: Running) -> None:
    await running.receive(running.story("purchase"))
    for path in ("customers/?query=%00", "customers/?email=%00", "customers/?metadata[%00]=%00", "benefits/?query=%00",
                 "orders/?external_customer_id=%00", "benefit-grants/?external_customer_id=%00"):  # fmt: skip
        assert await items(running, f"/v1/{path}") == []
    assert (await running.get("/v1/customers/external/%00")).status_code == 404


@pytest.mark.parametrize("path", ["/v1/customers/", "/v1/customers/x", "/v1/customers/external/x",
                                  "/v1/customers/external/state"])  # fmt: skip
def test_the_short_way_leaves_these_alone(path: str) -> None:
    scope: Any = {"method": "GET", "query_string": b"", "path": path}
    assert _parts(scope) is None


async def test_the_routes_are_documented_under_names_of_their_own(on_sqlite: Running) -> None:
    document = (await on_sqlite.client.get("/schema/openapi.json")).json()
    named = [one["operationId"] for path in document["paths"].values() for one in path.values()]
    assert len(named) == len(set(named))
    for path in (*LISTS, "/v1/customers/{customer_id}", "/v1/benefits/{benefit_id}/grants"):
        found = document["paths"].get(path) or document["paths"][path.rstrip("/")]
        assert {"200", "401", "422", "503"} <= set(found["get"]["responses"])
