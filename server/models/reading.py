"""What families read alike from transformers' configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server.checkpoints.errors import ModelError
from server.layers.spec import Activation, ModelSpec, RotarySpec
from server.models.architecture import LengthLimit

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
"""transformers' name → ours."""


def activation(name: str) -> Activation:
    """An activation by transformers' name.

    Raises:
        ModelError: one that is not supported.
    """
    if name not in _ACTIVATIONS:
        raise ModelError(f"activation {name!r} is not supported (supported: {', '.join(_ACTIVATIONS)})")
    return _ACTIVATIONS[name]


def head_dim(hf: Any) -> int:
    """Numbers of a head."""
    return int(getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads)


def kv_heads(hf: Any) -> int:
    """Heads of keys and values; every query head has its own where the configuration does not say."""
    return int(getattr(hf, "num_key_value_heads", None) or hf.num_attention_heads)


def rotary(hf: Any, rope: Mapping[str, Any] | None = None, *, partial: bool = False) -> RotarySpec:
    """A rotary embedding.

    Args:
        rope: its ``rope_parameters``; None: those of `hf`.
        partial: the family knows heads of which a part rotates; elsewhere transformers heeds their size in
            scaled embeddings alone.

    Raises:
        ModelError: one of a part of each head that is scaled, in a family that does not know it; or texts
            in the place of its numbers, which transformers does not look at.
    """
    rope = hf.rope_parameters if rope is None else rope
    for key, value in rope.items():
        if isinstance(value, str) and key not in ("rope_type", "type"):
            raise ModelError(f"rope_parameters: {key} is {value!r}, expected a number")
    kind, size = rope["rope_type"], head_dim(hf)
    if not isinstance(kind, str):
        raise ModelError(f"rope_parameters: rope_type is {kind!r}, expected a name")
    if type(theta := rope["rope_theta"]) not in (int, float) or theta <= 0:
        raise ModelError(f"rope_parameters: rope_theta is {theta!r}, expected a number above 0")
    part = rope.get("partial_rotary_factor") or 1.0
    if part != 1.0 and kind not in ("default", "proportional") and not partial:
        raise ModelError(f"rope scaling {kind!r} with a partial_rotary_factor is not supported")
    turning = int(size * part) if partial and kind != "proportional" else size
    return RotarySpec(theta, turning, kind, dict(rope), hf.max_position_embeddings)


def layer_windows(hf: Any) -> list[int | None]:
    """The window of each layer by ``layer_types``; None: the layer has none.

    Raises:
        ModelError: another type of layer, or a window that is none.
    """
    check_layer_types(hf, ("full_attention", "sliding_attention"))
    size = hf.sliding_window
    check_window(size)
    if size is None and "sliding_attention" in hf.layer_types:
        raise ModelError("layer_types holds 'sliding_attention', but the configuration has no sliding_window")
    return [size if kind == "sliding_attention" else None for kind in hf.layer_types]


def check_layer_types(hf: Any, supported: Sequence[str]) -> None:
    """Raise ModelError for a type of layer that is not among `supported`."""
    for kind in getattr(hf, "layer_types", None) or ():
        if kind not in supported:
            raise ModelError(f"layer_types: {kind!r} is not supported (supported: {', '.join(supported)})")


def check_window(size: int | None) -> None:
    """Raise ModelError for a window that is no number, or in which a token does not even see itself."""
    if size is not None and (type(size) is not int or size < 1):
        raise ModelError(f"a sliding_window of {size!r} tokens is not supported")


def cache_limit(hf: Any, spec: ModelSpec) -> LengthLimit | None:
    """The length up to which a window that only transformers' cache heeds changes nothing.

    Where attention has none, which tokens are seen then depends on how a prompt is cut.
    """
    layer_types = getattr(hf, "layer_types", None)
    if any(layer.attention.window is not None for layer in spec.layers):
        return None
    if layer_types is not None and "sliding_attention" not in layer_types:
        return None
    size = getattr(hf, "sliding_window", None)
    if size is None and layer_types is None:
        size = getattr(hf, "attention_chunk_size", None)
    check_window(size)
    return None if size is None else LengthLimit(size + 1, f"{hf.model_type} with a window of {size} tokens")
