"""vLLM (``vllm serve``)."""

from __future__ import annotations

from client.engines.engine import About, Engine, Gauges, Json, TokenIds
from protocol.routes import (
    ANTHROPIC_COUNT_TOKENS,
    ANTHROPIC_MESSAGES,
    DETOKENIZE,
    OPENAI_CHAT_COMPLETIONS,
    OPENAI_COMPLETIONS,
    OPENAI_RESPONSES,
    TOKENIZE,
)

_GENERATING = (OPENAI_COMPLETIONS, OPENAI_CHAT_COMPLETIONS, OPENAI_RESPONSES, ANTHROPIC_MESSAGES)


def _about(answer: Json) -> About:
    return About(version=str(answer["version"]))


VLLM = Engine(
    name="vLLM",
    routes=(*_GENERATING, ANTHROPIC_COUNT_TOKENS, TOKENIZE, DETOKENIZE),
    gauges=Gauges("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"),
    alive="/health",  # 503 once its engine is dead
    about="/version",
    read_about=_about,
    token_ids=TokenIds("return_token_ids", "token_ids", "prompt_token_ids", null=True),
    salted_routes=_GENERATING,
)
