"""Sums of large tensors over all ranks, written straight into the memory of their GPUs.

Every rank adds up one part of the tensor (reduce-scatter) and tells the others what it comes to
(all-gather): so each sends no more than the tensor's own size, whatever the number of ranks, in stores of 16
bytes. A flag behind each chunk says that it is there. A program works on the same chunks on all ranks: it
sends, then adds up, then fetches. So one chunk is on its way while the next is added up.

**Why no chunk is overwritten before it was read.** A rank sends its share of a chunk anew only after its
kernel of the last time ended, so after it got that chunk's sum; the owner sent this after it had read all
shares. An owner sends a sum anew only after every rank sent it a new share, so after their kernels of the
last time ended.

Source: the two-shot all-reduce of CUDA's peer memory, as in vLLM and in torch's symmetric memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST_BYTES = 64 << 20
"""Of a tensor that goes in one call; larger ones go in pieces."""
CHUNK_BYTES = 16 << 10
PROGRAMS = 512
"""Four for each multiprocessor of an H200: they wait for each other's GPU, so all must fit on it at once."""
_WARPS = 8
_FLAG_BYTES = 4
_KINDS = 2
"""Shares that are sent to a chunk's owner, and sums that it sends back."""


@triton.jit
def _chunk(box, place, lanes, dtype: tl.constexpr, PLACES: tl.constexpr, CHUNK: tl.constexpr):
    """Pointers to the numbers of a place of an inbox."""
    data = tl.multiple_of((box + 4 * PLACES).to(tl.pointer_type(dtype)), 16)
    return data + place.to(tl.int64) * CHUNK + lanes


