"""Angles that depend on the length of a text are those of transformers, beyond the trained length, too."""

from __future__ import annotations

from pathlib import Path

import torch

from protocol.generation import GenerationConfig
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.reference import Reference
from tests.models.small_models import save

TRAINED = 64
NEVER = 508
"""A token that ends an answer and does not come."""


def answer(path: Path, prompt: list[int], tokens: int, *, max_length: int, chunk: int = 13) -> list[int]:
    """Greedy, by the engine, which tells that the length matters."""
    llm = small_llm(path, max_length=max_length, chunk=chunk)
    (note,) = llm.capabilities["positions"]
    long = "factors of long sequences for all; set model_max_length to at most 65" in note
    assert note.startswith("dynamic: behind 64 tokens") or long == (max_length > TRAINED + 1)
    (generation,) = llm.generate([prompt], GenerationConfig(max_new_tokens=tokens, ignore_eos=True))
    return generation.answers[0].token_ids


def greedy(path: Path, prompt: list[int], tokens: int) -> list[int]:
    """By transformers."""
    options = GenerationConfig(max_new_tokens=tokens, eos_token_id=NEVER)
    return Reference(path).answers(prompt, options)[0]


@torch.inference_mode()
def token_by_token(path: Path, prompt: list[int], tokens: int) -> list[int]:
    """By transformers, which is given one token of the prompt after the other."""
    model, past, ids = Reference(path).model, None, list(prompt)
    for place in range(len(prompt) + tokens - 1):
        output = model(torch.tensor([[ids[place]]]), past_key_values=past, use_cache=True)
        past = output.past_key_values
        if place >= len(prompt) - 1:
            ids.append(int(output.logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_dynamic_scaling_beyond_the_trained_length(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 10_000.0}
    path = save(tmp_path, "llama", {"rope_parameters": rope, "max_position_embeddings": TRAINED})
    short, long = list(range(3, 3 + TRAINED - 5)), list(range(3, 3 + 2 * TRAINED))
    assert answer(path, short, 100, max_length=300) == greedy(path, short, 100)
    found = answer(path, long, 40, max_length=300)
    assert found == token_by_token(path, long, 40)
    assert found == answer(path, long, 40, max_length=300, chunk=96)  # however it is cut


def test_longrope_has_a_set_of_factors_for_short_and_one_for_long_sequences(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0, 1.3, 2.0], "long_factor": [1.0, 4.0, 9.0]}
    fields = {
        "hidden_size": 48,
        "head_dim": None,
        "partial_rotary_factor": 0.5,
        "rope_scaling": {"rope_type": "longrope", **factors},
        "original_max_position_embeddings": TRAINED,
    }
    path = save(tmp_path, "phi3", fields)
    short, long = list(range(3, 20)), list(range(3, 3 + TRAINED + 1))
    expected = greedy(path, short, TRAINED + 1 - len(short))
    assert answer(path, short, len(expected), max_length=TRAINED + 1) == expected
    assert answer(path, long, 40, max_length=400) == greedy(path, long, 40)
    assert answer(path, short, len(expected), max_length=400) != expected  # the long set serves all
