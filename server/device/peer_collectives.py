"""Sums and gathered parts of small tensors, written straight into the memory of the other ranks' GPUs.

A collective of NCCL takes some 10 µs however little it moves, and a decode step has two of them a layer. Here
each rank sends what it has to all others at once, in words of 8 bytes: 4 of data, and 4 that tell which call
they belong to (as NCCL's protocol LL does). So the data is its own signal: there is one way over the link, no
barrier before it and none after it. It takes twice the traffic, which is why large tensors go another way
(`two_shot_sums.py`).

**Why no word is overwritten before it was read.** Every program of a kernel has two places of its own in each
inbox, which it uses in turn. When it sends for the third time, it has received what all ranks sent for the
second time. They did so after their kernel of the first time had ended, and with it the reading: kernels of a
stream follow each other, also where the next one starts early (`gdc_wait`). And every word of a place is
written each time, so what it still holds is of the time before last, and is never taken for this one's.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import launch_options

SENT_BYTES = 1 << 20
"""What a rank sends to all others in a call at most. Beyond, two shots are faster: between two H200s, 1 MiB
takes 9.4 µs here and 10.6 in two shots, 2 MiB take 15.7 and 13.6."""
CHUNK = 512
"""Words of a program: 4 for each of its threads, so that they load 16 bytes at once."""
_WARPS = 4
_WORD_BYTES = 4
_PLACES = 2


@triton.jit
def _send(words, boxes, i, epoch, RANK: tl.constexpr, RANKS: tl.constexpr, SIZE: tl.constexpr):
    """Put `words` into every other rank's inbox."""
    marked = (words.to(tl.int64) & 0xFFFFFFFF) | (epoch.to(tl.int64) << 32)
    at = ((epoch & 1) * RANKS + RANK) * SIZE + i
    for rank in tl.static_range(RANKS):
        if rank != RANK:
            tl.store(boxes[rank].to(tl.pointer_type(tl.int64)) + at, marked)
    tl.debug_barrier()  # the stores are under way before anybody waits for an answer


@triton.jit
def _receive(
    boxes, i, epoch, stop, rank: tl.constexpr, RANK: tl.constexpr, RANKS: tl.constexpr,
    SIZE: tl.constexpr,
):  # fmt: skip
    """The words that `rank` sends, once all are there."""
    at = boxes[RANK].to(tl.pointer_type(tl.int64)) + ((epoch & 1) * RANKS + rank) * SIZE + i
    found = tl.load(at, volatile=True)
    missing = tl.max(((found >> 32).to(tl.int32) != epoch).to(tl.int32), 0)
    while missing > 0:
        found = tl.load(at, volatile=True)
        missing = tl.max(((found >> 32).to(tl.int32) != epoch).to(tl.int32), 0)
        missing = tl.where(tl.load(stop, volatile=True) > 0, 0, missing)
    return found.to(tl.int32)


@triton.jit
def _numbers(words, dtype: tl.constexpr):
    """The two numbers of 16 bits in each word, in float32."""
    low = (words & 0xFFFF).to(tl.int16).to(dtype, bitcast=True)
    high = ((words >> 16) & 0xFFFF).to(tl.int16).to(dtype, bitcast=True)
    return low.to(tl.float32), high.to(tl.float32)


@triton.jit
def _half_word(value, dtype: tl.constexpr):
    """A float32 number, rounded, in the lower half of a word."""
    return value.to(dtype).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF


