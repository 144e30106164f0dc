"""What an app does for accounts: links to the customers' page, and who customers are at GitHub and Discord."""

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from connectors.base import Account
from tests.conftest import Running
from tests.worker.test_customers_api import with_external_id
from worker.simulate import SimulatedEvent

TOKEN = {"authorization": "Bearer app-token-1"}


async def ask(running: Running, method: str, path: str, **more: Any) -> httpx.Response:
    return await running.client.request(method, f"/v1/customers/{path}", headers=TOKEN, **more)


def members_of(events: Sequence[SimulatedEvent]) -> list[dict[str, Any]]:
    return [json.loads(event.body)["data"] for event in events if event.type == "member.created"]


async def test_a_link_opens_the_page_by_either_id_until_it_ends(running: Running) -> None:
    events = running.story("purchase")
    await running.receive(events)
    for name in (events[0].customer_id, f"external/{events[0].external_id}"):
        made = await ask(running, "POST", f"{name}/page-link")
        assert made.status_code == 201
        assert made.json()["url"].startswith("https://sidecar.example.com/me/enter/")
        assert made.json()["expires_at"] == "2026-11-01T12:15:00Z"
        path = made.json()["url"].removeprefix("https://sidecar.example.com")
        assert (await running.client.get(path)).status_code == 303


@pytest.mark.parametrize("external_id", ["a/b", "a%2Fb", "über/straße", "page-link", "日本語"])
async def test_a_customer_is_found_by_any_external_id(on_sqlite: Running, external_id: str) -> None:
    await on_sqlite.receive(with_external_id(on_sqlite.story("purchase"), external_id))
    name = f"external/{quote(external_id, safe='')}"
    assert (await ask(on_sqlite, "POST", f"{name}/page-link")).status_code == 201
    put = await ask(on_sqlite, "PUT", f"{name}/accounts/github", json={"login": "octocat"})
    assert put.status_code == 200
    assert (await ask(on_sqlite, "GET", f"{name}/accounts")).json()["accounts"] == put.json()["accounts"]
    assert (await ask(on_sqlite, "DELETE", f"{name}/accounts/github")).status_code == 204


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "page-link"), ("GET", "accounts"), ("PUT", "accounts/github"), ("DELETE", "accounts/github")],
)
async def test_who_is_not_known_is_404_and_without_a_token_nothing_is_told(
    on_sqlite: Running, method: str, path: str
) -> None:
    events = on_sqlite.story("purchase")
    await on_sqlite.receive(events)
    gone = on_sqlite.story("delete-customer", seed=2)
    await on_sqlite.receive(gone)
    body: dict[str, Any] = {"json": {"id": "1"}} if method == "PUT" else {}
    for name in ("nobody", "external/nobody", gone[0].customer_id):
        answer = await ask(on_sqlite, method, f"{name}/{path}", **body)
        assert (answer.status_code, answer.json()["error"]) == (404, "ResourceNotFound")
        assert "No such customer" in answer.json()["detail"]
    for query in ("member_id=nobody", "external_member_id=nobody", "member_id="):
        answer = await ask(on_sqlite, method, f"{events[0].customer_id}/{path}?{query}", **body)
        assert (answer.status_code, answer.json()["error"]) == (404, "ResourceNotFound")
        assert "no such member" in answer.json()["detail"]
    refused = await on_sqlite.client.request(method, f"/v1/customers/{events[0].customer_id}/{path}", **body)
    assert refused.status_code == 401


async def test_what_the_app_sets_is_listed_replaced_and_forgotten(running: Running) -> None:
    events = running.story("purchase")
    await running.receive(events)
    name = f"external/{events[0].external_id}"
    empty = await ask(running, "GET", f"{name}/accounts")
    assert empty.json() == {"customer_id": events[0].customer_id, "member_id": None, "accounts": []}

    by_login = await ask(running, "PUT", f"{name}/accounts/github", json={"login": "octocat"})
    assert by_login.json()["accounts"] == [
        {"platform": "github", "account_id": None, "name": "octocat", "source": "set"}
    ]
    await ask(running, "PUT", f"{name}/accounts/github", json={"id": "583231"})
    await ask(running, "PUT", f"{events[0].customer_id}/accounts/discord", json={"id": "80351110224678912"})
    listed = (await ask(running, "GET", f"{events[0].customer_id}/accounts")).json()["accounts"]
    assert {(one["platform"], one["account_id"], one["source"]) for one in listed} == {
        ("github", "583231", "set"), ("discord", "80351110224678912", "set"),
    }  # fmt: skip

    gone = await ask(running, "DELETE", f"{name}/accounts/github")
    assert (gone.status_code, gone.content) == (204, b"")
    again = await ask(running, "DELETE", f"{events[0].customer_id}/accounts/github")
    assert again.status_code == 404
    assert "No app has set a GitHub account" in again.json()["detail"]
    left = (await ask(running, "GET", f"{name}/accounts")).json()["accounts"]
    assert [one["platform"] for one in left] == ["discord"]


