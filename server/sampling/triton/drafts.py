"""How far drafts are right, without a look by the host."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import launch_options
from server.sampling.verification import GpuDrafts


@triton.jit
def _accept(tokens, slots, positions, depths, firsts, lengths, table, accepted, stride, PDL: tl.constexpr):
    """Program (line): that of a sequence goes through its draft, those of drafted tokens have none."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line = tl.program_id(0)
    drafted, first = tl.load(lengths + line), tl.load(firsts + line)
    row = table + tl.load(slots + line).to(tl.int64) * stride + tl.load(positions + line) + 1
    chosen = tl.load(tokens + line)
    right = 0
    for i in range(drafted):
        goes_on = (right == i) & (tl.load(row + i) == chosen)
        chosen = tl.where(goes_on, tl.load(tokens + first + i), chosen)
        right += goes_on.to(tl.int32)
    tl.store(accepted + line, right)
    if tl.load(depths + line) == 0:
        tl.store(row + right, tl.maximum(chosen, 0))


def accept(
    tokens: Tensor, slots: Tensor, positions: Tensor, drafts: GpuDrafts, table: Tensor, accepted: Tensor
) -> None:
    """Find out how many tokens of each draft are those chosen; the one chosen behind them goes to the table.

    Args:
        tokens: int32 [lines], chosen on each line; negative where none is.
        slots: int32 [lines].
        positions: int32 [lines], place in its sequence of the token that each line follows.
        drafts: which of the lines follow drafted tokens.
        table: int32 [slots, length], contiguous: tokens of each slot, the drafted ones behind those known.
        accepted: int32 [lines], overwritten; 0 for lines without a draft.
    """
    _accept[(len(tokens),)](
        tokens, slots, positions, drafts.depths, drafts.firsts, drafts.lengths, table, accepted,
        table.stride(0), num_warps=1, **launch_options(tokens.device),
    )  # fmt: skip
