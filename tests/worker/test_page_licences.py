"""License keys on the customers' page: offline licences as files, and keys that are shown once."""

import re
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from config.catalogue import Catalogue, parse_catalogue
from connectors import TERMS
from tests.conftest import PRODUCT, Clock, Running, run_service
from tests.worker.test_offline import activate, listed, sql, verifier
from tests.worker.test_page import Visit, visit
from tests.worker.test_page_in_browser import DESKTOP, HARD_TO_READ, PHONE, SMALL, Window, chromium, served

__all__ = ["chromium"]  # a fixture

SOLD = f"""
[benefits.pro]
connector = "license_key"
description = "Acme Pro"
for = {{ products = ["{PRODUCT}"] }}
prefix = "ACME"
limit_activations = 3
offline = "30d"

[benefits.once]
connector = "license_key"
description = "Acme Safe"
for = {{ products = ["{PRODUCT}"] }}
storage = "hash"
offline = "30d"

[benefits.plain]
connector = "license_key"
description = "Acme Plain"
for = {{ products = ["{PRODUCT}"] }}
"""
KEY = r"[0-9A-F]{8}(?:-[0-9A-F]{4}){3}-[0-9A-F]{12}"


@pytest.fixture
def catalogue() -> Catalogue:
    return parse_catalogue(SOLD, TERMS, timedelta())


async def bought(running: Running, scenario: str = "purchase", seed: int = 1) -> tuple[str, dict[str, str]]:
    """A customer who has bought one of each: their id, and the ids of their keys by benefit."""
    events = running.story(scenario, seed)
    await running.receive(events)
    external_id = events[0].external_id
    ids = {name: (await running.answer(external_id, name))["gives"]["license_key_id"] for name in SOLD_NAMES}
    return events[0].customer_id, ids


SOLD_NAMES = ("pro", "once", "plain")


def licence_forms(page: str) -> list[str]:
    return re.findall(r'action="/me/licences/([^"]+)"', page)


async def download(visited: Visit, key_id: str, **fields: str) -> httpx.Response:
    proof = re.search(r'name="proof" value="([^"]+)"', visited.page)
    assert proof
    return await visited.ask("POST", f"/me/licences/{key_id}", data={"proof": proof[1], **fields})


# Offline licences.


async def test_a_customer_downloads_a_licence_that_verifies(running: Running) -> None:
    customer, ids = await bought(running)
    visited = await visit(running, customer)
    assert licence_forms(visited.page) == [ids["once"]]  # the other has no device yet, and the third no terms
    assert "Activate it on a device" in visited.page
    answer = await download(visited, ids["once"])
    assert answer.status_code == 200
    assert re.fullmatch(r'attachment; filename="[0-9A-F]{6}\.license"', answer.headers["content-disposition"])
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    said = verifier.verify(answer.text, await listed(running), running.clock.at)
    assert (said["license_key_id"], said["activation_id"]) == (ids["once"], None)


async def test_where_devices_are_limited_one_is_chosen_by_its_label(running: Running) -> None:
    customer, ids = await bought(running)
    device_id = await activate(running, ids["pro"], fingerprint="abc")
    await activate(running, ids["plain"])
    visited = await visit(running, customer)
    assert re.findall(r'<option value="([^"]+)">([^<]+)</option>', visited.page) == [
        (device_id, "Laptop · since 1 November 2026"),
    ]  # fmt: skip
    answer = await download(visited, ids["pro"], activation=device_id)
    said = verifier.verify(answer.text, await listed(running), running.clock.at, "abc")
    assert said["activation_id"] == device_id
    for wrong in ({}, {"activation": ""}, {"activation": "another"}):
        refused = await download(visited, ids["pro"], **wrong)
        assert refused.status_code in {404, 422}
        assert "There is no licence right now" in refused.text


async def test_a_label_is_text(running: Running) -> None:
    customer, ids = await bought(running)
    await activate(running, ids["pro"])
    await sql(running, "UPDATE activations SET label = :label", label='"><script>alert(1)</script>')
    page = (await visit(running, customer)).page
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


