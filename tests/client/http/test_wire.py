"""What HTTP lets a client do that most clients do not, and names and addresses of every kind."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from client.config import GatewayConfig
from tests.api.fake import FakeService
from tests.client.conftest import FAST, GatewayClient, MakeGateway
from tests.client.stub import Stub, stubs
from tests.raw_http import connected, response, statuses
from tests.serving import eventually

BODY = json.dumps({"model": "m", "prompt": "x", "generation_config": {"max_new_tokens": 3}}).encode()


def port_of(client: GatewayClient) -> int:
    port = urlsplit(client.url).port
    assert port is not None
    return port


def request(body: bytes = BODY, *headers: str, version: str = "1.1") -> bytes:
    lines = ("Host: localhost", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers)
    return "\r\n".join([f"POST /completion/v2 HTTP/{version}", *lines, "", ""]).encode() + body


async def test_a_stream_to_a_client_of_http_1_0_is_not_chunked(make_gateway: MakeGateway) -> None:
    """It ends with the connection, and nothing but events is in it."""
    body = json.dumps(json.loads(BODY) | {"stream": True}).encode()
    async with stubs(server := Stub()), make_gateway([server]) as client:
        expected = await client.stream("x", 3)
        async with connected(port_of(client)) as (reader, writer):
            writer.write(request(body, version="1.0"))
            head, _, data = (await asyncio.wait_for(reader.read(), 20)).partition(b"\r\n\r\n")
    assert b" 200 " in head.splitlines()[0] and b"chunked" not in head.lower()
    assert data == expected


async def test_requests_that_do_not_wait_for_each_other(make_gateway: MakeGateway) -> None:
    """They are answered in their order, one after the other."""
    async with stubs(server := Stub()), make_gateway([server]) as client:
        assert await statuses(port_of(client), request() + request(b"[1]") + request()) == [200, 422, 200]
        assert len(server.calls) == 2


async def test_a_client_that_waits_to_be_told_to_go_on(make_gateway: MakeGateway) -> None:
    """curl does before bodies of a megabyte; what is refused by its head is refused before it."""
    async with stubs(server := Stub()), make_gateway([server], api_keys=["key"]) as client:
        for key, status in (("key", 200), ("wrong", 401)):
            head = request(BODY, "Expect: 100-continue", f"Authorization: Bearer {key}")[: -len(BODY)]
            async with connected(port_of(client)) as (reader, writer):
                writer.write(head)
                told, _, _ = await response(reader)
                if told == 100:
                    writer.write(BODY)
                    told, _, _ = await response(reader)
                assert told == status


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_a_scheme_in_any_case(make_gateway: MakeGateway, scheme: str) -> None:
    """RFC 9110, 11.1."""
    async with make_gateway(api_keys=["key"]) as client:
        headers = {"authorization": f"{scheme} key"}
        async with client.session.get("/v1/models", headers=headers) as answer:
            assert answer.status == 200


async def test_a_model_whose_name_has_a_slash(
    make_gateway: MakeGateway, cb: FakeService, cb_url: str
) -> None:
    cb.model_id = "org/model 1"
    async with make_gateway(continuous_batching_server_urls=[cb_url]) as client:
        await client.ready()
        for url in (client.url, cb_url):
            async with aiohttp.ClientSession(url) as session:
                for path in ("/v1/models/org/model%201", "/v1/models/org%2Fmodel%201"):
                    async with session.get(path) as answer:
                        assert (answer.status, (await answer.json())["id"]) == (200, cb.model_id), path


@pytest.mark.parametrize("other", ["http://127.0.0.1:8001/", "HTTP://127.0.0.1:8001"])
def test_one_server_in_two_spellings_is_listed_twice(other: str) -> None:
    """It would get twice the requests, and each that fails there would be tried there again."""
    urls = ["http://127.0.0.1:8001", other]
    with pytest.raises(ValueError, match=r"server listed twice: http://127\.0\.0\.1:8001"):
        GatewayConfig.model_validate({"continuous_batching_server_urls": urls})


async def test_a_server_that_moves_to_the_other_list(make_gateway: MakeGateway) -> None:
    """Written into the wrong list it is not used, and once it is in the right one it is."""
    async with stubs(server := Stub()):
        wrong: dict[str, Any] = {"static_batching_server_urls": [server.url]}
        async with make_gateway(continuous_batching_server_urls=[], **wrong) as client:
            (replica,) = client.gateway.registry
            await eventually(lambda: bool(replica.reason))
            assert replica.state != "ready"
            right = {"continuous_batching_server_urls": [server.url]}
            client.gateway.configure(GatewayConfig.model_validate(FAST | right))
            await client.ready()
            await client.complete()


async def test_every_series_about_a_model_names_it_as_servers_do(make_gateway: MakeGateway) -> None:
    async with stubs(server := Stub()), make_gateway([server]) as client:
        await client.complete()
        async with client.session.get("/metrics") as answer:
            families = text_string_to_metric_families(await answer.text())
            labels = [sample.labels for family in families for sample in family.samples]
    assert any(one.get("model_name") == "m" for one in labels)
    assert not any("model" in one for one in labels)
