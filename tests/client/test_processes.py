"""The gateway as a process of its own: signals, foreground and under gunicorn."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ports import free_port
from tests.client.calls import text_of, tokens_of
from tests.client.processes import ROOT, complete, foreground, gateway, gunicorn
from tests.client.stub import Stub, stubs
from tests.e2e.stack import children
from tests.serving import eventually
from utils.options import ClientAppOptions


@pytest.mark.parametrize(
    ("how", "number"),
    [(foreground, signal.SIGTERM), (foreground, signal.SIGHUP), (gunicorn, signal.SIGTERM)],
)
async def test_a_signal_lets_requests_finish_and_refuses_new_ones(
    tmp_path: Path, how: Any, number: signal.Signals
) -> None:
    server = Stub(seconds_per_token=0.05)
    async with stubs(server), gateway(tmp_path, [server.url], how) as (running, session):
        flying = [asyncio.create_task(complete(session, f"p{i}", 30, bool(i % 2))) for i in range(6)]
        await eventually(lambda: server.live == 6)
        running.send_signal(number)
        async with asyncio.timeout(30):
            while True:
                async with session.get("/ready") as response:
                    if response.status == 503:
                        break
        async with session.post("/completion/v2", json={"model": "m", "prompt": "x"}) as response:
            assert response.status == 503 and "retry-after" in response.headers
            assert (await response.json())["error"]["code"] == "draining"
        async with session.get("/health") as response:
            assert response.status == 200
        for i, request in enumerate(flying):
            assert await request == (200, text_of(tokens_of(f"p{i}", 30)))
        await eventually(lambda: running.poll() is not None)
        assert running.returncode in (0, -signal.SIGTERM)


async def test_streams_outlive_the_terminal_of_gunicorn(tmp_path: Path) -> None:
    server = Stub(seconds_per_token=0.05)
    async with stubs(server), gateway(tmp_path, [server.url], gunicorn) as (running, session):
        flying = asyncio.create_task(complete(session, "p", 40, True))
        await eventually(lambda: server.live == 1)
        for process in {running.pid} | children(running.pid):
            os.kill(process, signal.SIGHUP)
        assert await flying == (200, text_of(tokens_of("p", 40)))


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    server = Stub(seconds_per_token=1)
    async with stubs(server), gateway(tmp_path, [server.url]) as (running, session):
        flying = asyncio.create_task(complete(session, "p", 1000, False))
        await eventually(lambda: server.live == 1)
        for _ in range(2):
            running.send_signal(signal.SIGINT)
            await asyncio.sleep(0.3)
        status, body = await flying
        assert status == 503 and "draining" in body
        await eventually(lambda: running.poll() is not None)


async def test_draining_has_an_end(tmp_path: Path) -> None:
    server = Stub(seconds_per_token=0.5)
    async with (
        stubs(server),
        gateway(tmp_path, [server.url], gunicorn, drain_timeout_seconds=0.5) as (running, session),
    ):
        body = {"model": "m", "prompt": "p", "stream": True}
        async with session.post("/completion/v2", json=body) as response:
            await response.content.readany()
            running.send_signal(signal.SIGTERM)
            assert b"event: error\ndata: {" in await response.read()
        await eventually(lambda: running.poll() is not None)
        await eventually(lambda: server.live == 0)


def test_a_bad_configuration_is_one_line_and_an_exit_status(tmp_path: Path) -> None:
    path = tmp_path / "client_config.json"
    path.write_text('{"heart_beat_interval": 600}')
    command, _ = foreground(ClientAppOptions(port=free_port(), client_config_file_path=path))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert "heart_beat_interval_seconds" in line


async def test_the_limits_of_gunicorn_are_kept(tmp_path: Path) -> None:
    def strict(options: ClientAppOptions) -> Any:
        command, environment = gunicorn(options)
        limits = ("--limit-request-fields", "10", "--limit-request-line", "100")
        return (*command, *limits, "--limit-request-field_size", "200"), environment

    async with gateway(tmp_path, [], strict) as (_, session):
        for path, headers, status in [
            ("/health", {f"x-{i}": "a" for i in range(5)}, 200),
            ("/health", {f"x-{i}": "a" for i in range(15)}, 431),
            ("/health", {"x": "a" * 190}, 200),
            ("/health", {"x": "a" * 210}, 431),
            ("/health?" + "a" * 80, {}, 200),
            ("/health?" + "a" * 100, {}, 414),
        ]:
            async with session.get(path, headers=headers) as response:
                assert response.status == status, (path, headers)
