"""Sessions of customers: who may open one and for whom, what the token opens, and when it ends."""

import json
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.conftest import ORGANIZATION, Running, settings_for
from tests.worker.test_page import visit
from worker.http.portal_session import PortalTokens
from worker.simulate import SimulatedEvent

OPEN = "/v1/customer-sessions/"
INTROSPECT = "/v1/customer-portal/customer-session/introspect"
USER = "/v1/customer-portal/customer-session/user"
NOBODY = "00000000-0000-4000-8000-000000000000"


async def open_session(running: Running, token: str = "app-token-1", **body: Any) -> httpx.Response:
    return await running.client.post(OPEN, json=body, headers={"authorization": f"Bearer {token}"})


async def token_for(running: Running, **body: Any) -> str:
    answer = await open_session(running, **body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["token"])


def about(running: Running, event: SimulatedEvent, type_: str, data: dict[str, Any]) -> SimulatedEvent:
    """A later event about the same customer."""
    at = running.clock.at.isoformat()
    body = json.dumps({"type": type_, "timestamp": at, "api_version": "2026-10", "data": data | {"modified_at": at}})
    name = f"{type_}-{data['id']}"
    return SimulatedEvent(name, type_, running.clock.at, event.customer_id, event.external_id, body.encode())


async def team(running: Running) -> tuple[SimulatedEvent, list[dict[str, Any]]]:
    """Play a team; returns its first event, and its members with ids of the app's: the owner, then who took seats."""
    events = running.story("seats")
    told = [json.loads(event.body)["data"] for event in events if event.type == "member.created"]
    told.sort(key=lambda member: str(member["role"]) != "owner")
    members = [member | {"external_id": f"own-{number}"} for number, member in enumerate(told)]
    running.clock.move(seconds=1)
    await running.receive([*events, *(about(running, events[0], "member.updated", member) for member in members)])
    return events[0], members


async def bought(running: Running, seed: int = 1) -> SimulatedEvent:
    events = running.story("purchase", seed)
    await running.receive(events)
    return events[0]


async def test_an_app_opens_a_session_by_either_id_and_it_has_every_field_of_polars(running: Running) -> None:
    event = await bought(running)
    back = "https://app.example.com/account?tab=keys"
    for body in ({"customer_id": event.customer_id}, {"external_customer_id": event.external_id}):
        answer = await open_session(running, **body, return_url=back)
        assert answer.status_code == 201, answer.text
        assert answer.headers["cache-control"] == "no-store"
        session = answer.json()
        assert session["token"].startswith("almoner_cst_")
        assert (session["created_at"], session["modified_at"]) == ("2026-11-01T12:00:00Z", None)
        assert (session["expires_at"], session["return_url"]) == ("2026-11-01T13:00:00Z", back)
        assert session["customer_id"] == session["customer"]["id"] == event.customer_id
        assert session["customer"]["external_id"] == event.external_id
        assert session["customer"]["organization_id"] == ORGANIZATION
        told = await running.get(INTROSPECT, session["token"])
        assert told.json() == {"expires_at": session["expires_at"], "return_url": back}


async def test_the_portals_address_opens_our_own_page(running: Running) -> None:
    event = await bought(running)
    session = (await open_session(running, customer_id=event.customer_id)).json()
    address = urlsplit(session["customer_portal_url"])
    assert f"{address.scheme}://{address.netloc}" == "https://sidecar.example.com"
    entered = await running.client.get(address.path)
    assert entered.status_code == 303
    assert (await visit(running, event.customer_id)).page


async def test_a_members_session_says_who_they_are_and_a_team_has_no_other(running: Running) -> None:
    told, [owner, member, *_] = await team(running)
    customer_id = told.customer_id
    alone = await open_session(running, customer_id=customer_id)
    [problem] = alone.json()["detail"]
    assert (alone.status_code, problem["loc"]) == (422, ["body", "member_id"])
    by_id = await token_for(running, customer_id=customer_id, member_id=member["id"])
    by_name = await token_for(running, customer_id=customer_id, external_member_id=member["external_id"])
    for token in (by_id, by_name):
        assert token.startswith("almoner_mst_")
        user = (await running.get(USER, token)).json()
        assert user["type"] == "member"
        assert (user["member_id"], user["role"], user["email"]) == (member["id"], "member", member["email"])
    owned = await token_for(running, customer_id=customer_id, member_id=owner["id"])
    assert (await running.get(USER, owned)).json()["role"] == "owner"


async def test_a_customer_in_person_is_told_apart_from_a_member(running: Running) -> None:
    event = await bought(running)
    token = await token_for(running, external_customer_id=event.external_id)
    user = (await running.get(USER, token)).json()
    assert (user["type"], user["member_id"], user["role"]) == ("customer", None, None)
    assert (user["customer_id"], "@" in user["email"]) == (event.customer_id, True)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "customer_id"),
        ({"customer_id": NOBODY}, "customer_id"),
        ({"external_customer_id": "nobody"}, "external_customer_id"),
        ({"external_customer_id": ""}, "external_customer_id"),
        ({"external_customer_id": "KNOWN", "member_id": NOBODY}, "member_id"),
        ({"external_customer_id": "KNOWN", "external_member_id": "nobody"}, "external_member_id"),
        ({"external_customer_id": "KNOWN", "return_url": "javascript:alert(1)"}, "return_url"),
        ({"external_customer_id": "KNOWN", "return_url": "https://["}, "return_url"),
    ],
)
async def test_whoever_is_unknown_is_answered_422_as_at_polar(
    running: Running, body: dict[str, Any], field: str
) -> None:
    known = await bought(running)
    asked = {name: known.external_id if value == "KNOWN" else value for name, value in body.items()}
    answer = await open_session(running, **asked)
    assert (answer.status_code, answer.json()["error"]) == (422, "RequestValidationError")
    [problem] = answer.json()["detail"]
    assert problem["loc"] == ["body", field]
    assert problem["msg"]


