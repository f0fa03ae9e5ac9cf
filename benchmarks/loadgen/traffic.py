"""What is asked: requests, made from distributions and mixes. `traces` reads those that were recorded.

The same description and seed always make the same requests, so that endpoints can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.loadgen.lengths import LengthError, parse_lengths

FIRST_ID, LAST_ID = 10, 255
"""Token ids of made-up prompts: small ones exist in every vocabulary."""


@dataclass(slots=True)
class Request:
    """One request, in terms that every API can express."""

    prompt: str | list[int]
    new_tokens: int
    options: dict[str, Any] = field(default_factory=dict)
    """Generation options beyond length, under the names of `protocol.generation`."""
    at: float | None = None
    """Seconds after the start at which it is due, where a trace says so."""


@dataclass(slots=True, frozen=True)
class Traffic:
    """A mix of requests.

    Lengths are written as in `benchmarks.loadgen.lengths`.
    """

    name: str
    answer: str = "fixed:64"
    prompt: str = "uniform:16:128"
    prefix: int = 0
    """Tokens that all prompts begin with (a system prompt)."""
    beam_share: float = 0.0
    """Share of requests that search beams."""
    beams: int = 4
    sampled_share: float = 0.0
    """Share of requests that sample, at temperature 0.8 and each with its own seed."""

    def requests(self, count: int, seed: int) -> list[Request]:
        """`count` requests, the same for the same seed."""
        random = np.random.default_rng([seed, *self.name.encode()])
        prompts = parse_lengths(self.prompt)(random, count)
        answers = parse_lengths(self.answer)(random, count)
        prefix = random.integers(FIRST_ID, LAST_ID, self.prefix).tolist()
        kinds = random.random(count)
        requests = []
        for i in range(count):
            prompt = prefix + random.integers(FIRST_ID, LAST_ID, int(prompts[i])).tolist()
            options: dict[str, Any] = {}
            if kinds[i] < self.beam_share:
                options = {"num_beams": self.beams}
            elif kinds[i] < self.beam_share + self.sampled_share:
                options = {"do_sample": True, "temperature": 0.8, "seed": int(random.integers(2**31))}
            requests.append(Request(prompt, int(answers[i]), options))
        return requests


BUILT_IN = {
    traffic.name: traffic
    for traffic in (
        Traffic("equal", answer="fixed:64", prompt="fixed:64"),
        Traffic("uniform", answer="uniform:16:128"),
        Traffic("exponential", answer="exponential:64:256"),
        Traffic("exponential-unbounded", answer="exponential:64"),
        Traffic("sharegpt", answer="sharegpt-answer:0.25:256", prompt="sharegpt-prompt:0.25:512"),
        Traffic("alpaca", answer="alpaca-answer", prompt="alpaca-prompt"),
        Traffic("shared-prefix", answer="exponential:32:128", prompt="uniform:8:32", prefix=512),
        Traffic("beams", answer="exponential:48:128", beam_share=0.5),
        Traffic("mixed", answer="exponential:64:256", beam_share=0.1, sampled_share=0.45),
    )
}
"""Traffics by name."""


def parse_traffic(text: str, **changes: Any) -> Traffic:
    """A built-in traffic by name, with the fields in `changes` replaced where they are not None.

    Raises:
        LengthError: there is no such traffic, or a length is not written as one.
    """
    if text not in BUILT_IN:
        raise LengthError(f"{text!r} is no traffic; they are {', '.join(BUILT_IN)}")
    given = {name: value for name, value in changes.items() if value is not None}
    base = BUILT_IN[text]
    traffic = Traffic(**{name: given.get(name, getattr(base, name)) for name in base.__slots__})
    for lengths in (traffic.answer, traffic.prompt):
        parse_lengths(lengths)
    return traffic
