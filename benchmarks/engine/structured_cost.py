"""What forms cost: tokens a second with and without, in turns.

    .venv/bin/python -m benchmarks.engine.structured_cost MODEL [--rows 1 32] [--turns 5]

Each turn generates the same number of tokens for the same prompts, sampled: once freely, once held to a JSON
schema that no answer comes to the end of. Prints the times with a form over those without, and their median.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from protocol.generation import GenerationConfig
from server.continuous_batching import LLM

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": PERSON, "minItems": 10_000}
TOKENS = 128


def seconds(llm: LLM, rows: int, **options: Any) -> float:
    configs = [
        GenerationConfig.model_validate(
            {"do_sample": True, "temperature": 0.8, "seed": row, "max_new_tokens": TOKENS, **options}
        )
        for row in range(rows)
    ]
    prompts = [[(31 * row + i) % 400 + 3 for i in range(32)] for row in range(rows)]
    begin = time.perf_counter()
    generations = llm.generate(prompts, configs)
    taken = time.perf_counter() - begin
    assert all(len(generation.answers[0].token_ids) == TOKENS for generation in generations)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16")
    arguments = parser.parse_args()
    llm = LLM(
        arguments.model,
        model_loading_config={"torch_dtype": arguments.dtype},
        batcher_config={"batch_max_beams": max(arguments.rows)},
    )
    for rows in arguments.rows:
        seconds(llm, rows, structured_outputs={"json": SCHEMA})  # warm
        ratios = []
        for _ in range(arguments.turns):
            free = seconds(llm, rows, ignore_eos=True)
            held = seconds(llm, rows, structured_outputs={"json": SCHEMA})
            ratios.append(held / free)
        shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        rate = rows * TOKENS / free
        print(
            json.dumps({"rows": rows, "median": round(statistics.median(ratios), 3)}),
            f"times with a form over those without: {shown}; {rate:.0f} tokens/s without in the last turn",
        )


if __name__ == "__main__":
    main()