@pytest.mark.parametrize("body", [{"customer_id": 7}, {"customer_id": "x"}, {"external_customer_id": "a\x00b"}, []])
async def test_a_malformed_body_is_answered_422(on_sqlite: Running, body: Any) -> None:
    answer = await on_sqlite.client.post(OPEN, json=body, headers={"authorization": "Bearer app-token-1"})
    assert answer.status_code == 422
    assert isinstance(answer.json()["detail"], list)


async def test_only_apps_open_sessions_and_a_sessions_token_opens_nothing_else(on_sqlite: Running) -> None:
    event = await bought(on_sqlite)
    token = await token_for(on_sqlite, customer_id=event.customer_id)
    assert (await open_session(on_sqlite, "wrong", customer_id=event.customer_id)).status_code == 401
    assert (await open_session(on_sqlite, token, customer_id=event.customer_id)).status_code == 401
    for path in (f"/v1/customers/{event.customer_id}/state", "/v1/license-keys/", "/v1/webhooks/deliveries"):
        assert (await on_sqlite.get(path, token)).status_code == 401, path


@pytest.mark.parametrize("token", ["app-token-1", "portal-token-1", "ops-token-1", "", "almoner_cst_", "almoner_cst_x"])
async def test_the_portal_takes_no_other_token(on_sqlite: Running, token: str) -> None:
    answer = await on_sqlite.get(INTROSPECT, token)
    assert (answer.status_code, answer.json()["error"]) == (401, "Unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert (await on_sqlite.client.get(INTROSPECT)).status_code == 401


async def test_a_token_that_was_changed_or_signed_for_another_purpose_is_none(on_sqlite: Running) -> None:
    event = await bought(on_sqlite)
    token = await token_for(on_sqlite, customer_id=event.customer_id)
    download = on_sqlite.context.tokens.make("grant", "file", on_sqlite.clock.at)
    page = (await open_session(on_sqlite, customer_id=event.customer_id)).json()["customer_portal_url"].split("/")[-1]
    changed = (token[:-1], token.replace("_cst_", "_mst_"), f"almoner_cst_{download}", f"almoner_cst_{page}")
    for one in (*changed, token.removeprefix("almoner_cst_"), f"{token} x"):
        assert (await on_sqlite.get(INTROSPECT, one)).status_code == 401, one
    assert (await on_sqlite.client.get(INTROSPECT, headers={"authorization": f"Basic {token}"})).status_code == 401


async def test_a_session_ends_at_its_time(running: Running) -> None:
    event = await bought(running)
    token = await token_for(running, customer_id=event.customer_id)
    running.clock.move(seconds=3599)
    assert (await running.get(INTROSPECT, token)).status_code == 200
    running.clock.move(seconds=1)
    assert (await running.get(INTROSPECT, token)).status_code == 401


async def test_a_session_ends_with_its_customer(running: Running) -> None:
    events = running.story("delete-customer")
    before = [event for event in events if not event.type.endswith("deleted")]
    gone = [event for event in events if event.type == "customer.deleted"]
    await running.receive([event for event in before if event.timestamp < gone[0].timestamp])
    token = await token_for(running, customer_id=events[0].customer_id)
    assert (await running.get(INTROSPECT, token)).status_code == 200
    await running.receive(gone)
    assert (await running.get(INTROSPECT, token)).status_code == 401
    assert (await open_session(running, customer_id=events[0].customer_id)).status_code == 422


async def test_a_session_ends_with_its_member(running: Running) -> None:
    told, [_, member, other, *_] = await team(running)
    tokens = [await token_for(running, customer_id=told.customer_id, member_id=one["id"]) for one in (member, other)]
    assert [(await running.get(INTROSPECT, token)).status_code for token in tokens] == [200, 200]
    running.clock.move(seconds=1)
    left = about(running, told, "member.deleted", member)
    await running.receive([left])
    assert [(await running.get(INTROSPECT, token)).status_code for token in tokens] == [401, 200]


async def test_every_signing_key_verifies_and_the_first_signs(on_sqlite: Running) -> None:
    event = await bought(on_sqlite)
    old = PortalTokens(on_sqlite.context.settings)
    settings = on_sqlite.context.settings
    turned = PortalTokens(settings_for(settings.database_url, settings.data_dir, signing_keys="new-key,signing-key-1"))
    ended = PortalTokens(settings_for(settings.database_url, settings.data_dir, signing_keys="new-key"))
    now = on_sqlite.clock.at
    before, after = (tokens.open(event.customer_id, None, None, now)[1] for tokens in (old, turned))
    assert turned.read(before, now)
    assert turned.read(after, now)
    assert (ended.read(before, now), bool(ended.read(after, now))) == (None, True)


async def test_no_token_is_logged(on_sqlite: Running, caplog: pytest.LogCaptureFixture) -> None:
    event = await bought(on_sqlite)
    token = await token_for(on_sqlite, customer_id=event.customer_id)
    await on_sqlite.get(INTROSPECT, token)
    await on_sqlite.get(INTROSPECT, f"{token}x")
    assert token.removeprefix("almoner_cst_") not in caplog.text
