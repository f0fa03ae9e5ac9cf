"""The whole forward pass on CPUs in one call of the C++ kernels of `native/`."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof
from typing import Any

import numpy as np
import torch
from torch import Tensor

from server.layers.expert_stack import ExpertStack
from server.layers.norm import Norm
from server.layers.rotary import Rotary
from server.layers.spec import FeedForwardSpec, ModelSpec
from server.layers.weights import DecoderWeights, ExpertsWeights, LayerWeights
from server.ops.attention import AttentionBackend, AttentionShape
from server.ops.backend import Arithmetic, AttentionChoice, Backend
from server.ops.capabilities import Feature, layer_needs, missing
from server.ops.communication import Communication
from server.ops.cpu import structs
from server.ops.cpu.attention import NativeAttention
from server.ops.cpu.describe import NORM_KINDS, describe_cache, describe_codes, describe_layer
from server.ops.cpu.experts import objection_to_experts
from server.ops.cpu.library import DTYPES, NativeLibrary, NativeModel
from server.ops.cpu.weights import PackedWeights, linears_of, stacks_of
from server.ops.hidden_states import HiddenStates, LayerInputs

WIDTH_MULTIPLE = 32
"""The inputs of a product must be a multiple of this wide."""
EXCHANGED = 1 << 18
"""Numbers that a rank of a split model passes to the others at once, at least."""
FEATURES: frozenset[Feature] = frozenset(
    (
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
    )
)
"""What the whole pass can do beyond a Llama."""


def objection(
    model: DecoderWeights, dtype: torch.dtype, ranks: int = 1, arithmetic: Arithmetic = "exact"
) -> str | None:
    """Why the kernels cannot run a model whose attention they can compute, or None.

    Args:
        ranks: that the model is split over.
        arithmetic: of its products.
    """
    if dtype not in DTYPES:
        return f"it computes in float32 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    if model.own_forward:
        return "the model has a forward pass of its own"
    if ranks > 1 and any(layer.attention.norm_scope == "joint" for layer in model.spec.layers):
        return "it does not normalise the heads of several ranks as one"
    lacking = missing(FEATURES, layer_needs(model.spec))
    if lacking is not None:
        return lacking
    for linear in linears_of(model):
        reason = None if linear.dense else linear.objection_to_codes()
        if reason is not None:
            return reason
    for layer in model.spec.layers:
        if layer.parallel and (layer.attention_post_norm or layer.feed_forward_post_norm):
            return "it does not compute norms behind parallel parts"
    layers: Any = model.layers  # torch's stubs know no child's class
    for layer in layers:
        if layer.attention.order is not None:
            return "quantized queries and keys are in another order than it takes"
        if layer.experts is not None and arithmetic == "int8":
            return "it does not compute experts in 8 bits"
        reason = None if layer.experts is None else objection_to_experts(layer.experts, layer.spec)
        if reason is not None:
            return reason
    odd = [width for width in _widths(model.spec) if width % WIDTH_MULTIPLE]
    return f"a layer of {odd[0]} numbers is no multiple of {WIDTH_MULTIPLE}" if odd else None


def _widths(spec: ModelSpec) -> list[int]:
    """Numbers that enter the products."""
    widths = [spec.hidden_size]
    for layer in spec.layers:
        widths += [layer.attention.num_heads * layer.attention.head_dim, layer.feed_forward.inner]
        if layer.feed_forward.experts is not None and layer.feed_forward.experts.shared is not None:
            widths.append(layer.feed_forward.experts.shared)
    return widths


class NativeBackend(Backend):
    """Packs the weights when loaded, and runs all layers in C++.

    Args:
        attention: reason and capabilities of its attention.
        library: the kernels.
        comm: with the other ranks of a split model; they exchange their parts within the call.
        arithmetic: of products: with ``int8`` activations, and weights of floats, are rounded to 8 bits.

    Attributes:
        same_bits: of a model in one piece; what ranks add up has another order than theirs.
    """

    def __init__(
        self,
        attention: AttentionChoice,
        library: NativeLibrary,
        comm: Communication | None = None,
        arithmetic: Arithmetic = "exact",
    ) -> None:
        name = f"native ({library.variant.name})"
        super().__init__(attention, name, "all layers in one call of own C++ kernels")
        self.same_bits = comm is None
        self._comm = comm
        self.arithmetic = arithmetic
        self._library = library
        self._wide_copies: list[Tensor] = []
        self._logits = torch.empty(0)
        self._native: NativeModel | None = None

    def prepare(self, model: DecoderWeights, dtype: torch.dtype) -> dict[str, str] | None:
        """Pack every linear layer and free its own weight.

        The embedding stays as it is, for a step looks up rows of it.
        """
        decoder: Any = model  # torch's stubs know no attribute of a module's children
        linears, stacks = linears_of(decoder), stacks_of(decoder)
        codes = [stack for stack in stacks if isinstance(stack, ExpertStack)]
        for stack in codes:
            stack.settle(model.embedding.device)
        told = describe_codes(linears, codes, self.arithmetic)
        self._weights = PackedWeights(self._library, linears, stacks, self.arithmetic)
        self._layers = [self._pack_layer(layer) for layer in decoder.layers]
        spec = model.spec
        self._spec = structs.ModelSpec(
            layers=len(self._layers),
            hidden=spec.hidden_size,
            vocab=spec.vocab_size,
            vocab_part=len(model.embedding),
            groups=1,
            threads=torch.get_num_threads(),
            # rounded to the type of the weights, as transformers has it
            embedding_scale=torch.tensor(spec.embedding_scale).to(dtype).item(),
            logit_scale=spec.logit_scale,
            logit_softcap=spec.logit_softcap or 0.0,
            embedding=model.embedding.data_ptr(),
            positions=None if model.positions is None else model.positions.data_ptr(),
            norm=self._norm(model.norm),
            head=self._weights.pack(model.head),
            head_bias=self._wide(model.head.bias),
            ranks=self._ranks(max(spec.hidden_size, len(model.embedding))),
        )
        return told

    def _ranks(self, widest: int) -> structs.Ranks:
        """Where the ranks exchange rows of at most `widest` numbers."""
        if self._comm is None:
            return structs.Ranks()
        room, ranks = -(-max(widest, EXCHANGED) // 16) * 16, self._comm.size
        self._shared = self._comm.share((1 + ranks) * 64 + 2 * ranks * room * 4)
        assert self._shared is not None, "ranks on CPUs have memory in common"
        return structs.Ranks(self._comm.rank, ranks, room, self._shared.data_ptr())

    @property
    def packed_bytes(self) -> int:
        """Memory of the packed weights; known once there are any."""
        return self._weights.size

    def make_attention(
        self, shape: AttentionShape, rotaries: Sequence[Rotary], cache: Tensor
    ) -> AttentionBackend[Any]:
        return NativeAttention(shape, rotaries, cache, self._library)

    def forward(
        self,
        model: DecoderWeights,
        token_ids: Tensor,
        logit_rows: Tensor | None,
        attention: AttentionBackend[Any],
        out: Tensor | None = None,
        states: HiddenStates | None = None,
        layer_inputs: LayerInputs | None = None,
        embedded: Tensor | None = None,
    ) -> Tensor:
        """All layers at once; the result, if not in `out`, is overwritten by the next call."""
        assert embedded is None, "only captured steps have looked it up"
        if logit_rows is None:
            logit_rows = torch.arange(len(token_ids))
        if self._native is None:
            self._native = self._connect(attention)
        rows, vocab = len(logit_rows), self._spec.vocab
        if out is None and len(self._logits) < rows * vocab:
            self._logits = torch.empty(rows * vocab)
        logits = self._logits[: rows * vocab].view(rows, vocab) if out is None else out
        groups: Any = attention.groups
        batches = (structs.Batch * len(groups))(*(group.batch for group in groups))
        step = structs.Step(
            token_ids=token_ids.data_ptr(),
            logit_rows=logit_rows.data_ptr(),
            num_logits=rows,
            batches=addressof(batches),
            caches=addressof(self._caches),
        )
        if states is not None:
            streams = torch.empty(len(states.rows), self._spec.hidden)
            step.state_rows, step.num_states = states.rows.data_ptr(), len(states.rows)
            step.states = streams.data_ptr()
        if layer_inputs is not None:
            wanted = np.asarray(layer_inputs.layers, np.int64)
            layer_inputs.values = torch.empty(len(token_ids), len(wanted) * self._spec.hidden)
            step.input_layers, step.num_input_layers = wanted.ctypes.data, len(wanted)
            step.layer_inputs = layer_inputs.values.data_ptr()
        self._native.forward(step, logits)
        if states is not None:
            states.values = model.norm(streams.to(model.embedding.dtype))
        return logits

    def _connect(self, attention: AttentionBackend[Any]) -> NativeModel:
        """The model in C++, which takes its angles and its caches from `attention`."""
        groups: Any = attention.groups
        caches = [describe_cache(group.cache) for group in groups]
        self._caches = (structs.Cache * len(caches))(*caches)
        self._spec.groups = len(caches)
        for layer, (group, place) in zip(self._layers, attention.places, strict=True):
            layer.cache_group, layer.cache_index = group, place
            attending, sinks = groups[group].layers[place], layer.attention.sinks
            layer.attention, layer.rotary = attending.attention, attending.rotary
            layer.attention.sinks = sinks
        return self._library.model(groups[0].shape.dtype, self._spec, self._layers)

    def _pack_layer(self, layer: LayerWeights) -> structs.Layer:
        attention = layer.attention
        packed = structs.Layer(  # in the order of use: a step streams through the weights from end to end
            attention_norm=self._norm(layer.attention_norm),
            qkv=self._weights.pack(attention.qkv),
            qkv_bias=self._wide(attention.qkv.bias),
            query_norm=self._norm(attention.query_norm),
            key_norm=self._norm(attention.key_norm),
            out=self._weights.pack(attention.output),
            out_bias=self._wide(attention.output.bias),
            attention_post_norm=self._norm(layer.attention_post_norm),
            feed_forward_norm=self._norm(layer.feed_forward_norm),
            feed_forward_post_norm=self._norm(layer.feed_forward_post_norm),
        )
        if layer.feed_forward is not None:
            part = layer.feed_forward
            packed.up = self._weights.pack(part.gate_up, halves=layer.spec.feed_forward.gated)
            packed.up_bias = self._wide(part.gate_up.bias)
            packed.down = self._weights.pack(part.down)
            packed.down_bias = self._wide(part.down.bias)
        if layer.experts is not None:
            packed.experts = self._pack_experts(layer.experts, layer.spec.feed_forward)
        packed.attention.sinks = self._wide(attention.sinks)
        describe_layer(packed, layer.spec)
        return packed

    def _pack_experts(self, weights: ExpertsWeights, spec: FeedForwardSpec) -> structs.Experts:
        assert spec.experts is not None
        pack, experts = self._weights, spec.experts
        packed = structs.Experts(count=experts.count, used=experts.used, normalized=experts.normalized)
        packed.router, packed.router_bias = pack.pack(weights.router), self._wide(weights.router.bias)
        packed.up = pack.pack_stack(weights.gate_up, halves=spec.gated)
        packed.down = pack.pack_stack(weights.down)
        packed.up_bias = self._wide(weights.gate_up_bias)
        packed.down_bias = self._wide(weights.down_bias)
        if weights.shared is not None:
            packed.shared = experts.shared or 0
            packed.shared_up = pack.pack(weights.shared.gate_up, halves=True)
            packed.shared_down = pack.pack(weights.shared.down)
        if weights.shared_gate is not None:
            packed.shared_gate = pack.pack(weights.shared_gate)
        return packed

    def _norm(self, norm: Norm | None) -> structs.Norm:
        if norm is None:
            return structs.Norm()
        weight, bias = self._wide(norm.weight), self._wide(getattr(norm, "bias", None))
        return structs.Norm(weight, bias, norm.spec.eps, NORM_KINDS[norm.spec.kind])

    def _wide(self, tensor: Tensor | None) -> int | None:
        """Address of a float32 copy that lives as long as this object."""
        if tensor is None:
            return None
        self._wide_copies.append(tensor.detach().float().contiguous())
        return self._wide_copies[-1].data_ptr()
