"""The customer portal: everybody sees what is theirs, and nothing else, in Polar's shapes."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest

from tests.conftest import ORGANIZATION, POLAR_BENEFIT, Running
from tests.worker.test_customer_sessions import NOBODY, about, bought, team, token_for
from worker.benefit_ids import own_id
from worker.http.portal_shapes import readable
from worker.simulate import SimulatedEvent

KEYS = "/v1/customer-portal/license-keys/"
FILES = "/v1/customer-portal/downloadables/"


async def listed(running: Running, path: str, token: str, **more: Any) -> list[dict[str, Any]]:
    answer = await running.get(path, token, **more)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert document["pagination"]["total_count"] >= len(document["items"])
    items: list[dict[str, Any]] = document["items"]
    return items


async def subscribed(running: Running, seed: int) -> tuple[SimulatedEvent, str]:
    event = await bought(running, seed)
    return event, await token_for(running, customer_id=event.customer_id)


async def test_customers_read_their_own_keys_whole(running: Running) -> None:
    (event, token), (_, other) = await subscribed(running, 1), await subscribed(running, 2)
    [key] = await listed(running, KEYS, token)
    assert key["key"].startswith("ACME-")
    assert (key["display_key"], key["status"]) == (f"****-{key['key'][-6:]}", "granted")
    assert (key["customer_id"], key["organization_id"]) == (event.customer_id, ORGANIZATION)
    assert (key["member_id"], key["member"]) == (None, None)
    alone = await running.get(f"{KEYS}{key['id']}", token)
    assert alone.json() == key | {"activations": []}
    assert (await running.get(f"{KEYS}{key['id']}", other)).status_code == 404
    assert (await running.get(f"{KEYS}{NOBODY}", token)).status_code == 404
    assert (await running.get(f"{KEYS}x", token)).status_code == 422


async def test_devices_that_use_a_key_are_not_shown(running: Running) -> None:
    _, token = await subscribed(running, 1)
    [key] = await listed(running, KEYS, token)
    body = {"key": key["key"], "organization_id": ORGANIZATION, "label": "laptop"}
    assert (await running.client.post(f"{KEYS}activate", json=body)).status_code == 200
    assert (await running.get(f"{KEYS}{key['id']}", token)).json()["activations"] == []


async def test_keys_are_found_by_their_benefits_own_id(running: Running) -> None:
    _, token = await subscribed(running, 1)
    assert len(await listed(running, f"{KEYS}?benefit_id={own_id('key')}", token)) == 1
    assert len(await listed(running, f"{KEYS}?benefit_id={NOBODY}&benefit_id={own_id('key')}", token)) == 1
    assert await listed(running, f"{KEYS}?benefit_id={own_id('files')}", token) == []
    assert (await running.get(f"{KEYS}?benefit_id=x", token)).status_code == 422


async def test_lists_have_pages(running: Running) -> None:
    _, token = await subscribed(running, 1)
    first, second, third = [await running.get(f"{FILES}?limit=1&page={page}", token) for page in (1, 2, 3)]
    assert [answer.json()["pagination"] for answer in (first, third)] == [{"total_count": 2, "max_page": 2}] * 2
    names = [item["file"]["name"] for answer in (first, second) for item in answer.json()["items"]]
    assert (names, third.json()["items"]) == (["manual.txt", "app.bin"], [])
    assert (await running.get(f"{FILES}?page=0", token)).status_code == 422


async def test_old_versions_have_no_members_in_keys(running: Running) -> None:
    _, token = await subscribed(running, 1)
    [key] = await listed(running, KEYS, token, **{"polar-version": "2026-04"})
    assert "member" not in key


async def test_files_have_links_that_give_them(running: Running) -> None:
    _, token = await subscribed(running, 1)
    manual, app = await listed(running, FILES, token)
    assert {UUID(manual["id"]), UUID(app["id"])} != {UUID(manual["file"]["id"]), UUID(app["file"]["id"])}
    assert manual["benefit_id"] == own_id("files")
    file = app["file"]
    assert (file["name"], file["path"], file["size"], file["size_readable"]) == (
        "app.bin",
        "sub/app.bin",
        1024,
        "1.0 KB",
    )
    assert (manual["file"]["mime_type"], file["mime_type"]) == ("text/plain", "application/octet-stream")
    assert (file["organization_id"], file["service"], file["is_uploaded"]) == (ORGANIZATION, "downloadable", True)
    assert (file["checksum_sha256_hex"], file["version"]) == (None, None)
    assert file["download"]["expires_at"] == "2026-11-01T13:00:00Z"
    link = urlsplit(file["download"]["url"])
    assert link.netloc == "sidecar.example.com"
    fetched = await running.client.get(link.path, headers=file["download"]["headers"])
    assert (fetched.status_code, fetched.content) == (200, bytes(range(256)) * 4)


async def test_files_go_when_what_gave_them_ends(running: Running) -> None:
    events = running.story("refund")
    refunded = next(number for number, event in enumerate(events) if event.type == "refund.created")
    await running.receive(events[:refunded])
    token = await token_for(running, customer_id=events[0].customer_id)
    manual, _ = await listed(running, FILES, token)
    await running.receive(events[refunded:])
    assert await listed(running, FILES, token) == []
    assert (await running.client.get(urlsplit(manual["file"]["download"]["url"]).path)).status_code == 403
    [key] = await listed(running, KEYS, token)
    assert key["status"] == "revoked"


async def test_files_are_found_by_their_benefit(running: Running) -> None:
    _, token = await subscribed(running, 1)
    assert len(await listed(running, f"{FILES}?benefit_id={own_id('files')}", token)) == 2
    assert await listed(running, f"{FILES}?benefit_id={NOBODY}", token) == []


async def test_each_member_of_a_team_sees_only_their_own(running: Running) -> None:
    told, [owner, *others] = await team(running)
    keys: list[str] = []
    for member in others[:2]:
        token = await token_for(running, customer_id=told.customer_id, member_id=member["id"])
        [key] = await listed(running, KEYS, token)
        assert (key["member_id"], key["member"]["email"]) == (member["id"], member["email"])
        assert len(await listed(running, FILES, token)) == 2
        keys.append(key["id"])
    assert len(set(keys)) == 2
    assert (await running.get(f"{KEYS}{keys[0]}", token)).status_code == 404
    buyer = await token_for(running, customer_id=told.customer_id, member_id=owner["id"])
    assert await listed(running, KEYS, buyer) == []
    assert await listed(running, FILES, buyer) == []


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KB"), (5 << 20, "5.0 MB"), (3 << 50, "3072.0 TB")]
)
def test_sizes_are_written_for_people(size: int, words: str) -> None:
    assert readable(size) == words


GRANTS = "/v1/customer-portal/benefit-grants/"


async def test_grants_of_polars_and_ours_are_in_one_list(running: Running) -> None:
    event, token = await subscribed(running, 1)
    items = await listed(running, GRANTS, token)
    by_type = {item["benefit"]["type"]: item for item in items if item["benefit_id"] != POLAR_BENEFIT}
    assert {kind: item["benefit_id"] for kind, item in by_type.items()} == {
        "license_keys": own_id("key"), "downloadables": own_id("files"), "custom": own_id("link"),
    }  # fmt: skip
    [polars] = [item for item in items if item["benefit_id"] == POLAR_BENEFIT]
    for item in items:
        assert (item["is_granted"], item["is_revoked"], item["error"]) == (True, False, None)
        assert (item["customer_id"], item["customer"]["id"]) == (event.customer_id, event.customer_id)
        assert item["customer"]["oauth_accounts"] == {}
        assert not {"metadata", "external_id", "organization_id"} & set(item["customer"])
        organization = item["benefit"]["organization"]
        assert (organization["id"], item["benefit"]["organization_id"]) == (ORGANIZATION, ORGANIZATION)
        assert (organization["proration_behavior"], organization["allow_customer_updates"]) == ("prorate", False)
        assert not {"metadata", "visibility"} & set(item["benefit"])
    assert set(polars["order_id"]) == set(by_type["custom"]["order_id"])
    [key] = await listed(running, KEYS, token)
    assert by_type["license_keys"]["properties"] == {"license_key_id": key["id"], "display_key": key["display_key"]}
    assert by_type["license_keys"]["benefit"]["properties"]["prefix"] == "ACME"
    files = {item["file"]["id"] for item in await listed(running, FILES, token)}
    assert set(by_type["downloadables"]["properties"]["files"]) == files
    assert set(by_type["downloadables"]["benefit"]["properties"]["active_files"]) == files


async def test_a_link_is_shown_as_its_customer_gets_it(running: Running) -> None:
    event, token = await subscribed(running, 1)
    [item] = await listed(running, f"{GRANTS}?benefit_id={own_id('link')}", token)
    note = item["benefit"]["properties"]["note"]
    assert note.startswith(f"https://example.com/join?who={event.external_id}&almoner_expires=")


async def test_grants_are_found_by_every_filter_of_polars(running: Running) -> None:
    event, token = await subscribed(running, 1)
    order = next(one for one in running.story("purchase", 1) if one.type == "order.paid")
    bought_as = json.loads(order.body)["data"] | {"checkout_id": "5b1f0a3c-0000-4000-8000-000000000001"}
    running.clock.move(seconds=1)
    await running.receive([about(running, event, "order.updated", bought_as)])

    async def found(query: str) -> set[str]:
        return {item["benefit_id"] for item in await listed(running, f"{GRANTS}?limit=100&{query}", token)}

    everything = await found("")
    assert len(everything) == 4
    assert await found("type=license_keys") == {own_id("key")}
    assert await found("type=license_keys&type=downloadables") == {own_id("key"), own_id("files")}
    assert await found(f"benefit_id={own_id('key')}&benefit_id={NOBODY}") == {own_id("key")}
    assert await found(f"benefit_id={POLAR_BENEFIT}") == {POLAR_BENEFIT, own_id("link")}
    assert await found("query=KEY") == {own_id("key")}
    assert await found(f"order_id={bought_as['id']}") == everything
    assert await found(f"checkout_id={bought_as['checkout_id']}") == everything
    for name in ("order_id", "subscription_id", "checkout_id", "member_id", "benefit_id"):
        assert await found(f"{name}={NOBODY}") == set(), name
    assert (await running.get(f"{GRANTS}?type=car", token)).status_code == 422


async def test_grants_are_sorted_as_asked(running: Running) -> None:
    _, token = await subscribed(running, 1)
    for sorting in ("type", "-type"):
        kinds = [item["benefit"]["type"] for item in await listed(running, f"{GRANTS}?sorting={sorting}", token)]
        assert kinds == sorted(kinds, reverse=sorting == "-type")
    times = [
        item["granted_at"]
        for item in await listed(running, f"{GRANTS}?sorting=-granted_at&sorting=organization", token)
    ]
    assert times == sorted(times, reverse=True)
    one, two = [(await running.get(f"{GRANTS}?limit=2&page={page}", token)).json()["items"] for page in (1, 2)]
    assert len({item["id"] for item in (*one, *two)}) == 4


async def test_what_was_taken_back_is_not_in_the_list(running: Running) -> None:
    events = running.story("refund")
    refunded = next(number for number, event in enumerate(events) if event.type == "refund.created")
    await running.receive(events[:refunded])
    token = await token_for(running, customer_id=events[0].customer_id)
    assert len(await listed(running, GRANTS, token)) == 4
    await running.receive(events[refunded:])
    assert await listed(running, GRANTS, token) == []


async def test_a_member_sees_their_own_grants(running: Running) -> None:
    told, [owner, member, *_] = await team(running)
    for person, count in ((member, 4), (owner, 0)):
        token = await token_for(running, customer_id=told.customer_id, member_id=person["id"])
        items = await listed(running, GRANTS, token)
        assert [item["member_id"] for item in items] == [person["id"]] * count


async def test_what_only_the_merchant_can_mend_is_not_told_in_their_words(running: Running, files: Path) -> None:
    (files / "manual.txt").unlink()
    _, token = await subscribed(running, 1)
    [item] = await listed(running, f"{GRANTS}?benefit_id={own_id('files')}", token)
    assert item["is_granted"] is False
    assert item["error"]["type"] == "BenefitActionRequiredError"
    assert str(files) not in json.dumps(item)
    assert "looking into it" in item["error"]["message"]


async def test_accounts_that_are_known_are_told(running: Running) -> None:
    event, token = await subscribed(running, 1)
    account = f"/v1/customers/{event.customer_id}/accounts/github"
    headers = {"authorization": "Bearer app-token-1"}
    assert (await running.client.put(account, json={"id": "583231"}, headers=headers)).status_code == 200
    items = await listed(running, GRANTS, token)
    assert items[0]["customer"]["oauth_accounts"] == {
        "github:583231": {"account_id": "583231", "account_username": None}
    }
