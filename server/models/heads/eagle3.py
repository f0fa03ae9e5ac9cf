"""EAGLE-3 (Li et al., 2025): a layer on the target's states in front of three of its layers.

``fc`` makes one vector of the three, and the layer reads it beside the embedding of the next token, each
normalised. What the layer gives, before the last norm, stands in for the states of the next place.

Layouts: that of SafeAILab and SpecForge (``midlayer.*``) and that of speculators (``layers.0.*``), each with
or without ``model.`` in front.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from server.checkpoints.errors import ModelError
from server.layers.linear import Linear, Target, WeightMap
from server.layers.spec import ModelSpec
from server.models.builder import Builder
from server.models.heads.head import DraftHead, HeadSpec
from server.models.layer import Layer
from server.models.llama import llama_spec
from server.models.names import Names
from server.ops.attention import AttentionBackend
from server.ops.layer_ops import LayerOps
from utils.messages import one_line

ARCHITECTURES = ("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM", "Eagle3Speculator", "Eagle3DraftModel")
"""As public checkpoints call themselves."""
EMBEDDING, OUTPUT, IDS = "embed_tokens.weight", "lm_head.weight", "d2t"
UNREAD = ("t2d",)
"""Follows from ``d2t``."""
_LAYER_KINDS = ("llama", "qwen3")
_LAYER_IDS = "eagle_aux_hidden_state_layer_ids"


def is_eagle3(fields: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is that of such a head."""
    named = fields.get("architectures") or []
    return fields.get("speculators_model_type") == "eagle3" or any(name in ARCHITECTURES for name in named)


def plain_name(stored: str) -> str:
    """The name of a tensor in SafeAILab's layout."""
    return stored.removeprefix("model.").replace("layers.0.", "midlayer.", 1)


def read(path: Path, fields: Mapping[str, Any], target: ModelSpec) -> HeadSpec:
    """What the head in directory `path` is.

    Args:
        fields: its ``config.json``.
        target: the model that it is to draft for.

    Raises:
        ModelError: a variant that is not supported, or one that does not fit `target`.
    """
    from transformers import AutoConfig

    own: Mapping[str, Any] = fields.get("transformer_layer_config") or fields
    kind = own.get("model_type", "llama")
    if kind not in _LAYER_KINDS:
        raise ModelError(f"{path}: an EAGLE-3 head with a layer of type {kind!r} is not supported")
    _check_variant(path, fields)
    try:
        hf = AutoConfig.for_model(**{**own, "model_type": kind})
        bias = bool(hf.attention_bias)
        layer = llama_spec(hf, bias=bias, output_bias=bias, mlp_bias=getattr(hf, "mlp_bias", False))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except Exception as error:  # transformers raises whatever its parts raise
        raise ModelError(f"{path}: config.json makes no EAGLE-3 head: {one_line(error)}") from error
    if len(layer.layers) != 1:
        raise ModelError(f"{path}: an EAGLE-3 head of {len(layer.layers)} layers is not supported, only of 1")
    expected = fields.get("target_hidden_size") or own.get("target_hidden_size") or hf.hidden_size
    sizes = (("hidden size", expected, target.hidden_size), ("vocabulary", hf.vocab_size, target.vocab_size))
    for what, has, wanted in sizes:
        if has != wanted:
            raise ModelError(f"{path}: the head is for a model of {what} {has}, and this one has {wanted}")
    guessed = fields.get("draft_vocab_size") or hf.vocab_size
    return HeadSpec(
        replace(layer, vocab_size=guessed, tied=False),
        target.hidden_size,
        target.vocab_size,
        _read_layers(path, fields, len(target.layers)),
        bool(fields.get("norm_before_residual", False)),
    )


def _check_variant(path: Path, fields: Mapping[str, Any]) -> None:
    """Raise ModelError for what `Eagle3Head` does not compute."""
    if fields.get("norm_before_fc"):
        raise ModelError(f"{path}: an EAGLE-3 head with norm_before_fc is not supported")
    if (fields.get("eagle_config") or {}).get("use_aux_hidden_state") is False:
        raise ModelError(f"{path}: an EAGLE-3 head with use_aux_hidden_state: false is not supported")


