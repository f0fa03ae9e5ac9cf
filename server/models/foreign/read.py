"""Which models without a file of ours can be served by transformers' modules, and what they are."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from server.checkpoints.errors import ModelError
from server.layers.spec import FeedForwardSpec, LayerSpec, ModelSpec, NormSpec
from server.models.architecture import Architecture, LengthLimit
from server.models.foreign.decoder import ForeignDecoder, load_foreign
from server.models.foreign.probe import FoundLayer, probe
from server.models.foreign.proof import check

_LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Rope scalings in which transformers' modules turn all tokens of a pass by the longest."""


def read_foreign(hf: Any) -> Architecture:
    """What transformers makes of a configuration.

    Raises:
        ModelError: it cannot be served so; says why.
    """
    _refuse(hf)
    layers = probe(hf)
    none = NormSpec(0.0)  # norms and feed-forward parts are transformers'
    spec = ModelSpec(
        vocab_size=hf.vocab_size,
        hidden_size=hf.hidden_size,
        layers=tuple(LayerSpec(layer.spec, FeedForwardSpec(0), None, None) for layer in layers),
        rotaries=(),
        norm=none,
    )
    trained = hf.max_position_embeddings  # tables of positions, where there are any, end there
    limit = LengthLimit(trained, f"{hf.model_type} of {trained} positions, by transformers' modules,")
    return Architecture(spec, load=_Load(layers), limit=limit)


class _Load:
    """Loads the model whose layers were found."""

    def __init__(self, layers: tuple[FoundLayer, ...]) -> None:
        self._modules = tuple(layer.module for layer in layers)

    def __call__(
        self, path: Path, spec: ModelSpec, dtype: torch.dtype, device: torch.device
    ) -> ForeignDecoder:
        decoder = ForeignDecoder(spec, load_foreign(path, dtype, device), self._modules)
        check(decoder, dtype)
        return decoder


def _refuse(hf: Any) -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(hf) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError("transformers has no causal language model of it")
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(hf)]
    if hf.is_encoder_decoder:
        raise ModelError("it has an encoder")
    if kind._is_stateful:
        raise ModelError("it has a recurrent state")
    if not kind._supports_attention_backend:
        raise ModelError("transformers' modules of it do not support its attention interface")
    if not {"position_ids", "logits_to_keep"} <= inspect.signature(kind.forward).parameters.keys():
        raise ModelError("transformers' modules of it count positions themselves")
    for name in ("vocab_size", "hidden_size", "max_position_embeddings"):
        if not isinstance(getattr(hf, name, None), int):
            raise ModelError(f"its configuration says no {name}: the language model is part of another")
    for scaling in _scalings(getattr(hf, "rope_parameters", None)):
        if scaling in _LENGTH_DEPENDENT:
            raise ModelError(f"rope scaling {scaling!r} is not supported there")


def _scalings(rope: Any) -> list[str]:
    """The ``rope_type`` of all rotary embeddings of a configuration."""
    if not isinstance(rope, Mapping):
        return []
    if "rope_type" in rope:
        return [rope["rope_type"]]
    return [kind for each in rope.values() for kind in _scalings(each)]
