"""The rotary embedding of a GGUF file as transformers describes it."""

from __future__ import annotations

import math
import struct
from typing import Any

from server.checkpoints.errors import ModelError
from server.checkpoints.gguf.header import GGUFHeader

_DEFAULT_THETA = 10_000.0
"""Of llama.cpp, where the file does not say."""
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What Llama 3.1 to 3.3 have in common; a file holds the factors that follow from it."""


def rope_parameters(header: GGUFHeader, config: dict[str, Any]) -> dict[str, Any]:
    """``rope_parameters``, and what else of the configuration belongs to them.

    Args:
        config: what is known of it: sizes, ``max_position_embeddings``.

    Raises:
        ModelError: an embedding that is not supported.
    """
    theta = header.get("rope.freq_base", _DEFAULT_THETA)
    rotated = header.get("rope.dimension_count", config["head_dim"])
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    found: dict[str, Any] = {}
    if config["model_type"] == "phi3":
        found = _phi3(header, config, rope)
        rope["partial_rotary_factor"] = rotated / config["head_dim"]
    elif rotated != config["head_dim"]:
        raise ModelError(
            f"{header.path}: a rotary embedding of {rotated} of {config['head_dim']} numbers is not supported"
        )
    elif "rope_freqs.weight" in header.tensors:
        rope |= _llama3(header, config, theta)
    else:
        rope |= _scaling(header)
    if config["model_type"] == "gemma3_text":  # layers with a window are not scaled
        rope = {
            "full_attention": rope,
            "sliding_attention": {"rope_type": "default", "rope_theta": _DEFAULT_THETA},
        }
    return {"rope_parameters": rope, **found}


def _scaling(header: GGUFHeader) -> dict[str, Any]:
    kind = header.get("rope.scaling.type", "none")
    factor = header.get("rope.scaling.factor", 1.0)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        original = header.get("rope.scaling.original_context_length")
        if original is None:
            raise ModelError(f"{header.path}: YaRN without rope.scaling.original_context_length")
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    raise ModelError(f"{header.path}: rope scaling {kind!r} is not supported (supported: linear, yarn)")


def _llama3(header: GGUFHeader, config: dict[str, Any], theta: float) -> dict[str, Any]:
    """The parameters of which the factors in the file are the result.

    Raises:
        ModelError: they are those of no Llama 3.
    """
    factors = _floats(header, "rope_freqs.weight")
    parameters = _LLAMA3 | {"rope_type": "llama3", "factor": round(max(factors), 6)}
    expected = _llama3_factors(parameters, theta, config["head_dim"])
    close = len(expected) == len(factors) and all(
        math.isclose(one, other, rel_tol=1e-4) for one, other in zip(factors, expected, strict=True)
    )
    if not close:
        raise ModelError(
            f"{header.path}: the factors in 'rope_freqs.weight' are not those of a Llama 3, not supported"
        )
    return parameters


def _llama3_factors(parameters: dict[str, Any], theta: float, head_dim: int) -> list[float]:
    """By what each frequency is divided."""
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    original, factor = parameters["original_max_position_embeddings"], parameters["factor"]
    factors = []
    for index in range(0, head_dim, 2):
        wave = 2 * math.pi * theta ** (index / head_dim)
        if wave < original / high:
            factors.append(1.0)
        elif wave > original / low:
            factors.append(factor)
        else:
            smooth = (original / wave - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


def _phi3(header: GGUFHeader, config: dict[str, Any], rope: dict[str, Any]) -> dict[str, Any]:
    """Add LongRoPE to `rope`, where the file has its factors."""
    original = header.get("rope.scaling.original_context_length", config["max_position_embeddings"])
    if "rope_factors_long.weight" in header.tensors:
        rope |= {
            "rope_type": "longrope",
            "long_factor": _floats(header, "rope_factors_long.weight"),
            "short_factor": _floats(header, "rope_factors_short.weight"),
            "original_max_position_embeddings": original,
        }
    elif header.get("rope.scaling.type", "none") != "none":
        rope |= _scaling(header)
    return {"original_max_position_embeddings": original}


def _floats(header: GGUFHeader, name: str) -> list[float]:
    """The numbers of a tensor of type F32."""
    tensor = header.tensors.get(name)
    if tensor is None:
        raise ModelError(f"{header.path} lacks the tensor {name!r}")
    if tensor.kind != "F32":
        raise ModelError(f"{header.path}: {name!r} is of type {tensor.kind}, expected F32")
    with header.path.open("rb") as file:
        file.seek(tensor.offset)
        return list(struct.unpack(f"<{tensor.size // 4}f", file.read(tensor.size)))
