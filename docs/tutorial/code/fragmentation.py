"""Chapter 4: how many requests fit in a cache of fixed size, reserved whole or in blocks.

.venv/bin/python -m docs.tutorial.code.fragmentation
"""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks.loadgen.lengths import parse_lengths
from docs.tutorial.code.common import table


def held(prompts: np.ndarray, answers: np.ndarray, block: int) -> np.ndarray:
    """Tokens of cache that each request holds halfway through its answer, in whole blocks."""
    return -(-(prompts + answers // 2) // block) * block


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cache", type=int, default=65536, help="tokens that the memory holds")
    parser.add_argument("--longest", type=int, default=2048, help="tokens that a request may have at most")
    args = parser.parse_args(argv)
    random = np.random.default_rng(0)
    prompts = np.minimum(parse_lengths("sharegpt-prompt")(random, 10_000), args.longest // 2)
    answers = np.minimum(parse_lengths("sharegpt-answer")(random, 10_000), args.longest // 2)
    used = prompts + answers // 2
    rows = []
    for name, size in (
        ("reserved: the longest possible", np.full(10_000, args.longest)),
        ("reserved: prompt and max_new_tokens", prompts + 2 * answers),  # asked for twice what came
        *((f"blocks of {block}", held(prompts, answers, block)) for block in (256, 64, 16, 1)),
    ):
        rows.append([name, int(args.cache / size.mean()), f"{used.sum() / size.sum():.0%}"])
    table(["each request holds", "requests that fit", "of the memory is in use"], rows)


if __name__ == "__main__":
    main()
