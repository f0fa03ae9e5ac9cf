"""What every page of a gateway and of a server is sent with, and what it may load."""

from __future__ import annotations

import re

import aiohttp
import pytest

from client.http.routes import PAGE
from tests.client.conftest import MakeGateway
from utils.pages import DOCS_PAGE


@pytest.mark.parametrize("service", ["gateway", "server"])
async def test_pages_are_shown_in_no_frame_and_run_no_foreign_script(
    make_gateway: MakeGateway, cb_url: str, service: str
) -> None:
    async with make_gateway() as client, aiohttp.ClientSession() as session:
        url = client.url if service == "gateway" else cb_url
        files = ["/docs", *(f"/docs/{file.name}" for file in DOCS_PAGE.iterdir() if file.suffix != ".html")]
        if service == "gateway":
            files += ["/", *(f"/page/{file.name}" for file in PAGE.iterdir() if file.suffix != ".html")]
        for path in files:
            async with session.get(url + path) as answer:
                assert answer.status == 200, path
                policy = dict(
                    part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
                )
                sources = ("default-src", "script-src", "style-src", "connect-src", "frame-ancestors")
                assert [policy[name] for name in sources] == ["'none'", *["'self'"] * 3, "'none'"]
                assert answer.headers["x-content-type-options"] == "nosniff"
                text = await answer.text()
                assert not re.search(r"(src|href|url|import)\W{0,3}(https?:)?//(?!www\.w3\.org)", text), path
        for path in ("/redoc", "/docs/oauth2-redirect", "/docs/index.html", "/docs/../gate.py"):
            async with session.get(url + path) as answer:
                assert answer.status == 404, path
