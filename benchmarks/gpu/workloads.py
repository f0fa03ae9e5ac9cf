"""What is timed: prompts as token ids, lengths fixed, the same for every engine.

W1  256 requests, prompts and answers of 100 to 1,024 tokens (uniform, seed 0, drawn in the order of
    nano-vllm's benchmark), temperature 0.6: throughput of a full batch
W2  one request, 128 tokens in, 512 out, greedy: latency of a token
W3  32 requests, 512 in, 256 out, greedy
W4  32 requests, 2,048 in, 1 out: prompts
TOPP  W1 with top-p 0.9
OPTIONS  W1 with top-k 50, top-p 0.9, a repetition penalty of 1.1 and a frequency penalty of 0.2
BEAM  100 requests, 256 in, 256 out, 4 beams
FULL  W1 with cache blocks for a quarter of what it would use at its peak
S1  64 requests, 512 in, 256 out, greedy

With prefix cache, contexts of up to 40,000 tokens and 1,024 sequences at once, all greedy:

L1  16 requests, 16,000 in, 256 out: decoding behind long contexts
L2  one prompt of 32,000, 1 out
H1  1,024 requests, 64 to 256 in, 64 to 512 out
P1  512 requests, 2,048 tokens that all share and 128 of their own in, 128 out
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

LONG_LENGTH, LONG_BEAMS = 40_000, 1_024
"""Tokens of a sequence and sequences at once, of the engines of L1, L2, H1 and P1."""

_OPTIONS: dict[str, dict[str, float]] = {
    "TOPP": {"top_p": 0.9},
    "OPTIONS": {"top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1, "frequency_penalty": 0.2},
}
_EQUAL = {
    "W2": (1, 128, 512),
    "W3": (32, 512, 256),
    "W4": (32, 2_048, 1),
    "S1": (64, 512, 256),
    "L1": (16, 16_000, 256),
    "L2": (1, 32_000, 1),
}
"""Requests, and tokens in and out of each."""

IDS = 10_001
"""Prompts have token ids below this."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests that are sent all at once.

    Attributes:
        prompts: token ids.
        new_tokens: length of each answer; its end is ignored.
        temperature: 0 for greedy.
        beams: of beam search, 1 for none.
        options: of sampling, in the names that this project and vLLM share.
    """

    prompts: list[list[int]]
    new_tokens: list[int]
    temperature: float = 0.0
    beams: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt_tokens(self) -> int:
        return sum(len(prompt) for prompt in self.prompts)

    @property
    def output_tokens(self) -> int:
        return sum(self.new_tokens)

    def moved(self, run: int) -> Workload:
        """The same with other tokens, so that no run finds the prompts of another in its prefix cache."""
        prompts = [[(token + 97 * run) % IDS for token in prompt] for prompt in self.prompts]
        return replace(self, prompts=prompts)

    def shortened(self, new_tokens: int) -> Workload:
        """The same prompts with short answers, to warm up."""
        return replace(self, new_tokens=[min(n, new_tokens) for n in self.new_tokens])


def workload(name: str) -> Workload:
    """The workload of that name."""
    rng = random.Random(0)
    if name in ("W1", "FULL", "HTTP", "STREAM", *_OPTIONS):
        prompts = [_prompt(rng, rng.randint(100, 1024)) for _ in range(256)]
        new_tokens = [rng.randint(100, 1024) for _ in range(256)]
        return Workload(prompts, new_tokens, 0.6, options=_OPTIONS.get(name, {}))
    if name == "BEAM":
        return Workload([_prompt(rng, 256) for _ in range(100)], [256] * 100, beams=4)
    if name == "H1":
        prompts = [_prompt(rng, rng.randint(64, 256)) for _ in range(1024)]
        return Workload(prompts, [rng.randint(64, 512) for _ in range(1024)])
    if name == "P1":
        shared = _prompt(rng, 2048)
        return Workload([shared + _prompt(rng, 128) for _ in range(512)], [128] * 512)
    count, length, answer = _EQUAL[name]
    return Workload([_prompt(rng, length) for _ in range(count)], [answer] * count)


def _prompt(rng: random.Random, length: int) -> list[int]:
    return [rng.randint(0, IDS - 1) for _ in range(length)]


def peak_blocks(load: Workload, block_size: int) -> int:
    """Cache blocks in use at the worst moment, if all requests ran side by side from the start."""
    return max(
        sum(
            -(-(len(prompt) + step) // block_size)
            for prompt, new_tokens in zip(load.prompts, load.new_tokens, strict=True)
            if new_tokens > step
        )
        for step in range(0, max(load.new_tokens), block_size)
    )


def figures(name: str, load: Workload, seconds: float) -> dict[str, float]:
    """What a workload's time means, in the unit that its bar is stated in."""
    if name == "W2":
        return {"ms_per_token": 1e3 * seconds / load.output_tokens}
    if name in ("W4", "L2"):
        return {"prompt_tokens_per_second": load.prompt_tokens / seconds}
    if name == "BEAM":
        return {"requests_per_second": len(load.prompts) / seconds}
    return {"output_tokens_per_second": load.output_tokens / seconds}
