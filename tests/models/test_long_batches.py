"""64 requests at once, of every strategy and 1,000 tokens each, in a cache that does not hold them all."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from protocol.generation import GenerationConfig
from server.models.config import ModelConfig
from server.text.offline import Generation
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.reference import Reference
from tests.models.small_models import MODELS, save

REQUESTS, TOKENS, LONGEST = 64, 1_000, 1_100
CLOSE, TIE = 1e-3, 1e-4
"""Differences of log probabilities and of scores that rounding makes."""
REROUTED = 3
"""Answers of models with experts that may differ."""
GREEDY = GenerationConfig(max_new_tokens=TOKENS, ignore_eos=True, logprobs=0)
LENGTHS = {"max_position_embeddings": LONGEST}
WAYS: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "temperature": 0.9},
    {"do_sample": True, "top_k": 20, "top_p": 0.9},
    {"repetition_penalty": 1.2},
    {"do_sample": True, "typical_p": 0.8},
]


def requests(vocab: int) -> list[tuple[list[int], GenerationConfig]]:
    """One way to choose tokens after the other; answers report the log probability of each token."""
    dice, made = random.Random(11), []
    for index in range(REQUESTS):
        way = WAYS[index % len(WAYS)]
        options = {"max_new_tokens": TOKENS, "ignore_eos": True, "logprobs": 0, **way}
        if way.get("do_sample"):
            options["seed"] = index
        prompt = [dice.randrange(3, vocab) for _ in range(dice.randint(1, 90))]
        made.append((prompt, GenerationConfig(**options)))
    return made


@torch.inference_mode()
def is_right(reference: Reference, prompt: list[int], options: GenerationConfig, found: Generation) -> bool:
    """Whether the reported log probabilities are those of transformers, and greedy choices are, too.

    Both are compared within a rounding tolerance, because some of the many scores tie.
    """
    (answer,) = found.answers
    logits = reference.model(torch.tensor([prompt + answer.token_ids])).logits[0, len(prompt) - 1 : -1]
    tokens = torch.tensor(answer.token_ids)[:, None]
    chosen = logits.gather(1, tokens)[:, 0]
    if options == GREEDY and bool((logits.amax(-1) - chosen > TIE).any()):
        return False
    reported = torch.tensor([report.logprob for report in answer.logprobs or ()])
    return torch.allclose(reported, chosen - logits.logsumexp(-1), atol=CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_long_answers_of_a_full_batch(name: str, tmp_path: Path) -> None:
    kind, fields = MODELS[name]
    lengths = LENGTHS | ({"n_positions": LONGEST} if kind == "gpt2" else {})
    path = save(tmp_path, kind, fields | lengths)
    reference = Reference(path)
    asked = requests(reference.vocab_size)
    llm = small_llm(
        path, max_length=LONGEST, beams=REQUESTS, tokens=256, num_blocks=5_000, num_blocks_cpu=2_000
    )
    generations = llm.generate([prompt for prompt, _ in asked], [options for _, options in asked])
    assert [len(each.answers[0].token_ids) for each in generations] == [TOKENS] * REQUESTS
    wrong = [
        index
        for index, ((prompt, options), found) in enumerate(zip(asked, generations, strict=True))
        if not is_right(reference, prompt, options, found)
    ]
    layers = ModelConfig.load(path).spec.layers
    # where a router's experts lie within rounding of each other, another one computes a token
    assert len(wrong) <= (REROUTED if any(layer.feed_forward.experts for layer in layers) else 0), wrong
    if not all(layer.attention.window for layer in layers):
        assert llm.engine.stats().preempted_by_swap > 0
