"""Who may call a server: no page of another site, and where there is a key, only who has it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from protocol.headers import CACHE_SALT
from server.api.app import create_app
from server.api.config import HttpConfig
from tests.api.fake import FakeService
from tests.serving import serving

BODY = {"model": "fake", "prompt": "Hi"}


@pytest.fixture
def keyed_url(service: FakeService) -> Iterator[str]:
    with serving(create_app(service, http=HttpConfig.model_validate({"server_key": "inner"}))) as url:
        yield url


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"content-type": "application/x-www-form-urlencoded"}, 200),
        ({"content-type": "text/plain"}, 415),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null", "content-type": "text/plain"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example:1", "origin": "http://evil.example:1"}, 403),
    ],
)
async def test_pages_of_other_sites(
    http: aiohttp.ClientSession, service: FakeService, headers: dict[str, str], status: int
) -> None:
    async with http.post("/completion/v2", json=BODY, headers=headers) as response:
        body = await response.json()
        assert response.status == status
        assert "x-request-id" in response.headers
    assert bool(service.jobs) == (status == 200)
    if status == 403:
        assert re.search("'allowed_(hosts|origins)'", body["error"]["message"])
        for method, route in [("GET", "/status"), ("GET", "/metrics"), ("DELETE", "/requests/x")]:
            async with http.request(method, route, headers=headers) as response:
                assert response.status == 403


async def test_a_proxy_and_a_page_can_be_configured(service: FakeService) -> None:
    config = {"allowed_hosts": ["gpu.example.com"], "allowed_origins": ["https://app.example.com"]}
    headers = {"host": "gpu.example.com", "origin": "https://app.example.com", "sec-fetch-site": "same-site"}
    with serving(create_app(service, http=HttpConfig.model_validate(config))) as url:
        async with (
            aiohttp.ClientSession(url) as http,
            http.post("/completion/v2", json=BODY, headers=headers) as response,
        ):
            assert response.status == 200
            assert response.headers["access-control-allow-origin"] == "https://app.example.com"


@pytest.mark.parametrize("key", [None, "wrong", "inner"])
async def test_the_key_of_a_server(keyed_url: str, service: FakeService, key: str | None) -> None:
    resume = {"created": 1, "choices": [{"token_ids": [5]}]}
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/completion/v2", {**BODY, "stream": True, "resume": resume}),
        ("POST", "/v1/completions", {**BODY, "priority": 100}),
        *(
            ("GET", "/status", {}),
            ("GET", "/metrics", {}),
            ("GET", "/v1/models", {}),
            ("GET", "/model_id", {}),
        ),
        *(("GET", "/openapi.json", {}), ("DELETE", "/requests/x", {}), ("GET", "/health/x", {})),
    ]
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(keyed_url, headers=headers) as http:
        for method, route, body in calls:
            async with http.request(method, route, json=body or None) as response:
                assert (response.status != 401) == (key == "inner"), route
                if key != "inner":
                    assert "'server_key'" in (await response.json())["error"]["message"]
        for route in ("/health", "/ready"):
            async with http.get(route) as response:
                assert response.status == 200
    assert len(service.jobs) == (2 if key == "inner" else 0)


SALTED = [
    ("/completion/v2", {"prompt": "Hi"}),
    ("/v1/completions", {"prompt": ["Hi", "You"]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
    ("/v1/responses", {"input": "Hi"}),
    ("/v1/messages", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}),
]


@pytest.mark.parametrize(("route", "body"), SALTED)
async def test_salts_of_gateway_and_client_reach_the_service(
    http: aiohttp.ClientSession, service: FakeService, route: str, body: dict[str, Any]
) -> None:
    found = []
    for header, field in ((None, None), ("a", None), (None, "a"), ("a", "b"), ("ab", None), ("1:a", "b")):
        headers = {} if header is None else {CACHE_SALT: header}
        async with http.post(
            route, json={"model": "fake", **body, "cache_salt": field}, headers=headers
        ) as response:
            assert response.status == 200, await response.text()
        found.append({job.cache_salt for job in service.jobs})
        service.jobs.clear()
    assert found[0] == {b""} and all(len(salts) == 1 for salts in found)
    assert len(set().union(*found)) == len(found)
