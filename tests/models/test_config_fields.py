"""Whatever field of a configuration is changed: it is heeded as transformers heeds it, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.generation import GenerationConfig
from server.checkpoints.errors import ModelError
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.reference import Reference
from tests.models.small_models import MODELS, save

PROMPT = [5, 17, 250, 99, 3, 41, 42, 300, 77, 12, 9, 400, 33]
OPTIONS = GenerationConfig(max_new_tokens=12, eos_token_id=508)
OF_OTHERS: dict[str, Any] = {
    "is_causal": False,
    "attention_bias": True,
    "mlp_bias": True,
    "use_qk_norm": True,
    "use_sliding_window": True,
    "norm_topk_prob": True,
    "sliding_window": 4,
    "attention_chunk_size": 4,
    "partial_rotary_factor": 0.5,
    "rope_theta": 100.0,
    "final_logit_softcapping": 0.5,
    "attn_logit_softcapping": 0.5,
    "logit_scale": 0.3,
    "clip_qkv": 0.1,
}
"""What one family or another reads; in every other one it must mean what transformers takes it for."""
IRRELEVANT = {"vocab_size", "num_hidden_layers", "hidden_size", "n_embd", "n_layer", "initializer_range"}
"""Sizes, which the stored tensors contradict, and what is for training."""
LENGTHS = {"max_position_embeddings", "n_positions", "bos_token_id", "eos_token_id", "pad_token_id"}
"""What has tests of its own."""


def changes(fields: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """One field after the other with another value of its type."""
    for key, value in fields.items():
        if key in IRRELEVANT | LENGTHS:
            continue
        if isinstance(value, bool):
            yield key, not value
        elif isinstance(value, int):
            yield key, value + 1
        elif isinstance(value, float):
            yield key, 2 * value + 0.1
        elif isinstance(value, str) and key in ("hidden_act", "hidden_activation", "activation_function"):
            yield key, "relu"
    for key, value in OF_OTHERS.items():
        if fields.get(key) is None:
            yield key, value


def expected(path: Path) -> list[int] | None:
    """What transformers answers; None where it cannot run such a model, whatever it raises then."""
    try:
        return Reference(path).answers(PROMPT, OPTIONS)[0]
    except Exception:
        return None


FIRST = {kind: name for name, (kind, _) in reversed(MODELS.items())}
"""Model type → one model of it."""


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "gemma" else pytest.mark.slow) for kind in FIRST]
)
def test_a_field_is_heeded_or_refused(kind: str, tmp_path: Path) -> None:
    path = save(tmp_path, *MODELS[FIRST[kind]])
    file = path / "config.json"
    fields = json.loads(file.read_text())
    served, wrong = 0, []
    for key, value in changes(fields):
        file.write_text(json.dumps(fields | {key: value}))
        try:
            (generation,) = small_llm(path, max_length=200).generate([PROMPT], OPTIONS)
        except ModelError:
            continue
        answer = expected(path)
        served += 1
        if answer not in (None, generation.answers[0].token_ids):
            wrong.append((key, value))
    assert not wrong
    assert served > 5
