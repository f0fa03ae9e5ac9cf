"""A gateway and a server answer alike, whoever of the two it is that answers."""

from __future__ import annotations

import aiohttp
import pytest

from tests.api.fake import FakeService
from tests.client.conftest import MakeGateway


@pytest.mark.parametrize(
    ("route", "status"),
    [
        ("/v1/completions", 400),
        ("/v1/chat/completions", 400),
        ("/v1/responses", 400),
        ("/completion/v2", 422),
    ],
)
@pytest.mark.parametrize("body", [b"[1]", b"1", b'"x"', b"null", b"true"])
async def test_a_body_that_is_no_object(
    make_gateway: MakeGateway, cb_url: str, route: str, status: int, body: bytes
) -> None:
    async with make_gateway(continuous_batching_server_urls=[cb_url]) as client:
        await client.ready()
        codes = []
        for url in (client.url, cb_url):
            async with aiohttp.ClientSession(url) as session:
                headers = {"content-type": "application/json"}
                async with session.post(route, data=body, headers=headers) as answer:
                    assert answer.status == status, url
                    codes.append((await answer.json())["error"]["code"])
        assert codes == ["invalid_value"] * 2


async def test_models_have_their_length(make_gateway: MakeGateway, cb_url: str, cb: FakeService) -> None:
    async with make_gateway(continuous_batching_server_urls=[cb_url]) as client:
        await client.ready()
        cards = []
        for url in (client.url, cb_url):
            async with aiohttp.ClientSession(url) as session, session.get("/v1/models") as answer:
                cards.append((await answer.json())["data"][0])
            async with aiohttp.ClientSession(url) as session, session.get("/v1/models/fake") as answer:
                assert await answer.json() == cards[-1]
        assert cards[0] == cards[1] and cards[0]["max_model_len"] == cb.model_max_length


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/status", "/nowhere", "/v1/completions"])
async def test_a_get_is_answered_under_its_id(make_gateway: MakeGateway, cb_url: str, path: str) -> None:
    async with make_gateway(continuous_batching_server_urls=[cb_url]) as client:
        for url in (client.url, cb_url):
            mine = {"x-request-id": "mine"}
            async with aiohttp.ClientSession(url) as session, session.get(path, headers=mine) as answer:
                assert answer.headers["x-request-id"] == "mine"


async def test_streams_say_that_they_are_utf_8(make_gateway: MakeGateway, cb_url: str) -> None:
    async with make_gateway(continuous_batching_server_urls=[cb_url]) as client:
        await client.ready()
        for url in (client.url, cb_url):
            body = {"model": "fake", "prompt": "x", "stream": True}
            async with (
                aiohttp.ClientSession(url) as session,
                session.post("/v1/completions", json=body) as answer,
            ):
                assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
