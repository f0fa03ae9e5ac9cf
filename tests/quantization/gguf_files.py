"""GGUF files for tests: a checkpoint of transformers, written as llama.cpp's converter does."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, get_tensor_name_map, quantize
from gguf.constants import GGML_QUANT_SIZES, MODEL_ARCH, MODEL_ARCH_NAMES
from safetensors.numpy import load_file

from tests.checkpoints import CHAT_TEMPLATE

WRITABLE = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
"""Types that the `gguf` package quantizes to itself."""
_ARCHITECTURES = {
    "gemma3_text": "gemma3",
    "mixtral": "llama",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
}
"""transformers' name → llama.cpp's, where they differ."""


def write_gguf(
    checkpoint: Path,
    out: Path,
    kind: str = "Q8_0",
    fields: Mapping[str, Any] | None = None,
    more: Mapping[str, np.ndarray] | None = None,
    max_tensors: int = 0,
    kinds: Mapping[str, str] | None = None,
) -> Path:
    """The float checkpoint in directory `checkpoint` as a GGUF file.

    Args:
        kind: type of the matrices.
        fields: further ones of the architecture, or others than those that follow; None: left out.
        more: further tensors.
        max_tensors: of a part; 0: the file is not cut.
        kinds: other types of some matrices, by a part of their names.
    """
    config = json.loads((checkpoint / "config.json").read_text())
    architecture = _ARCHITECTURES.get(config["model_type"], config["model_type"])
    writer = GGUFWriter(str(out), architecture, split_max_tensors=max_tensors)
    rope = config["rope_parameters"]
    known: dict[str, Any] = {
        "context_length": config["max_position_embeddings"],
        "block_count": config["num_hidden_layers"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": rope.get("full_attention", rope)["rope_theta"],
    }
    known["attention.key_length"] = known["attention.value_length"] = head_dim(config)
    further = {
        "attention.sliding_window": config.get("sliding_window") if "gemma" in architecture else None,
        "attn_logit_softcapping": config.get("attn_logit_softcapping"),
        "final_logit_softcapping": config.get("final_logit_softcapping"),
        "expert_count": config.get("num_experts", config.get("num_local_experts")),
        "expert_used_count": config.get("num_experts_per_tok"),
        "expert_feed_forward_length": config.get("moe_intermediate_size"),
        "expert_shared_feed_forward_length": config.get("shared_expert_intermediate_size"),
    }
    known |= {key: value for key, value in further.items() if value is not None}
    for key, value in (known | dict(fields or {})).items():
        _add(writer, f"{architecture}.{key}", value)
    _add_tokenizer(writer, checkpoint)
    for name, tensor in (converted(checkpoint, config, architecture) | dict(more or {})).items():
        own = next((other for part, other in (kinds or {}).items() if f".{part}." in name), kind)
        raw = GGMLQuantizationType[own if tensor.ndim > 1 else "F32"]
        writer.add_tensor(name, quantize(tensor, raw), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def converted(checkpoint: Path, config: Mapping[str, Any], architecture: str) -> dict[str, np.ndarray]:
    """The tensors with llama.cpp's names and in its layout."""
    enum = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(MODEL_ARCH(enum), config["num_hidden_layers"])
    found = {}
    for name, tensor in _stacked(load_file(checkpoint / "model.safetensors")).items():
        own = names.get_name(name, (".weight", ".bias"))
        assert own is not None, name
        tensor = tensor.astype(np.float32)
        if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
            halves = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
            tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        if "gemma" in architecture and "norm" in name:
            tensor = tensor + np.float32(1)
        found[own] = tensor
    return found


def _stacked(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With those of all experts of a layer as one."""
    found: dict[str, np.ndarray] = {}
    experts: dict[str, list[np.ndarray]] = defaultdict(list)
    for name in sorted(tensors, key=lambda name: [int(n) for n in re.findall(r"\d+", name)]):
        merged = re.sub(r"\.experts\.\d+\.", ".experts.", name)
        if merged == name:
            found[name] = tensors[name]
        else:
            experts[merged].append(tensors[name])
    return found | {name: np.stack(parts) for name, parts in experts.items()}


def head_dim(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def random_blocks(kind: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Blocks of a type with arbitrary codes and scales near 1: uint8 [rows, bytes]."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
    ones = np.float16(rng.uniform(0.5, 1.5, (rows, columns // block, 1))).view(np.uint8)
    places = {"Q6_K": (208,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q4_1": (0, 2), "Q5_1": (0, 2)}
    for place in places.get(kind, (0,)):
        data[..., place : place + 2] = ones
    return data.reshape(rows, -1)


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)


def _add_tokenizer(writer: GGUFWriter, checkpoint: Path) -> None:
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    vocabulary, special = tokenizer["model"]["vocab"], ("<s>", "</s>", "<pad>")
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(vocabulary["<s>"])
    writer.add_eos_token_id(vocabulary["</s>"])
    writer.add_pad_token_id(vocabulary["<pad>"])
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)
