"""A model's specifications and a step's batch as structures for the C++ kernels."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof

from torch import Tensor

from server.layers.expert_stack import ExpertStack
from server.layers.linear import LinearLayer
from server.layers.rotary import Rotary
from server.layers.spec import AttentionSpec, LayerSpec
from server.ops.attention import AttentionBatch
from server.ops.cpu import rounded, structs

NORM_KINDS = {"rms": 0, "layer": 1}
NORM_SCOPES = {"head": 0, "own": 1, "joint": 2}
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "relu2": 4}
"""By the numbers that stand for them in C."""


def describe_attention(spec: AttentionSpec) -> structs.AttentionSpec:
    """How a layer attends, but for its sinks, which are weights."""
    assert spec.value_dim == spec.head_dim and spec.causal and spec.shares is None, "see `capabilities`"
    return structs.AttentionSpec(
        heads=spec.num_heads,
        kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        window=spec.window or 0,
        norm_scope=NORM_SCOPES[spec.norm_scope],
        scale=spec.scale,
        softcap=spec.softcap or 0.0,
    )


def describe_layer(layer: structs.Layer, spec: LayerSpec) -> None:
    """Fill in what `spec` says of a layer besides attention and weights."""
    layer.inner = spec.feed_forward.inner
    layer.activation = ACTIVATIONS[spec.feed_forward.activation]
    layer.gated, layer.parallel = spec.feed_forward.gated, spec.parallel
    layer.residual_scale = spec.residual_scale
    clamp = spec.feed_forward.clamp
    if clamp is not None:
        layer.clamp_limit, layer.clamp_sharpness = clamp.limit, clamp.sharpness


class Angles:
    """Cosines and sines as the kernels read them, each pair of a head once.

    Attributes:
        described: for the kernels; valid as long as this object lives.
    """

    def __init__(self, rotary: Rotary) -> None:
        size = rotary.cos.shape[1]
        half = size // 2  # the second half has the same angles
        self._cosine = rotary.cos[:, :half].float().contiguous()
        self._sine = rotary.sin[:, :half].float().contiguous()
        self.described = structs.Rotary(self._cosine.data_ptr(), self._sine.data_ptr(), size)


def describe_batch(batch: AttentionBatch) -> tuple[structs.Batch, object]:
    """(where the tokens of a step lie, what must be kept alive beside `batch` while that is used)."""
    chunks = batch.chunks
    spans = (structs.Span * len(chunks))(
        *(structs.Span(c.begin, c.end, c.start, c.blocks.data_ptr()) for c in chunks)
    )
    described = structs.Batch(
        num_tokens=len(batch.positions),
        num_decodes=batch.num_decodes,
        num_spans=len(chunks),
        positions=batch.positions.data_ptr(),
        slot_blocks=batch.slot_blocks.data_ptr(),
        slot_offsets=batch.slot_offsets.data_ptr(),
        decode_lengths=batch.decode_lengths.ctypes.data,
        decode_tables=batch.decode_tables.data_ptr(),
        decode_width=batch.decode_tables.shape[1],
        spans=addressof(spans),
    )
    return described, spans


def describe_cache(cache: Tensor) -> structs.Cache:
    """Where the keys and values of a group of layers lie.

    Args:
        cache: [blocks, layers, 2, block_size, kv_heads, head_dim].
    """
    return structs.Cache(
        data=cache.data_ptr(),
        block_stride=cache.stride(0),
        layer_stride=cache.stride(1),
        block_size=cache.shape[3],
    )


def describe_codes(
    linears: Sequence[LinearLayer], stacks: Sequence[ExpertStack], arithmetic: str
) -> dict[str, str] | None:
    """Name and reason of what multiplies with codes, for the operator; None: no layer has any.

    Args:
        stacks: matrices of experts that are codes, two of each layer that has some.
        arithmetic: of the products; with ``int8``, floats are rounded to codes.
    """
    kept = [linear for linear in linears if not linear.dense]
    bits = {form.bits for linear in kept for form, _, _ in linear.codes_forms()}
    bits |= {stack.codes_form().bits for stack in stacks}
    reasons = []
    if (kept or stacks) and arithmetic == "exact":
        reasons.append("dequantized in the registers of own kernels")
    if arithmetic == "int8":
        if len(kept) < len(linears):
            bits.add(rounded.BITS)
            groups = f"8 bits in groups of up to {rounded.LARGEST_GROUP} inputs"
            reasons.append(f"{len(linears) - len(kept)} matrices of floats are rounded to {groups}")
            kept = list(linears)
        reasons.append("activations are rounded to 8 bits (cpu_arithmetic is int8)")
    if not bits:
        return None
    name = "+".join(map(str, sorted(bits)))
    experts = f", experts of {len(stacks) // 2}" if stacks else ""
    return {"name": f"native-int{name} ({len(kept)} layers{experts})", "reason": "; ".join(reasons)}
