"""A prompt that overflows float16 is its request's error on both servers, beside others that lose nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from safetensors.torch import load_file, save_file

from server.api.app import create_app
from server.static_batching.config import ServerConfig, WorkerConfig
from server.static_batching.service import StaticBatchingService
from tests.checkpoints import tiny_llama
from tests.continuous_batching.server_process import ServerProcess
from tests.serving import serving

POISON = 300
"""The token whose hidden state overflows."""


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tiny_llama(tmp_path_factory.mktemp("fragile"))
    tensors = load_file(path / "model.safetensors")
    tensors["model.embed_tokens.weight"][POISON] = 65504.0  # the largest float16
    tensors["model.layers.0.self_attn.o_proj.weight"] *= 100
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture(scope="module")
def continuous(fragile: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    loading = {"model_name_or_path": str(fragile), "torch_dtype": "float16", "device": "cpu"}
    process = ServerProcess(tmp_path_factory.mktemp("server"), fragile, model_loading_config=loading)
    yield process.url
    process.stop()


@pytest.fixture(scope="module")
def static(fragile: Path) -> Iterator[str]:
    worker = WorkerConfig(model_name_or_path=str(fragile), torch_dtype="float16", device="cpu")
    with serving(create_app(StaticBatchingService(ServerConfig(worker_config=worker), "tiny"))) as url:
        yield url


@pytest.fixture(params=["continuous", "static"])
async def http(request: pytest.FixtureRequest) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(request.getfixturevalue(request.param)) as session:
        async with asyncio.timeout(90):
            while True:
                try:
                    async with session.get("/ready") as response:
                        if response.status == 200:
                            break
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.05)
        yield session


async def post(http: aiohttp.ClientSession, route: str, **body: Any) -> tuple[int, Any]:
    async with http.post(route, json={"model": "tiny", **body}) as response:
        return response.status, await response.json()


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"num_beams": 2}], ids=str)
async def test_it_fails_alone_and_by_its_own_fault(
    http: aiohttp.ClientSession, options: dict[str, Any]
) -> None:
    fields = {"temperature": 0, "seed": 1, "max_tokens": 6, "ignore_eos": True, **options}
    good = [[5 + i, 6, 7] for i in range(3)]
    expected = [await post(http, "/v1/completions", prompt=prompt, **fields) for prompt in good]
    assert [status for status, _ in expected] == [200] * 3
    bad = [[5, POISON, 6], [5, 6, POISON]]
    answers = await asyncio.gather(
        *(post(http, "/v1/completions", prompt=prompt, **fields) for prompt in [*bad, *good, *bad])
    )
    for status, body in answers[:2] + answers[5:]:
        assert status == 400 and "not finite" in body["error"]["message"]
        assert (body["error"]["type"], body["error"]["code"]) == (
            "invalid_request_error",
            "generation_failed",
        )
    for (_, body), (status, again) in zip(expected, answers[2:5], strict=True):
        assert status == 200 and again["choices"] == body["choices"]


async def test_a_native_route_says_422(http: aiohttp.ClientSession) -> None:
    async with http.get("/status") as response:
        kind = (await response.json())["service"]
    route = "/completion/v1" if kind == "static_batching" else "/completion/v2"
    status, body = await post(http, route, prompt=[5, POISON, 6])
    assert status == 422 and "not finite" in body["error"]["message"]


async def test_within_a_stream_it_is_an_error_event(continuous: str) -> None:
    """The first token is chosen from sound scores; it is the one that overflows."""
    async with aiohttp.ClientSession(continuous) as session:
        body = {"model": "tiny", "prompt": [5, 6], "stream": True, "temperature": 0, "max_tokens": 4}
        body["logit_bias"] = {str(POISON): 100}
        async with session.post("/v1/completions", json=body) as response:
            assert response.status == 200
            *_, first, last = (await response.text()).strip().split("\n\n")
    assert first.startswith("data: {") and last.startswith("event: error\n")
    error = json.loads(last.partition("data: ")[2])["error"]
    assert error["code"] == "generation_failed" and error["type"] == "invalid_request_error"