@triton.jit
def _put(
    values, mask, box, place, lanes, epoch,
    dtype: tl.constexpr, PLACES: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Put `values` in a place of another rank's inbox, and then the flag that says so."""
    tl.store(_chunk(box, place, lanes, dtype, PLACES, CHUNK), values, mask=mask)
    tl.debug_barrier()  # the flag speaks for the stores of all threads
    tl.atomic_xchg(box.to(tl.pointer_type(tl.int32)) + place, epoch, sem="release", scope="sys")


@triton.jit
def _take(
    mask, box, place, lanes, epoch, stop,
    dtype: tl.constexpr, PLACES: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The numbers in a place of the own inbox, once they are there."""
    flag = box.to(tl.pointer_type(tl.int32)) + place
    missing = tl.atomic_cas(flag, epoch, epoch, sem="acquire", scope="sys") != epoch
    while missing:
        found = tl.atomic_cas(flag, epoch, epoch, sem="acquire", scope="sys")
        missing = (found != epoch) & (tl.load(stop, volatile=True) == 0)
    return tl.load(_chunk(box, place, lanes, dtype, PLACES, CHUNK), mask=mask, cache_modifier=".cg")


@triton.jit(do_not_specialize=["chunks"])  # one kernel for prompts of all lengths
def _reduce_in_two_shots(
    x, boxes, epochs, stop, size, chunks,
    dtype: tl.constexpr, RANK: tl.constexpr, RANKS: tl.constexpr,
    CHUNKS: tl.constexpr, CHUNK: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Program: every `PROGRAMS`-th of the `chunks` of each rank's part; the sum takes the place of `x`."""
    PLACES: tl.constexpr = 2 * RANKS * CHUNKS
    program = tl.program_id(0)
    epoch = tl.load(epochs + program)
    lanes = tl.arange(0, CHUNK)
    for chunk in range(program, chunks, PROGRAMS):
        for step in tl.static_range(1, RANKS):
            i = ((RANK + step) % RANKS * chunks + chunk) * CHUNK + lanes
            share = tl.load(x + i, mask=i < size)
            place = RANK * CHUNKS + chunk
            _put(share, i < size, boxes[(RANK + step) % RANKS], place, lanes, epoch, dtype, PLACES, CHUNK)
    for chunk in range(program, chunks, PROGRAMS):
        i = (RANK * chunks + chunk) * CHUNK + lanes
        total = tl.zeros([CHUNK], tl.float32)
        for rank in tl.static_range(RANKS):  # in one order, and rounded once
            if rank == RANK:
                share = tl.load(x + i, mask=i < size)
            else:
                place = rank * CHUNKS + chunk
                share = _take(i < size, boxes[RANK], place, lanes, epoch, stop, dtype, PLACES, CHUNK)
            total += share.to(tl.float32)
        found = total.to(dtype)
        for step in tl.static_range(1, RANKS):
            place = (RANKS + RANK) * CHUNKS + chunk
            _put(found, i < size, boxes[(RANK + step) % RANKS], place, lanes, epoch, dtype, PLACES, CHUNK)
        tl.store(x + i, found, mask=i < size)
    for chunk in range(program, chunks, PROGRAMS):
        for step in tl.static_range(1, RANKS):
            i = ((RANK + step) % RANKS * chunks + chunk) * CHUNK + lanes
            place = (RANKS + (RANK + step) % RANKS) * CHUNKS + chunk
            found = _take(i < size, boxes[RANK], place, lanes, epoch, stop, dtype, PLACES, CHUNK)
            tl.store(x + i, found, mask=i < size)
    tl.store(epochs + program, epoch + 1)


class TwoShotSums:
    """Sums over inboxes that the ranks have in each other's memory.

    Its kernels can be captured, as those of `PeerCollectives`. Every rank makes the same calls in the same
    order, in one stream.

    Args:
        boxes: the address of each rank's inbox of `inbox_bytes`, which was zeros.
        rank: which of them is this one's.
        device: where it computes.
        stop: int32 [1] on `device`: not zero once ranks are gone.
        largest: bytes of a tensor that goes in one call; the inboxes are made for it.
        chunk_bytes: a power of two.
        programs: of a kernel; the same on all ranks.
    """

    def __init__(
        self,
        boxes: list[int],
        rank: int,
        device: torch.device,
        stop: Tensor,
        largest: int = LARGEST_BYTES,
        chunk_bytes: int = CHUNK_BYTES,
        programs: int = PROGRAMS,
    ) -> None:
        self._boxes, self._rank, self._stop = tuple(boxes), rank, stop
        self._chunk_bytes, self._chunks = chunk_bytes, _chunks(len(boxes), largest, chunk_bytes)
        # counts from 1: what was never sent is zero
        self._epochs = torch.ones(programs, dtype=torch.int32, device=device)

    def takes(self, x: Tensor) -> bool:
        """Whether `x` is a tensor for these kernels: floats, contiguous."""
        return x.dtype in _NUMBERS and x.is_contiguous() and x.numel() > 0

    def reduce(self, x: Tensor) -> Tensor:
        """The sum of `x` over all ranks, in its place; float32 within, rounded once."""
        chunk, ranks = self._chunk_bytes // x.element_size(), len(self._boxes)
        for piece in torch.split(x.view(-1), ranks * self._chunks * chunk):
            _reduce_in_two_shots[(len(self._epochs),)](
                piece, self._boxes, self._epochs, self._stop,
                piece.numel(), triton.cdiv(piece.numel(), ranks * chunk),
                dtype=_NUMBERS[x.dtype], RANK=self._rank, RANKS=ranks,
                CHUNKS=self._chunks, CHUNK=chunk, PROGRAMS=len(self._epochs), num_warps=_WARPS,
            )  # fmt: skip
        return x


_NUMBERS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def _chunks(ranks: int, largest: int, chunk_bytes: int) -> int:
    """Of each rank's part at most; a multiple of 4, so that what follows the flags is aligned."""
    return -(-largest // (4 * ranks * chunk_bytes)) * 4


def inbox_bytes(ranks: int, largest: int = LARGEST_BYTES, chunk_bytes: int = CHUNK_BYTES) -> int:
    """Of an inbox for tensors of `largest` bytes."""
    return _KINDS * ranks * _chunks(ranks, largest, chunk_bytes) * (_FLAG_BYTES + chunk_bytes)