def _read_layers(path: Path, fields: Mapping[str, Any], count: int) -> tuple[int, ...]:
    """In front of which of the target's `count` layers it reads.

    vLLM's key names them so; SGLang's, within ``eagle_config``, names the layers behind which it reads.
    """
    behind = (fields.get("eagle_config") or {}).get(_LAYER_IDS)
    found = [place + 1 for place in behind] if behind else fields.get(_LAYER_IDS)
    layers = tuple(found or (2, count // 2, count - 3))
    if sorted(set(layers)) != [*layers] or not 0 <= layers[0] <= layers[-1] <= count:
        told = ", ".join(map(str, layers))
        named = "" if found else f" (the default: its config.json has no {_LAYER_IDS})"
        problem = f"the head reads in front of layers {told}, and the model has {count}"
        raise ModelError(f"{path}: {problem}: they must be in ascending order and at most {count}{named}")
    return layers


class Eagle3Head(DraftHead):
    """The head.

    Args:
        stored: names of the tensors that its checkpoint holds, as of `plain_name`.
    """

    label = "EAGLE-3 head"

    def __init__(
        self, spec: HeadSpec, stored: Collection[str], dtype: torch.dtype, device: torch.device
    ) -> None:
        norms = "midlayer.self_attn.q_norm.weight" in stored
        if norms:  # of queries and keys, as Qwen3 has them
            spec = replace(spec, model=spec.model.with_layers(_with_head_norms))
        super().__init__(spec)
        model, build = spec.model, Builder(dtype, device, None)
        hidden = model.hidden_size
        self.layer = Layer(model, 0, Names(layer="midlayer"), build, inputs=2 * hidden)
        self.layers = nn.ModuleList([self.layer])
        self.fc = Linear(spec.read_width, hidden, bias="fc.bias" in stored, dtype=dtype, device=device)
        hidden_norm, norm = (build.norm(hidden, model.norm) for _ in range(2))
        assert hidden_norm is not None and norm is not None
        self.hidden_norm, self.norm = hidden_norm, norm
        self.own_embedding, self.own_output = EMBEDDING in stored, OUTPUT in stored
        if self.own_embedding:
            self.embedding = build.parameter(spec.target_vocab, hidden)
        if self.own_output:
            self.head = Linear(hidden, model.vocab_size, dtype=dtype, device=device)
        self.ids: Tensor | None = None
        if IDS in stored:
            self.ids = torch.zeros(model.vocab_size, dtype=torch.int64, device=device)

    def weights(self) -> WeightMap:
        found = self.fc.targets(None, "fc") | self.layer.weights()
        found |= self.hidden_norm.weights("midlayer.hidden_norm") | self.norm.weights("norm")
        if self.own_embedding:
            found[EMBEDDING] = Target(self.embedding.data)
        if self.own_output:
            found |= self.head.targets(None, "lm_head")
        if self.ids is not None:
            found[IDS] = Target(self.ids)
        return found

    def settle(self, path: Path) -> None:
        """Make token ids of what is stored, their distances from places in the small vocabulary.

        Raises:
            ModelError: ids that the target does not have, or none where it guesses from fewer.
        """
        if self.ids is None:
            if self.spec.vocab_size != self.head_spec.target_vocab:
                raise ModelError(f"{path} lacks d2t, which says what its {self.spec.vocab_size} tokens are")
            return
        self.ids += torch.arange(len(self.ids), device=self.ids.device)
        if int(self.ids.min()) < 0 or int(self.ids.max()) >= self.head_spec.target_vocab:
            raise ModelError(f"{path}: d2t leads to tokens that the model does not have")

    def fuse(self, states: Tensor) -> Tensor:
        y: Tensor = self.fc(states)
        return y

    def forward(
        self, token_ids: Tensor, hidden: Tensor, attention: AttentionBackend[Any], ops: LayerOps
    ) -> Tensor:
        layer = self.layer
        assert layer.attention_norm is not None
        embedded = ops.norm(functional.embedding(token_ids, self.embedding), layer.attention_norm)
        normed = ops.norm(hidden, self.hidden_norm)
        qkv = ops.linear(torch.cat((embedded, normed), -1), layer.attention.qkv)
        stream = normed if self.head_spec.norm_before_residual else hidden
        return layer.behind(qkv, stream, attention, ops)

    def choose(self, x: Tensor, ops: LayerOps) -> Tensor:
        best = ops.norm_linear(x, self.norm, self.head).argmax(-1)
        return best if self.ids is None else self.ids[best]


def _with_head_norms(_: int, layer: Any) -> Any:
    return replace(layer, attention=replace(layer.attention, norm=layer.attention_norm))
