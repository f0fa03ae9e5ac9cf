"""From loading over readiness and draining to the end."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from protocol.status import Announcement, ServerState
from server.api.app import create_app
from server.api.lifecycle import Lifecycle
from server.text.tokenizer import Tokenizer
from tests.api.fake import FakeService
from tests.serving import eventually, serving

BODY = {"model": "fake", "prompt": "Hi"}
LONG = {"prompt": [5], "model": "fake", "generation_config": {"max_new_tokens": 100}}
"""Takes three seconds of `SERVER`."""


class Announcements:
    announcement = Announcement(
        gateway="http://gateway:1", server="http://here:1", state="refused", problem="no"
    )

    def __init__(self) -> None:
        self.made: list[str] = []

    async def started(self) -> None:
        self.made.append("started")

    async def stopping(self) -> None:
        self.made.append("stopping")


async def status(http: aiohttp.ClientSession, path: str) -> int:
    """As GET and HEAD tell it: load balancers probe with either."""
    async with http.get(path) as response:
        got = response.status
    async with http.head(path) as response:
        assert response.status == got and await response.read() == b""
    return got


async def test_a_service_without_progress_says_why(service: FakeService) -> None:
    """Liveness, readiness and refusals have the reason, whatever the state."""
    with serving(create_app(service)) as url:
        async with aiohttp.ClientSession(url) as http:
            assert await status(http, "/ready") == 200
            for state, code in (
                (ServerState.READY, "unhealthy"),
                (ServerState.LOADING, "loading"),
                (ServerState.FAILED, "failed"),
            ):
                service.state, service.problem = state, "no step for 60 s"
                assert await status(http, "/health") == await status(http, "/ready") == 503
                async with http.get("/health") as response:
                    assert (await response.json())["error"]["message"] == "no step for 60 s"
                async with http.get("/status") as response:
                    assert (await response.json())["problem"] == "no step for 60 s"
                for path in ("/v1/completions", "/completion/v2"):
                    async with http.post(path, json=BODY) as response:
                        assert response.status == 503 and response.headers["retry-after"]
                        error = (await response.json())["error"]
                        assert error["code"] == code and error["message"].endswith("no step for 60 s")
            service.state, service.problem = ServerState.READY, None
            assert await status(http, "/health") == await status(http, "/ready") == 200


async def test_answers_while_the_model_loads(service: FakeService) -> None:
    service.may_start.clear()
    announcements, ready = Announcements(), threading.Event()
    lifecycle = Lifecycle(service, announcer=announcements, on_ready=ready.set)
    with serving(create_app(service, lifecycle=lifecycle)) as url:
        async with aiohttp.ClientSession(url) as http:
            assert await status(http, "/health") == 200
            assert await status(http, "/ready") == 503
            async with http.get("/status") as response:
                told = await response.json()
                assert told["state"] == "loading"
                assert told["announcement"] == announcements.announcement.model_dump()
            async with http.get("/v1/models") as response:
                assert (await response.json())["data"] == []
            async with http.get("/model_id") as response:
                assert await response.json() == "fake"
            async with http.post("/completion/v2", json=BODY) as response:
                assert response.status == 503
                assert response.headers["retry-after"]
                assert (await response.json())["error"]["code"] == "loading"
            assert announcements.made == [] and not ready.is_set()
            service.may_start._loop.call_soon_threadsafe(service.may_start.set)  # type: ignore[attr-defined]
            await eventually(lambda: service.state == "ready")
            async with http.get("/ready") as response:  # which a server with a key answers to all, too
                told = await response.json()
            assert told == {"status": "ready", "announcement": announcements.announcement.model_dump()}
            await eventually(lambda: announcements.made == ["started"])
            assert ready.is_set()
    assert announcements.made == ["started", "stopping"]
    assert service.closed == 1


async def test_a_model_that_cannot_be_served(service: FakeService, caplog: pytest.LogCaptureFixture) -> None:
    service.start_failure = ValueError("model.safetensors is\n  corrupt")
    ready, failed = threading.Event(), threading.Event()
    lifecycle = Lifecycle(service, on_ready=ready.set, on_failure=failed.set)
    with serving(create_app(service, lifecycle=lifecycle)) as url:
        assert failed.wait(5)
        async with aiohttp.ClientSession(url) as http:
            assert await status(http, "/health") == 503
            assert await status(http, "/ready") == 503
    assert not ready.is_set()
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.getMessage() == "fake cannot be served: model.safetensors is corrupt"


SERVER = """
import sys, uvicorn
from server.api.app import create_app
from server.api.lifecycle import Lifecycle
from server.text.tokenizer import Tokenizer
from tests.api.fake import FakeService

service = FakeService(Tokenizer(sys.argv[1]))
service.seconds_per_token = 0.03
service.reply *= 20
app = create_app(service, lifecycle=Lifecycle(service, drain_on_signals=True))
uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_drains(tokenizer: Tokenizer, unused_tcp_port: int, number: signal.Signals) -> None:
    path = str(tokenizer.hf.name_or_path)
    command = [sys.executable, "-c", SERVER, path, str(unused_tcp_port)]
    process = subprocess.Popen(command)  # noqa: ASYNC220
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{unused_tcp_port}") as http:
            await _until_ready(http, process)
            running = asyncio.create_task(http.post("/completion/v2", json=LONG))
            await _until(http, lambda told: told["load"]["running"] == 1)
            process.send_signal(number)
            await _until(http, lambda told: told["state"] == "draining")
            async with http.post("/completion/v2", json=BODY) as response:
                assert response.status == 503
                assert (await response.json())["error"]["code"] == "draining"
            assert await status(http, "/ready") == 503
            async with await running as response:
                assert response.status == 200
                assert (await response.json())["usage"]["completion_tokens"] == 100
        assert await asyncio.to_thread(process.wait, 30) in (0, -number)
    finally:
        process.kill()
        process.wait()


async def test_second_signal_ends_the_wait(tokenizer: Tokenizer, unused_tcp_port: int) -> None:
    command = [sys.executable, "-c", SERVER, str(tokenizer.hf.name_or_path), str(unused_tcp_port)]
    process = subprocess.Popen(command)  # noqa: ASYNC220
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{unused_tcp_port}") as http:
            await _until_ready(http, process)
            running = [asyncio.create_task(http.post("/completion/v2", json=LONG)) for _ in range(2)]
            await _until(http, lambda told: told["load"]["running"] == 2)
            process.send_signal(signal.SIGTERM)
            await _until(http, lambda told: told["state"] == "draining")
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            for task in running:
                async with await task as response:
                    assert response.status == 503
        assert await asyncio.to_thread(process.wait, 30) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()


async def _until(http: aiohttp.ClientSession, condition: Callable[[dict[str, Any]], bool]) -> None:
    """Return once `/status` meets `condition`."""
    async with asyncio.timeout(30):
        while True:
            async with http.get("/status") as response:
                if condition(await response.json()):
                    return
            await asyncio.sleep(0.02)


async def _until_ready(http: aiohttp.ClientSession, process: subprocess.Popen[bytes]) -> None:
    async with asyncio.timeout(60):
        while process.poll() is None:
            try:
                if await status(http, "/ready") == 200:
                    return
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(0.05)
    raise AssertionError("the server ended")
