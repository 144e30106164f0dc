"""The customers' page in a real Chromium: no errors, no violation of its own policy, every size, light and dark."""

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvicorn
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.expected_conditions import staleness_of
from selenium.webdriver.support.ui import WebDriverWait

from tests.conftest import skip
from tests.worker.test_oauth import MIA, OCTOCAT, ROLE, Shop, open_shop, platforms
from worker.http.api import make_api
from worker.http.page_session import PageTokens

__all__ = ["platforms"]  # a fixture

T = TypeVar("T")

SHOTS = os.environ.get("TEST_SCREENSHOTS", "")
"""A folder in which to keep what was seen; empty: nowhere."""
ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--force-color-profile=srgb", "--font-render-hinting=none",
)  # fmt: skip
DESKTOP, PHONE, SMALL = (1120, 900), (390, 844), (320, 640)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        skip("no chromium and chromedriver to look at the page with")
    options = ChromeOptions()
    options.binary_location = str(program)
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = Chrome(options=options, service=Service(str(driver)))
    yield started
    started.quit()


@dataclass
class Window:
    """A browser window on the page of a customer. Looking must not hold up the service that is looked at."""

    driver: Chrome
    shop: Shop
    url: str

    async def do(self, act: Callable[[Chrome], T]) -> T:
        return await asyncio.to_thread(act, self.driver)

    async def command(self, name: str, **parameters: Any) -> Any:
        return await self.do(lambda driver: driver.execute_cdp_cmd(name, parameters))

    async def script(self, text: str) -> Any:
        return await self.do(lambda driver: driver.execute_script(f"return {text}"))

    async def resize(self, size: tuple[int, int], *, scale: float = 1) -> None:
        width, height = size
        await self.command("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale,
                           mobile=width < 600)  # fmt: skip

    async def light(self, scheme: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await self.command("Emulation.setEmulatedMedia", features=[feature])

    async def enter(self) -> None:
        """Open the page by a new link, as the customer does."""
        context = self.shop.running.context
        path = PageTokens(context.settings).make_link(self.shop.customer, None, context.now())[0]
        await self.do(lambda driver: driver.get(path))
        assert await self.do(lambda driver: driver.current_url) == f"{self.url}/me"

    async def press(self, words: str, *, at: str = "", leads_on: bool = True) -> None:
        """Press the first button or link with these words, or with that place; wait for the next page."""
        place = at or f"(//*[self::button or self::a][normalize-space(.)='{words}'])[1]"

        def act(driver: Chrome) -> None:
            before = driver.find_element(By.TAG_NAME, "html")
            driver.find_element(By.XPATH, place).click()
            if leads_on:
                WebDriverWait(driver, 10, 0.02).until(staleness_of(before))

        await self.do(act)

    async def words(self) -> str:
        return await self.do(lambda driver: driver.find_element(By.TAG_NAME, "body").text)

    async def cards(self) -> dict[str, str]:
        found = await self.script(
            "Array.from(document.querySelectorAll('article'), card => "
            "[card.querySelector('h2').textContent, card.querySelector('.badge').textContent])"
        )
        return dict(found)

    async def sticks_out(self) -> list[str]:
        """What is wider than the screen, or than the card that it is on."""
        is_wide: bool = await self.script("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        out: list[str] = await self.script(
            "[...document.querySelectorAll('main *')].filter(one => one.getClientRects().length && "
            "one.getBoundingClientRect().right > (one.closest('.card, .rows') || document.body)"
            ".getBoundingClientRect().right + 1).map(one => one.outerHTML)"
        )
        return (["the page"] if is_wide else []) + out

    async def complaints(self) -> list[str]:
        """What the browser has to say since it was asked last: errors, and violations of the page's policy."""
        lines = await self.do(lambda driver: driver.get_log("browser"))  # type: ignore[no-untyped-call]
        return [line["message"] for line in lines]

    async def keep(self, name: str) -> None:
        """Keep a picture of the whole page, where a folder is named."""
        if SHOTS:
            taken = await self.do(lambda driver: driver.execute_cdp_cmd(
                "Page.captureScreenshot", {"captureBeyondViewport": True, "optimizeForSpeed": False}))  # fmt: skip
            import base64

            (Path(SHOTS) / f"{name}.png").write_bytes(base64.b64decode(taken["data"]))


@asynccontextmanager
async def served(shop: Shop, listening: socket.socket) -> AsyncIterator[None]:
    """Serve the shop's service to browsers."""
    api = make_api(shop.running.context, shop.running.clock)
    server = uvicorn.Server(
        uvicorn.Config(api, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
    )
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    yield
    server.should_exit = True
    await serving


@pytest.fixture
async def window(sqlite_url: str, tmp_path: Path, platforms: Any, chromium: Chrome) -> AsyncIterator[Window]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        look = {"page_name": "Acme Software", "public_url": url}
        async with open_shop(sqlite_url, tmp_path, platforms, **look) as shop, served(shop, listening):
            opened = Window(chromium, shop, url)
            await opened.command("Network.clearBrowserCookies")
            await opened.command("Emulation.setScriptExecutionDisabled", value=False)
            await opened.light("light")
            await opened.resize(DESKTOP)
            await opened.complaints()
            yield opened
            await opened.do(lambda driver: driver.get("about:blank"))  # it holds no connection to what now ends


async def test_the_page_renders_without_a_complaint_and_its_keys_are_copied(window: Window) -> None:
    await window.enter()
    assert await window.cards() == {
        "Source code on GitHub": "Waiting for you", "Lounge on Discord": "Waiting for you",
        "Acme Pro license": "Ready", "Acme Pro for Linux": "Ready", "Video course": "Ready",
    }  # fmt: skip
    key = await window.script("document.querySelector('.code').value")
    assert key.startswith("ACME-")
    await window.command("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    await window.press("Copy", leads_on=False)
    await asyncio.sleep(0.1)
    assert await window.script("document.querySelector('[data-copy]').textContent") == "Copied"
    assert await window.script("navigator.clipboard.readText()") == key
    assert await window.complaints() == []


async def test_without_a_clipboard_the_key_is_still_copied(window: Window) -> None:
    """As on a page without https."""
    await window.enter()
    await window.do(lambda driver: driver.execute_script(
        "Object.defineProperty(navigator, 'clipboard', {value: undefined})"))  # fmt: skip
    await window.press("Copy", leads_on=False)
    await asyncio.sleep(0.1)
    assert await window.script("document.querySelector('[data-copy]').textContent") == "Copied"
    assert await window.script("getSelection().toString()") == await window.script(
        "document.querySelector('.code').value"
    )


async def test_everything_works_without_javascript(window: Window) -> None:
    await window.command("Emulation.setScriptExecutionDisabled", value=True)
    await window.enter()

    def field(driver: Chrome) -> tuple[bool, str | None, bool]:
        found = driver.find_element(By.CLASS_NAME, "code")
        found.click()
        found.send_keys(Keys.CONTROL, "a")
        copy = driver.find_element(By.CSS_SELECTOR, "[data-copy]")
        return found.is_displayed(), found.get_attribute("value"), copy.is_displayed()

    is_shown, key, can_copy = await window.do(field)
    assert is_shown
    assert key
    assert not can_copy  # a button that would do nothing
    await window.press("Check again")
    assert "We are checking again" in await window.words()
    await window.press("Check again")
    assert "Please wait half a minute" in await window.words()
    await window.press("Sign out")
    assert "You have signed out" in await window.words()
    await window.do(lambda driver: driver.get(f"{window.url}/me"))
    assert "This page is closed" in await window.words()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_fits_every_screen_and_can_be_read_in_light_and_dark(window: Window, scheme: str) -> None:
    await window.light(scheme)
    await link_github(window)
    await window.complaints()
    for name, size in {"desktop": DESKTOP, "phone": PHONE, "small": SMALL}.items():
        await window.resize(size, scale=float(os.environ.get("TEST_SCALE", "1")))
        assert await window.sticks_out() == []
        assert await window.script(HARD_TO_READ) == []
        await window.keep(f"{scheme}-{name}")
    assert await window.complaints() == []


async def test_a_very_long_name_widens_nothing(window: Window) -> None:
    context = window.shop.running.context
    await context.accounts.name(window.shop.customer, None, "github", "octocat" * 30)
    await window.shop.running.service.pipeline.drain()
    await window.resize(SMALL)
    await window.enter()
    assert "octocatoctocat" in await window.words()
    assert await window.sticks_out() == []


async def test_both_accounts_are_linked_in_the_browser(window: Window) -> None:
    """From the page to each platform and back, under the page's own policy."""
    await link_github(window)
    assert "octocat · Linked by you" in await window.words()
    assert (await window.cards())["Source code on GitHub"] == "Waiting for you"
    (repository,) = window.shop.github.repositories.values()
    window.shop.github.accept(repository, window.shop.github.users[OCTOCAT])
    await window.press("Check again")
    await window.shop.running.service.pipeline.drain()

    window.shop.discord.approve_as(MIA)
    await window.press("Link Discord")
    assert "Your Discord account is linked." in await window.words()
    await window.shop.running.service.pipeline.drain()
    await window.do(lambda driver: driver.refresh())
    assert set((await window.cards()).values()) == {"Ready"}
    assert window.shop.discord.roles_of(MIA) == {ROLE}
    assert await window.complaints() == []
    await window.keep("ready")
    window.shop.discord.approve_as("-")
    await window.press("Change", at="//button[@aria-label='Change the account at Discord']")
    assert "You did not agree at Discord" in await window.words()
    assert await window.do(lambda driver: driver.current_url) == f"{window.url}/me"


async def test_it_can_be_used_by_keyboard_and_is_told_in_landmarks(window: Window) -> None:
    await window.enter()
    assert await window.script("[...document.querySelectorAll('main, header.top, h1')].map(one => one.tagName)") == [
        "HEADER", "MAIN", "H1",
    ]  # fmt: skip
    unnamed = await window.script(
        "[...document.querySelectorAll('a, button, input:not([type=hidden]), img')].filter(one => "
        "!(one.textContent.trim() || one.getAttribute('aria-label') || one.labels?.length || one.alt !== undefined))"
        ".length"
    )
    assert unnamed == 0
    await window.do(lambda driver: driver.switch_to.active_element.send_keys(Keys.TAB))
    assert await window.script("document.activeElement.textContent") == "Skip to the content"
    await window.do(lambda driver: driver.switch_to.active_element.send_keys(Keys.TAB))
    assert await window.script("getComputedStyle(document.activeElement).outlineStyle") == "solid"


async def link_github(window: Window) -> None:
    window.shop.github.approves_as = OCTOCAT
    await window.enter()
    await window.press("Link GitHub")
    assert "Your GitHub account is linked." in await window.words()
    await window.shop.running.service.pipeline.drain()
    await window.do(lambda driver: driver.refresh())


# Texts whose contrast to what is behind them is below 4.5, as the browser computes both.
HARD_TO_READ = """(() => {
  const parts = text => text.match(/[\\d.]+/g).map(Number);
  const linear = part => part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = one => {
    for (let at = one; at; at = at.parentElement) {
      const colour = parts(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const own = one => [...one.childNodes].filter(n => n.nodeType === 3).map(n => n.textContent.trim()).join("");
  return [...document.querySelectorAll("body *")].filter(one => {
    if (!(own(one) || one.value) || !one.checkVisibility() || one.type === "hidden") return false;
    const [a, b] = [light(parts(getComputedStyle(one).color)), light(behind(one))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05) < 4.5;
  }).map(one => own(one) || one.value);
})()"""


def test_the_pictures_of_the_documentation_are_small() -> None:
    for name in ("customer-page.png", "customer-page-phone.png"):
        assert (Path(__file__).parents[2] / "docs" / name).stat().st_size < 150_000
