"""Requests that are alike are checked once, until something that the checks look at is another."""

from __future__ import annotations

from typing import Any

import pytest

from utils.cross_site import SiteConfig
from utils.site_guard import MOST_PASSED, SiteGuard

HEADERS = [(b"host", b"api.example"), (b"content-type", b"application/json"), (b"content-length", b"2")]


class Service:
    """An application behind the guard, whose configuration may change."""

    def __init__(self) -> None:
        self.config = SiteConfig()
        self.guard = SiteGuard(self._answer, lambda: self.config)

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def ask(self, *headers: tuple[bytes, bytes], server: Any = ("10.0.0.1", 80)) -> int:
        found: list[int] = []

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                found.append(message["status"])

        scope = {
            "type": "http", "method": "POST", "path": "/v1/completions",
            "headers": list(headers), "server": server,
        }  # fmt: skip
        await self.guard(scope, lambda: None, send)  # type: ignore[arg-type, return-value]
        return found[0]


@pytest.mark.parametrize(
    ("other", "status"),
    [
        ([*HEADERS, (b"origin", b"https://elsewhere.example")], 403),
        ([*HEADERS, (b"sec-fetch-site", b"cross-site")], 403),
        ([*HEADERS, (b"host", b"api.example")], 400),
        ([*HEADERS, (b"content-type", b"text/plain")], 400),
        ([HEADERS[0], (b"content-type", b"text/plain"), HEADERS[2]], 415),
        ([HEADERS[0], (b"content-type", b"text/plain"), (b"content-length", b"0")], 200),
        ([HEADERS[0], (b"content-type", b"text/plain"), (b"transfer-encoding", b"chunked")], 415),
    ],
)
async def test_what_passed_lets_nothing_else_through(other: list[tuple[bytes, bytes]], status: int) -> None:
    service = Service()
    for _ in range(2):
        assert await service.ask(*HEADERS) == 200
        assert await service.ask(*other) == status


async def test_another_configuration_is_heeded_at_once() -> None:
    service = Service()
    assert await service.ask(*HEADERS) == 200
    service.config = SiteConfig(allowed_hosts=("other.example",))
    assert await service.ask(*HEADERS) == 403
    service.config = SiteConfig(allowed_hosts=("api.example",))
    assert await service.ask(*HEADERS) == 200


async def test_another_address_is_another_kind() -> None:
    """Over the loopback interface a name must be one of this machine; an address may be a list, too."""
    service = Service()
    assert await service.ask(*HEADERS, server=["10.0.0.1", 80]) == 200
    assert await service.ask(*HEADERS, server=["127.0.0.1", 80]) == 403
    assert await service.ask(*HEADERS, server=None) == 200


async def test_it_does_not_remember_without_end() -> None:
    service = Service()
    for index in range(MOST_PASSED + 10):
        assert await service.ask((b"host", b"h%d.example" % index), *HEADERS[1:]) == 200
    assert len(service.guard._passed) == MOST_PASSED
