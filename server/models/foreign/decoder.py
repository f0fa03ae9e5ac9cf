"""A model of transformers as a decoder of the engine: its modules compute, attention is ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from server.checkpoints.errors import ModelError
from server.checkpoints.files import refuse_codes, stored_tensors
from server.layers.spec import ModelSpec
from server.models.decoder import Decoder
from server.models.names import Names
from server.ops.attention import AttentionBackend
from server.ops.communication import Communication
from server.ops.hidden_states import HiddenStates, LayerInputs
from server.ops.layer_ops import LayerOps

PAGED = "inference_stack_paged"
"""Name of the attention implementation; transformers makes no mask for one that has none."""


class ForeignDecoder(Decoder):
    """Runs modules of transformers; each attends through the engine's cache.

    Args:
        model: transformers' model, its attention implementation `PAGED`.
        modules: names of the modules that attend, in the order of the layers.
    """

    own_forward = True
    computed_by = "transformers"

    def __init__(self, spec: ModelSpec, model: Any, modules: tuple[str, ...]) -> None:
        nn.Module.__init__(self)
        self.spec, self.names = spec, Names()
        self.model = model
        self.embedding = model.get_input_embeddings().weight
        self.positions = None
        self.layers = nn.ModuleList()
        self._attending: AttentionBackend[Any] | None = None
        for index, name in enumerate(modules):
            model.get_submodule(name).attend_in_engine = _Attend(self, index)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None) -> Tensor:
        """[1, heads, tokens, numbers] → [1, tokens, heads, numbers of a value]."""
        assert self._attending is not None
        size, value_size = self.spec.layers[layer].attention.head_dim, value.shape[3]
        rows = _rows(query, size), _rows(key, size), _rows(value, size)
        attended = self._attending.forward(layer, *rows, sinks)
        return attended.view(1, query.shape[2], query.shape[1], size)[..., :value_size]

    def forward(
        self,
        token_ids: Tensor,
        logit_rows: Tensor | None,
        attention: AttentionBackend[Any],
        ops: LayerOps,
        out: Tensor | None = None,
        comm: Communication | None = None,
        states: HiddenStates | None = None,
        layer_inputs: LayerInputs | None = None,
        embedded: Tensor | None = None,
    ) -> Tensor:
        positions = attention.positions.clamp(min=0).long()[None]
        keep: Any = 0 if logit_rows is None else logit_rows
        self._attending = attention
        try:
            output = self.model(
                input_ids=token_ids.long()[None],
                position_ids=positions,
                use_cache=False,
                logits_to_keep=keep,
                output_hidden_states=states is not None,
            )
        finally:
            self._attending = None
        if states is not None:
            states.values = output.hidden_states[-1][0].index_select(0, states.rows)
        logits: Tensor = output.logits[0]
        return logits if out is None else out.copy_(logits)


class _Attend:
    """What a module calls to attend; no module itself, so that the model does not hold its decoder."""

    def __init__(self, decoder: ForeignDecoder, layer: int) -> None:
        self._attend: Callable[..., Tensor] = decoder.attend
        self._layer = layer

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None) -> Tensor:
        return self._attend(self._layer, query, key, value, sinks)


def _rows(x: Tensor, size: int) -> Tensor:
    """[1, heads, tokens, numbers] → [tokens, heads, size], what it has too few of zero."""
    if x.shape[3] < size:
        x = functional.pad(x, (0, size - x.shape[3]))
    return x[0].transpose(0, 1).contiguous()  # kernels take the heads of a token side by side


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As an attention function of transformers."""
    return module.attend_in_engine(query, key, value, s_aux), None


def load_foreign(path: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """transformers' model of the checkpoint in directory `path`, whose attention is the engine's.

    Raises:
        ModelError: transformers cannot load it, or would read codes as floats.
    """
    from transformers import AttentionInterface, AutoModelForCausalLM

    refuse_codes(stored_tensors(path))
    AttentionInterface.register(PAGED, _attend)
    try:
        model = AutoModelForCausalLM.from_pretrained(str(path), dtype=dtype, attn_implementation=PAGED)
    except Exception as error:  # transformers raises whatever its parts raise
        raise ModelError(
            f"{path} cannot be loaded by transformers: {' '.join(str(error).split())}"
        ) from error
    return model.to(device).eval().requires_grad_(False)
