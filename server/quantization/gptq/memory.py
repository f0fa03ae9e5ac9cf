"""Memory that packing leaves behind."""

from __future__ import annotations

import ctypes


def return_freed_pages() -> None:
    """Give the pages of freed tensors back to the system, where the C library is glibc.

    It keeps them for later, and packing a model frees as many bytes as the model has.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
