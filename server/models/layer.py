"""The layers of a decoder: their weights, built from a specification, and how they follow each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from server.layers.layout import Layout
from server.layers.linear import Target, WeightMap
from server.layers.norm import Norm, RMSNorm
from server.layers.spec import LayerSpec, ModelSpec
from server.layers.weights import AttentionWeights, LayerWeights
from server.models.builder import Builder, laid_out
from server.models.feed_forward import Experts, FeedForward
from server.models.names import Names
from server.ops.attention import AttentionBackend
from server.ops.communication import Communication
from server.ops.layer_ops import LayerOps


class Attention(AttentionWeights):
    """Weights of grouped-query self-attention.

    Args:
        inputs: numbers of a token that queries, keys and values are made of; None: the hidden size.
    """

    def __init__(
        self,
        spec: ModelSpec,
        layer: LayerSpec,
        prefix: str,
        names: Names,
        build: Builder,
        inputs: int | None = None,
    ) -> None:
        super().__init__()
        own = layer.attention
        self.spec = own
        self.heads_of_each = [own.num_heads, own.num_kv_heads, own.num_kv_heads]
        sizes = [own.num_heads * own.head_dim, own.num_kv_heads * own.head_dim]
        sizes.append(own.num_kv_heads * own.value_dim)
        self.qkv_names = [f"{prefix}.{name}" for name in names.qkv]
        self.output_name = f"{prefix}.{names.output}"
        self.parts = sizes if len(names.qkv) == 1 else []
        self.copies: list[list[int]] | None = None
        if own.copies > 1:
            of_each = [1, own.copies, own.copies]
            self.copies = [of_each] if self.parts else [[copies] for copies in of_each]
        outputs = [sum(sizes)] if self.parts else sizes
        self.qkv = build.linears(self.qkv_names, inputs or spec.hidden_size, *outputs, bias=own.bias)
        inner = own.num_heads * own.value_dim
        self.output = build.linears([self.output_name], inner, spec.hidden_size, bias=own.output_bias)
        self.query_norm = build.head_norm(own.num_heads, own)
        self.key_norm = build.head_norm(own.num_kv_heads, own)
        self.norm_names = (f"{prefix}.{names.query_norm}", f"{prefix}.{names.key_norm}")
        self.sinks = build.parameter(own.num_heads) if own.sinks else None
        self.sinks_name = f"{prefix}.{names.sinks}"
        self.layouts = self._layouts(spec, names)
        self.transposed = names.transposed
        self.order = None
        if not self.qkv.dense and any(self.layouts):
            # codes cannot change places when they are read, so what they give does
            places = torch.split(torch.arange(sum(outputs)), outputs)
            laid = zip(places, self.layouts, strict=True)
            ordered = [part if layout is None else layout.arrange(part) for part, layout in laid]
            self.order = torch.cat(ordered).to(build.device)

    def _layouts(self, spec: ModelSpec, names: Names) -> tuple[Layout | None, ...]:
        """Of queries, keys and values, or of what they are stored in as one."""
        own = self.spec
        if names.mixed_heads:
            return (Layout(mixed_head=own.head_dim),)
        if not names.paired or own.rotary is None:
            return (None,) * len(names.qkv)
        rotated = spec.rotaries[own.rotary].dim
        paired = Layout(paired_head=own.head_dim, rotated=rotated)
        return (paired, paired, None)

    def weights(self) -> WeightMap:
        found: WeightMap = {}
        # codes that are stored head by head stay so
        parts = () if self.order is not None and self.layouts[0] and self.layouts[0].mixes else self.parts
        stored = self.qkv.targets("outputs", *self.qkv_names, parts=parts, copies=self.copies)
        for name, layout in zip(self.qkv_names, self.layouts, strict=True):
            moved = layout if self.order is None else None
            found |= laid_out(self.qkv, stored, name, moved, self.transposed)
        output = self.output.targets("inputs", self.output_name)
        found |= laid_out(self.output, output, self.output_name, None, self.transposed)
        scope, layout = self.spec.norm_scope, self.layouts[0]
        if layout is not None and scope == "own":
            layout = replace(layout, by_head=True)
        norms = ((self.query_norm, 1), (self.key_norm, self.spec.copies))
        for (norm, copies), name in zip(norms, self.norm_names, strict=True):
            if norm is not None:
                for key, target in norm.weights(name).items():
                    axis = None if scope == "head" else 0
                    found[key] = replace(target, axis=axis, copies=(copies,), layout=layout)
        if self.sinks is not None:
            found[self.sinks_name] = Target(self.sinks.data, axis=0)
        return found

    def heads(
        self, qkv: Tensor, ops: LayerOps, comm: Communication | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [tokens, heads, head_dim] from their joint projection."""
        if self.order is not None:
            qkv = qkv.index_select(1, self.order)
        heads = qkv.view(qkv.shape[0], sum(self.heads_of_each), self.spec.head_dim)
        query, key, value = torch.split(heads, self.heads_of_each, dim=1)
        if self.query_norm is not None and self.key_norm is not None:
            if self.spec.norm_scope == "joint" and comm is not None:
                query, key = self._jointly_over_ranks(query, key, comm)
            elif self.spec.norm_scope == "joint":
                whole = ((query, self.query_norm), (key, self.key_norm))
                query, key = (ops.norm(x.flatten(1), norm).view(x.shape) for x, norm in whole)
            else:
                query, key = ops.norm(query, self.query_norm), ops.norm(key, self.key_norm)
        return query, key, value

    def _jointly_over_ranks(self, query: Tensor, key: Tensor, comm: Communication) -> tuple[Tensor, Tensor]:
        """All heads of a token normalised as one, where other ranks have further heads: sums over ranks."""
        assert isinstance(self.query_norm, RMSNorm) and isinstance(self.key_norm, RMSNorm)
        wide = [heads.flatten(1).float() for heads in (query, key)]
        # where ranks have the same keys, each mean is there equally often
        means = comm.reduce(torch.stack([x.pow(2).mean(-1) for x in wide], -1)) / comm.size
        queries = self.query_norm.scaled(wide[0], means[:, :1], query.dtype)
        keys = self.key_norm.scaled(wide[1], means[:, 1:], key.dtype)
        return queries.view(query.shape), keys.view(key.shape)


