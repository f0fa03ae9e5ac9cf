"""What a model needs of a backend, by name, and what a backend can do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch

from server.layers.spec import AttentionSpec, LayerSpec, ModelSpec, NormSpec

Feature = Literal[
    "window",
    "softcap",
    "sinks",
    "not causal",
    "shared keys",
    "value size",
    "score scale",
    "no rotary",
    "several rotaries",
    "partial rotary",
    "unequal layers",
    "activation",
    "no gate",
    "clamped gate",
    "experts",
    "layer norm",
    "several epsilons",
    "norm places",
    "head norm scope",
    "residual scale",
    "parallel parts",
    "embedding scale",
    "head bias",
    "learned positions",
    "logit scale",
    "logit softcap",
]
"""Something beyond a Llama that a model may need."""


def attention_needs(spec: ModelSpec) -> dict[Feature, str]:
    """What the attention of a model needs, and in words where it does."""
    found: dict[Feature, str] = {}
    first: dict[int | None, int] = {}  # layers of one window lie in one cache
    for index, layer in enumerate(spec.layers):
        for feature, words in _of_attention(layer.attention, spec):
            found.setdefault(feature, f"{words} (layer {index})")
        alike = first.setdefault(layer.attention.window, index)
        if _sizes(layer.attention) != _sizes(spec.layers[alike].attention):
            found.setdefault("unequal layers", f"heads other than those of layer {alike} (layer {index})")
    if len(spec.rotaries) > 1:
        found["several rotaries"] = f"{len(spec.rotaries)} rotary embeddings"
    return found


def _sizes(spec: AttentionSpec) -> tuple[int, ...]:
    return spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.value_dim


def _of_attention(spec: AttentionSpec, model: ModelSpec) -> Iterator[tuple[Feature, str]]:
    if spec.window is not None:
        yield "window", f"a window of {spec.window} tokens"
    if spec.softcap is not None:
        yield "softcap", f"scores capped at {spec.softcap}"
    if spec.sinks:
        yield "sinks", "attention sinks"
    if not spec.causal:
        yield "not causal", "attention to later tokens"
    if spec.shares is not None:
        yield "shared keys", f"keys and values of layer {spec.shares}"
    if spec.value_dim != spec.head_dim:
        yield "value size", f"values of {spec.value_dim} and keys of {spec.head_dim} numbers"
    if abs(spec.scale * spec.head_dim**0.5 - 1.0) > 1e-6:
        yield "score scale", f"scores scaled by {spec.scale:.4g}"
    if spec.rotary is None:
        yield "no rotary", "no rotary embedding"
    elif model.rotaries[spec.rotary].dim != spec.head_dim:
        yield "partial rotary", f"rotation of {model.rotaries[spec.rotary].dim} of {spec.head_dim} numbers"


def layer_needs(spec: ModelSpec) -> dict[Feature, str]:
    """What a model needs besides attention, and in words where it does."""
    found: dict[Feature, str] = {}
    for index, layer in enumerate(spec.layers):
        for feature, words in _of_layer(layer):
            found.setdefault(feature, f"{words} (layer {index})")
    if spec.norm.kind == "layer":
        found.setdefault("layer norm", "layer normalisation")
    if any(norm.eps != spec.norm.eps for layer in spec.layers for norm in _norms(layer)):
        found["several epsilons"] = "norms of several epsilons"
    if len({layer.feed_forward.inner for layer in spec.layers}) > 1:
        found["unequal layers"] = "feed-forward parts of several sizes"
    if spec.embedding_scale != 1.0:
        found["embedding scale"] = f"embeddings scaled by {spec.embedding_scale:.4g}"
    if spec.head_bias:
        found["head bias"] = "a bias of the output layer"
    if spec.learned_positions is not None:
        found["learned positions"] = "learned positions"
    if spec.logit_scale != 1.0:
        found["logit scale"] = f"logits scaled by {spec.logit_scale:.4g}"
    if spec.logit_softcap is not None:
        found["logit softcap"] = f"logits capped at {spec.logit_softcap}"
    return found


def _of_layer(spec: LayerSpec) -> Iterator[tuple[Feature, str]]:
    before = (spec.attention_norm, spec.feed_forward_norm)
    after = (spec.attention_post_norm, spec.feed_forward_post_norm)
    if any(norm.kind == "layer" for norm in _norms(spec)):
        yield "layer norm", "layer normalisation"
    if None in before or after != (None, None):
        yield "norm places", "norms in other places than before each part"
    if spec.attention.norm is not None and spec.attention.norm_scope != "head":
        yield "head norm scope", f"norms of queries and keys of scope {spec.attention.norm_scope!r}"
    if spec.feed_forward.activation != "silu":
        yield "activation", f"activation {spec.feed_forward.activation!r}"
    if spec.feed_forward.clamp is not None:
        yield "clamped gate", f"a gate within {spec.feed_forward.clamp.limit}"
    if spec.feed_forward.experts is not None:
        yield "experts", f"{spec.feed_forward.experts.count} experts"
    if not spec.feed_forward.gated:
        yield "no gate", "a feed-forward part without a gate"
    if spec.residual_scale != 1.0:
        yield "residual scale", f"parts scaled by {spec.residual_scale:.4g}"
    if spec.parallel:
        yield "parallel parts", "attention and feed-forward side by side"


def _norms(spec: LayerSpec) -> list[NormSpec]:
    """All norms of a layer."""
    places = (spec.attention_norm, spec.attention_post_norm, spec.attention.norm)
    more = (spec.feed_forward_norm, spec.feed_forward_post_norm)
    return [norm for norm in (*places, *more) if norm is not None]


def missing(features: frozenset[Feature], needs: dict[Feature, str]) -> str | None:
    """In words, which of `needs` are not among `features`; None: all are."""
    found = [words for feature, words in needs.items() if feature not in features]
    return f"it does not compute {', '.join(found)}" if found else None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do.

    Attributes:
        features: beyond a Llama.
        dtypes: of activations and cache; None: any.
        smallest_head, largest_head: numbers of a head; None: any.
        head_multiple: that it must be a multiple of.
        head_sizes: numbers of a head that it takes; None: any that the above allow.
        block_multiple: tokens that a cache block must be a multiple of.
        overlaps: it walks block tables on the device (`PagedBatch`), so tokens can stay there, and a step can
            be launched before the tokens of the last one are read.
        float8_cache: it keeps keys and values in FP8.
    """

    features: frozenset[Feature] = field(default_factory=frozenset)
    dtypes: frozenset[torch.dtype] | None = None
    smallest_head: int = 1
    largest_head: int | None = None
    head_multiple: int = 1
    head_sizes: frozenset[int] | None = None
    block_multiple: int = 1
    overlaps: bool = False
    float8_cache: bool = False

    def objection(
        self, spec: ModelSpec, dtype: torch.dtype, block_size: int, cache_dtype: torch.dtype | None = None
    ) -> str | None:
        """Why it cannot compute the attention of a model, or None.

        Args:
            dtype: of activations.
            cache_dtype: of keys and values; None: the same.
        """
        if cache_dtype not in (None, dtype) and not self.float8_cache:
            return "it keeps no keys and values in FP8"
        if self.dtypes is not None and dtype not in self.dtypes:
            names = sorted(str(one).removeprefix("torch.") for one in self.dtypes)
            return f"it computes in {' and '.join(names)}, not {str(dtype).removeprefix('torch.')}"
        for head in sorted({layer.attention.head_dim for layer in spec.layers}):
            reason = self._objection_to_head(head)
            if reason is not None:
                return reason
        if block_size % self.block_multiple:
            return f"it takes blocks of {self.block_multiple} tokens or a multiple, not of {block_size}"
        return missing(self.features, attention_needs(spec))

    def _objection_to_head(self, head: int) -> str | None:
        if head % self.head_multiple:
            return f"a head of {head} numbers is no multiple of {self.head_multiple}"
        if head < self.smallest_head or head > (self.largest_head or head):
            return (
                f"it takes heads of {self.smallest_head} to {self.largest_head} numbers, the model has {head}"
            )
        if self.head_sizes is not None and head not in self.head_sizes:
            return f"it takes heads of {', '.join(map(str, sorted(self.head_sizes)))} numbers, not {head}"
        return None
