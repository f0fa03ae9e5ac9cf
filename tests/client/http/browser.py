"""A headless Chromium, for tests of the pages."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(
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

    async def script_with(self, code: str, argument: Any) -> Any:
        """What the asynchronous script `code` gives to its last argument."""
        return await asyncio.to_thread(self._driver.execute_async_script, code, argument)

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

    async def ask(self, text: str) -> None:
        """Write into the prompt and press Enter."""
        await self.script("document.getElementById('prompt').focus()")
        await self.press(text, Keys.ENTER)

    async def answer(self, condition: Callable[[str], bool]) -> str:
        """The text of the newest turn, once it fulfils `condition`."""
        return await self.until("#turns > .assistant:last-child .body", condition)

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
