"""What a decoder is, layer by layer: plain data that every backend and the cache read alike.

A family's file in `server/models` turns a checkpoint's configuration into a `ModelSpec`. The generic decoder
builds its weights from it and runs it on any backend; a backend that has the whole pass in one call reads the
same. What a backend cannot do of it is refused by name when a model is loaded (`server.ops.capabilities`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]
"""``x·σ(x)``; GELU by the error function; GELU by tanh (Hendrycks and Gimpel, 2016); ``max(x, 0)``, and its
square (So et al., 2021)."""

NormScope = Literal["head", "own", "joint"]
"""What of queries, or of keys, is normalised together: each head by itself, with one weight for all or with a
weight of its own (Cohere), or all heads together (OLMo 2)."""


@dataclass(frozen=True, slots=True)
class NormSpec:
    """A normalisation of the last dimension.

    Attributes:
        eps: added to the mean square, or to the variance.
        kind: ``rms``: ``x / rms(x) · weight``; ``layer``: ``(x - mean(x)) / std(x) · weight + bias``.
        bias: a norm of kind ``layer`` has one.
        minus_one: the checkpoint stores the weight less 1 (Gemma).
    """

    eps: float
    kind: Literal["rms", "layer"] = "rms"
    bias: bool = False
    minus_one: bool = False


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """What the attention of one layer is.

    A token at position p attends to positions ``max(0, p - window + 1)`` to p.

    Attributes:
        num_heads: of queries.
        num_kv_heads: of keys and values; divides `num_heads`.
        head_dim: numbers of a query and of a key.
        value_dim: numbers of a value.
        scale: of the scores ``query · key``.
        window: tokens that a token sees at most, itself included; None: all before it.
        softcap: scores become ``softcap · tanh(scores / softcap)`` before the mask.
        sinks: one learned score a head is added to the softmax's denominator.
        causal: a token sees nothing behind it.
        rotary: which of the model's rotary embeddings; None: queries and keys stay as they are.
        shares: layer whose keys and values are read instead of own ones.
        norm: of queries and keys, before the rotation.
        norm_scope: what it normalises together.
        bias: the projections of queries, keys and values have one.
        output_bias: the output projection has one.
        copies: of a split model, how many neighbouring ranks have the same keys and values.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    causal: bool = True
    rotary: int | None = 0
    shares: int | None = None
    norm: NormSpec | None = None
    norm_scope: NormScope = "head"
    bias: bool = False
    output_bias: bool = False
    copies: int = 1


@dataclass(frozen=True, slots=True)
class ExpertsSpec:
    """The experts of a feed-forward part (Shazeer et al., 2017): a router chooses a few for each token.

    A token's output is the sum of its experts', each times its share of the softmax of the router's scores.

    Attributes:
        count: how many there are.
        used: how many a token passes: those with the highest scores.
        normalized: the shares of a token's experts add up to 1, rather than those of all experts.
        router_bias: the router has a bias.
        shared: numbers between the products of one more expert, which every token passes; None: there is
            none.
        shared_gate: what that one gives is multiplied by ``σ(gate(x))``, one number a token.
    """

    count: int
    used: int
    normalized: bool = True
    router_bias: bool = False
    shared: int | None = None
    shared_gate: bool = False


@dataclass(frozen=True, slots=True)
class ClampSpec:
    """A gate within limits (gpt-oss): ``g · σ(sharpness · g) · (u + 1)``.

    Attributes:
        limit: of g, which is at most this, and of u, which is within ``±limit``.
    """

    limit: float
    sharpness: float


@dataclass(frozen=True, slots=True)
class FeedForwardSpec:
    """What the feed-forward part of one layer is.

    Attributes:
        inner: numbers between its two products; with experts, between those of one.
        activation: of the first product, or of its gate.
        gated: ``down(activation(gate(x)) · up(x))`` (Shazeer, 2020) rather than ``down(activation(up(x)))``.
        bias: its projections have one.
        clamp: what stands for ``activation(gate(x)) · up(x)``.
        experts: it has several; None: it is one for all tokens.
    """

    inner: int
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False
    clamp: ClampSpec | None = None
    experts: ExpertsSpec | None = None


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer: attention, then feed-forward, each added to the residual stream.

    ``x += residual_scale · post_norm(part(pre_norm(x)))``, where a norm that is None leaves out its step.

    Attributes:
        attention_norm, feed_forward_norm: of what enters each part.
        attention_post_norm, feed_forward_post_norm: of what each part gives, before it is added.
        residual_scale: of what is added.
        parallel: both parts read the same stream and are added together (GPT-NeoX, Cohere).
    """

    attention: AttentionSpec
    feed_forward: FeedForwardSpec
    attention_norm: NormSpec | None
    feed_forward_norm: NormSpec | None
    attention_post_norm: NormSpec | None = None
    feed_forward_post_norm: NormSpec | None = None
    residual_scale: float = 1.0
    parallel: bool = False


@dataclass(frozen=True, slots=True)
class RotarySpec:
    """One rotary embedding (Su et al., 2021): the angle of pair i at position p is ``p · frequency[i]``.

    Attributes:
        theta: base of the frequencies.
        dim: numbers of a head that turn; the two halves of them make the pairs.
        kind: how it is stretched, as transformers names it (``rope_type``).
        parameters: of the stretching, as the checkpoint has them.
        trained_length: positions that the checkpoint was trained on.
    """

    theta: float
    dim: int
    kind: str = "default"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    trained_length: int | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder: embedding, layers, norm, output layer.

    Attributes:
        layers: in order.
        rotaries: the rotary embeddings that layers name by index.
        norm: of the stream, before the output layer.
        embedding_scale: what embeddings are multiplied by.
        logit_scale: what logits are multiplied by.
        logit_softcap: logits become ``softcap · tanh(logits / softcap)`` after that.
        learned_positions: rows of a learned embedding of positions, which is added to that of tokens.
        tied: the output layer is the embedding.
        head_bias: the output layer has one.
    """

    vocab_size: int
    hidden_size: int
    layers: tuple[LayerSpec, ...]
    rotaries: tuple[RotarySpec, ...]
    norm: NormSpec
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    learned_positions: int | None = None
    tied: bool = False
    head_bias: bool = False

    def with_layers(self, change: Callable[[int, LayerSpec], LayerSpec]) -> ModelSpec:
        """The same with each layer as `change` returns it, given its index and what it is now."""
        return replace(self, layers=tuple(change(index, layer) for index, layer in enumerate(self.layers)))

    def served_to(self, max_length: int) -> ModelSpec:
        """The same for sequences of at most `max_length` tokens: without windows that none of them leaves.

        The last token of a sequence is not computed, as nothing follows it, and the first token that does not
        see all before it comes behind a window of others.
        """
        return self.with_layers(lambda _, layer: _served_to(layer, max_length))


def _served_to(layer: LayerSpec, max_length: int) -> LayerSpec:
    window = layer.attention.window
    if window is None or max_length > window + 1:
        return layer
    return replace(layer, attention=replace(layer.attention, window=None))
