# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Gates of feed-forward parts: what stands between their products, in one pass over memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import launch_options
from server.layers.spec import FeedForwardSpec

_TILE = 1024


@dataclass(frozen=True, slots=True)
class Gate:
    """``g · σ(sharpness · g) · u``; with a limit, that of `ClampSpec`.

    Attributes:
        limit: of g and u; None: there is none.
    """

    sharpness: float = 1.0
    limit: float | None = None


SILU = Gate()


def gate_of(spec: FeedForwardSpec) -> Gate | None:
    """The gate of a feed-forward part; None: there is none, or no kernel for it."""
    if not spec.gated:
        return None
    if spec.clamp is not None:
        return Gate(spec.clamp.sharpness, spec.clamp.limit)
    return SILU if spec.activation == "silu" else None


@triton.jit
def gated_value(gate, up, SHARPNESS: tl.constexpr, LIMIT: tl.constexpr):
    """float32 results of gates and ups."""
    if LIMIT is not None:
        gate = tl.minimum(gate, LIMIT)
        up = tl.minimum(tl.maximum(up, -LIMIT), LIMIT) + 1.0
    return gate / (1.0 + tl.exp(-SHARPNESS * gate)) * up


@triton.jit
def _gate_mul(
    x, y,
    SIZE: tl.constexpr, SHARPNESS: tl.constexpr, LIMIT: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (row, tile of columns)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    gate = tl.load(x + row * (2 * SIZE) + i, mask=i < SIZE, other=0.0).to(tl.float32)
    up = tl.load(x + row * (2 * SIZE) + SIZE + i, mask=i < SIZE, other=0.0).to(tl.float32)
    value = gated_value(gate, up, SHARPNESS, LIMIT)
    tl.store(y + row * SIZE + i, value.to(y.dtype.element_ty), mask=i < SIZE)


def gate_mul(x: Tensor, gate: Gate = SILU, *, overlapped: bool = True) -> Tensor:
    """Gates and ups side by side: [rows, 2 × size] → [rows, size].

    Args:
        overlapped: `launch_options`.
    """
    rows, size = x.shape[0], x.shape[1] // 2
    y = torch.empty((rows, size), dtype=x.dtype, device=x.device)
    _gate_mul[(rows, -(-size // _TILE))](
        x, y, SIZE=size, SHARPNESS=gate.sharpness, LIMIT=gate.limit, TILE=_TILE, num_warps=4,
        **launch_options(x.device, overlapped=overlapped),
    )  # fmt: skip
    return y
