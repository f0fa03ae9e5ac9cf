"""How a process that streams through its memory wants it from the system (Linux; elsewhere nothing)."""

from __future__ import annotations

import ctypes
import mmap
import sys

from torch import Tensor

_HUGE_PAGE = 2 << 20
_MADV_HUGEPAGE = 14


def prefer_huge_pages(tensor: Tensor) -> None:
    """Let the memory of `tensor` be huge pages where it is not in use yet.

    With pages of 4 KiB the processor looks up a page every few hundred nanoseconds of streaming.
    """
    if not sys.platform.startswith("linux"):
        return
    begin, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
    first = -(-begin // _HUGE_PAGE) * _HUGE_PAGE
    last = (begin + size) // _HUGE_PAGE * _HUGE_PAGE
    if last > first:
        madvise = ctypes.CDLL(None).madvise
        madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_HUGEPAGE)


def map_huge_pages(size: int) -> mmap.mmap:
    """`size` bytes of fresh memory, in huge pages where there are any."""
    # of shared memory, which is Python's default, few systems make huge pages
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