async def test_what_would_be_refused_is_not_offered_and_is_refused_in_words(on_sqlite: Running) -> None:
    customer, ids = await bought(on_sqlite)
    visited = await visit(on_sqlite, customer)
    await sql(on_sqlite, "UPDATE license_keys SET status = 'disabled' WHERE id = :id", id=ids["once"])
    assert licence_forms((await visit(on_sqlite, customer)).page) == []
    refused = await download(visited, ids["once"])
    assert refused.status_code == 403
    assert "There is no licence right now" in refused.text
    assert "almoner-reason" not in refused.headers


async def test_only_ones_own_keys_can_be_used_and_only_by_a_form_of_this_page(running: Running) -> None:
    _, others = await bought(running, seed=2)
    customer, ids = await bought(running, seed=1)
    visited = await visit(running, customer)
    for path in ("licences", "keys"):
        for key_id in (others["once"], "unknown", "x%00"):
            proof = re.search(r'name="proof" value="([^"]+)"', visited.page)
            assert proof
            refused = await visited.ask("POST", f"/me/{path}/{key_id}", data={"proof": proof[1]})
            assert refused.status_code == 404
        for forged in ({}, {"proof": "x"}):
            refused = await visited.ask("POST", f"/me/{path}/{ids['once']}", data=forged)
            assert refused.status_code == 403
        assert (await Visit(running.client).ask("POST", f"/me/{path}/{ids['once']}")).status_code == 403
    assert await running.context.license_keys.is_unshown(ids["once"])
    assert await running.context.license_keys.is_unshown(others["once"])
    assert (await listed(running))["keys"] == []


async def test_what_has_ended_gives_no_licence_and_shows_no_key(running: Running) -> None:
    events = running.story("cancel")
    given = [event.type for event in events].index("benefit_grant.created") + 1
    await running.receive(events[:given])
    ids = {name: (await running.answer(events[0].external_id, name))["gives"]["license_key_id"] for name in SOLD_NAMES}
    visited = await visit(running, events[0].customer_id)
    await running.receive(events[given:])
    assert (await download(visited, ids["once"])).status_code == 404
    assert (await visited.submit(f"/me/keys/{ids['once']}")).status_code == 404


async def test_a_member_has_licences_of_their_own_key_alone(running: Running) -> None:
    events = running.story("seats")
    await running.receive(events)
    answer = await running.answer(events[0].external_id, "once")
    mine, other, *_ = [one for one in answer["grants"] if one["entitled"]]
    visited = await visit(running, events[0].customer_id, mine["member_id"])
    assert licence_forms(visited.page) == [mine["gives"]["license_key_id"]]
    assert (await download(visited, mine["gives"]["license_key_id"])).status_code == 200
    assert (await download(visited, other["gives"]["license_key_id"])).status_code == 404


async def test_licences_are_not_downloaded_without_end(on_sqlite: Running) -> None:
    customer, ids = await bought(on_sqlite)
    visited = await visit(on_sqlite, customer)
    answers = [(await download(visited, ids["once"])).status_code for _ in range(51)]
    assert answers == [200] * 50 + [303]
    await visited.get()
    assert "very many licences today" in visited.page
    on_sqlite.clock.move(days=1, minutes=1)
    assert (await download(await visit(on_sqlite, customer), ids["once"])).status_code == 200


# Keys that are shown once.


async def test_a_key_that_is_kept_as_a_digest_is_shown_once(running: Running) -> None:
    customer, ids = await bought(running)
    visited = await visit(running, customer)
    shown_before = re.findall(rf">({KEY})</textarea>", visited.page)
    assert len(shown_before) == 1  # of the plain one without a prefix
    assert visited.page.count("Show key once") == 1
    answer = await visited.submit(f"/me/keys/{ids['once']}")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    (key,) = set(re.findall(rf">({KEY})</textarea>", answer.text)) - set(shown_before)
    assert "Copy your key now" in answer.text
    assert "Show key once" not in answer.text
    assert not await running.context.license_keys.is_unshown(ids["once"])
    await visited.get()
    assert key not in visited.page
    assert f"****-{key[-6:]}" in visited.page
    assert "Show key once" not in visited.page


