"""A checkpoint's own way of drawing tokens, where a request to OpenAI's or Anthropic's routes is silent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from client.relay.resume import Journal
from server.api.config import ApiConfig
from server.checkpoints.errors import ModelError
from server.checkpoints.sampling_defaults import sampling_defaults
from tests.api.fake import FakeService

QWEN = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05}
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Hi"},
    "/v1/chat/completions": CHAT,
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {**CHAT, "max_tokens": 5},
}


@pytest.fixture(autouse=True)
def defaults(service: FakeService) -> None:
    service.sampling_defaults = QWEN


async def config_of(http: aiohttp.ClientSession, service: FakeService, route: str, **fields: Any) -> Any:
    async with http.post(route, json={"model": "fake", **ROUTES.get(route, {}), **fields}) as response:
        assert response.status == 200, await response.text()
        assert json.loads(response.headers["x-server-sampling"]) == service.sampling_defaults
    return service.jobs[-1].config


@pytest.mark.parametrize("route", ROUTES)
async def test_they_stand_in_for_what_is_left_out(
    http: aiohttp.ClientSession, service: FakeService, route: str
) -> None:
    config = await config_of(http, service, route)
    assert config.do_sample
    assert (config.temperature, config.top_k, config.top_p) == (0.6, 20, 0.95)
    assert config.repetition_penalty == 1.05 and config.min_p == 0.0
    config = await config_of(http, service, route, temperature=1.0, top_p=0.5)
    assert (config.temperature, config.top_k, config.top_p) == (1.0, 20, 0.5)
    config = await config_of(http, service, route, temperature=0)
    assert not config.do_sample and config.repetition_penalty == 1.05
    service.sampling_defaults = {}
    config = await config_of(http, service, route)
    assert (config.temperature, config.top_k, config.top_p, config.repetition_penalty) == (1.0, 0, 1.0, 1.0)


async def test_beams_are_still_searched_for(http: aiohttp.ClientSession, service: FakeService) -> None:
    config = await config_of(http, service, "/v1/completions", num_beams=2)
    assert not config.do_sample and config.repetition_penalty == 1.05


async def test_native_routes_stay_as_they_are(http: aiohttp.ClientSession, service: FakeService) -> None:
    config = await config_of(http, service, "/completion/v2", prompt="Hi")
    assert not config.do_sample and (config.temperature, config.top_k) == (1.0, 0)


@pytest.mark.parametrize("begun", [{}, {"temperature": 0.1}])
async def test_a_stream_goes_on_as_it_was_begun(
    http: aiohttp.ClientSession, service: FakeService, begun: dict[str, float]
) -> None:
    """At a server with other defaults: what was drawn before was drawn by those of the first."""
    journal = Journal()
    journal.sampling = json.dumps(begun)
    resume = journal.resume(1, 7).model_dump(exclude_none=True)
    config = await config_of(http, service, "/v1/completions", stream=True, resume=resume)
    assert config.temperature == begun.get("temperature", 1.0) and config.top_k == 0


@pytest.mark.parametrize("told", ["{", "[]", '{"temperature": "hot"}', '{"seed": 1}'])
def test_defaults_that_are_none_let_no_stream_go_on(told: str) -> None:
    journal = Journal()
    journal.sampling = told
    assert not journal.resumable(1)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (QWEN | {"do_sample": True, "eos_token_id": 2, "max_new_tokens": 9}, QWEN),
        ({"do_sample": False, "temperature": 0.6, "repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"temperature": None, "min_p": 0.1}, {"min_p": 0.1}),
        ({}, {}),
    ],
)
def test_what_a_checkpoint_says(tmp_path: Path, said: dict[str, Any], found: dict[str, Any]) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    assert sampling_defaults(tmp_path, "auto") == found
    assert sampling_defaults(tmp_path, "none") == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"temperature": "0.6"}', '{"top_k": true}', '{"top_p": NaN}'])
def test_what_is_none_is_refused_with_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        sampling_defaults(tmp_path, "auto")


def test_a_checkpoint_without_the_file_has_none(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "model.gguf"):
        assert sampling_defaults(place, "auto") == {}
    assert ApiConfig().generation_config == "auto"
