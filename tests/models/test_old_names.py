"""Checkpoints with the names of older releases, or without prefixes, are read, too."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from protocol.generation import GenerationConfig
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.reference import Reference
from tests.models.small_models import MODELS, save

Tensors = dict[str, torch.Tensor]


def rewrite(path: Path, tensors: Tensors) -> None:
    kept = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})


def assert_as_transformers(path: Path) -> None:
    prompt = list(range(3, 40))
    options = GenerationConfig(max_new_tokens=12, eos_token_id=508)
    (generation,) = small_llm(path, max_length=100).generate([prompt], options)
    assert [answer.token_ids for answer in generation.answers] == Reference(path).answers(prompt, options)


def test_gpt2_without_its_prefix_and_with_masks(tmp_path: Path) -> None:
    path = save(tmp_path, *MODELS["gpt2"])
    tensors = load_file(path / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    rewrite(path, old | {"h.0.attn.bias": torch.ones(1, 1, 8, 8), "h.0.attn.masked_bias": torch.tensor(-1e4)})
    assert_as_transformers(path)


def test_gpt_neox_with_the_old_name_of_its_output_layer_and_with_masks(tmp_path: Path) -> None:
    path = save(tmp_path, *MODELS["gpt-neox"])
    tensors = load_file(path / "model.safetensors")
    old = {name.replace("lm_head.", "embed_out."): tensor for name, tensor in tensors.items()}
    assert "embed_out.weight" in old
    layer = "gpt_neox.layers.0.attention"
    more = {f"{layer}.bias": torch.ones(1, 1, 8, 8), f"{layer}.rotary_emb.inv_freq": torch.ones(3)}
    rewrite(path, old | more)
    assert_as_transformers(path)
    new = {name.replace("embed_out.", "lm_head."): tensor for name, tensor in old.items()}
    rewrite(path, new)
    assert_as_transformers(path)
