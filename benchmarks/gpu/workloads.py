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
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

_OPTIONS: dict[str, dict[str, float]] = {
    "TOPP": {"top_p": 0.9},
    "OPTIONS": {"top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1, "frequency_penalty": 0.2},
}


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

    def shortened(self, new_tokens: int) -> Workload:
        """The same prompts with short answers, to warm up."""
        return replace(self, new_tokens=[min(n, new_tokens) for n in self.new_tokens])


def workload(name: str) -> Workload:
    """The workload of that name."""
    rng = random.Random(0)
    if name in ("W1", "FULL", "HTTP", *_OPTIONS):
        prompts = [_prompt(rng, rng.randint(100, 1024)) for _ in range(256)]
        new_tokens = [rng.randint(100, 1024) for _ in range(256)]
        return Workload(prompts, new_tokens, 0.6, options=_OPTIONS.get(name, {}))
    if name == "BEAM":
        return Workload([_prompt(rng, 256) for _ in range(100)], [256] * 100, beams=4)
    count, length, new_tokens = {"W2": (1, 128, 512), "W3": (32, 512, 256), "W4": (32, 2048, 1)}[name]
    return Workload([_prompt(rng, length) for _ in range(count)], [new_tokens] * count)


def _prompt(rng: random.Random, length: int) -> list[int]:
    return [rng.randint(0, 10_000) for _ in range(length)]


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
    if name == "W4":
        return {"prompt_tokens_per_second": load.prompt_tokens / seconds}
    if name == "BEAM":
        return {"requests_per_second": len(load.prompts) / seconds}
    return {"output_tokens_per_second": load.output_tokens / seconds}
