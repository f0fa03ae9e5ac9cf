"""What transformers answers: the oracle for tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from protocol.generation import GenerationConfig
from server.text.offline import Answer, Generation

PADDING = -1
"""No token, so that padding cannot be taken for an answer's end."""


class Reference:
    """transformers' `generate` in float32, one prompt at a time, without padding."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        if self.model._can_set_experts_implementation():
            self.model.set_experts_implementation("eager")  # the others do not take odd sizes
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.vocab_size = self.model.config.vocab_size
        self._known: dict[tuple[Any, ...], list[list[int]]] = {}
        """Answers by all that they depend on: the same requests are put to engines of many settings."""

    def contradicted(
        self, requests: Sequence[tuple[list[int], GenerationConfig]], generations: Sequence[Generation]
    ) -> list[int]:
        """Which of `generations` hold other tokens than `answers` gives for their requests."""
        return [
            index
            for index, ((prompt, config), generation) in enumerate(zip(requests, generations, strict=True))
            if [answer.token_ids for answer in generation.answers] != self.answers(prompt, config)
        ]

    def misreported(
        self, requests: Sequence[tuple[list[int], GenerationConfig]], generations: Sequence[Generation]
    ) -> list[int]:
        """Which of `generations` report other tokens or log probabilities than the model gives for them."""
        return [
            index
            for index, ((prompt, _), generation) in enumerate(zip(requests, generations, strict=True))
            if not all(self._is_reported(prompt, answer) for answer in generation.answers)
        ]

    @torch.inference_mode()
    def _is_reported(self, prompt: list[int], answer: Answer) -> bool:
        ids = torch.tensor([prompt + answer.token_ids])
        logs = self.model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(dim=-1)
        expected = logs.gather(1, ids[0, len(prompt) :].unsqueeze(1)).squeeze(1)
        reports = answer.logprobs or []
        return [report.token_id for report in reports] == answer.token_ids and torch.allclose(
            torch.tensor([report.logprob for report in reports]), expected, atol=1e-4
        )

    def answers(self, prompt: list[int], config: GenerationConfig) -> list[list[int]]:
        """Generated tokens of each answer; padding behind the end is cut off."""
        options = self._options(config)
        key = (tuple(prompt), repr(options), repr(config.allowed_token_ids), repr(config.stop))
        if key not in self._known:
            if config.allowed_token_ids is not None:
                allowed = config.allowed_token_ids
                options["prefix_allowed_tokens_fn"] = lambda *_: allowed
            if config.stop:
                options |= {"stop_strings": config.stop, "tokenizer": self.tokenizer}
            ids = torch.tensor([prompt])
            output = self.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
            rows = output[:, len(prompt) :].tolist()
            self._known[key] = [[token for token in row if token != PADDING] for row in rows]
        return [[*answer] for answer in self._known[key]]

    def _options(self, config: GenerationConfig) -> dict[str, Any]:
        """What of `config` transformers takes as it is."""
        options: dict[str, Any] = {
            "max_new_tokens": config.max_new_tokens,
            "min_new_tokens": config.min_new_tokens or None,
            "num_beams": config.num_beams,
            "num_return_sequences": config.num_choices,
            "repetition_penalty": config.repetition_penalty,
            "no_repeat_ngram_size": config.no_repeat_ngram_size,
            "bad_words_ids": config.bad_words_ids or None,
            "do_sample": False,
            "pad_token_id": PADDING,
            "eos_token_id": config.eos_token_ids or 1,
        }
        if config.num_beams > 1:
            options |= {"early_stopping": config.early_stopping, "length_penalty": config.length_penalty}
        return options


def mixed_requests(
    reference: Reference, count: int, seed: int, *, longest: int = 100, longest_prompt: int = 100
) -> list[tuple[list[int], GenerationConfig]]:
    """Random requests of every kind that transformers can answer deterministically."""
    rng = random.Random(seed)
    ordinary = range(3, reference.vocab_size)
    shared = rng.choices(ordinary, k=40)
    requests = []
    for index in range(count):
        prompt = rng.choices(ordinary, k=rng.randint(1, longest_prompt))
        if index % 4 == 0:
            prompt = shared + prompt[: longest_prompt // 4]
        options: dict[str, Any] = {"max_new_tokens": rng.randint(1, longest)}
        if rng.random() < 0.4:
            options["eos_token_id"] = rng.sample(ordinary, k=rng.choice([1, 3]))
        if rng.random() < 0.4:
            beams = rng.choice([2, 3, 4, 8])
            options |= {
                # short enough that one wide request does not call for a large cache
                "max_new_tokens": rng.randint(1, 2 * longest // beams),
                "num_beams": beams,
                "num_return_sequences": rng.randint(1, beams),
                "early_stopping": rng.choice([True, False, "never"]),
                "length_penalty": rng.choice([1.0, 0.5, -0.5, 2.0]),
                "eos_token_id": rng.sample(ordinary, k=20),
            }
        if rng.random() < 0.2:
            options |= {"repetition_penalty": 1.3, "min_new_tokens": min(5, options["max_new_tokens"])}
        if rng.random() < 0.25:
            options["stop"] = _likely_stops(reference, rng, prompt)
        requests.append((prompt, GenerationConfig(**options)))
    return requests


def reporting_beams(reference: Reference, count: int) -> list[tuple[list[int], GenerationConfig]]:
    """Beam searches that report log probabilities and have several answers, of unequal length."""
    rng = random.Random(count)
    ordinary = range(3, reference.vocab_size)
    return [
        (
            rng.choices(ordinary, k=rng.randint(1, 40)),
            GenerationConfig(
                max_new_tokens=rng.randint(5, 30),
                num_beams=beams,
                num_return_sequences=beams,
                eos_token_id=rng.sample(ordinary, k=10),
                logprobs=2,
            ),
        )
        for beams in rng.choices(range(2, 6), k=count)
    ]


def _likely_stops(reference: Reference, rng: random.Random, prompt: list[int]) -> list[str]:
    """Pieces of the greedy answer, cut without regard to tokens, beside one that never comes."""
    answer = reference.answers(prompt, GenerationConfig(max_new_tokens=40))[0]
    text = reference.tokenizer.decode(answer).encode("ascii", "ignore").decode()
    start = rng.randrange(max(len(text) - 4, 1))
    found = text[start : start + rng.randint(2, 5)].strip()
    return [found, "never to be seen"] if len(found) > 1 else ["never to be seen"]
