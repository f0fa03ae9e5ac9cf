"""The layer of MiMo (Xiaomi, 2025) that predicts one token more (multi-token prediction, as DeepSeek-V3's).

It reads the residual stream behind the target's last layer beside the embedding of the next token, each
normalised, and shares the target's embedding and output layer. The token behind the first one is not looked
at. What it gives, after its last norm, stands in for the states of the next place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from server.checkpoints.errors import ModelError
from server.layers.linear import Linear, WeightMap
from server.layers.spec import ModelSpec
from server.models.builder import Builder
from server.models.heads.head import DraftHead, HeadSpec
from server.models.layer import Layer
from server.models.llama import llama_spec
from server.models.mimo import MTP_LAYERS
from server.models.names import Names
from server.ops.attention import AttentionBackend
from server.ops.layer_ops import LayerOps

COUNT = "num_nextn_predict_layers"


def has_mtp(fields: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is that of a model with such layers."""
    return fields.get("model_type") == "mimo" and bool(fields.get(COUNT))


def read(path: Path, hf: Any, target: ModelSpec) -> HeadSpec:
    """What the head of the checkpoint in directory `path` is.

    Args:
        hf: transformers' configuration of it.
        target: the model that it is to draft for.

    Raises:
        ModelError: there are several, or it does not fit `target`.
    """
    if getattr(hf, COUNT) != 1:
        raise ModelError(f"{path}: {COUNT} is {getattr(hf, COUNT)}, only 1 is supported")
    spec = llama_spec(hf, bias=True, windows=[None])
    sizes = (
        ("hidden size", spec.hidden_size, target.hidden_size),
        ("vocabulary", spec.vocab_size, target.vocab_size),
    )
    for what, has, wanted in sizes:
        if has != wanted:
            raise ModelError(f"{path}: the head is for a model of {what} {has}, and this one has {wanted}")
    return HeadSpec(spec, target.hidden_size, target.vocab_size, (len(target.layers),))


class MimoHead(DraftHead):
    """The head, which has neither embedding nor output layer of its own."""

    label = "MTP head"
    blanks_first = True

    def __init__(self, spec: HeadSpec, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(spec)
        model, build = spec.model, Builder(dtype, device, None)
        hidden = model.hidden_size
        self.prefix = f"{MTP_LAYERS}0"
        self.layer = Layer(model, 0, Names(layer=self.prefix), build)
        self.layers = nn.ModuleList([self.layer])
        self.project = Linear(2 * hidden, hidden, dtype=dtype, device=device)
        token_norm, hidden_norm, norm = (build.norm(hidden, model.norm) for _ in range(3))
        assert token_norm is not None and hidden_norm is not None and norm is not None
        self.token_norm, self.hidden_norm, self.norm = token_norm, hidden_norm, norm

    def weights(self) -> WeightMap:
        found = self.project.targets(None, f"{self.prefix}.input_proj") | self.layer.weights()
        found |= self.token_norm.weights(f"{self.prefix}.token_layernorm")
        found |= self.hidden_norm.weights(f"{self.prefix}.hidden_layernorm")
        return found | self.norm.weights(f"{self.prefix}.final_layernorm")

    def fuse(self, states: Tensor) -> Tensor:
        return states

    def forward(
        self, token_ids: Tensor, hidden: Tensor, attention: AttentionBackend[Any], ops: LayerOps
    ) -> Tensor:
        embedded = functional.embedding(token_ids.clamp(min=0), self.embedding)
        embedded = embedded.masked_fill((token_ids < 0)[:, None], 0)
        both = torch.cat((ops.norm(hidden, self.hidden_norm), ops.norm(embedded, self.token_norm)), -1)
        x = self.layer(ops.linear(both, self.project), attention, ops, None)
        return ops.norm(x, self.norm)

    def choose(self, x: Tensor, ops: LayerOps) -> Tensor:
        return ops.linear(x, self.head).argmax(-1)