@triton.jit
def _reduce(
    x, boxes, epochs, stop, size,
    dtype: tl.constexpr, RANK: tl.constexpr, RANKS: tl.constexpr, SIZE: tl.constexpr,
    CHUNK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (chunk of words): the sum over the ranks, in their order, takes the place of `x`."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    place = tl.program_id(0)
    epoch = tl.load(epochs + place)
    i = place * CHUNK + tl.arange(0, CHUNK)
    own = tl.load(x + i, mask=i < size, other=0)
    _send(own, boxes, i, epoch, RANK, RANKS, SIZE)
    low = tl.zeros([CHUNK], tl.float32)
    high = low
    for rank in tl.static_range(RANKS):
        words = own
        if rank != RANK:
            words = _receive(boxes, i, epoch, stop, rank, RANK, RANKS, SIZE)
        if dtype == tl.float32:
            low += words.to(tl.float32, bitcast=True)
        else:
            first, second = _numbers(words, dtype)
            low += first
            high += second
    if dtype == tl.float32:
        total = low.to(tl.int32, bitcast=True)
    else:
        total = _half_word(low, dtype) | (_half_word(high, dtype) << 16)
    tl.store(x + i, total, mask=i < size)
    tl.store(epochs + place, epoch + 1)


@triton.jit
def _gather(
    x, y, boxes, epochs, stop, size, columns, width,
    RANK: tl.constexpr, RANKS: tl.constexpr, SIZE: tl.constexpr,
    CHUNK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (chunk of words): `y` [rows, width] takes `x` [rows, columns] of all ranks side by side."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    place = tl.program_id(0)
    epoch = tl.load(epochs + place)
    i = place * CHUNK + tl.arange(0, CHUNK)
    own = tl.load(x + i, mask=i < size, other=0)
    _send(own, boxes, i, epoch, RANK, RANKS, SIZE)
    row, column = i // columns, i % columns
    for rank in tl.static_range(RANKS):
        words = own
        if rank != RANK:
            words = _receive(boxes, i, epoch, stop, rank, RANK, RANKS, SIZE)
        to = rank * columns + column
        tl.store(y + row.to(tl.int64) * width + to, words, mask=(i < size) & (to < width))
    tl.store(epochs + place, epoch + 1)


class PeerCollectives:
    """Collectives over inboxes that the ranks have in each other's memory.

    Their kernels can be captured: all that changes from call to call is on the device. Every rank makes the
    same calls in the same order, in one stream.

    Args:
        boxes: the address of each rank's inbox of `inbox_bytes`, which was zeros.
        rank: which of them is this one's.
        device: where it computes.
        largest: bytes of a tensor at most; None: `largest_bytes`.
        chunk: words of a program, a power of two.

    Attributes:
        stop: int32 [1] on the device: not zero once ranks are gone.
    """

    def __init__(
        self,
        boxes: list[int],
        rank: int,
        device: torch.device,
        largest: int | None = None,
        chunk: int = CHUNK,
    ) -> None:
        self._rank, self._ranks = rank, len(boxes)
        self._largest, self._chunk = largest or largest_bytes(len(boxes)), chunk
        self._boxes = tuple(boxes)
        # counts from 1: what was never sent is zero
        self._epochs = torch.ones(self._programs(self._largest), dtype=torch.int32, device=device)
        self.stop = torch.zeros(1, dtype=torch.int32, device=device)

    def takes(self, x: Tensor) -> bool:
        """Whether `x` is a tensor for these kernels: floats, not many, contiguous, rows of whole words."""
        return x.dtype in _NUMBERS and self.takes_rows(x) and 0 < x.nbytes <= self._largest

    def takes_rows(self, x: Tensor) -> bool:
        """Whether `x` is contiguous, of whole words a row."""
        whole = x.shape[-1] * x.element_size() % _WORD_BYTES == 0 and x.data_ptr() % _WORD_BYTES == 0
        return whole and x.is_contiguous()

    def reduce(self, x: Tensor) -> Tensor:
        """The sum of `x` over all ranks, in its place; float32 within, rounded once."""
        words = _words(x)
        _reduce[(self._programs(x.nbytes),)](
            words, self._boxes, self._epochs, self.stop, words.numel(),
            dtype=_NUMBERS[x.dtype], **self._constants(x),
        )  # fmt: skip
        return x

    def gather(self, x: Tensor, out: Tensor) -> Tensor:
        """`x` [rows, columns] of all ranks side by side in `out` [rows, width]; what goes beyond is cut off.

        Args:
            out: of which `takes_rows` is true.
        """
        words, found = _words(x), _words(out)
        _gather[(self._programs(x.nbytes),)](
            words, found, self._boxes, self._epochs, self.stop,
            words.numel(), words.shape[1], found.shape[1], **self._constants(x),
        )  # fmt: skip
        return out

    def _constants(self, x: Tensor) -> dict[str, Any]:
        # one token's product is of a kernel that lets its successor start early
        options = launch_options(x.device, overlapped=len(x) == 1)
        size = self._largest // _WORD_BYTES
        return {
            "RANK": self._rank, "RANKS": self._ranks, "SIZE": size, "CHUNK": self._chunk,
            "num_warps": _WARPS, **options,
        }  # fmt: skip

    def _programs(self, size: int) -> int:
        """For so many bytes."""
        return -(-size // (_WORD_BYTES * self._chunk))

    def abort(self) -> None:
        """Let kernels end that wait for ranks that are gone; the inboxes are of no use afterwards."""
        with torch.cuda.stream(torch.cuda.Stream(self.stop.device)):  # type: ignore[no-untyped-call]
            self.stop.fill_(1)


_NUMBERS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def _words(x: Tensor) -> Tensor:
    return x.view(torch.int32)


def largest_bytes(ranks: int) -> int:
    """Of a tensor that pays to be sent to every one of so many ranks, of whole programs."""
    program = _WORD_BYTES * CHUNK
    return max(SENT_BYTES // (ranks - 1) // program, 1) * program


def inbox_bytes(ranks: int, largest: int) -> int:
    """Of an inbox in which so many ranks put at most so many bytes."""
    return _PLACES * ranks * largest * 2
