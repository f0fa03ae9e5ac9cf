"""Copies of blocks between the pools of device and host.

A block of a small model is copied in less time than it takes the host to ask for it: 352 KiB need
7 µs of the copy engine and 9 µs of a call. So where the driver takes many copies in one call, it is
given them all; elsewhere one call is made for each run of neighbouring blocks.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from server.scheduling.block_pool import BlockPair

logger = logging.getLogger(__name__)


class BlockCopies:
    """A call for each run of pairs that follow each other on both sides."""

    name = "a call a run of blocks"

    def __call__(self, source: Tensor, target: Tensor, pairs: Sequence[BlockPair]) -> None:
        """Copy blocks of `source` to blocks of `target`, in the order of the current stream."""
        for first, to, count in _runs(pairs):
            target[to : to + count].copy_(source[first : first + count], non_blocking=True)


class _Attributes(ctypes.Structure):
    """``CUmemcpyAttributes`` of cuda.h: order of access, two (type, id) hints of location, flags."""

    _fields_ = (
        ("source_access_order", ctypes.c_int),
        ("source_hint", ctypes.c_int * 2),
        ("target_hint", ctypes.c_int * 2),
        ("flags", ctypes.c_uint),
    )


_STREAM_ORDER = 1
_OVERLAP_WITH_COMPUTE = 1


class BatchedBlockCopies(BlockCopies):
    """All copies in one call of the driver, by the copy engines.

    The function is that of CUDA 12.8, which later drivers keep under this name. It takes no legacy
    default stream.

    Args:
        library: the driver.

    Raises:
        OSError: there is none.
        AttributeError: it is older.
    """

    name = "cuMemcpyBatchAsync"

    def __init__(self, library: str = "libcuda.so.1") -> None:
        self._launch = ctypes.CDLL(library).cuMemcpyBatchAsync
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        # targets, sources, sizes, count, attributes, first copy of each, how many, failed copy, stream
        self._launch.argtypes = [pointer] * 3 + [size, pointer, pointer, size, pointer, pointer]
        self._attributes = _Attributes(_STREAM_ORDER, flags=_OVERLAP_WITH_COMPUTE)

    def __call__(self, source: Tensor, target: Tensor, pairs: Sequence[BlockPair]) -> None:
        if not pairs:
            return
        size = source[0].nbytes
        blocks = np.array(pairs, np.uint64).T * np.uint64(size)
        sources, targets = blocks[0] + np.uint64(source.data_ptr()), blocks[1] + np.uint64(target.data_ptr())
        sizes = np.full(len(pairs), size, np.uint64)
        first, failed = ctypes.c_size_t(0), ctypes.c_size_t(0)
        status = self._launch(
            targets.ctypes.data, sources.ctypes.data, sizes.ctypes.data, len(pairs),
            ctypes.byref(self._attributes), ctypes.byref(first), 1, ctypes.byref(failed),
            torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip
        if status != 0:
            raise RuntimeError(f"cuMemcpyBatchAsync: status {status} at copy {failed.value} of {len(pairs)}")


def choose_block_copies(device: torch.device) -> BlockCopies:
    """The fastest that works between `device` and the host."""
    if device.type == "cuda":
        try:
            batched = BatchedBlockCopies()
            _try_out(batched, device)
        except (OSError, AttributeError, RuntimeError) as error:
            logger.info("blocks are swapped by %s: %s", BlockCopies.name, error)
        else:
            return batched
    return BlockCopies()


def _try_out(copies: BlockCopies, device: torch.device) -> None:
    """Copy three small blocks to `device` and back.

    Raises:
        RuntimeError: they came back changed, or not at all.
    """
    sent = torch.arange(96, dtype=torch.uint8).view(3, 32).pin_memory()
    there, back = torch.zeros_like(sent, device=device), torch.zeros_like(sent).pin_memory()
    torch.cuda.synchronize(device)
    with torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
        copies(sent, there, [(0, 1), (1, 2), (2, 0)])
        copies(there, back, [(1, 0), (2, 1), (0, 2)])
        torch.cuda.current_stream().synchronize()
    if not torch.equal(sent, back):
        raise RuntimeError(f"{copies.name} copied wrongly")


def _runs(pairs: Sequence[BlockPair]) -> Iterator[tuple[int, int, int]]:
    """(first source block, first target block, count) of pairs that follow each other on both sides."""
    begin = 0
    for end in range(1, len(pairs) + 1):
        source, target = pairs[end - 1]
        if end == len(pairs) or pairs[end] != (source + 1, target + 1):
            yield (*pairs[begin], end - begin)
            begin = end
