"""Tool calls through the gateway: servers that die in the midst of one, keys, errors and other names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from protocol.errors import cancelled
from server.api.app import create_app
from tests.api.chats import BODIES, FailsOnce, answering_service, read_stream
from tests.api.fake import FakeService
from tests.client.conftest import MakeGateway
from tests.serving import serving

CHAT, RESPONSES, MESSAGES = BODIES


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[tuple[FakeService, str]]]:
    """Two servers of one model."""
    services = [answering_service(tmp_path / name, kind=FailsOnce) for name in ("a", "b")]
    with serving(create_app(services[0])) as first, serving(create_app(services[1])) as second:
        yield [(services[0], first), (services[1], second)]


def without_time(data: bytes) -> bytes:
    return re.sub(rb'"created(_at)?":\d+', b'"created":0', data)


async def read(session: aiohttp.ClientSession, route: str, **fields: Any) -> tuple[int, bytes]:
    headers = {"x-request-id": "the-id"}
    async with session.post(route, json=BODIES[route] | fields, headers=headers) as response:
        return response.status, await response.read()


@pytest.mark.parametrize("route", BODIES)
async def test_a_lost_engine_in_the_midst_of_a_call_changes_nothing(
    make_gateway: MakeGateway, pair: list[tuple[FakeService, str]], route: str
) -> None:
    urls = [url for _, url in pair]
    async with make_gateway(continuous_batching_server_urls=urls) as client:
        await client.ready(2)
        _, expected = await read(client.session, route, stream=True)
        for tokens in (5, 12, 25, 33):
            for service, _ in pair:
                service.fail_after = tokens
            status, data = await read(client.session, route, stream=True)
            assert status == 200 and without_time(data) == without_time(expected), tokens
        assert client.gateway.metrics.resumes >= 4


@pytest.mark.parametrize("route", BODIES)
async def test_cached_tokens_are_those_of_the_server_that_began(
    make_gateway: MakeGateway, pair: list[tuple[FakeService, str]], route: str
) -> None:
    """Whatever the cache of the one that goes on has."""
    usage = {"stream_options": {"include_usage": True}} if route == CHAT else {}
    expected = {}
    for (service, url), count in zip(pair, (0, 5), strict=True):
        service.cached_tokens = count
        expected[count] = without_time(await read_stream(url, route, BODIES[route] | usage))
    assert expected[0] != expected[5]
    async with make_gateway(continuous_batching_server_urls=[url for _, url in pair]) as client:
        await client.ready(2)
        for tokens in (6, 18, 30, 6, 18, 30):
            for service, _ in pair:
                service.fail_after = tokens
                service.jobs.clear()
            _, data = await read(client.session, route, stream=True, **usage)
            (began,) = [service for service, _ in pair if any(job.resume is None for job in service.jobs)]
            assert any(job.resume for service, _ in pair for job in service.jobs)
            assert without_time(data) == expected[began.cached_tokens]


@pytest.mark.parametrize("route", BODIES)
async def test_whole_answers_that_were_lost_are_put_together(
    make_gateway: MakeGateway, pair: list[tuple[FakeService, str]], route: str
) -> None:
    urls = [url for _, url in pair]
    async with make_gateway(continuous_batching_server_urls=urls) as client:
        await client.ready(2)
        _, expected = await read(client.session, route)
        for service, _ in pair:
            service.fail_after = 30
        status, data = await read(client.session, route)
        made, whole = json.loads(data), json.loads(expected)
        for answer in (made, whole):
            answer.pop("created", None)
            answer.pop("created_at", None)
        assert status == 200 and made == whole


async def test_keys_and_errors_of_anthropics_clients(
    make_gateway: MakeGateway, pair: list[tuple[FakeService, str]]
) -> None:
    async with make_gateway(continuous_batching_server_urls=[pair[0][1]], api_keys=["secret"]) as client:
        await client.ready(1)
        for key, status, kind in (("wrong", 401, "authentication_error"), ("secret", 404, "not_found_error")):
            client.session.headers["x-api-key"] = key
            found, data = await read(client.session, MESSAGES, model="other")
            error = json.loads(data)
            assert (found, error["type"], error["error"]["type"]) == (status, "error", kind)
        async with client.session.get("/v1/models") as response:
            assert response.status == 200


async def test_a_stream_that_fails_ends_in_anthropics_words(
    make_gateway: MakeGateway, tmp_path: Path
) -> None:
    service = answering_service(tmp_path)
    service.fail_after, service.failure = 30, cancelled()
    with serving(create_app(service)) as url:
        async with make_gateway(continuous_batching_server_urls=[url]) as client:
            await client.ready(1)
            _, data = await read(client.session, MESSAGES, stream=True)
            service.fail_after = 30
            direct = await read_stream(url, MESSAGES, BODIES[MESSAGES])
    for stream in (data, direct):
        error = json.loads(stream.rpartition(b"data: ")[2])
        assert b"event: error\n" in stream and error["type"] == "error"
        assert (error["error"]["type"], error["error"]["code"]) == ("invalid_request_error", "cancelled")


async def test_names_and_routes_without_answers(
    make_gateway: MakeGateway, pair: list[tuple[FakeService, str]]
) -> None:
    service, url = pair[0]
    service.model_aliases = ("claude-x",)

    async def post(session: aiohttp.ClientSession, route: str, body: dict[str, Any]) -> dict[str, Any]:
        async with session.post(route, json=body) as response:
            assert response.status == 200, await response.text()
            return dict(await response.json())

    async with make_gateway(continuous_batching_server_urls=[url]) as client:
        await client.ready(1)
        body = {name: value for name, value in BODIES[MESSAGES].items() if name not in ("max_tokens", "seed")}
        counted = await post(client.session, "/v1/messages/count_tokens", body | {"model": "claude-x"})
        tokens = await post(client.session, "/tokenize", {"model": "fake", "prompt": "Hello"})
        text = await post(client.session, "/detokenize", {"model": "fake", "tokens": tokens["tokens"]})
        assert counted["input_tokens"] > 10 and text["prompt"].endswith("Hello")
        async with client.session.get("/v1/models") as response:
            assert [card["id"] for card in (await response.json())["data"]] == ["claude-x", "fake"]