async def test_what_the_customer_has_linked_comes_first_and_no_app_takes_it_away(running: Running) -> None:
    events = running.story("purchase")
    await running.receive(events)
    customer = events[0].customer_id
    await ask(running, "PUT", f"{customer}/accounts/github", json={"id": "1"})
    linked = Account("583231", "octocat")
    await running.context.accounts.link(customer, None, "github", linked, source="linked")
    listed = (await ask(running, "GET", f"{customer}/accounts")).json()["accounts"]
    assert [(one["account_id"], one["source"]) for one in listed] == [("583231", "linked"), ("1", "set")]
    assert (await ask(running, "DELETE", f"{customer}/accounts/github")).status_code == 204
    assert (await ask(running, "DELETE", f"{customer}/accounts/github")).status_code == 404
    listed = (await ask(running, "GET", f"{customer}/accounts")).json()["accounts"]
    assert [one["source"] for one in listed] == ["linked"]


async def test_a_member_has_accounts_and_a_page_of_their_own(running: Running) -> None:
    events = running.story("seats")
    await running.receive(events)
    customer = events[0].customer_id
    owner, *others = members_of(events)
    assert owner["role"] == "owner"
    member = others[0]
    await ask(running, "PUT", f"{customer}/accounts/github?member_id={member['id']}", json={"id": "2"})
    await ask(running, "PUT", f"{customer}/accounts/github?member_id={owner['id']}", json={"id": "1"})
    theirs = (await ask(running, "GET", f"{customer}/accounts?member_id={member['id']}")).json()
    assert theirs["member_id"] == member["id"]
    assert [one["account_id"] for one in theirs["accounts"]] == ["2"]
    in_person = (await ask(running, "GET", f"{customer}/accounts")).json()
    assert [one["account_id"] for one in in_person["accounts"]] == ["1"]
    assert (await ask(running, "POST", f"{customer}/page-link?member_id={member['id']}")).status_code == 201
    if member["external_id"]:
        named = await ask(running, "POST", f"{customer}/page-link?external_member_id={quote(member['external_id'])}")
        assert named.status_code == 201


@pytest.mark.parametrize(
    ("platform", "body", "sentence"),
    [("github", {}, "exactly one of"), ("github", {"id": "1", "login": "octocat"}, "exactly one of"),
     ("github", {"id": "octocat"}, "a name is a `login`"), ("discord", {"id": ""}, "in digits"),
     ("discord", {"id": "١٢٣"}, "in digits"), ("github", {"login": "@octocat"}, "without @"),
     ("github", {"login": "https://github.com/octocat"}, "without @"), ("github", {"login": ""}, "letters"),
     ("discord", {"login": "Mia Lee"}, "small letters"), ("github", {"login": "octo\ncat"}, "letters")],
)  # fmt: skip
async def test_an_account_that_there_cannot_be_is_422_in_a_sentence(
    on_sqlite: Running, platform: str, body: dict[str, str], sentence: str
) -> None:
    customer = await on_sqlite.live("purchase")
    answer = await ask(on_sqlite, "PUT", f"external/{customer}/accounts/{platform}", json=body)
    assert (answer.status_code, answer.json()["error"]) == (422, "RequestValidationError")
    assert sentence in answer.json()["detail"]
    assert (await ask(on_sqlite, "GET", f"external/{customer}/accounts")).json()["accounts"] == []


@pytest.mark.parametrize("body", ['{"id": 583231}', '{"name": "octocat"}', "[]", '{"id": null, "logn": "x"}'])
async def test_a_body_of_another_form_is_422(on_sqlite: Running, body: str) -> None:
    customer = await on_sqlite.live("purchase")
    path = f"/v1/customers/external/{customer}/accounts/github"
    headers = TOKEN | {"content-type": "application/json"}
    answer = await on_sqlite.client.put(path, content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (422, "RequestValidationError")


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_a_platform_that_there_is_not_is_404(on_sqlite: Running, method: str) -> None:
    customer = await on_sqlite.live("purchase")
    body: dict[str, Any] = {"json": {"id": "1"}} if method == "PUT" else {}
    answer = await ask(on_sqlite, method, f"external/{customer}/accounts/myspace", **body)
    assert answer.status_code == 404
    assert "there are: github, discord" in answer.json()["detail"]


async def test_the_api_says_what_it_answers_and_nothing_of_the_page(on_sqlite: Running) -> None:
    paths = (await on_sqlite.client.get("/schema/openapi.json")).json()["paths"]
    for customer in ("{customer_id}", "external/{external_id}"):
        assert set(paths[f"/v1/customers/{customer}/page-link"]["post"]["responses"]) >= {"201", "401", "404"}
        account = paths[f"/v1/customers/{customer}/accounts/{{platform}}"]
        assert set(account["put"]["responses"]) >= {"200", "401", "404", "422"}
        assert set(account["delete"]["responses"]) >= {"204", "401", "404"}
        assert set(paths[f"/v1/customers/{customer}/accounts"]["get"]["responses"]) >= {"200", "401", "404"}
    assert not [path for path in paths if path == "/me" or path.startswith("/me/")]
