"""All engines that are known, by what their models say."""

from __future__ import annotations

from client.engines.engine import Engine
from client.engines.llamacpp import LLAMA_CPP
from client.engines.sglang import SGLANG
from client.engines.vllm import VLLM

ENGINES: dict[str, Engine] = {
    "llamacpp": LLAMA_CPP,
    "sglang": SGLANG,
    "vllm": VLLM,
}
"""By the `owned_by` of their models in ``/v1/models``."""

OTHER = Engine(name="OpenAI-compatible")
"""A server of which nothing is known but the API."""


def engine_of(owner: str) -> Engine:
    """The engine whose models are `owned_by` this one."""
    return ENGINES.get(owner, OTHER)
