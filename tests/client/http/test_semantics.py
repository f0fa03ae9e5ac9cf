"""What HTTP (RFC 9110, 9112) asks of every answer, of a gateway and of a server."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import aiohttp
import pytest

from protocol.status import ServerState
from server.api.app import create_app as create_server
from server.api.config import HttpConfig
from server.text.tokenizer import Tokenizer
from tests.api.fake import FakeService
from tests.client.conftest import GatewayClient, MakeGateway
from tests.client.stub import Stub, stubs
from tests.raw_http import connected, response
from tests.serving import eventually, serving

SERVICES = ("gateway", "server")


@pytest.fixture
async def gateway(make_gateway: MakeGateway, cb_url: str) -> AsyncIterator[GatewayClient]:
    async with make_gateway(continuous_batching_server_urls=[cb_url]) as client:
        await client.ready()
        yield client


@pytest.fixture
def urls(gateway: GatewayClient, cb_url: str) -> dict[str, str]:
    return {"gateway": gateway.url, "server": cb_url}


@pytest.mark.parametrize("service", SERVICES)
async def test_head_is_answered_wherever_get_is(urls: dict[str, str], service: str) -> None:
    async with aiohttp.ClientSession(urls[service]) as session:
        async with session.get("/openapi.json") as answer:
            paths = (await answer.json())["paths"]
        gets = [path.replace("{model}", "fake") for path, methods in paths.items() if "get" in methods]
        assert len(gets) > 5
        for path in [*gets, "/openapi.json"]:
            async with session.get(path) as got, session.head(path) as head:
                assert head.status == got.status == 200, path
                assert await head.read() == b""
                assert head.headers["content-type"] == got.headers["content-type"]
        async with session.head("/v1/completions") as answer:
            assert (answer.status, answer.headers["allow"]) == (405, "POST")
        async with session.post("/v1/models", json={}) as answer:
            assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


async def test_401_says_what_to_send(make_gateway: MakeGateway, tokenizer: Tokenizer) -> None:
    config = {"api_keys": ["one"], "event_token": "two", "metrics_token": "three"}
    http = HttpConfig.model_validate({"server_key": "inner"})
    with serving(create_server(FakeService(tokenizer), http=http)) as server:
        async with make_gateway(**config) as client, aiohttp.ClientSession() as session:
            for url in (client.url, server):
                for path in ("/v1/completions", "/v1/messages", "/v1/models", "/metrics", "/status"):
                    method = "POST" if path in ("/v1/completions", "/v1/messages") else "GET"
                    async with session.request(method, url + path, json={}) as answer:
                        assert answer.status == 401, path
                        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("route", ["/v1/completions", "/completion/v2", "/tokenize", "/v1/messages"])
async def test_compressed_bodies_are_refused_as_such(urls: dict[str, str], service: str, route: str) -> None:
    body = gzip.compress(json.dumps({"model": "fake", "prompt": "x"}).encode())
    async with aiohttp.ClientSession(urls[service]) as session:
        for coding in ("gzip", "GZIP", "br", "identity, gzip"):
            headers = {"content-encoding": coding, "content-type": "application/json"}
            async with session.post(route, data=body, headers=headers) as answer:
                assert answer.status == 415, coding
                assert answer.headers["accept-encoding"] == "identity"
                assert coding in (await answer.json())["error"]["message"]
        headers = {"content-encoding": "identity", "content-type": "application/json"}
        async with session.post(route, data=b"{}", headers=headers) as answer:
            assert answer.status in (400, 422)


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("framing", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
async def test_a_client_that_leaves_within_its_body_leaves_no_traceback(
    urls: dict[str, str], service: str, framing: str, caplog: pytest.LogCaptureFixture
) -> None:
    port = urlsplit(urls[service]).port
    assert port is not None
    with caplog.at_level(logging.INFO):
        for route in ("/v1/completions", "/event/server_startup", "/tokenize"):
            async with connected(port) as (_, writer):
                head = f"POST {route} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                writer.write(f"{head}{framing}\r\n\r\n".encode())
                await writer.drain()
                await asyncio.sleep(0.05)
        async with aiohttp.ClientSession(urls[service]) as session, session.get("/health") as answer:
            assert answer.status == 200
        await asyncio.sleep(0.05)
    assert "Traceback" not in caplog.text and not [r for r in caplog.records if r.exc_info]


async def requests_on_one_connection(url: str, method: str, path: str) -> int:
    """How many of three requests one connection takes."""
    port, answered = urlsplit(url).port, 0
    assert port is not None
    async with connected(port) as (reader, writer):
        for _ in range(3):
            body = b"{}" if method == "POST" else b""
            head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            try:
                writer.write(head.encode() + body)
                _, headers, _ = await response(reader)
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            answered += 1
            if headers.get("connection") == "close":
                assert await reader.read() == b""
                break
    return answered


DRAINED = [("GET", "/ready"), ("GET", "/status"), ("POST", "/v1/completions"), ("GET", "/nowhere")]


@pytest.mark.parametrize(("method", "path"), DRAINED)
async def test_who_drains_lets_connections_go(
    gateway: GatewayClient, urls: dict[str, str], cb: FakeService, method: str, path: str
) -> None:
    """So that clients with a pool connect to another instance."""
    for url in urls.values():
        assert await requests_on_one_connection(url, method, path) == 3
    gateway.gateway.draining = True
    cb.state = ServerState.DRAINING
    for url in urls.values():
        assert await requests_on_one_connection(url, method, path) == 1


async def test_an_answer_that_begins_while_draining_is_the_last_one(make_gateway: MakeGateway) -> None:
    server = Stub(seconds_per_token=0.1)
    async with stubs(server), make_gateway([server]) as client:
        for stream in (False, True):
            body = {"model": "m", "prompt": "x", "stream": stream, "generation_config": {"max_new_tokens": 3}}
            request = asyncio.create_task(client.session.post("/completion/v2", json=body))
            await eventually(lambda: server.live == 1)
            client.gateway.draining = True
            async with await request as answer:
                assert (answer.status, answer.headers["connection"]) == (200, "close")
                await answer.read()
            client.gateway.draining = False


async def test_a_page_can_read_why_its_body_is_refused(make_gateway: MakeGateway) -> None:
    config = {"allowed_origins": ["https://app.example.com"]}
    page = {"origin": "https://app.example.com"}
    async with make_gateway(**config) as client:
        for headers in ({"content-type": "text/plain"}, {"content-encoding": "gzip"}):
            headers = {"content-type": "application/json"} | headers | page
            async with client.session.post("/v1/completions", data=b"{}", headers=headers) as answer:
                assert answer.status == 415
                assert answer.headers["access-control-allow-origin"] == "https://app.example.com"
        preflight = page | {"access-control-request-method": "HEAD"}
        async with client.session.options("/v1/models", headers=preflight) as answer:
            assert answer.status == 200
