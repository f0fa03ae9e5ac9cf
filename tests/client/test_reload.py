"""The configuration file is followed; a bad one is refused and the old one stays in use."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from client import reload
from client.app import create_app
from client.config import GatewayConfig
from client.reload import ConfigFile
from tests.client.conftest import FAST, GatewayClient, serving_here
from tests.client.stub import Stub, stubs
from tests.serving import eventually
from utils.config import ConfigError


class Writer:
    """The operator: edits the file as editors do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, *servers: Stub, **fields: Any) -> None:
        config = FAST | {"continuous_batching_server_urls": [s.url for s in servers]} | fields
        self.put(json.dumps(config))

    def put(self, text: str) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.path)


@asynccontextmanager
async def following(path: Path, interval: float = 0.0) -> AsyncIterator[GatewayClient]:
    file = ConfigFile(path, interval=interval)
    front = create_app(file.load(), file)
    async with serving_here(front) as url, aiohttp.ClientSession(url) as session:
        yield GatewayClient(front, session, url)


@pytest.fixture
def file(tmp_path: Path) -> Writer:
    return Writer(tmp_path / "client_config.json")


async def test_servers_come_and_go(file: Writer) -> None:
    a, b = Stub(seconds_per_token=0.02), Stub()
    async with stubs(a, b):
        file.write(a)
        async with following(file.path) as client:
            await client.ready()
            old = asyncio.create_task(client.stream("old", 40))
            await eventually(lambda: a.live == 1)
            file.write(b)
            await eventually(lambda: [r.url for r in client.gateway.registry] == [b.url])
            await client.ready()
            await client.complete("new")
            assert len(a.calls) == len(b.calls) == 1
            assert (await old).endswith(b"data: [DONE]\n\n")  # what was in flight finished where it was


async def test_everything_is_taken_over_whole(file: Writer) -> None:
    server = Stub()
    async with stubs(server):
        file.write(server)
        async with following(file.path) as client:
            await client.ready()
            replica = client.gateway.registry.get("continuous_batching", server.url)
            file.write(
                server,
                api_keys=["new"],
                max_body_bytes=300,
                openai_jumper_configs=[{"api_key": "k", "org_id": None}],
            )
            await eventually(lambda: client.gateway.settings.config.max_body_bytes == 300)
            assert client.gateway.registry.get("continuous_batching", server.url) is replica
            assert (await client.post())[0] == 401
            client.session.headers["authorization"] = "Bearer new"
            assert (await client.post("x" * 300))[0] == 413
            assert len(list(client.gateway.jumpers)) == 1
            async with client.session.get("/status") as response:
                assert (await response.json())["config"] == {
                    "path": str(file.path),
                    "loads": 2,
                    "error": None,
                }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"continous_batching_server_urls": []}', "continuous_batching_server_urls"),
        ('{"heart_beat_interval_seconds": -1}', "heart_beat_interval_seconds"),
        ("{", "not valid JSON"),
        ('{"api_keys": &a [*a]}', "not valid JSON"),
        ('{"api_keys": ' + 3000 * "[", "nested too deeply"),
        ("", "the file"),
    ],
)
async def test_a_bad_file_is_refused(file: Writer, text: str, said: str) -> None:
    server = Stub()
    async with stubs(server):
        file.write(server)
        async with following(file.path) as client:
            await client.ready()
            file.put(text)
            config = client.gateway.config_file
            assert config is not None
            await eventually(lambda: config.error is not None)
            assert said in str(config.error)
            async with client.session.get("/status") as response:
                assert said in (await response.json())["config"]["error"]
            await client.complete()
            file.write(server, max_body_bytes=1000)
            await eventually(lambda: client.gateway.settings.config.max_body_bytes == 1000)
            assert config.error is None


async def test_a_fault_while_taking_over_does_not_end_the_following(file: Writer) -> None:
    file.write()
    config_file, taken = ConfigFile(file.path, interval=0.05), []
    config_file.load()

    def apply(config: GatewayConfig) -> None:
        if config.max_body_bytes == 1:
            raise ZeroDivisionError("a fault")
        taken.append(config.max_body_bytes)

    async with config_file.following(apply):
        file.write(max_body_bytes=1)
        await eventually(lambda: config_file.error == "ZeroDivisionError: a fault")
        file.write(max_body_bytes=2)
        await eventually(lambda: taken == [2])
        assert config_file.error is None


