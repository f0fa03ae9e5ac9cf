"""What each of several ranks computes of a model (Shoeybi et al., 2019).

Of the products around attention and of the feed-forward part, the first is split by its outputs and the last
by its inputs, so that a rank has whole heads and what the ranks compute is added up once for each part.
"""

from __future__ import annotations

from dataclasses import replace

from server.checkpoints.errors import ModelError
from server.layers.spec import AttentionSpec, FeedForwardSpec, LayerSpec, ModelSpec


def split(spec: ModelSpec, ranks: int) -> ModelSpec:
    """The layers that each of `ranks` ranks computes; embedding and output layer are split by their weights.

    Raises:
        ModelError: sizes that cannot be divided among so many.
    """

    def part(index: int, layer: LayerSpec) -> LayerSpec:
        try:
            attention, feed_forward = _attention(layer.attention, ranks), _inner(layer.feed_forward, ranks)
        except ValueError as error:
            message = f"the model cannot be split over {ranks} ranks: {error} (layer {index})"
            raise ModelError(message) from error
        return replace(layer, attention=attention, feed_forward=feed_forward)

    return spec.with_layers(part)


def _attention(spec: AttentionSpec, ranks: int) -> AttentionSpec:
    """Its share of the heads; ranks that are more than the heads of keys have some of them together."""
    heads, kv_heads = spec.num_heads, spec.num_kv_heads
    if heads % ranks:
        raise ValueError(f"{heads} heads are no multiple of it")
    if kv_heads % ranks and ranks % kv_heads:
        raise ValueError(f"{kv_heads} heads of keys are neither a multiple of it nor a part")
    if spec.norm is not None and spec.norm_scope == "joint" and spec.norm.kind != "rms":
        raise ValueError(f"a norm of kind {spec.norm.kind!r} over all heads")
    kept = max(kv_heads // ranks, 1)
    return replace(spec, num_heads=heads // ranks, num_kv_heads=kept, copies=ranks * kept // kv_heads)


def _inner(spec: FeedForwardSpec, ranks: int) -> FeedForwardSpec:
    """Its share of the numbers between the products, of each expert where there are several."""
    if spec.inner % ranks:
        raise ValueError(f"{spec.inner} numbers of a feed-forward part are no multiple of it")
    if spec.experts is None or spec.experts.shared is None:
        return replace(spec, inner=spec.inner // ranks)
    if spec.experts.shared % ranks:
        raise ValueError(f"{spec.experts.shared} numbers of a shared expert are no multiple of it")
    experts = replace(spec.experts, shared=spec.experts.shared // ranks)
    return replace(spec, inner=spec.inner // ranks, experts=experts)
