"""A seed gives the same tokens on both servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from protocol.generation import GenerationConfig
from server.static_batching.pipeline import StaticPipeline
from tests.continuous_batching.engines import small_llm

OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0.8}, {"top_k": 20, "top_p": 0.9}, {"n": 3, "temperature": 1.3}, {"min_p": 0.02},
    {"typical_p": 0.8}, {"repetition_penalty": 1.3, "frequency_penalty": 0.2}, {"no_repeat_ngram_size": 2},
    {"logit_bias": {7: 3.0, 9: -100.0}, "temperature": 0.7},
    {"allowed_token_ids": [*range(3, 99)], "top_k": 9},
    {"bad_words_ids": [[5, 7], [300]], "bad_words": ["the"], "temperature": 0.5},
]  # fmt: skip


def test_sampled_answers_are_alike(tiny_model: Path) -> None:
    """Alone with its options on one, in a batch of all on the other."""
    configs = [
        GenerationConfig(do_sample=True, seed=index, max_new_tokens=24, ignore_eos=True, **options)
        for index, options in enumerate(OPTIONS * 2)
    ]
    prompts = [[5 + index, 7, 9] * (1 + index % 3) for index in range(len(configs))]
    pipeline = StaticPipeline(tiny_model, worker_config={"device": "cpu", "torch_dtype": "float32"})
    generations = [model.generate(prompts, configs) for model in (small_llm(tiny_model), pipeline)]
    continuous, static = (
        [[answer.token_ids for answer in generation.answers] for generation in generated]
        for generated in generations
    )
    assert continuous == static
    every = [tuple(tokens) for answers in continuous for tokens in answers]
    assert len(set(every)) == len(every)
