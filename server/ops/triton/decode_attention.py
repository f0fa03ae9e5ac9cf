"""Attention of a step's decodes: into how many pieces contexts are split, and the launch of the kernel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from server.device.triton_support import LOG2_E, launch_options, next_power_of_two
from server.layers.rotary import Rotary
from server.layers.spec import AttentionSpec
from server.ops.paged_attention import PagedBatch
from server.ops.triton.decode_kernel import decode
from server.ops.triton.shared_prefixes import SLOTS
from server.ops.triton.warp_decode import decode_by_warps

_MAX_SPLITS = 64
_MANY = 256
"""Pairs of sequence and key head whose contexts are split for twice as many: those of unequal length then
end together. A power of two, at which the number of pieces changes anyway: steps with prompts, of any number
of decodes, then take no kernel that was not compiled for a captured size."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """How the work of a kernel is divided.

    Attributes:
        elements: of the keys that a program reads at a time.
        programs: that contexts are split for.
        warps: of a program.
        stages: tiles that are read ahead, itself and the reading of their places included.
        by_warps: each warp has tokens of its own (`warp_decode`).
        registers: of a thread, at most; None: as many as the compiler takes.
    """

    elements: int
    programs: int
    warps: int = 4
    stages: int = 3
    by_warps: bool = True
    registers: int | None = None


SHARED = Tuning(4096, 512, by_warps=False)
_FIVE = replace(SHARED, registers=96)
_FOUR = replace(SHARED, registers=112)
"""As many programs share a multiprocessor."""
_LONG = Tuning(8192, 512, stages=2, by_warps=False)
_LONG_FOUR = replace(_LONG, registers=128)
"""Fewer, longer pieces: to merge several takes 1 to 2 µs. Where it is asked for shared prefixes, which needs
registers, only three programs would share a multiprocessor without the limit."""
_ONE_WARP = Tuning(2048, 512, 1)
"""Eight programs share a multiprocessor; none of their warps waits for another."""
PLAIN = {0: _FIVE, 8: _LONG, 16: _LONG_FOUR, 256: _ONE_WARP, 1024: _FOUR, 1792: _ONE_WARP}
"""Pairs of sequence and key head, from which on → tuning, measured on an H200 as `benchmarks.gpu.divisions`
does: as engines launch it, with angles and asking for shared prefixes, and at the clocks of a GPU that
works at its limit of power. Small tiles leave registers for the weights that the next product loads early,
which matters for one sequence of a small model. From 1,024 pairs on a context is one piece: with less than
two for each program that runs at once, four warps end the longest sooner. With 1,536 to 1,791 pairs
one warp saves up to 3 % of a layer, but was not timed where beams share their prompts."""
FLOAT8 = {0: Tuning(8192, 512, 2), 64: Tuning(2048, 1024, 1, 4), 512: Tuning(4096, 512, 1)}
"""The same for a cache in FP8, by `benchmarks.gpu.fp8` (part `attention`): 64 contexts of 1,000 tokens at
3.25 TB/s, with four warps at 2.4. The borders are powers of two, as `_MANY` is."""


def num_splits(pairs: int, max_length: int, tile: int, programs: int) -> int:
    """Pieces of each context, a power of two.

    Args:
        pairs: of sequence and key head.
        max_length: tokens of the longest context that there may be.
        tile: tokens that a program reads at a time.
        programs: of `Tuning`.
    """
    if pairs >= _MANY:
        programs *= 2
    wanted = next_power_of_two(-(-programs // pairs))
    return min(wanted, _MAX_SPLITS, next_power_of_two(-(-max_length // tile)))


class DecodeAttention:
    """Attention of a step's decodes.

    Args:
        cache: [blocks, layers, 2, block_size, kv_heads, head_dim].
        scales: of a cache in FP8, as in `AttentionShape`.

    Attributes:
        tuning: another than `_tuning_for` says.
    """

    def __init__(self, cache: Tensor, scales: Tensor | None = None) -> None:
        self._cache = cache
        self._scales = scales
        self.tuning: Tuning | None = None
        self._arrivals = torch.empty(0, dtype=torch.int32, device=cache.device)

    def __call__(
        self,
        layer: int,
        spec: AttentionSpec,
        rotary: Rotary | None,
        batch: PagedBatch,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        sinks: Tensor | None = None,
    ) -> None:
        """Rotate, store and attend.

        Args:
            layer: of the cache.
            spec: how it attends.
            rotary: cosines and sines; None: nothing is rotated.
            query: [decodes, heads, head_dim], rows may be apart (a slice of a joint projection).
            key, value: [decodes, kv_heads, head_dim], likewise.
            output: [decodes, heads, head_dim], contiguous; filled.
            sinks: [heads], where the layer has them.
        """
        cache = self._cache
        cos, sin = (None, None) if rotary is None else (rotary.cos, rotary.sin)
        sequences, heads, head_dim = query.shape
        kv_heads, block_size = cache.shape[4], cache.shape[3]
        group, dim_tile = heads // kv_heads, next_power_of_two(head_dim)
        tuning = self.tuning or self._tuning_for(query, kv_heads)
        tile = tuning.elements // dim_tile
        if tuning.by_warps:
            tile = max(tile, 16 * tuning.warps)  # a product adds up 16 tokens at least
        longest = batch.tables.shape[1] * block_size
        splits = num_splits(sequences * kv_heads, min(longest, spec.window or longest), tile, tuning.programs)
        slots, prefixes, sharers = splits, None, None
        if batch.shared is not None and sequences > 1 and spec.window is None:
            slots, prefixes, sharers = SLOTS.value * splits, batch.shared.tokens, batch.shared.sharers
        weights = torch.empty((sequences, heads, slots), dtype=torch.float32, device=cache.device)
        partial = torch.empty((*weights.shape, head_dim), dtype=torch.float32, device=cache.device)
        merge_heads = next_power_of_two(group)
        kernel, scales, options = self._kernel(tuning, layer)
        kernel[(kv_heads, splits, sequences)](
            query, key, value, cos, sin, sinks, cache, *scales,
            batch.rows, batch.positions, batch.tables, prefixes, sharers,
            partial, weights, self._arrivals_of(batch), output,
            query.stride(0), key.stride(0), value.stride(0), batch.tables.stride(0), cache.stride(0),
            layer * cache.stride(1), cache.stride(2), spec.scale * LOG2_E,
            GROUP=group, GROUP_TILE=max(merge_heads, 16), KV_HEADS=kv_heads, HEAD_DIM=head_dim,
            DIM_TILE=dim_tile, BLOCK_SIZE=block_size, ROTARY_DIM=0 if cos is None else cos.shape[1],
            WINDOW=spec.window or 0, SOFTCAP=(spec.softcap or 0.0) * LOG2_E,
            TILE=tile, SPLITS=splits, MERGE_HEADS=merge_heads,
            MERGE_TILE=max(min(next_power_of_two(splits), 8192 // (merge_heads * dim_tile)), 1),
            PRECISION="ieee", num_warps=tuning.warps, maxnreg=tuning.registers,
            num_stages=2 if query.dtype == torch.float32 else tuning.stages,
            # what is read of the cache ahead of time is not to be of this step
            **options, **launch_options(cache.device, overlapped=not batch.redone),
        )  # fmt: skip

    def _kernel(self, tuning: Tuning, layer: int) -> tuple[Any, tuple[Tensor | None, ...], dict[str, int]]:
        """(kernel, scales of the layer if it asks for them, further options)."""
        if not tuning.by_warps:
            return decode, (), {}
        scales = None if self._scales is None else self._scales[layer]
        return decode_by_warps, (scales,), {"WARPS": tuning.warps}

    def _tuning_for(self, query: Tensor, kv_heads: int) -> Tuning:
        """The tuning for the queries of a step."""
        sequences, heads, head_dim = query.shape
        tunings = FLOAT8
        if self._scales is None:
            if query.dtype == torch.float32 or head_dim > 128 or heads // kv_heads > 16:
                return SHARED  # the registers of one warp do not hold the sums
            tunings = PLAIN
        return tunings[max(least for least in tunings if least <= sequences * kv_heads)]

    def _arrivals_of(self, batch: PagedBatch) -> Tensor:
        """int32, for each context and key head that there may be: pieces that have ended; 0 between launches.

        An engine's tables always have the same rows, so that captured graphs find the numbers in their place.
        As many decodes may be computed again beside as many others.
        """
        pairs = 2 * batch.tables.shape[0] * self._cache.shape[4]
        if len(self._arrivals) < pairs:
            self._arrivals = torch.zeros(pairs, dtype=torch.int32, device=self._cache.device)
        return self._arrivals