class Layer(LayerWeights):
    """Attention and feed-forward, added to the residual stream.

    Args:
        inputs: as of `Attention`.
    """

    attention: Attention
    feed_forward: FeedForward | None
    experts: Experts | None

    def __init__(
        self, spec: ModelSpec, index: int, names: Names, build: Builder, inputs: int | None = None
    ) -> None:
        super().__init__()
        self.index = index
        self.spec = layer = spec.layers[index]
        prefix = names.layer.format(index)
        self.attention = Attention(spec, layer, prefix, names, build, inputs)
        self.feed_forward, self.experts = None, None
        if layer.feed_forward.experts is None:
            self.feed_forward = FeedForward(spec.hidden_size, layer.feed_forward, prefix, names, build)
        else:
            self.experts = Experts(spec.hidden_size, layer.feed_forward, prefix, names, build)
        self.norm_names: dict[str, str] = {}
        for place in ("attention_norm", "attention_post_norm", "feed_forward_norm", "feed_forward_post_norm"):
            setattr(self, place, build.norm(spec.hidden_size, getattr(layer, place)))
            self.norm_names[place] = f"{prefix}.{getattr(names, place)}"
        if layer.parallel and names.feed_forward_norm == names.attention_norm:
            self.feed_forward_norm = self.attention_norm  # the checkpoint has one for both parts

    def weights(self) -> WeightMap:
        norms: dict[str, Norm] = {}
        for place, name in self.norm_names.items():
            norm: Norm | None = getattr(self, place)
            if norm is not None and norms.setdefault(name, norm) is not norm:
                raise ValueError(f"two norms are called {name}: `Names` of the family must tell them apart")
        found: WeightMap = {}
        for name, norm in norms.items():
            found |= norm.weights(name)
        for part in (self.attention, self.feed_forward, self.experts):
            if part is not None:
                found |= part.weights()
        return found

    def forward(
        self, x: Tensor, attention: AttentionBackend[Any], ops: LayerOps, comm: Communication | None
    ) -> Tensor:
        """The residual stream [tokens, hidden] after this layer."""
        qkv = ops.norm_linear(x, self.attention_norm, self.attention.qkv)
        return self.behind(qkv, x, attention, ops, comm)

    def behind(
        self,
        qkv: Tensor,
        x: Tensor,
        attention: AttentionBackend[Any],
        ops: LayerOps,
        comm: Communication | None = None,
    ) -> Tensor:
        """The residual stream after this layer, from the joint projection and the stream [tokens, hidden]
        that the layer adds to; may reuse the stream."""
        spec, own = self.spec, self.attention
        attended = attention.forward(self.index, *own.heads(qkv, ops, comm), own.sinks)
        inner = self._inward(x, ops) if spec.parallel else None  # now, for `x` may be added to in place
        x = ops.linear_add(attended, own.output, x, self.attention_post_norm, spec.residual_scale, comm)
        norm, scale = self.feed_forward_post_norm, spec.residual_scale
        if inner is None and self.feed_forward is not None:
            before, weights = self.feed_forward_norm, self.feed_forward
            return ops.feed_forward_add(x, before, weights, spec.feed_forward, norm, scale, comm)
        if inner is None:
            inner = self._inward(x, ops)
        if self.feed_forward is None:
            return ops.add(inner, x, norm, scale, comm)
        return ops.linear_add(inner, self.feed_forward.down, x, norm, scale, comm)

    def _inward(self, x: Tensor, ops: LayerOps) -> Tensor:
        """The feed-forward part up to its last product, [tokens, inner]; experts: all, [tokens, hidden]."""
        norm, spec = self.feed_forward_norm, self.spec.feed_forward
        if self.experts is not None:
            return ops.experts(x, norm, self.experts, spec)
        assert self.feed_forward is not None
        return ops.norm_feed_forward(x, norm, self.feed_forward.gate_up, spec)
