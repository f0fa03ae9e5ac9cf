"""What the gateway learns of engines that are not ours, from their own routes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from client.engines.answers import samples
from client.health.replica import ReplicaState
from tests.client.conftest import GatewayClient, MakeGateway
from tests.client.engines.fakes import FakeEngine
from tests.client.engines.formats import FORMATS, LLAMA_CPP, SGLANG, VLLM, Format
from tests.client.stub import Stub, stubs
from tests.serving import eventually

VERSIONS = {"vLLM": "0.32.0", "SGLang": "0.5.23", "llama.cpp": "b11434-abc"}


async def told(client: GatewayClient) -> list[dict[str, object]]:
    """The replicas of `/status`."""
    async with client.session.get("/status") as response:
        replicas = (await response.json())["replicas"]
        assert isinstance(replicas, list)
        return replicas


@pytest.mark.parametrize("format", FORMATS, ids=lambda one: one.owner)
async def test_the_status_shows_them_as_what_they_are(make_gateway: MakeGateway, format: Format) -> None:
    server = FakeEngine(format=format, waiting=3, others=2)
    async with stubs(server), make_gateway([server]) as client:
        (shown,) = await told(client)
        assert (shown["kind"], shown["engine"]) == ("openai_compatible", format.name)
        assert (shown["state"], shown["model_id"]) == ("ready", "m")
        assert shown["version"] == VERSIONS[format.name]
        assert shown["load"] == {"running": 2, "waiting": 3, "kv_cache_usage": None}
        async with client.session.get("/v1/models") as response:
            cards = (await response.json())["data"]
        names = ["m", "short"] if format is LLAMA_CPP else ["m"]
        assert [(card["id"], card["max_model_len"]) for card in cards] == [(name, 512) for name in names]
        (replica,) = client.gateway.registry
        assert replica.load.slots == {"vLLM": 2, "SGLang": 12, "llama.cpp": 4}[format.name]
        async with client.session.get("/metrics") as response:
            assert f'kind="openai_compatible",model_name="m",server="{server.url}"' in await response.text()


async def test_a_server_that_tells_no_load_serves(make_gateway: MakeGateway) -> None:
    servers = [FakeEngine(format=format, model=format.owner, silent=True) for format in FORMATS]
    async with stubs(*servers), make_gateway(servers) as client:
        for shown in await told(client):
            assert (shown["state"], shown["load"], shown["version"]) == ("ready", None, None)


async def test_an_unknown_engine_is_a_server_with_the_api(make_gateway: MakeGateway) -> None:
    server = FakeEngine(format=Format("?", "me", ("a", "b"), "/nothing", False, ()))
    async with stubs(server), make_gateway([server]) as client:
        (shown,) = await told(client)
        assert (shown["engine"], shown["version"], shown["load"]) == ("OpenAI-compatible", None, None)
        assert set(server.asked) == {"/v1/models"}


async def test_version_and_size_are_asked_for_once(make_gateway: MakeGateway) -> None:
    server = FakeEngine(format=SGLANG)
    async with stubs(server), make_gateway([server], heart_beat_interval_seconds=0.05) as client:
        await eventually(lambda: server.asked.count("/metrics") > 3)
        assert server.asked.count("/server_info") == 1
        (replica,) = client.gateway.registry
        assert replica.load.slots == 12 and replica.report is not None and replica.report.version == "0.5.23"
        await server.kill()
        await eventually(lambda: replica.state is ReplicaState.DOWN)
        await server.start()
        await eventually(lambda: replica.state is ReplicaState.READY)
        assert server.asked.count("/server_info") >= 2


async def test_one_that_loads_or_whose_engine_is_dead_gets_nothing(make_gateway: MakeGateway) -> None:
    loading, dead = FakeEngine(format=LLAMA_CPP, loading=True), FakeEngine(format=VLLM, dead=True)
    async with stubs(loading, dead):
        urls = {"openai_compatible_server_urls": [loading.url, dead.url]}
        async with make_gateway([], **urls) as client:
            states = {replica.url: replica for replica in client.gateway.registry}
            await eventually(lambda: states[loading.url].state is ReplicaState.LOADING)
            await eventually(lambda: states[dead.url].state is ReplicaState.DOWN)
            assert states[dead.url].reason == "/health answers 503"
            loading.loading = dead.dead = False
            await client.ready(2)


async def test_keys_are_those_of_each_server(
    make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINE_KEY", "secret")
    own, keyed, other = Stub(model="own"), FakeEngine(key="secret"), FakeEngine(format=SGLANG, key="another")
    async with stubs(own, keyed, other):
        urls = [{"url": keyed.url, "api_key": "env:ENGINE_KEY"}, {"url": other.url, "api_key": "wrong"}]
        async with make_gateway([own], openai_compatible_server_urls=urls, server_key="ours") as client:
            await client.ready(2)
            status, _, _ = await client.post(route="/v1/completions", max_tokens=2)
            assert status == 200 and keyed.calls[0].headers["authorization"] == "Bearer secret"
            refused = next(replica for replica in client.gateway.registry if replica.url == other.url)
            await eventually(lambda: refused.state is ReplicaState.DOWN)
            assert refused.reason == "/v1/models answers 401: Unauthorized"
            async with client.session.get("/status") as response:
                text = await response.text()
            assert "secret" not in text and "wrong" not in text


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"[]", "/v1/models answers no list of models"),
        (b'{"data": []}', "/v1/models answers no list of models: data"),
        (b'{"data": [{"id": 7}]}', "/v1/models answers no list of models: data.0.id"),
        (b"\xff", "/v1/models answers no list of models"),
        (b'{"data": [{"id": "' + b"x" * 5000 + b'"}]}', "/v1/models answers no list of models: data.0.id"),
    ],
)
async def test_models_that_are_none(make_gateway: MakeGateway, answer: bytes, reason: str) -> None:
    server = OddModels(answer=answer)
    async with stubs(server), make_gateway([], openai_compatible_server_urls=[server.url]) as client:
        (replica,) = client.gateway.registry
        await eventually(lambda: replica.state is ReplicaState.DOWN)
        assert replica.reason.startswith(reason)
        assert len(replica.reason) < 500


class OddModels(FakeEngine):
    """Answers every probe with `answer`."""

    def __init__(self, answer: bytes) -> None:
        super().__init__()
        self.answer = answer

    async def _get(self, path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> bool:
        await self._whole(writer, 200, self.answer)
        return True


def test_samples_are_of_the_very_name() -> None:
    text = '# HELP a_b 5\na_b 1\na_b_c 7\na_b{x="}\\" 9"} 2.5\nxa_b 3\n'
    assert samples(text, "a_b") == [1.0, 2.5]
    assert samples(text, "a") == []
    assert samples("a nan\n", "a") == samples("a -1\n", "a") == samples("a x\n", "a") == []


async def test_the_load_of_others_counts_in_balancing(make_gateway: MakeGateway) -> None:
    busy, idle = FakeEngine(others=30), FakeEngine()
    async with stubs(busy, idle), make_gateway([busy, idle]) as client:
        for n in range(4):
            await client.post(f"p{n}", route="/v1/completions", max_tokens=2)
        assert (len(busy.calls), len(idle.calls)) == (0, 4)


async def test_ours_and_others_of_one_model_share_its_requests(make_gateway: MakeGateway) -> None:
    own, engine = Stub(), FakeEngine(format=VLLM)
    async with stubs(own, engine), make_gateway([own, engine]) as client:
        for n in range(6):
            await client.post(f"p{n}", route="/v1/completions", max_tokens=2)
        assert len(own.calls) == len(engine.calls) == 3
        beams = {"num_beams": 2, "max_tokens": 2}
        for n in range(4):
            await client.post(f"b{n}", route="/v1/completions", **beams)
            await client.post(f"b{n}", tokens=2)
        assert (len(own.calls), len(engine.calls)) == (11, 3), "what ours alone can goes to ours"


async def test_numbers_out_of_bounds_are_none(make_gateway: MakeGateway) -> None:
    server = Boaster(format=LLAMA_CPP)
    async with stubs(server), make_gateway([server]) as client:
        (shown,) = await told(client)
        assert shown["load"] is None and shown["version"] == "v" * 100
        (replica,) = client.gateway.registry
        assert replica.load.slots == 32 and replica.report is not None and replica.report.max_length is None


class Boaster(FakeEngine):
    """Tells of itself what cannot be."""

    async def _get(self, path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> bool:
        huge = 2**70
        answer: Any = {
            "/v1/models": {"data": [{"id": "m", "owned_by": "llamacpp", "meta": {"n_ctx": huge}}]},
            "/props": {"build_info": "v" * 5000, "total_slots": huge},
        }.get(path, f"llamacpp:requests_processing {huge}\nllamacpp:requests_deferred 1\n")
        await self._whole(writer, 200, (answer if isinstance(answer, str) else json.dumps(answer)).encode())
        return True
