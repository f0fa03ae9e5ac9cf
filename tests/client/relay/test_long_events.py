"""Events that are as long as a prompt."""

from __future__ import annotations

import json
from typing import Any

import pytest

from client.upstream.session import MAX_EVENT_BYTES
from tests.api.fake import FakeService
from tests.client.conftest import MakeGateway


@pytest.mark.parametrize("stream", [False, True])
async def test_the_log_probabilities_of_a_long_prompt(
    make_gateway: MakeGateway, cb: FakeService, cb_url: str, stream: bool
) -> None:
    cb.model_max_length = 20_000
    ids = [3 + i % 250 for i in range(12_000)]
    fields: dict[str, Any] = {"prompt": ids, "max_tokens": 2, "prompt_logprobs": 2, "logprobs": 1}
    body = {"model": "fake", "echo": True, "stream": stream, **fields}
    async with make_gateway(continuous_batching_server_urls=[cb_url]) as client:
        await client.ready(1)
        async with client.session.post("/v1/completions", json=body) as response:
            assert response.status == 200, await response.text()
            text = await response.text()
    if stream:
        assert text.endswith("data: [DONE]\n\n")
        text = text.partition("\n\n")[0].removeprefix("data: ")
    (choice,) = json.loads(text)["choices"]
    assert len(choice["prompt_logprobs"]) == len(ids) <= len(choice["logprobs"]["tokens"])
    assert len(text) > MAX_EVENT_BYTES
