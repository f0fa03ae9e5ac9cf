"""The configuration of transformers that the metadata of a GGUF file amounts to.

transformers has a conversion of its own, which passes over what changes an answer (scaled rotary embeddings,
biases, sizes of heads). Here a field that is not known is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from server.checkpoints.errors import ModelError
from server.checkpoints.gguf.header import GGUFHeader
from server.checkpoints.gguf.rope import rope_parameters

_COMMON = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
"""Field of the file → of the configuration, for every family."""
_EXPERTS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
_SOFT_CAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_WINDOW = {"attention.sliding_window": "sliding_window"}
_READ_ELSEWHERE = {
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
    "rope.scaling.original_context_length",
    "rope.scaling.yarn_log_multiplier",
    "rope.scaling.finetuned",
    "tensor_data_layout",
    "vocab_size",
}
"""Fields that are read apart, or say nothing that the tensors do not."""
_ENDLESS = 1e9
"""Above every size of a model."""
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


@dataclass(frozen=True, slots=True)
class Family:
    """How the files of an architecture are read.

    Attributes:
        model_type: transformers' name.
        fields: those besides the common ones, with transformers' names.
        fixed: what holds for every file.
        derived: what follows from the file in another way.
    """

    model_type: str
    fields: dict[str, str] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    derived: Callable[[GGUFHeader, dict[str, Any]], dict[str, Any]] | None = None


def _llama(header: GGUFHeader, config: dict[str, Any]) -> dict[str, Any]:
    if header.get("expert_count"):
        return {"model_type": "mixtral", "num_local_experts": config["num_experts"]}
    return {
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in header.tensors,
    }


def _qwen3(header: GGUFHeader, config: dict[str, Any]) -> dict[str, Any]:
    return {"attention_bias": "blk.0.attn_q.bias" in header.tensors}


def _gemma(header: GGUFHeader, config: dict[str, Any]) -> dict[str, Any]:
    """The largest of Gemma 2 and 3 scale queries by the size of a head in the residual stream."""
    largest = config["num_hidden_layers"] == {"gemma2": 46, "gemma3": 62}[header.architecture]
    per_head = config["hidden_size"] // config["num_attention_heads"]
    return {"query_pre_attn_scalar": per_head if largest else config["head_dim"]}


FAMILIES = {
    "gemma2": Family("gemma2", _SOFT_CAPS | _WINDOW, derived=_gemma),
    "gemma3": Family("gemma3_text", _SOFT_CAPS | _WINDOW, derived=_gemma),
    "llama": Family("llama", _EXPERTS, derived=_llama),
    "phi3": Family("phi3", _WINDOW),
    "qwen2": Family("qwen2"),
    "qwen2moe": Family("qwen2_moe", _EXPERTS),
    "qwen3": Family("qwen3", derived=_qwen3),
    "qwen3moe": Family("qwen3_moe", _EXPERTS, {"norm_topk_prob": True}, _qwen3),
}
"""By ``general.architecture``."""


def config_fields(header: GGUFHeader) -> dict[str, Any]:
    """The fields of the ``config.json`` that this file would have.

    Raises:
        ModelError: an architecture or a field that is not supported.
    """
    family = FAMILIES.get(header.architecture)
    if family is None:
        raise ModelError(
            f"{header.path}: GGUF architecture {header.architecture!r} is not supported "
            f"(supported: {', '.join(FAMILIES)})"
        )
    names = _COMMON | family.fields
    _check_fields(header, names.keys() | _READ_ELSEWHERE)
    config = {name: header.get(key) for key, name in names.items() if header.get(key) is not None}
    for key in sorted({*_COMMON.values()} - {"num_key_value_heads"} - config.keys()):
        raise ModelError(f"{header.path}: the file does not say its {key}")
    for key in names.values():
        _check_size(header, key, config.get(key, 1))
    config["head_dim"] = _head_dim(header, config)
    config |= {"model_type": family.model_type, **family.fixed, **_tokens(header)}
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    if family.derived is not None:
        config |= family.derived(header, config)
    return config | rope_parameters(header, config)


def _check_fields(header: GGUFHeader, known: set[str]) -> None:
    prefix = f"{header.architecture}."
    for key, value in header.fields.items():
        if not key.startswith(prefix):
            continue
        if key.removeprefix(prefix) not in known:
            raise ModelError(f"{header.path}: the field {key} ({value!r}) is not supported")
        if isinstance(value, list):
            raise ModelError(f"{header.path}: the field {key} differs from layer to layer, not supported")


def _check_size(header: GGUFHeader, key: str, value: Any) -> None:
    if type(value) not in (int, float) or not 0 < value < _ENDLESS:
        raise ModelError(f"{header.path}: its {key} is {value!r}, expected a number above 0")


def _head_dim(header: GGUFHeader, config: dict[str, Any]) -> int:
    """Numbers of a head; of keys and values alike."""
    size = int(header.get("attention.key_length") or config["hidden_size"] // config["num_attention_heads"])
    values = header.get("attention.value_length", size)
    if values != size:
        raise ModelError(
            f"{header.path}: values of {values} numbers a head and keys of {size}: not supported"
        )
    return size


def _tokens(header: GGUFHeader) -> dict[str, Any]:
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError(f"{header.path} lacks the tensor 'token_embd.weight'")
    special = {key: header.fields.get(f"tokenizer.ggml.{key}") for key in (*_ENDS, "bos_token_id")}
    ends = list(dict.fromkeys(special[key] for key in _ENDS if special[key] is not None))
    return {
        "vocab_size": embedding.shape[0],
        "bos_token_id": special["bos_token_id"],
        "eos_token_id": ends or None,
        "pad_token_id": header.fields.get("tokenizer.ggml.padding_token_id"),
    }
