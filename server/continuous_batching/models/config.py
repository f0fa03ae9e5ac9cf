"""What a decoder-only model of the Llama family looks like, read from a checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUPPORTED_TYPES = ("llama", "mistral", "qwen2", "qwen3")


class ModelError(Exception):
    """A checkpoint that cannot be served; the message is one line for the operator."""


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Shape and variant of a model.

    Attributes:
        qkv_bias: the query, key and value projections have a bias (Qwen2).
        output_bias: the attention's output projection has one (Llama with `attention_bias`).
        mlp_bias: the feed-forward projections have one.
        head_norm: queries and keys are normalised per head (Qwen3).
        eos_token_ids: tokens that end an answer.
        hf: the checkpoint's own configuration object.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    head_norm: bool
    eos_token_ids: tuple[int, ...]
    hf: Any

    @classmethod
    def load(cls, path: Path, *, trust_remote_code: bool = False) -> DecoderConfig:
        """Read ``config.json`` and ``generation_config.json`` of a checkpoint directory.

        Raises:
            ModelError: no such checkpoint, or a model that is not supported.
        """
        from transformers import AutoConfig

        if not (path / "config.json").is_file():
            raise ModelError(f"{path} is not a model directory: it holds no config.json")
        try:
            hf = AutoConfig.from_pretrained(str(path), trust_remote_code=trust_remote_code)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{path / 'config.json'} cannot be read: {_one_line(error)}") from error
        kind = hf.model_type
        if kind not in SUPPORTED_TYPES:
            raise ModelError(
                f"model type {kind!r} is not supported (supported: {', '.join(SUPPORTED_TYPES)})"
            )
        _refuse_variants(hf, kind)
        attention_bias = bool(getattr(hf, "attention_bias", False))
        return cls(
            vocab_size=hf.vocab_size,
            hidden_size=hf.hidden_size,
            intermediate_size=hf.intermediate_size,
            num_layers=hf.num_hidden_layers,
            num_heads=hf.num_attention_heads,
            num_kv_heads=getattr(hf, "num_key_value_heads", None) or hf.num_attention_heads,
            head_dim=getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads,
            norm_eps=hf.rms_norm_eps,
            max_position_embeddings=hf.max_position_embeddings,
            tie_word_embeddings=bool(hf.tie_word_embeddings),
            qkv_bias=kind == "qwen2" or attention_bias,
            output_bias=kind != "qwen2" and attention_bias,
            mlp_bias=bool(getattr(hf, "mlp_bias", False)),
            head_norm=kind == "qwen3",
            eos_token_ids=_eos_token_ids(path, hf),
            hf=hf,
        )


def _refuse_variants(hf: Any, kind: str) -> None:
    """What these architectures can be configured to do, but this implementation does not."""
    if hf.hidden_act != "silu":
        raise ModelError(f"activation {hf.hidden_act!r} is not supported (supported: silu)")
    window = getattr(hf, "sliding_window", None)
    layer_types = getattr(hf, "layer_types", None) or []
    slides = "sliding_attention" in layer_types or (kind == "mistral" and window is not None)
    if slides and window < hf.max_position_embeddings:
        raise ModelError(f"sliding window attention ({window} tokens) is not supported")


def _eos_token_ids(path: Path, hf: Any) -> tuple[int, ...]:
    """From ``generation_config.json`` where there is one, as transformers has it."""
    source: Any = hf.eos_token_id
    generation = path / "generation_config.json"
    if generation.is_file():
        source = json.loads(generation.read_text()).get("eos_token_id", source)
    if source is None:
        return ()
    return tuple(source) if isinstance(source, list) else (int(source),)


def _one_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
