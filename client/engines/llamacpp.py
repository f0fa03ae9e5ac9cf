"""llama.cpp's ``llama-server``; its load is known where it runs with ``--metrics``.

Its ``/tokenize`` and ``/detokenize`` are others than the gateway's. While it loads, every route answers 503.
"""

from __future__ import annotations

from client.engines.engine import About, Engine, Gauges, Json
from protocol.routes import (
    ANTHROPIC_COUNT_TOKENS,
    ANTHROPIC_MESSAGES,
    OPENAI_CHAT_COMPLETIONS,
    OPENAI_COMPLETIONS,
    OPENAI_RESPONSES,
)


def _about(answer: Json) -> About:
    return About(version=str(answer["build_info"]), slots=int(answer["total_slots"]))


LLAMA_CPP = Engine(
    name="llama.cpp",
    routes=(
        *(OPENAI_COMPLETIONS, OPENAI_CHAT_COMPLETIONS, OPENAI_RESPONSES),
        *(ANTHROPIC_MESSAGES, ANTHROPIC_COUNT_TOKENS),
    ),
    gauges=Gauges("llamacpp:requests_processing", "llamacpp:requests_deferred"),
    about="/props",
    read_about=_about,
)
