"""axe finds nothing serious on the gateway's page and on a report, narrow or wide, light or dark.

``make clients`` installs axe.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare
from server.api.app import create_app
from server.text.tokenizer import Tokenizer
from tests.api.fake import FakeService
from tests.checkpoints import tiny_tokenizer
from tests.client.conftest import MakeGateway
from tests.client.http.browser import Browser, needs_chromium
from tests.client.stub import Stub, stubs
from tests.serving import serving

AXE = Path(__file__).parents[2] / "clients" / "node" / "node_modules" / "axe-core" / "axe.min.js"
pytestmark = [
    needs_chromium,
    pytest.mark.skipif(not AXE.is_file(), reason="needs axe-core (make clients)"),
]
RUN = """const done = arguments[arguments.length - 1];
axe.run(document).then(found => done({
  passes: found.passes.length,
  serious: found.violations.filter(v => ["serious", "critical"].includes(v.impact))
    .map(v => [v.id, v.nodes[0].html]),
}));"""


async def check(browser: Browser, url: str, ready: str) -> None:
    """Once `ready` matches an element with text."""
    for width in (400, 1280):
        for scheme in ("light", "dark"):
            await browser.resize(width, 900, scheme)
            await browser.open(url)
            await browser.until(ready, bool)
            await browser.script(AXE.read_text(encoding="utf-8"))
            found: dict[str, Any] = await browser.script_with(RUN, None)
            assert found["passes"] > 10 and found["serious"] == [], (width, scheme)


async def test_the_page(make_gateway: MakeGateway, browser: Browser) -> None:
    server = Stub()
    async with stubs(server), make_gateway([server]) as client:
        await client.complete("x", 5)
        await check(browser, client.url, "#servers td")


async def test_a_report(tmp_path: Path, browser: Browser) -> None:
    tiny_tokenizer(tmp_path)
    service = FakeService(Tokenizer(tmp_path))
    service.model_max_length = 4096
    command = ["--strategies", "--beams", "2", "--seeds", "2", "--requests", "4", "--sweep", "1", "0.5"]
    command += ["--traffic", "equal", "exponential", "--output", str(tmp_path / "report.html")]
    with serving(create_app(service)) as url:
        for name in ("one", "other"):
            command += ["--endpoint", f"{name}={url},model=fake,api=v2"]
        assert await asyncio.to_thread(compare.main, command) == 0
    await check(browser, f"file://{tmp_path}/report.html", "h1")