async def test_who_comes_second_is_told_that_it_was_shown(running: Running) -> None:
    customer, ids = await bought(running)
    first, second = await visit(running, customer), await visit(running, customer)
    await first.submit(f"/me/keys/{ids['once']}")
    late = await second.submit(f"/me/keys/{ids['once']}")
    assert (late.status_code, late.headers["location"]) == (303, "/me")
    await second.get()
    assert "This key was shown before" in second.page


async def test_a_key_that_cannot_be_read_is_neither_shown_nor_lost(
    sqlite_url: str, tmp_path: Path, catalogue: Catalogue, caplog: pytest.LogCaptureFixture
) -> None:
    async with run_service(sqlite_url, tmp_path, catalogue, Clock(), encryption_keys="first-key-1") as running:
        customer, ids = await bought(running)
    async with run_service(sqlite_url, tmp_path, catalogue, Clock(), encryption_keys="other-key-1") as running:
        visited = await visit(running, customer)
        failed = await visited.submit(f"/me/keys/{ids['once']}")
        assert failed.status_code == 503
        assert "Your key is not lost" in failed.text
        assert await running.context.license_keys.is_unshown(ids["once"])
    assert "put the older key behind" in caplog.text


# In a browser.


@asynccontextmanager
async def opened(url: str, folder: Path, catalogue: Catalogue, chromium: Chrome) -> AsyncIterator[Window]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        look = {"page_name": "Acme Software", "public_url": address}
        async with run_service(url, folder, catalogue, Clock(), **look) as running:
            customer, ids = await bought(running)
            await activate(running, ids["pro"])
            await sql(running, "UPDATE activations SET label = :label", label="Ada's very long laptop name " * 6)
            shop: Any = SimpleNamespace(running=running, customer=customer)
            async with served(shop, listening):
                window = Window(chromium, shop, address)
                await window.command("Network.clearBrowserCookies")
                await window.command("Emulation.setScriptExecutionDisabled", value=False)
                await window.light("light")
                await window.resize(DESKTOP)
                await window.complaints()
                yield window
                await window.do(lambda driver: driver.get("about:blank"))


@pytest.fixture
async def window(sqlite_url: str, tmp_path: Path, catalogue: Catalogue, chromium: Chrome) -> AsyncIterator[Window]:
    async with opened(sqlite_url, tmp_path, catalogue, chromium) as found:
        yield found


@pytest.mark.parametrize("scripts", [True, False])
async def test_in_a_browser_a_licence_is_saved_and_a_key_is_shown_under_the_pages_own_policy(
    window: Window, tmp_path: Path, scripts: bool
) -> None:
    await window.command("Emulation.setScriptExecutionDisabled", value=not scripts)
    saved = tmp_path / "saved"
    saved.mkdir()
    await window.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(saved))
    await window.enter()
    await window.press("", at="(//button[normalize-space(.)='Download offline licence'])[1]", leads_on=False)
    await window.do(lambda driver: WebDriverWait(driver, 10, 0.05).until(lambda _: [*saved.glob("*.license")]))
    (file,) = saved.glob("*.license")
    said = verifier.verify(file.read_text(), await listed(window.shop.running), window.shop.running.clock.at)
    assert said["description"] == "Acme Pro"
    assert said["activation_id"]
    await window.press("Show key once")
    assert "Copy your key now" in await window.words()
    keys = await window.do(lambda driver: [
        one.get_attribute("value") or "" for one in driver.find_elements(By.CLASS_NAME, "code")
    ])  # fmt: skip
    assert all(re.fullmatch(rf"(ACME-)?{KEY}", one) for one in keys)
    assert len(keys) == 3
    assert await window.complaints() == []
    shutil.rmtree(saved)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_fits_every_screen_and_can_be_read(window: Window, scheme: str) -> None:
    await window.light(scheme)
    await window.enter()
    for name, size in {"desktop": DESKTOP, "phone": PHONE, "small": SMALL}.items():
        await window.resize(size)
        assert await window.sticks_out() == []
        assert await window.script(HARD_TO_READ) == []
        await window.keep(f"licences-{scheme}-{name}")
    assert await window.complaints() == []
