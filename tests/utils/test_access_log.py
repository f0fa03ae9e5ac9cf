"""Which requests leave a line in the log, and what stands in it."""

from __future__ import annotations

import asyncio
import logging
from urllib.parse import urlsplit

import aiohttp
import pytest

from client.config import GatewayConfig
from client.http.asgi import CompletionFront
from server.api.app import create_app
from server.api.config import HttpConfig
from server.text.tokenizer import Tokenizer
from tests.api.fake import FakeService
from tests.checkpoints import tiny_tokenizer
from tests.client.conftest import running_gateway
from tests.client.stub import Stub, stubs
from tests.raw_http import connected
from tests.serving import eventually, serving
from utils.access_log import BURST, LINES_PER_SECOND, Throttle

SECRET = "a prompt that nobody shall read"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(path)
    return Tokenizer(path)


@pytest.fixture(autouse=True)
def at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "access"]


REFUSED = [
    ("/v1/completions", {"model": "fake", "prompt": SECRET, "no_such": SECRET}, "unknown_option no_such"),
    ("/v1/completions", {"model": SECRET, "prompt": SECRET}, "model_not_found model"),
    ("/completion/v2", {"model": "fake", "prompt": 7, SECRET: 1}, "prompt"),
    ("/v1/messages", {"model": "fake"}, "missing_field"),
    ("/nowhere", {}, "not_found"),
    ("/v1/models", {}, "method_not_allowed"),
]


async def test_what_a_server_refuses(tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    with serving(create_app(FakeService(tokenizer))) as url:
        async with aiohttp.ClientSession(url) as session:
            for path, body, said in REFUSED:
                caplog.clear()
                async with session.post(path, json=body, headers={"x-request-id": "mine"}) as answer:
                    status = answer.status
                await eventually(lambda: len(lines(caplog)) == 1)
                (line,) = lines(caplog)
                assert line.startswith(f"127.0.0.1 POST {path} {status} ") and " mine " in line
                assert said in line and SECRET not in line


async def test_what_a_gateway_refuses_itself_or_passes_on(caplog: pytest.LogCaptureFixture) -> None:
    async with stubs(server := Stub()), running_gateway([server], api_keys=["key"]) as client:
        key = {"authorization": "Bearer key"}
        for headers, body, said in [
            ({}, {"model": "m", "prompt": SECRET}, "401"),
            (key, {"model": "other", "prompt": SECRET}, "404"),
            (key | {"origin": "http://evil.example"}, {"model": "m", "prompt": SECRET}, "403"),
            (key | {"content-encoding": "gzip"}, {}, "415"),
        ]:
            caplog.clear()
            async with client.session.post("/completion/v2", json=body, headers=headers):
                pass
            await eventually(lambda: len(lines(caplog)) == 1)
            assert f"POST /completion/v2 {said} " in lines(caplog)[0]
            assert SECRET not in caplog.text and "Bearer" not in caplog.text
        caplog.clear()
        async with client.session.get("/status"):
            pass
        await eventually(lambda: len(lines(caplog)) == 1)
        client.session.headers.update(key)
        await client.complete(SECRET)
        assert len(lines(caplog)) == 1  # what goes well leaves none


async def test_a_client_that_leaves(caplog: pytest.LogCaptureFixture) -> None:
    async with stubs(server := Stub(seconds_per_token=0.1)), running_gateway([server]) as client:
        request = asyncio.create_task(client.stream("x", 50))
        await eventually(lambda: server.live == 1)
        request.cancel()
        await eventually(lambda: any("POST /completion/v2 499 " in line for line in lines(caplog)))


@pytest.mark.parametrize(("mode", "count"), [("all", 3), ("errors", 1), ("none", 0)])
async def test_the_configuration_says_which(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture, mode: str, count: int
) -> None:
    app = create_app(FakeService(tokenizer), http=HttpConfig.model_validate({"access_log": mode}))
    with serving(app) as url:
        async with aiohttp.ClientSession(url) as session:
            for path in ("/health", "/v1/models", "/nowhere"):
                async with session.get(path) as answer:
                    await answer.read()
        await asyncio.sleep(0.1)
    assert len(lines(caplog)) == count


async def test_a_reload_changes_it(caplog: pytest.LogCaptureFixture) -> None:
    async with running_gateway() as client:
        front: CompletionFront = client.front
        front.gateway.configure(GatewayConfig(access_log="none"))
        async with client.session.get("/nowhere") as answer:
            await answer.read()
        await asyncio.sleep(0.05)
        assert not lines(caplog)


async def test_nothing_that_is_sent_begins_a_line_of_its_own(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(create_app(FakeService(tokenizer))) as url:
        async with aiohttp.ClientSession(url) as session:
            async with session.get("/a%0Ab%1B%5B31m" + "x" * 1000) as answer:
                assert answer.status == 404
            body = b'{"model": "fake", "prompt": "x", "a\\n2026 root logged in": 1}'
            headers = {"content-type": "application/json"}
            async with session.post("/v1/completions", data=body, headers=headers) as answer:
                assert answer.status == 400
        await eventually(lambda: len(lines(caplog)) == 2)
    for line in lines(caplog):
        assert line.isprintable() and len(line) < 400


async def test_what_is_no_request(tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    with serving(create_app(FakeService(tokenizer))) as url:
        port = urlsplit(url).port
        assert port is not None
        async with connected(port) as (reader, writer):
            writer.write(b"GARBAGE\r\n\r\n")
            await reader.read()
        await eventually(lambda: len(lines(caplog)) == 1)
        assert lines(caplog)[0].startswith("127.0.0.1 malformed 400 ")


async def test_a_server_that_loads_is_not_told_again_and_again(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    service = FakeService(tokenizer)
    service.may_start.clear()
    with serving(create_app(service)) as url:
        async with aiohttp.ClientSession(url) as session, session.get("/ready") as answer:
            assert answer.status == 503
        await asyncio.sleep(0.05)
        assert not lines(caplog)
        service.may_start.set()


def test_a_flood_is_counted_not_written() -> None:
    now = [0.0]
    throttle = Throttle(lambda: now[0])
    assert [throttle.passes() for _ in range(BURST + 50)] == [0] * BURST + [None] * 50
    now[0] += 1.0
    passed = [throttle.passes() for _ in range(100)]
    assert passed[: int(LINES_PER_SECOND)] == [50] + [0] * (int(LINES_PER_SECOND) - 1)
    assert set(passed[int(LINES_PER_SECOND) :]) == {None}
