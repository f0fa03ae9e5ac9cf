"""The web page in real headless Chromium."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import queue_timeout
from protocol.status import ServerState
from tests.client.conftest import GatewayClient, MakeGateway
from tests.client.stub import Stub, stubs, text_of, tokens_of

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (apt install chromium-driver)"
)
SCREENSHOTS = os.environ.get("PAGE_SCREENSHOTS")
"""A directory to keep what the tests look at."""


class Browser:
    """A tab. Its calls block, so they run in threads while the gateway serves."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    async def open(self, url: str) -> None:
        await asyncio.to_thread(self._driver.get, url)

    async def script(self, code: str) -> Any:
        return await asyncio.to_thread(self._driver.execute_script, code)

    async def text(self, selector: str) -> str:
        """The visible text of the first match; empty without one."""

        def read() -> str:
            found = self._driver.find_elements(By.CSS_SELECTOR, selector)
            return str(found[0].text) if found else ""

        return await asyncio.to_thread(read)

    async def press(self, *keys: str) -> None:
        """Type into whatever has the focus."""
        chain = webdriver.ActionChains(self._driver)
        await asyncio.to_thread(chain.send_keys(*keys).perform)

    async def press_with_control(self, key: str) -> None:
        chain = webdriver.ActionChains(self._driver).key_down(Keys.CONTROL).send_keys(key)
        await asyncio.to_thread(chain.key_up(Keys.CONTROL).perform)

    async def until(self, selector: str, condition: Callable[[str], bool], seconds: float = 10) -> str:
        async with asyncio.timeout(seconds):
            while not condition(text := await self.text(selector)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return text

    async def resize(self, width: int, height: int, scheme: str) -> None:
        def emulate() -> None:
            self._driver.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
            )
            self._driver.execute_cdp_cmd(
                "Emulation.setEmulatedMedia",
                {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
            )

        await asyncio.to_thread(emulate)

    async def keep(self, name: str) -> None:
        if SCREENSHOTS:
            path = Path(SCREENSHOTS) / f"{name}.png"
            await asyncio.to_thread(self._driver.save_screenshot, str(path))

    def errors(self) -> list[str]:
        """What the console complains of."""
        entries = self._driver.get_log("browser")
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def hosts(self) -> set[str]:
        """Hosts that the page has asked for anything."""
        code = "return performance.getEntries().map(e => e.name).filter(n => /^https?:/.test(n))"
        return {name.split("/")[2] for name in self._driver.execute_script(code)}


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    profile = tmp_path_factory.mktemp("profile")
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium: Any) -> Browser:
    chromium.delete_all_cookies()
    chromium.get_log("browser")
    return Browser(chromium)


async def traffic(client: GatewayClient, seconds: float) -> None:
    """Some answers for the charts."""
    end = asyncio.get_running_loop().time() + seconds
    n = 0
    while asyncio.get_running_loop().time() < end:
        n += 1
        await asyncio.gather(client.complete(f"x{n}", n % 9 + 1), client.stream(f"y{n}", n % 7 + 1))
        await client.post(model="unknown")
        await asyncio.sleep(0.1)


async def test_the_page_shows_servers_charts_and_streams(make_gateway: MakeGateway, browser: Browser) -> None:
    a, b, loading = Stub(), Stub(others=5), Stub(model="large", state=ServerState.LOADING)
    static = Stub(model="s", kind="static_batching")
    async with stubs(a, b, loading, static), make_gateway([a, b, static]) as client:
        client.gateway.registry.join(loading.kind, loading.url, "event")
        client.gateway.registry.join("continuous_batching", "http://127.0.0.1:1", "event")
        await traffic(client, 5)
        await browser.resize(1200, 1300, "light")
        await browser.open(client.url)
        table = await browser.until("#servers", lambda text: text.count("ready") == 3)
        for shown in (a.url[7:], b.url[7:], "static batching", "loading", "down", "cannot connect"):
            assert shown in table
        assert await browser.script("return document.querySelectorAll('#charts path').length") == 7
        drawn = (
            "return [...document.querySelectorAll('#charts path')].filter(p => p.getAttribute('d')).length"
        )
        assert await browser.script(drawn) == 7
        await browser.keep("wide-light")

        # the prompt, by keyboard alone: the link that skips, the text, Ctrl+Enter
        a.seconds_per_token = b.seconds_per_token = 0.03
        await browser.press(Keys.TAB, Keys.ENTER)
        await browser.press("tell me")
        await browser.press_with_control(Keys.ENTER)
        begun = await browser.until("#answer", lambda text: len(text) > 20)
        whole = text_of(tokens_of("tell me", 128)).strip()
        assert whole.startswith(begun.strip(" ▍")) and len(begun) < len(whole)  # it streams
        assert await browser.until("#answer", lambda text: text.strip() == whole)
        assert "first text after" in await browser.until("#timing", bool)
        await browser.keep("answered")

        # stopping
        await browser.press_with_control(Keys.ENTER)
        await browser.until("#answer", lambda text: 0 < len(text) < len(whole))
        await browser.press(Keys.ESCAPE)
        await browser.until("#timing", lambda text: text == "stopped")
        async with asyncio.timeout(2):
            while a.live or b.live:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

        # a chart tells the values of a moment
        await browser.script("document.querySelector('svg.chart').focus()")
        await browser.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
        label = await browser.script("return document.querySelector('svg.chart').getAttribute('aria-label')")
        assert "seconds ago: finished" in label

        for width, scheme in ((390, "dark"), (1200, "dark"), (390, "light")):
            await browser.resize(width, 1500, scheme)
            over = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert await browser.script(over) <= 0, f"scrolls sideways at {width}"
            await browser.keep(f"{width}-{scheme}")
        assert browser.hosts() == {client.url[7:]}
        assert browser.errors() == []


async def test_failures_are_told(make_gateway: MakeGateway, browser: Browser) -> None:
    server = Stub(stream_error=queue_timeout("waited too long"))
    async with stubs(server), make_gateway([server]) as client:
        await browser.resize(1000, 1200, "light")
        await browser.open(client.url)
        await browser.until("#model", lambda text: "m" in text)
        await browser.script("document.getElementById('prompt').focus()")
        await browser.press("hello")
        await browser.press_with_control(Keys.ENTER)
        await browser.until("#answer.failed", lambda text: "waited too long" in text)
        await browser.keep("failed")


async def test_a_static_batching_model_answers_whole(make_gateway: MakeGateway, browser: Browser) -> None:
    server = Stub(kind="static_batching")
    async with stubs(server), make_gateway([server]) as client:
        await browser.open(client.url)
        await browser.until("#model", lambda text: "m" in text)
        await browser.script("document.getElementById('prompt').focus()")
        await browser.press("hello")
        await browser.press_with_control(Keys.ENTER)
        whole = text_of(tokens_of("hello", 128)).strip()
        await browser.until("#answer", lambda text: text.strip() == whole)
        assert server.calls[0].body["stream"] is False


async def test_the_page_asks_for_a_key(make_gateway: MakeGateway, browser: Browser) -> None:
    server = Stub()
    async with stubs(server), make_gateway([server], api_keys=["secret"]) as client:
        await browser.open(client.url)
        await browser.until("#alert", lambda text: "key" in text)
        await browser.script("document.getElementById('key').focus()")
        await browser.press("secret", Keys.ENTER)
        await browser.until("#servers", lambda text: "ready" in text)
        await browser.until("#alert", lambda text: text == "")
        await browser.script("sessionStorage.clear()")
