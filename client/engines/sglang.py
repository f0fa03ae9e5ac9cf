"""SGLang (``sglang.launch_server``); its load is known where it runs with ``--enable-metrics``."""

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

_COMPLETIONS = (OPENAI_COMPLETIONS, OPENAI_CHAT_COMPLETIONS)


def _about(answer: Json) -> About:
    states = answer.get("internal_states") or []  # one for each data-parallel rank
    slots = sum(state.get("effective_max_running_requests_per_dp", 0) for state in states)
    return About(version=str(answer["version"]), slots=slots or None)


SGLANG = Engine(
    name="SGLang",
    routes=(
        *_COMPLETIONS,
        OPENAI_RESPONSES,
        ANTHROPIC_MESSAGES,
        ANTHROPIC_COUNT_TOKENS,
        TOKENIZE,
        DETOKENIZE,
    ),
    gauges=Gauges("sglang:num_running_reqs", "sglang:num_queue_reqs", "sglang:token_usage"),
    alive="/ready",  # not /health, which generates a token and takes a second
    about="/server_info",
    read_about=_about,
    token_ids=TokenIds("return_token_ids", "token_ids", "prompt_token_ids", null=False),
    salted_routes=_COMPLETIONS,
)
