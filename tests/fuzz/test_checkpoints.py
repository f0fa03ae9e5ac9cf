"""Checkpoints whose configuration files hold anything, loaded by both servers.

Each is refused in one line that names it, or served with the answers that transformers gives, or with those
of the undamaged checkpoint where what was changed has no effect. Nothing else may happen: no weight is made
up.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from protocol.errors import ApiError
from protocol.generation import GenerationConfig
from server.checkpoints.errors import ModelError
from server.continuous_batching import LLM
from server.static_batching.pipeline import StaticPipeline
from tests.checkpoints import tiny_llama

CASES = int(os.environ.get("FUZZ_CHECKPOINTS", "2000"))
"""Loads: each checkpoint by both servers."""
SEED = int(os.environ.get("FUZZ_SEED", "0"))
PROMPT = [5, 17, 250, 99, 3, 41, 42, 300]
OPTIONS = GenerationConfig(max_new_tokens=4, ignore_eos=True)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

KEYS = {
    "config.json": (
        *("architectures", "attention_bias", "attention_dropout", "bos_token_id", "dtype", "eos_token_id"),
        *("head_dim", "hidden_act", "hidden_size", "initializer_range", "intermediate_size", "layer_types"),
        *("max_position_embeddings", "mlp_bias", "model_type", "num_attention_heads", "num_hidden_layers"),
        *("num_key_value_heads", "pad_token_id", "quantization_config", "rms_norm_eps", "rope_parameters"),
        *("rope_scaling", "rope_theta", "sliding_window", "tie_word_embeddings", "torch_dtype", "use_cache"),
        *("vocab_size", "transformers_weights", "auto_map", "text_config", "tokenizer_class"),
    ),
    "generation_config.json": (
        *("bos_token_id", "do_sample", "eos_token_id", "min_p", "pad_token_id", "repetition_penalty"),
        *("temperature", "top_k", "top_p", "transformers_version", "max_length", "max_new_tokens"),
    ),
    "tokenizer_config.json": (
        *("added_tokens_decoder", "bos_token", "chat_template", "clean_up_tokenization_spaces", "eos_token"),
        *("extra_special_tokens", "model_max_length", "pad_token", "tokenizer_class", "add_bos_token"),
        *("additional_special_tokens", "split_special_tokens", "padding_side", "auto_map"),
    ),
    "tokenizer.json": (
        *("added_tokens", "decoder", "model", "normalizer", "padding", "post_processor", "pre_tokenizer"),
        *("truncation", "version"),
    ),
    "special_tokens_map.json": ("bos_token", "eos_token", "pad_token", "additional_special_tokens"),
}
PLACES = [(file, key) for file, keys in KEYS.items() for key in keys]
ABSENT = object()

NUMBERS = (-1, 0, 1, 2, 3, 7, 16, 64, 511, 512, 600, 2**31, 10**30, 0.5, 1.5, -0.5, 1e-45, 1e30)
WORDS = ("", "2", "llama", "gpt2", "</s>", "float16", "default", "yarn", "linear", "LlamaForCausalLM", "x.py")
SCALARS = st.sampled_from((ABSENT, None, True, False, *NUMBERS, *WORDS))
NAMES = ("rope_type", "factor", "quant_method", "bits", "group_size", "content", "type", "rope_theta")
VALUES = st.one_of(
    SCALARS,
    SCALARS,
    st.lists(SCALARS.filter(lambda value: value is not ABSENT), max_size=3),
    st.dictionaries(st.sampled_from(NAMES), SCALARS.filter(lambda value: value is not ABSENT), max_size=3),
)
CHANGES = st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=2)

Changes = list[tuple[tuple[str, str], Any]]


def damage(path: Path, changes: Changes) -> None:
    for (name, key), value in changes:
        file = path / name
        content = json.loads(file.read_text()) if file.exists() else {}
        content.pop(key, None)
        if value is not ABSENT:
            content[key] = value
        file.write_text(json.dumps(content))


def engine(path: Path) -> list[int]:
    loading = {"torch_dtype": "float32", "device": "cpu"}
    llm = LLM(path, model_loading_config=loading, cache_config={"num_blocks": 16})
    return llm.generate([PROMPT], OPTIONS)[0].answers[0].token_ids


def static(path: Path) -> list[int]:
    pipeline = StaticPipeline(path, worker_config={"torch_dtype": "float32", "device": "cpu"})
    return pipeline.generate([PROMPT], OPTIONS)[0].answers[0].token_ids


def transformers_answer(path: Path) -> list[int] | None:
    """Its greedy answer; None where it cannot load all of the checkpoint, or not compute with it."""
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
        if info["missing_keys"] or info["mismatched_keys"]:
            return None
        tokens, answer = torch.tensor([PROMPT]), []
        with torch.inference_mode():
            for _ in range(4):
                scores = model(tokens).logits[0, -1]
                if not math.isfinite(float(scores.abs().max())):
                    return None
                answer.append(int(scores.argmax()))
                tokens = torch.cat([tokens, scores.argmax().view(1, 1)], dim=1)
    except Exception:
        return None
    return answer


class Campaign:
    """Loads checkpoints and gathers what goes wrong."""

    def __init__(self, whole: Path, scratch: Path) -> None:
        self.cases = self.served = 0
        self.problems: dict[str, str] = {}
        """By kind, the first example of each."""
        self._whole = whole
        self._scratch = scratch
        self._usual = engine(whole)

    def load(self, changes: Changes) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)
        shutil.copytree(self._whole, self._scratch)
        damage(self._scratch, changes)
        expected: list[list[int] | None] | None = None
        for server in (engine, static):
            self.cases += 1
            outcome = self._outcome(server)
            if isinstance(outcome, str):
                self._report(server, outcome, changes)
            elif outcome is not None:
                self.served += 1
                expected = expected or [self._usual, transformers_answer(self._scratch)]
                if outcome not in expected:
                    self._report(server, f"answers {outcome}, expected one of {expected}", changes)

    def _outcome(self, server: Callable[[Path], list[int]]) -> list[int] | str | None:
        """An answer, None for a refusal as it should be, or what is wrong."""
        try:
            return server(self._scratch)
        except ModelError as error:
            said = str(error)
            good = "\n" not in said and (str(self._scratch) in said or any(key in said for _, key in PLACES))
            return None if good else f"a refusal that names nothing, or in several lines: {said!r}"
        except ApiError as error:
            return None if error.status < 500 else f"status {error.status}: {error}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def _report(self, server: Callable[[Path], list[int]], problem: str, changes: Changes) -> None:
        shown = [(file, key, "absent" if value is ABSENT else value) for (file, key), value in changes]
        places = " ".join(sorted(key for _, key, _ in shown)) if len(shown) == 1 else ""
        self.problems.setdefault(f"{server.__name__} {places} {problem[:160]}", repr(shown))


def test_no_checkpoint_is_served_otherwise_than_by_transformers(tmp_path: Path) -> None:
    logging.disable(logging.CRITICAL)
    campaign = Campaign(tiny_llama(tmp_path / "whole", hidden=16, layers=1), tmp_path / "model")

    @seed(SEED)
    @settings(
        max_examples=CASES // 2,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(changes=CHANGES)
    def load(changes: Changes) -> None:
        campaign.load(changes)

    try:
        load()
    finally:
        logging.disable(logging.NOTSET)
    found = "\n".join(f"{kind}\n    {example}" for kind, example in campaign.problems.items())
    assert not campaign.problems, f"{len(campaign.problems)} kinds in {campaign.cases} cases:\n{found}"
    assert campaign.cases >= CASES and campaign.served > CASES // 10
