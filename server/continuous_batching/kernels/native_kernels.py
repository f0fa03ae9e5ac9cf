"""The whole forward pass on CPUs in one call of the C++ kernels of `native/`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from server.continuous_batching.attention.base import AttentionBackend
from server.continuous_batching.attention.native_attention import HEAD_MULTIPLE, NativeAttention
from server.continuous_batching.kernels.base import Kernels
from server.continuous_batching.layers.linear import Linear
from server.continuous_batching.native.library import DTYPES, NativeLibrary, NativeModel
from server.continuous_batching.native.structs import LayerWeights, OuterWeights, Shape
from server.continuous_batching.native.weights import BITS, PackedWeights, linears_of
from server.gptq.linear import GPTQLinear

if TYPE_CHECKING:
    from server.continuous_batching.models.decoder import Decoder, Layer

WIDTH_MULTIPLE = 32
"""What enters a product must be a multiple of so many numbers wide."""


def objection(model: Decoder, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot run a model, or None."""
    if dtype not in DTYPES:
        return f"they compute in float32 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    for linear in linears_of(model):
        reason = _objection_to_layer(linear)
        if reason is not None:
            return reason
    config = model.config
    widths = (config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim)
    if config.head_dim % HEAD_MULTIPLE:
        return f"a head of {config.head_dim} numbers is no multiple of {HEAD_MULTIPLE}"
    odd = [width for width in widths if width % WIDTH_MULTIPLE]
    if odd:
        return f"a layer of {odd[0]} numbers is no multiple of {WIDTH_MULTIPLE}"
    return None


def _objection_to_layer(linear: Linear | GPTQLinear) -> str | None:
    if not isinstance(linear, GPTQLinear):
        return None
    if linear.config.bits != BITS:
        return f"they multiply weights of {BITS} bits, not of {linear.config.bits}"
    if not linear.shares_order():
        return f"the inputs of {linear.names[0]} are in another order than those of its neighbours"
    return None


class NativeKernels(Kernels):
    """Packs the weights when loaded, and runs all layers in C++.

    Args:
        library: the kernels.
    """

    def __init__(self, library: NativeLibrary) -> None:
        self.name = f"native ({library.variant.name})"
        self._library = library
        self._wide_copies: list[Tensor] = []
        self._logits = torch.empty(0)
        self._native: NativeModel | None = None

    def prepare(self, model: Decoder, dtype: torch.dtype) -> dict[str, str] | None:
        """Pack every linear layer and free its own weight.

        The embedding stays as it is, for a step looks up rows of it.
        """
        decoder: Any = model  # torch's stubs know no attribute of a module's children
        self._weights = PackedWeights(self._library, linears_of(decoder))
        self._layers = [self._pack_layer(layer) for layer in decoder.layers]
        self._outer = OuterWeights(
            embedding=decoder.embedding.data_ptr(),
            norm=self._wide(decoder.norm.weight),
            head=self._weights.pack(decoder.head).data,
        )
        count = sum(isinstance(linear, GPTQLinear) for linear in linears_of(decoder))
        if not count:
            return None
        return {
            "name": f"native-int4 ({count} layers)",
            "reason": "dequantised in the registers of own kernels",
        }

    @property
    def packed_bytes(self) -> int:
        """Memory of the packed weights; known once there are any."""
        return self._weights.size

    def run(
        self,
        model: Decoder,
        token_ids: Tensor,
        logit_rows: Tensor | None,
        attention: AttentionBackend[Any],
        out: Tensor | None = None,
    ) -> Tensor:
        """All layers at once; the result, if not in `out`, is overwritten by the next call."""
        if logit_rows is None:
            logit_rows = torch.arange(len(token_ids))
        assert isinstance(attention, NativeAttention)
        if self._native is None:
            self._native = self._connect(model, attention)
        step, rows, vocab = attention.step, len(logit_rows), model.config.vocab_size
        if out is None and len(self._logits) < rows * vocab:
            self._logits = torch.empty(rows * vocab)
        logits = self._logits[: rows * vocab].view(rows, vocab) if out is None else out
        step.token_ids, step.logit_rows, step.num_logits = token_ids.data_ptr(), logit_rows.data_ptr(), rows
        self._native.forward(step, attention.cache, logits)
        return logits

    def _connect(self, model: Decoder, attention: NativeAttention) -> NativeModel:
        """The model in C++, which takes its positions and its cache layout from `attention`."""
        config = model.config
        shape = Shape(
            layers=config.num_layers,
            hidden=config.hidden_size,
            inner=config.intermediate_size,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            vocab=config.vocab_size,
            block_size=attention.shape.block_size,
            threads=torch.get_num_threads(),
            norm_eps=config.norm_eps,
        )
        self._outer.cosine, self._outer.sine = attention.cosine.data_ptr(), attention.sine.data_ptr()
        return self._library.model(attention.shape.dtype, shape, self._layers, self._outer)

    def _pack_layer(self, layer: Layer) -> LayerWeights:
        attention, feed_forward = layer.attention, layer.feed_forward
        query_norm, key_norm = attention.query_norm, attention.key_norm
        return LayerWeights(  # in the order of use: a step streams through the weights from end to end
            attention_norm=self._wide(layer.attention_norm.weight),
            qkv=self._weights.pack(attention.qkv),
            qkv_bias=self._wide(attention.qkv.bias),
            query_norm=None if query_norm is None else self._wide(query_norm.weight),
            key_norm=None if key_norm is None else self._wide(key_norm.weight),
            out=self._weights.pack(attention.output),
            out_bias=self._wide(attention.output.bias),
            feed_forward_norm=self._wide(layer.feed_forward_norm.weight),
            gate_up=self._weights.pack(feed_forward.gate_up, halves=True),
            gate_up_bias=self._wide(feed_forward.gate_up.bias),
            down=self._weights.pack(feed_forward.down),
            down_bias=self._wide(feed_forward.down.bias),
        )

    def _wide(self, tensor: Tensor | None) -> int | None:
        """Address of a float32 copy that lives as long as this object."""
        if tensor is None:
            return None
        self._wide_copies.append(tensor.detach().float().contiguous())
        return self._wide_copies[-1].data_ptr()
