"""Prompts, and answers to them from a model in this process."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.cpu.variant import built_for
from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from server.scheduling.params import PromptLookup, SamplingParams
from server.scheduling.request import Request
from server.scheduling.speculation.payoff import StepCost

BLOCK_SIZE = 16
LONGEST_PROMPT = 390
TOPICS = (
    "how a bicycle stays upright", "why the sky is blue", "what a hash table is", "how bread rises",
    "the rules of chess", "how a transistor works", "the story of Odysseus", "why ice floats",
)  # fmt: skip
PREFACE = (
    "You are a patient teacher. Your pupils are curious, but they know little of the subject, so you begin "
    "with what they see for themselves, give examples from daily life and explain each word that you use. "
) * 2
"""Begins most prompts, up to three times over: they share blocks, and are longer than a chunk."""


@dataclass(slots=True)
class Asked:
    """One request: a prompt's tokens, its options, and the tokens that its answer has already."""

    name: str
    prompt: list[int]
    options: dict[str, Any]
    emitted: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Told:
    """Tokens of an answer, those it began with included, and the log probabilities of the others."""

    tokens: list[int]
    logprobs: list[float]

    def part_from(self, whole: Told) -> int | None:
        """Place of the first token that is not as in `whole`, or whose log probability is not."""
        begin = len(self.tokens) - len(self.logprobs)
        pairs = zip(self.tokens, whole.tokens, strict=False)
        wrong = [place for place, (mine, right) in enumerate(pairs) if mine != right]
        numbers = zip(self.logprobs, whole.logprobs[begin:], strict=False)
        wrong += [begin + place for place, (mine, right) in enumerate(numbers) if mine != right]
        if len(self.tokens) != len(whole.tokens):
            wrong.append(min(len(self.tokens), len(whole.tokens)))
        return min(wrong, default=None)


class FreeDrafts(StepCost):
    """Drafted tokens save time, so that all are computed, whatever the machine is doing."""

    def is_stale(self, tokens: int) -> bool:
        return False

    def seconds(self, tokens: int) -> float:
        return 0.0

    def curve(self, first: int, last: int) -> np.ndarray:
        return -np.arange(last + 1.0 - first)


def load(options: argparse.Namespace, *, threads: int | None = None, **cache: Any) -> LLM:
    """A model in this process, all of whose drafts are computed.

    Args:
        options: of the command.
        threads: that compute; None: as many as there were when the process began.
        cache: keys of ``cache_config``.
    """
    length = options.tokens + LONGEST_PROMPT
    blocks = options.blocks if options.blocks is not None else 64 * -(-length // BLOCK_SIZE)
    with built_for(options.kernels):
        llm = LLM(
            options.model,
            model_loading_config={
                "torch_dtype": options.dtype, "quantization": options.quantization,
                "device": options.device, "model_max_length": length, "num_threads": threads,
            },
            batcher_config={"batch_max_beams": 64, "batch_max_tokens": 2048, "max_waiting": 100_000},
            cache_config={"num_blocks": blocks, "num_blocks_cpu": blocks, "watermark": 0.0} | cache,
        )  # fmt: skip
    llm.engine.scheduler.speculator.cost = FreeDrafts()
    return llm


class Answerer:
    """Asks a model in this process.

    Attributes:
        chunk_tokens: of a prompt, in a step.
    """

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self.chunk_tokens = llm.engine.scheduler.limits.chunk_tokens
        self._count = 0

    def prompt(self, index: int) -> list[int]:
        """Token ids of a prompt, at most 390."""
        text = PREFACE * (index % 4) + f"{index + 1}. Explain {TOPICS[index % len(TOPICS)]}."
        tokens: list[int] = self.llm.tokenizer.hf.encode(text)
        return tokens[-LONGEST_PROMPT:]

    def answer(self, asked: Iterable[Asked], at_once: int, lookup: int = 0) -> dict[str, Told]:
        """Answers by name; at most `at_once` requests are live at a time."""
        engine, waiting = self.llm.engine, list(asked)[::-1]
        names: dict[str, str] = {}
        told: dict[str, Told] = {}
        while waiting or engine.has_work:
            while waiting and len(names) - len(told) < at_once:
                one = waiting.pop()
                self._count += 1
                config = GenerationConfig(ignore_eos=True, logprobs=0, **one.options)
                params = SamplingParams.of(config, (), PromptLookup(lookup, 3))
                emitted = [one.emitted] if one.emitted else None
                request = Request(f"{self._count}", one.prompt, params, time.monotonic(), emitted=emitted)
                if (refusal := engine.add(request)) is not None:
                    raise SystemExit(f"{one.name}: {refusal.message}")
                names[request.id] = one.name
            output = engine.step()
            for failure in output.failures:
                raise SystemExit(f"{names[failure.request_id]}: {failure.message}")
            for delta in output.deltas:
                logprobs = [report.logprob for report in delta.logprobs or ()]
                told[names[delta.request_id]] = Told(delta.token_ids, logprobs)
        return told
