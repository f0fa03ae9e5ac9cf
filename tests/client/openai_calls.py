"""The SDK against a gateway, and chats that go to an account."""

from __future__ import annotations

from typing import Any

import openai

from tests.client.conftest import GatewayClient

MESSAGES: Any = [{"role": "user", "content": "Who are you?"}]


def sdk(client: GatewayClient, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=client.url + "/v1", api_key=key, max_retries=0)


def account(url: str, key: str = "key", **fields: Any) -> dict[str, Any]:
    return {"api_key": key, "org_id": None, "base_url": url + "/v1", **fields}


async def chat(
    client: GatewayClient, route: str = "/chat_completion/v1", **fields: Any
) -> tuple[int, Any, bytes]:
    body = {"model": "fake", "messages": MESSAGES, "max_tokens": 200, **fields}
    async with client.session.post(route, json=body) as response:
        return response.status, response.headers, await response.read()
