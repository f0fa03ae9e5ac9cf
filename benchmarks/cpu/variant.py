"""Kernels for less than this processor has."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from unittest import mock

from server.ops.cpu.variants import usable_variants


def built_for(variant: str | None) -> AbstractContextManager[object]:
    """Engines that are made meanwhile run the native kernels of one variant alone.

    Args:
        variant: its name; "none": torch operations; None: the best one.

    Raises:
        SystemExit: this processor cannot run it.
    """
    if variant is None:
        return nullcontext()
    chosen = [each for each in usable_variants() if each.name == variant]
    if not chosen and variant != "none":
        raise SystemExit(f"this processor lacks instructions of the kernels for {variant}")
    return mock.patch("server.ops.cpu.library.usable_variants", lambda: iter(chosen))
