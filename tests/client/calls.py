"""What stub servers are asked, and the answers that follow from the prompt alone."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

from protocol.accepts import Accepts
from protocol.routes import COMPLETION_V1, OPENAI_CHAT_COMPLETIONS, OPENAI_COMPLETIONS
from server.static_batching.options import refusals

OF_STATIC = Accepts(
    routes=(COMPLETION_V1, OPENAI_COMPLETIONS, OPENAI_CHAT_COMPLETIONS), refusals=refusals(4096)
)
"""What static-batching servers tell."""


def tokens_of(prompt: str, count: int) -> list[int]:
    """The token ids that follow `prompt`."""
    return [zlib.crc32(f"{prompt}/{i}".encode()) % 1000 for i in range(count)]


def text_of(token_ids: list[int]) -> str:
    return "".join(f" {token}" for token in token_ids)


def usage_of(call: Call) -> dict[str, Any]:
    usage = {"prompt_tokens": 1, "completion_tokens": call.count, "total_tokens": call.count + 1}
    return {"usage": usage}


@dataclass
class Call:
    """A completion request that the stub got."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    finished: bool = False
    """Whether the whole answer went out."""

    @property
    def prompt(self) -> str:
        if "messages" in self.body:
            return str(self.body["messages"][-1]["content"])
        return str(self.body["prompt"])

    @property
    def count(self) -> int:
        limit = self.body.get("generation_config", {}).get("max_new_tokens", 32)
        return int(self.body.get("max_tokens", limit))

    @property
    def chat(self) -> bool:
        return "chat" in self.path


def text_is_right(answer: dict[str, Any], prompt: str, tokens: int) -> bool:
    return bool(answer["choices"][0]["text"] == text_of(tokens_of(prompt, tokens)))