@pytest.mark.parametrize("slow", ["read", "parse"])
async def test_a_slow_file_keeps_no_request_waiting(
    file: Writer, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    """On a network file system reading may take long; so may checking thousands of keys."""
    server, answered, waited = Stub(), threading.Event(), []
    async with stubs(server):
        file.write(server)
        async with following(file.path) as client:
            await client.ready()

            def held(function: Callable[..., Any]) -> Callable[..., Any]:
                def wait_for_the_loop(*args: Any) -> Any:
                    waited.append(answered.wait(5))
                    return function(*args)

                return wait_for_the_loop

            if slow == "read":
                monkeypatch.setattr(ConfigFile, "_read", held(ConfigFile._read))
            else:
                monkeypatch.setattr(reload, "load_config", held(reload.load_config))
            file.write(server, max_body_bytes=1000)
            await asyncio.sleep(0.8)  # it is being read by now
            await client.complete()
            answered.set()
            await eventually(lambda: client.gateway.settings.config.max_body_bytes == 1000)
            assert waited and all(waited)


async def test_a_lost_file_is_a_bad_file(file: Writer) -> None:
    file.write()
    async with following(file.path) as client:
        file.path.unlink()
        config = client.gateway.config_file
        assert config is not None
        await eventually(lambda: "cannot be read" in str(config.error))


def link(path: Path, target: Path) -> None:
    """Put a symbolic link at `path`, in one step where there is one already."""
    fresh = path.with_name("fresh")
    fresh.symlink_to(target)
    fresh.replace(path)


def edit_in_place(top: Path, text: str) -> None:
    (top / "mounted" / "client_config.json").write_text(text)


def put_another_directory_behind(top: Path, text: str) -> None:
    """As Kubernetes does with a changed ConfigMap."""
    (top / "newer").mkdir()
    (top / "newer" / "client_config.json").write_text(text)
    link(top / "mounted", top / "newer")


def make_the_directory_again(top: Path, text: str) -> None:
    shutil.rmtree(top / "older")
    (top / "older").mkdir()
    (top / "older" / "client_config.json").write_text(text)


@pytest.mark.parametrize("change", [edit_in_place, put_another_directory_behind, make_the_directory_again])
async def test_a_file_behind_links_is_followed(tmp_path: Path, change: Callable[[Path, str], None]) -> None:
    (tmp_path / "older").mkdir()
    Writer(tmp_path / "older" / "client_config.json").write()
    link(tmp_path / "mounted", tmp_path / "older")
    (tmp_path / "used").mkdir()
    link(tmp_path / "used" / "client_config.json", tmp_path / "mounted" / "client_config.json")
    async with following(tmp_path / "used" / "client_config.json") as client:
        await asyncio.sleep(0.5)  # what came before the change has been seen
        change(tmp_path, json.dumps(FAST | {"max_body_bytes": 77}))
        await eventually(lambda: client.gateway.settings.config.max_body_bytes == 77)
        edit_in_place(tmp_path, json.dumps(FAST | {"max_body_bytes": 78}))
        await eventually(lambda: client.gateway.settings.config.max_body_bytes == 78)


async def test_the_file_is_also_read_by_the_clock(file: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """On file systems that tell of no change."""

    async def never(self: ConfigFile, apply: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(ConfigFile, "_on_change", never)
    file.write()
    async with following(file.path, interval=0.05) as client:
        file.write(max_body_bytes=77)
        await eventually(lambda: client.gateway.settings.config.max_body_bytes == 77)


def test_a_gateway_does_not_start_on_a_bad_file(file: Writer) -> None:
    file.put('{"heart_beat_interval": 1}')
    with pytest.raises(ConfigError, match="heart_beat_interval_seconds"):
        ConfigFile(file.path).load()


def test_the_template_of_the_seed_loads(file: Writer) -> None:
    file.put(
        """{
  "continuous_batching_server_urls": ["http://127.0.0.1:8001"],  # 支持持续批处理的服务端
  "static_batching_server_urls": ["http://127.0.0.1:8002"],  # balanced
  "openai_jumper_configs": [
    {
      "api_key": "YOUR_OPENAI_KEY",
      "org_id": null
    }
  ],  # accounts
  "heart_beat_interval_seconds": 600  # seconds
}"""
    )
    config = ConfigFile(file.path).load()
    assert config.servers() == [
        ("continuous_batching", "http://127.0.0.1:8001"),
        ("static_batching", "http://127.0.0.1:8002"),
    ]
    assert config.openai_jumper_configs[0].api_key.get_secret_value() == "YOUR_OPENAI_KEY"
