"""Requests that other servers answer, and how they are answered here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tokenizers.processors import TemplateProcessing

from client.requests.request import read_request
from server.api.app import create_app
from server.text.tokenizer import Tokenizer
from tests.api.fake import FakeService
from tests.checkpoints import tiny_tokenizer
from tests.serving import serving

COMPLETIONS = "/v1/completions"


async def post(http: aiohttp.ClientSession, route: str = COMPLETIONS, **fields: Any) -> tuple[int, Any]:
    async with http.post(route, json={"model": "fake", **fields}) as response:
        return response.status, await response.json()


@pytest.mark.parametrize("prompt", ["", None, ["", "Hi"]])
async def test_an_empty_prompt_is_the_beginning_of_a_text(
    http: aiohttp.ClientSession, service: FakeService, prompt: Any
) -> None:
    status, answer = await post(http, prompt=prompt, echo=True)
    assert status == 200, answer
    begin = service.tokenizer.encode("")
    assert len(begin) == 1 and service.jobs[0].prompt_token_ids == begin
    assert len(answer["choices"]) == len(service.jobs)


async def test_a_model_that_begins_no_text_by_itself_says_so(tmp_path: Path) -> None:
    tiny_tokenizer(tmp_path)
    service = FakeService(Tokenizer(tmp_path))
    backend: Any = service.tokenizer.hf.backend_tokenizer
    backend.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    with serving(create_app(service)) as url:
        async with aiohttp.ClientSession(url) as http:
            for prompt in ("", None, ["Hi", ""]):
                status, answer = await post(http, prompt=prompt)
                assert (status, answer["error"]["param"]) == (400, "prompt")
                assert "begins no text" in answer["error"]["message"]
            assert (await post(http, prompt="Hi"))[0] == 200


async def test_several_answers_at_temperature_0(http: aiohttp.ClientSession, service: FakeService) -> None:
    status, answer = await post(http, prompt="Hi", n=2, temperature=0)
    assert status == 200 and len(answer["choices"]) == 2
    assert service.jobs[0].config.do_sample and service.jobs[0].config.top_k == 1


@pytest.mark.parametrize("n", ["2", "2.0", "2e0"])
def test_a_gateway_reads_numbers_as_a_server_does(n: str) -> None:
    """How many answers a stream has it must know to resume it."""
    body = f'{{"model": "m", "prompt": "x", "n": {n}, "max_tokens": {n}, "temperature": 0}}'.encode()
    request = read_request("id", COMPLETIONS, body)
    assert (request.choices, request.rows, request.work) == (2, 2, 4)
    assert request.option("do_sample") is True
    native = f'{{"model": "m", "prompt": "x", "generation_config": {{"n": {n}, "max_new_tokens": 5.0}}}}'
    request = read_request("id", "/completion/v2", native.encode())
    assert (request.choices, request.work) == (2, 10)
