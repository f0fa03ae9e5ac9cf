"""Sampling: the distribution of transformers, and randomness that depends on the request alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import GenerationConfig as HFGenerationConfig

from protocol.errors import ApiError
from protocol.generation import GenerationConfig
from server.static_batching.generate import Batch, generate
from server.static_batching.model import LoadedModel
from server.static_batching.processors import Package, build_processors
from server.static_batching.prompts import PaddedPrompts, Prompt
from server.static_batching.worker import Worker

DRAWS = 20_000


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.15},
        {"typical_p": 0.6},
        {"temperature": 1.4, "top_k": 9, "top_p": 0.8, "min_p": 0.05, "typical_p": 0.9},
    ],
)
def test_distribution_is_that_of_transformers(model: LoadedModel, options: dict[str, Any]) -> None:
    logits = torch.randn(1, 16, generator=torch.Generator().manual_seed(1)) * 0.7
    prompts = [
        Prompt([3, 4, 5], GenerationConfig(do_sample=True, seed=seed, **options)) for seed in range(DRAWS)
    ]
    padded = PaddedPrompts(prompts, 0, torch.device("cpu"))
    scores = build_processors(Package(prompts[0].config, padded, []))(
        padded.input_ids, logits.repeat(DRAWS, 1)
    )
    drawn = np.bincount(scores.argmax(-1).numpy(), minlength=16)
    expected = _expected(model, logits, options)
    possible = expected > 0
    assert possible.sum() > 2 and drawn[~possible].sum() == 0
    result = chisquare(drawn[possible], expected[possible] / expected[possible].sum() * DRAWS)
    assert result.pvalue > 1e-4


def _expected(model: LoadedModel, logits: torch.Tensor, options: dict[str, Any]) -> np.ndarray:
    """Probabilities under the processors that transformers itself builds."""
    config = HFGenerationConfig(do_sample=True, **({"top_k": 0} | options))
    processors = model.hf._get_logits_processor(config, input_ids_seq_length=3, device="cpu")
    probabilities = processors(torch.tensor([[3, 4, 5]]), logits).softmax(-1)[0]
    return np.asarray(probabilities.double().numpy())


def test_no_token_is_drawn_from_scores_that_are_not_finite() -> None:
    prompts = [Prompt([3, 4, 5], GenerationConfig(do_sample=True)) for _ in range(2)]
    padded = PaddedPrompts(prompts, 0, torch.device("cpu"))
    scores = torch.zeros(2, 16)
    scores[1, 7] = float("nan")
    with pytest.raises(FloatingPointError):
        build_processors(Package(prompts[0].config, padded, []))(padded.input_ids, scores)


def test_a_prompt_whose_scores_are_not_finite_fails_alone(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [
        Prompt([5, 6, 7 + i], GenerationConfig(do_sample=True, seed=i, max_new_tokens=6)) for i in range(3)
    ]
    expected = answers(model, prompts)
    forward = model.hf.forward

    def poisoned(input_ids: torch.Tensor, **options: Any) -> Any:
        output = forward(input_ids, **options)
        output.logits[(input_ids == 8).any(dim=1)] = float("nan")
        return output

    monkeypatch.setattr(model.hf, "forward", poisoned)
    outcomes: list[list[list[int]] | ApiError] = [[]] * 3

    def deliver(part: slice, outcome: Batch | ApiError) -> None:
        assert part.stop - part.start == 1
        failed = isinstance(outcome, ApiError)
        outcomes[part.start] = outcome if failed else [a.token_ids for a in outcome.answers[0]]

    Worker(model, batch_size=-1).run(prompts, deliver)
    assert isinstance(outcomes[1], ApiError) and outcomes[1].status == 422
    assert [outcomes[0], outcomes[2]] == [expected[0], expected[2]]


def answers(model: LoadedModel, prompts: list[Prompt]) -> list[list[list[int]]]:
    return [[answer.token_ids for answer in group] for group in generate(model, prompts).answers]


def test_a_seeded_request_is_answered_alike_in_any_package(model: LoadedModel) -> None:
    def config(seed: int, n: int = 1, new: int = 16) -> GenerationConfig:
        return GenerationConfig(do_sample=True, temperature=1.5, seed=seed, n=n, max_new_tokens=new)

    mine = Prompt([5, 6, 7, 8], config(7, n=3))
    others = [
        Prompt([9] * 20, config(1, new=30)),
        Prompt([5, 6, 7, 8], config(8, n=2)),
        Prompt([3], config(7)),
    ]
    (alone,) = answers(model, [mine])
    assert alone == answers(model, [*others, mine])[3]
    assert alone == answers(model, [others[1], mine, others[0]])[1]
    assert len({tuple(ids) for ids in alone}) == 3, "the answers of one request differ"
    assert answers(model, [others[1]])[0][0] != alone[0], "another seed draws differently"
