"""One completion request with headers of the test's choice."""

from __future__ import annotations

import json
from typing import Any

from tests.client.conftest import GatewayClient

JSON = {"content-type": "application/json"}
BODY = json.dumps({"model": "m", "prompt": "p", "generation_config": {"max_new_tokens": 2}}).encode()


async def post(client: GatewayClient, headers: dict[str, str], body: bytes = BODY) -> tuple[int, Any]:
    skip = () if "content-type" in headers else ("content-type",)
    async with client.session.post(
        "/completion/v2", data=body, headers=headers, skip_auto_headers=skip
    ) as response:
        return response.status, await response.json()
