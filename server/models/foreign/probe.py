"""What the attention of a model of transformers is, layer by layer: found out by running it without weights.

All tensors are on torch's meta device, where they have shapes and nothing else. The attention interface takes
note of what each layer gives it, and masks are asked which tokens they let be seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from server.checkpoints.errors import ModelError
from server.layers.spec import AttentionSpec
from utils.messages import one_line

PROBING = "inference_stack_probe"
"""Name of the attention implementation that takes notes."""


@dataclass(frozen=True, slots=True)
class FoundLayer:
    """The attention of one layer.

    Attributes:
        module: name of the module that calls the attention interface.
        spec: what it does; keys and values have one size, the larger of their two.
    """

    module: str
    spec: AttentionSpec


def probe(hf: Any) -> tuple[FoundLayer, ...]:
    """The layers of the model that transformers makes of a configuration.

    Raises:
        ModelError: it cannot be made, or some layer does what cannot be served; says which and what.
    """
    from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM

    notes = _Notes()
    AttentionInterface.register(PROBING, notes.attend)
    AttentionMaskInterface.register(PROBING, _window_as_shape)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(hf, attn_implementation=PROBING).eval()
            if model._can_set_experts_implementation():
                model.set_experts_implementation("batched_mm")  # the others look at numbers
            notes.names = {module: name for name, module in model.named_modules()}
            with torch.inference_mode():
                ids = torch.zeros(1, 3, dtype=torch.long)
                model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    except ModelError:
        raise
    except Exception as error:  # transformers raises whatever its parts raise
        reason = one_line(error)[:200]
        raise ModelError(f"its attention cannot be found out ({type(error).__name__}: {reason})") from error
    finally:
        del AttentionInterface._global_mapping[PROBING], AttentionMaskInterface._global_mapping[PROBING]
    if not notes.layers:
        raise ModelError("no layer calls the attention interface")
    if len({layer.module for layer in notes.layers}) < len(notes.layers):
        raise ModelError("a layer attends several times")
    return tuple(notes.layers)


class _Notes:
    """Takes note of the layers in the order in which they attend."""

    def __init__(self) -> None:
        self.layers: list[FoundLayer] = []
        self.names: dict[nn.Module, str] = {}

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        scaling: float | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        sliding_window: int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """As an attention function of transformers; query, key, value: [1, heads, tokens, numbers]."""
        name = self.names[module]
        if getattr(module, "is_causal", True) is False or kwargs.get("is_causal") is False:
            raise ModelError(f"{name} lets tokens see later ones")
        for key_word, given in kwargs.items():
            if isinstance(given, Tensor) and key_word in ("position_bias", "head_mask", "alibi"):
                raise ModelError(f"{name} adds a {key_word} to its scores")
        if key.shape[2] != query.shape[2]:
            raise ModelError(f"{name} attends to other tokens than those of the text")
        window = None if attention_mask is None else attention_mask.shape[-1]
        heads, size, value_size = query.shape[1], query.shape[3], value.shape[3]
        if heads % key.shape[1]:
            raise ModelError(f"{name} has {heads} heads of queries and {key.shape[1]} of keys")
        spec = AttentionSpec(
            num_heads=heads,
            num_kv_heads=key.shape[1],
            head_dim=max(size, value_size),
            value_dim=max(size, value_size),
            scale=size**-0.5 if scaling is None else float(scaling),
            window=window,
            softcap=softcap,
            sinks=s_aux is not None,
            rotary=None,
        )
        self.layers.append(FoundLayer(name, spec))
        return query.new_empty(1, query.shape[2], heads, value_size), None


def _window_as_shape(
    *args: Any, mask_function: Callable[..., Any], local_size: int | None = None, **kwargs: Any
) -> Tensor | None:
    """As a mask function of transformers: None for all earlier tokens, or [1, 1, 1, window].

    Raises:
        ModelError: a mask of another kind.
    """

    def seen(token: int, other: int) -> bool:
        with torch.device("cpu"):
            zero = torch.tensor(0)
            return bool(mask_function(zero, zero, torch.tensor(token), torch.tensor(other)))

    size = local_size or 0
    causal = not seen(5, 6) and seen(6, 6)
    whole = seen(10**6, 0)
    sliding = size > 0 and seen(size - 1, 0) and seen(size, 1) and not seen(size, 0)
    if causal and whole:
        return None
    if causal and sliding and seen(2 * size - 1, size):
        return torch.empty(1, 1, 1, size)
    raise ModelError("some layer sees other tokens than all before it or the last ones")
