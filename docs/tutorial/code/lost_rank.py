"""Chapter 10: the real engine, split over two processes, one of which is killed.

.venv/bin/python -m docs.tutorial.code.lost_rank
"""

from __future__ import annotations

import logging
import os
import signal

from docs.tutorial.code.common import CPU, DEMO, chat, tokenizer
from protocol.generation import GenerationConfig
from server.continuous_batching.llm import LLM, GenerationError
from server.continuous_batching.ranks.leader import RankLostError

QUESTION = chat("What is 17 plus 25?")
OPTIONS = GenerationConfig(max_new_tokens=16)


def load(ranks: int) -> LLM:
    """The demo model, split over `ranks` processes."""
    return LLM(
        DEMO,
        model_loading_config=CPU,
        cache_config={"num_blocks": 64, "num_blocks_cpu": 0},
        parallel_config={"tensor_parallel_size": ranks},
    )


def ask(llm: LLM) -> list[int]:
    """The tokens of the answer."""
    (generation,) = llm.generate([QUESTION], OPTIONS)
    return list(generation.answers[0].token_ids)


def main(argv: list[str] | None = None) -> None:
    logging.disable(logging.CRITICAL)  # what a server writes to its log
    whole, split = load(1), load(2)
    ranks = split.capabilities["ranks"]
    means = ranks["collectives"]["name"]
    print(f"{ranks['count']} ranks over {means}, bytes of weights: {ranks['weights_bytes']}")
    tokens = ask(split)
    print(f"{tokenizer().decode(tokens)} The same as in one piece: {tokens == ask(whole)}")
    os.kill(ranks["pids"][1], signal.SIGKILL)
    try:
        while True:  # one that is killed may answer what it has begun
            ask(split)
    except (GenerationError, RankLostError) as error:
        print(f"asked again: {error}")
    finally:
        logging.disable(logging.NOTSET)


if __name__ == "__main__":
    main()
