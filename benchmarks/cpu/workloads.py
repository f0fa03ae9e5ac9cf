"""What is timed. Lengths are fixed, so that engines with other tokens still do the same work.

C1  32 requests at once, prompts of 32 to 128 tokens, answers of 16 to 128 (uniform): output tokens/s
C2  one request, 64 tokens in, 128 out: milliseconds a token after the first
C3  16 requests, 128 in, 64 out: output tokens/s
C4  16 requests, 512 in, 1 out: prompt tokens/s

Only the standard library: every engine's environment imports this.
"""

from __future__ import annotations

import random

Request = tuple[list[int], int]
"""(prompt token ids, tokens to generate)"""

NAMES = ("C1", "C2", "C3", "C4")
UNITS = {"C1": "output tok/s", "C2": "ms/token", "C3": "output tok/s", "C4": "prompt tok/s"}
LOWER_IS_BETTER = ("C2",)
_ORDINARY = (16, 7_900)
"""Token ids to draw from: past the special ones, and in every vocabulary."""


def requests(name: str, repetition: int) -> list[Request]:
    """The requests of a workload; ``C2-first`` is C2 up to its first token.

    Tokens differ between repetitions, so that no prefix cache answers.
    """
    lengths = random.Random(0)
    shapes = {
        "C1": [(lengths.randint(32, 128), lengths.randint(16, 128)) for _ in range(32)],
        "C2": [(64, 128)],
        "C2-first": [(64, 1)],
        "C3": [(128, 64)] * 16,
        "C4": [(512, 1)] * 16,
    }
    tokens = random.Random(f"{name[:2]} {repetition}")
    return [([tokens.randint(*_ORDINARY) for _ in range(prompt)], new) for prompt, new in shapes[name]]


def figure(name: str, seconds: float, first_token_seconds: float) -> float:
    """The figure of a workload, in its unit.

    Args:
        seconds: the whole workload.
        first_token_seconds: ``C2-first`` of the same repetition (for C2).
    """
    work = requests(name, 0)
    if name == "C2":
        return (seconds - first_token_seconds) / (work[0][1] - 1) * 1e3
    if name == "C4":
        return sum(len(prompt) for prompt, _ in work) / seconds
    return sum(new for _, new in work) / seconds
