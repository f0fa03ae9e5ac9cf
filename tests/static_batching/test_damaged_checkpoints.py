"""A checkpoint that does not fit its configuration is refused by name; what transformers knows to be
superfluous or tied is served."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPTJConfig, GPTJForCausalLM, Llama4Config
from transformers import Llama4ForConditionalGeneration as Llama4

from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from server.static_batching.pipeline import StaticPipeline
from tests.checkpoints import tiny_llama, tiny_tokenizer
from tests.quantization.models import quantized

Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors, dict[str, Any]], object]
UP = "model.layers.1.mlp.up_proj.weight"
PROMPT = [5, 17, 250, 99, 3, 41, 42, 300]

REFUSED: dict[str, tuple[Change, str]] = {
    "a tensor is missing": (
        lambda tensors, _: tensors.pop("model.layers.1.mlp.up_proj.weight"),
        "lacks 1 tensor, the first is 'model.layers.1.mlp.up_proj.weight'",
    ),
    "a layer is missing": (
        lambda _, config: config.update(num_hidden_layers=3),
        "lacks 9 tensors, the first is 'model.layers.2.input_layernorm.weight'",
    ),
    "more layers than configured": (
        lambda _, config: config.update(num_hidden_layers=1),
        "holds the tensor 'model.layers.1.input_layernorm.weight', and 8 more, which",
    ),
    "an unknown tensor": (
        lambda tensors, _: tensors.update({"score.weight": torch.zeros(2, 64)}),
        "holds the tensor 'score.weight', which this model does not have",
    ),
    "a bias that is not configured": (
        lambda tensors, _: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}),
        "holds the tensor 'model.layers.0.self_attn.q_proj.bias'",
    ),
    "another shape": (
        lambda tensors, _: tensors.update({"model.norm.weight": torch.ones(63)}),
        "holds 'model.norm.weight' of shape [63], expected [64]",
    ),
    "a vocabulary larger than configured": (
        lambda _, config: config.update(vocab_size=500),
        "of shape [512, 64], expected [500, 64]",
    ),
    "no output layer": (
        lambda tensors, _: tensors.pop("lm_head.weight"),
        "lacks 1 tensor, the first is 'lm_head.weight'",
    ),
}

SERVED: dict[str, Change] = {
    "inverse frequencies of old files": lambda tensors, _: tensors.update(
        {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
    ),
    "a tied output layer": lambda tensors, config: (
        tensors.pop("lm_head.weight"),
        config.update(tie_word_embeddings=True),
    ),
    "a tied output layer that is stored too": lambda tensors, config: (
        tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}),
        config.update(tie_word_embeddings=True),
    ),
}


def changed(model: Path, out: Path, change: Change) -> Path:
    """A copy of `model` with other tensors or another configuration."""
    shutil.copytree(model, out)
    tensors, config = load_file(out / "model.safetensors"), json.loads((out / "config.json").read_text())
    change(tensors, config)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config))
    return out


def static(path: Path, **options: Any) -> StaticPipeline:
    return StaticPipeline(path, worker_config={"device": "cpu", **options})


def continuous(path: Path) -> LLM:
    loading = {"device": "cpu", "torch_dtype": "float32"}
    return LLM(path, model_loading_config=loading, cache_config={"num_blocks": 20})


def refusal(load: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(Exception) as caught:  # each server has its own kind
        load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("what", REFUSED)
def test_both_servers_refuse(llama: Path, tmp_path: Path, what: str) -> None:
    change, expected = REFUSED[what]
    path = changed(llama, tmp_path / "model", change)
    assert refusal(static, path).startswith(f"{path} ")
    assert expected in refusal(static, path)
    assert str(path) in refusal(continuous, path)


@pytest.mark.parametrize(("dtype", "name"), [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")])
def test_codes_without_scales_are_not_taken_for_weights(
    llama: Path, tmp_path: Path, dtype: torch.dtype, name: str
) -> None:
    path = changed(llama, tmp_path / "model", lambda tensors, _: tensors.update({UP: tensors[UP].to(dtype)}))
    said = f"{path / 'model.safetensors'}: {UP} is of type {name}, but the file holds no scales of it"
    assert said in refusal(static, path) and said == refusal(continuous, path)


@pytest.mark.parametrize("what", SERVED)
def test_both_servers_answer_as_transformers(llama: Path, tmp_path: Path, what: str) -> None:
    path = changed(llama, tmp_path / "model", SERVED[what])
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    sequences = model.generate(torch.tensor([PROMPT]), max_new_tokens=8, do_sample=False, pad_token_id=2)
    expected = sequences[0, len(PROMPT) :].tolist()
    options = GenerationConfig(max_new_tokens=8, ignore_eos=True)
    for server in (static(path), continuous(path)):
        assert server.generate([PROMPT], options)[0].answers[0].token_ids == expected


def test_a_tied_layer_with_weights_of_its_own_is_not_tied(llama: Path, tmp_path: Path) -> None:
    path = changed(llama, tmp_path / "model", lambda _, config: config.update(tie_word_embeddings=True))
    options = GenerationConfig(max_new_tokens=8)
    answers = [static(model).generate([PROMPT], options)[0].answers[0].token_ids for model in (path, llama)]
    assert answers[0] == answers[1]


def test_pickled_weights_are_checked_too(llama: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(llama, tmp_path / "model"))
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    torch.save(tensors, path / "pytorch_model.bin")
    message = refusal(lambda path: static(path, use_safetensors=False), path)
    assert message == f"{path} lacks 1 tensor, the first is 'model.layers.1.mlp.up_proj.weight'"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda tensors, _: tensors.pop("model.norm.weight"), "lacks 1 tensor, the first is 'model.norm"),
        (lambda tensors, _: tensors.pop("model.layers.0.mlp.up_proj.scales"), "up_proj.scales"),
        (
            lambda tensors, _: tensors.update({"model.extra": torch.ones(2)}),
            "the tensor 'model.extra', which",
        ),
        (lambda tensors, _: tensors.update({"model.norm.weight": torch.ones(3)}), "of shape [3], expected"),
    ],
    ids=["missing", "missing scales", "unknown", "another shape"],
)
def test_quantized_checkpoints(tmp_path: Path, change: Change, expected: str) -> None:
    whole = quantized(tiny_llama(tmp_path / "float", hidden=128), tmp_path / "whole", group_size=32)
    path = changed(whole, tmp_path / "model", change)
    assert expected in refusal(lambda path: static(path, is_gptq_quantized=True), path)


def test_unreadable_files_are_named(llama: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(llama, tmp_path / "model"))
    weights = path / "model.safetensors"
    whole = weights.read_bytes()
    for damage in (whole[:1000], whole[:-1], b"version https://git-lfs.github.com/spec/v1\n", b""):
        weights.write_bytes(damage)
        assert f"{weights} is not a readable safetensors file" in refusal(static, path)
    weights.unlink()
    index = path / "model.safetensors.index.json"
    index.write_text("{")
    assert f"{index} cannot be read" in refusal(static, path)
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "absent.safetensors"}}))
    assert "absent.safetensors" in refusal(static, path)
    index.unlink()
    assert "model.safetensors" in refusal(static, path)


def test_causal_masks_of_old_files_are_left_alone(tmp_path: Path) -> None:
    """GPT-J's public checkpoint holds them, and transformers does not list them as superfluous."""
    tiny_tokenizer(tmp_path / "model")
    config = GPTJConfig(vocab_size=512, n_positions=64, n_embd=32, n_layer=1, n_head=2, rotary_dim=4)
    GPTJForCausalLM(config).save_pretrained(tmp_path / "model")
    masks = {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e9),
    }
    path = changed(tmp_path / "model", tmp_path / "old", lambda tensors, _: tensors.update(masks))
    assert static(path).generate([[5, 6]], GenerationConfig(max_new_tokens=2))[0].answers


def test_the_text_part_of_a_multimodal_checkpoint(tmp_path: Path) -> None:
    tiny_tokenizer(tmp_path / "model")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = shape | {"num_key_value_heads": 1, "vocab_size": 512, "head_dim": 16}
    text |= {"intermediate_size_mlp": 64, "num_local_experts": 2, "max_position_embeddings": 64}
    vision = shape | {"image_size": 28, "patch_size": 14, "vision_output_dim": 32}
    vision |= {"projector_input_dim": 32, "projector_output_dim": 32}
    Llama4(Llama4Config(text_config=text, vision_config=vision)).save_pretrained(tmp_path / "model")
    assert static(tmp_path / "model").generate([[5, 6]], GenerationConfig(max_new_tokens=2))[0].answers
    name = "language_model.model.layers.1.input_layernorm.weight"
    path = changed(
        tmp_path / "model", tmp_path / "more", lambda tensors, _: tensors.update({name: torch.ones(32)})
    )
    assert f"holds the tensor {name!r}, which" in refusal(static, path)
