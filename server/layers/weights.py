"""What the arithmetic of a device reads of a model: its weights, layer by layer.

The models are built of these modules; `ops` knows no model beyond them.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from server.layers.expert_stack import ExpertStack
from server.layers.linear import LinearLayer
from server.layers.norm import Norm
from server.layers.spec import LayerSpec, ModelSpec


class AttentionWeights(nn.Module):
    """Projections of grouped-query self-attention, and what else of it is learned.

    Attributes:
        sinks: [heads], a score a head (`AttentionSpec.sinks`).
        order: integers [outputs of qkv], in which what the projection gives is to be taken; None: as it is.
    """

    qkv: LinearLayer
    output: LinearLayer
    query_norm: Norm | None
    key_norm: Norm | None
    sinks: nn.Parameter | None
    order: Tensor | None


class FeedForwardWeights(nn.Module):
    """Projections of a feed-forward part.

    Attributes:
        gate_up: gate and up in one; up alone where there is no gate.
    """

    gate_up: LinearLayer
    down: LinearLayer


class ExpertsWeights(nn.Module):
    """The experts of a feed-forward part (`ExpertsSpec`).

    Attributes:
        router: [experts, hidden].
        gate_up: [experts, 2 × inner, hidden], gates above ups; or ups alone.
        down: [experts, hidden, inner]. Both hold floats, or what `[expert]` makes floats of.
        gate_up_bias, down_bias: of each expert.
    """

    router: LinearLayer
    gate_up: nn.Parameter | ExpertStack
    down: nn.Parameter | ExpertStack
    gate_up_bias: nn.Parameter | None
    down_bias: nn.Parameter | None
    shared: FeedForwardWeights | None
    shared_gate: LinearLayer | None


class LayerWeights(nn.Module):
    """One layer of a decoder; a norm is None where `spec` has none.

    Attributes:
        feed_forward, experts: one of the two is None.
    """

    spec: LayerSpec
    attention_norm: Norm | None
    attention: AttentionWeights
    attention_post_norm: Norm | None
    feed_forward_norm: Norm | None
    feed_forward: FeedForwardWeights | None
    experts: ExpertsWeights | None
    feed_forward_post_norm: Norm | None


class EmbeddingRows(NamedTuple):
    """A residual stream that begins with rows of a table, times a number.

    Attributes:
        weight: [vocab, hidden].
        scale: rounded to the type of `weight`; products with it are, too.
    """

    weight: Tensor
    scale: float


class DecoderWeights(nn.Module):
    """A decoder: embedding, layers (each a `LayerWeights`), norm, output layer.

    Attributes:
        spec: what it is.
        own_forward: its forward pass is another than `spec` says, and only it can run it.
        computed_by: whose modules compute it, if not ours.
        positions: [positions, hidden], learned embedding of positions.
    """

    spec: ModelSpec
    own_forward: bool
    computed_by: str | None
    embedding: nn.Parameter
    positions: nn.Parameter | None
    layers: nn.ModuleList
    norm: Norm
    head: LinearLayer
