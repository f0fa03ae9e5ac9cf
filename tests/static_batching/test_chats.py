"""A real model that calls a tool, answered whole by the API of each family of clients."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp

from server.api.app import create_app
from server.static_batching.config import ServerConfig
from server.static_batching.service import StaticBatchingService
from tests.forced import CALLS, MISTRAL_CALLING, MISTRAL_SPECIAL, MISTRAL_TEMPLATE, forced_llama
from tests.serving import serving

PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}}
QUESTION = [{"role": "user", "content": "17 + 25?"}]


async def until_ready(session: aiohttp.ClientSession) -> None:
    while (await (await session.get("/status")).json())["state"] != "ready":  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def ask(session: aiohttp.ClientSession, route: str, **fields: Any) -> dict[str, Any]:
    async with session.post(route, json={"model": "tiny", **fields}) as response:
        assert response.status == 200, await response.text()
        return dict(await response.json())


async def test_a_call_between_special_tokens(tmp_path: Path) -> None:
    model = forced_llama(tmp_path, {CALLS: MISTRAL_CALLING}, MISTRAL_TEMPLATE, MISTRAL_SPECIAL)
    config = ServerConfig.model_validate(
        {"worker_config": {"model_name_or_path": str(model), "device": "cpu"}}
    )
    function = {"name": "add", "parameters": PARAMETERS}
    with serving(create_app(StaticBatchingService(config, "tiny"))) as url:
        async with aiohttp.ClientSession(url) as session:
            await until_ready(session)
            chat = await ask(
                session,
                "/v1/chat/completions",
                messages=QUESTION,
                tools=[{"type": "function", "function": function}],
            )
            message = await ask(
                session,
                "/v1/messages",
                messages=QUESTION,
                max_tokens=100,
                tools=[{"name": "add", "input_schema": PARAMETERS}],
            )
            response = await ask(
                session, "/v1/responses", input="17 + 25?", tools=[{"type": "function", **function}]
            )
            refused = await session.post(
                "/v1/messages", json={"model": "tiny", "max_tokens": 9, "messages": QUESTION, "stream": True}
            )
            assert refused.status == 400 and "stream" in await refused.text()
    (call,) = chat["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"a": 17, "b": 25}
    assert chat["choices"][0]["message"]["content"] == "Sum:"
    assert message["content"][1]["input"] == {"a": 17, "b": 25}
    assert [item["type"] for item in response["output"]] == ["message", "function_call"]
