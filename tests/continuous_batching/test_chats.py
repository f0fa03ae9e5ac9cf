"""A real model that calls a tool: the way of its special tokens through engine, text and API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import openai
import pytest

from tests.continuous_batching.server_process import ServerProcess
from tests.forced import CALLS, MISTRAL_CALLING, MISTRAL_SPECIAL, MISTRAL_TEMPLATE, forced_llama

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    path: Path = tmp_path_factory.mktemp("forced")
    model = forced_llama(path, {CALLS: MISTRAL_CALLING}, MISTRAL_TEMPLATE, MISTRAL_SPECIAL)
    process = ServerProcess(tmp_path_factory.mktemp("server"), model, cache_config={"num_blocks": 100})
    yield process
    process.stop()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_between_special_tokens(server: ServerProcess, stream: bool) -> None:

    async with aiohttp.ClientSession() as session:
        await server.ready(session)
        status = await server.status(session)
    assert status["capabilities"]["chat_format"]["name"] == "mistral"
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    arguments = {"model": "tiny", "messages": [{"role": "user", "content": "17 + 25?"}], "tools": [TOOL]}
    if stream:
        async with client.chat.completions.stream(**arguments) as events:
            message = (await events.get_final_completion()).choices[0].message
    else:
        message = (await client.chat.completions.create(**arguments)).choices[0].message
    (call,) = message.tool_calls or ()
    assert json.loads(call.function.arguments) == {"a": 17, "b": 25} and len(call.id) == 9
    assert message.content == "Sum:"  # without the special token before it
