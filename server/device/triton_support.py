"""What every Triton kernel here needs to know of where it runs.

Modules that must be importable without Triton, which comes with torch for GPUs only, take `jit` and `tl` from
here for their kernels.
"""

from __future__ import annotations

import functools
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

try:
    import triton.language as tl
    from triton import jit
except ImportError:  # nothing will launch the kernels
    tl: Any = None  # type: ignore[no-redef]

    def jit(kernel):  # type: ignore[no-untyped-def]
        """The function as it is."""
        return kernel


__all__ = [
    "INTERPRETED",
    "LOG2_E",
    "Gpu",
    "fetch_ahead",
    "gpu_of",
    "is_hopper",
    "jit",
    "launch_options",
    "next_power_of_two",
    "overlaps_launches",
    "prepare_launches",
    "tl",
]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Kernels run in Triton's interpreter, on the CPU: for tests on machines without a GPU."""

LOG2_E = 1.4426950408889634
"""Softmax is computed in base 2: scores are scaled by this."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """What the division of a kernel's work depends on.

    Attributes:
        shared: bytes of shared memory that a program can have.
    """

    multiprocessors: int
    shared: int


@functools.cache
def gpu_of(device: torch.device) -> Gpu:
    """The GPU `device`; what the interpreter runs on passes for a small one."""
    if device.type != "cuda":
        return Gpu(4, 1 << 16)
    index = torch.cuda.current_device() if device.index is None else device.index
    from triton.runtime import driver

    properties = driver.active.utils.get_device_properties(index)
    return Gpu(properties["multiprocessor_count"], properties["max_shared_mem"])


@functools.cache
def overlaps_launches(device: torch.device) -> bool:
    """Whether kernels may start while the one before still runs (programmatic dependent launch).

    Hopper and later have it. A kernel launched so does everything that does not depend on its
    predecessor (loading weights), waits (`gdc_wait`), and only then reads what others wrote. It
    tells its own successor at its very start that it may do the same.
    """
    return _generation(device) >= 9


@functools.cache
def is_hopper(device: torch.device) -> bool:
    """Whether kernels run that were measured on Hopper and take most of its shared memory, which later
    GPUs of workstations do not have."""
    return _generation(device) == 9


def _generation(device: torch.device) -> int:
    """The major compute capability; 0 where kernels do not run on a GPU."""
    on_gpu = not INTERPRETED and device.type == "cuda"
    return torch.cuda.get_device_capability(device)[0] if on_gpu else 0


def launch_options(device: torch.device, *, overlapped: bool = True) -> dict[str, bool]:
    """Keyword arguments of a launch: the kernel's own ``PDL`` switch and the launcher's.

    Args:
        overlapped: the kernel in front lets its successor start early, as those here do. Behind a product
            of cuBLAS, which does not, waiting in the kernel takes 0.3 µs longer than a launch in turn.
    """
    overlapped = overlapped and overlaps_launches(device)
    return {"PDL": overlapped, "launch_pdl": overlapped} if overlapped else {"PDL": False}


def prepare_launches() -> list[threading.Thread]:
    """Begin, on threads, what Triton does at the first launch of a kernel, half a second on an H200's host.

    A compiled kernel is found by a hash that covers Triton's own files, and arguments are compared with
    classes of Gluon, which it imports then.
    """
    if tl is None:
        return []
    threads = [threading.Thread(target=each, daemon=True) for each in (_hash_triton, _import_gluon)]
    for thread in threads:
        thread.start()
    return threads


def _hash_triton() -> None:
    with suppress(ImportError):  # another release has it elsewhere, and does it at the first launch
        from triton.runtime.cache import triton_key

        triton_key()


def _import_gluon() -> None:
    with suppress(ImportError):
        import triton.experimental.gluon.nvidia.hopper  # noqa: F401


def next_power_of_two(value: int) -> int:
    """The least power of two that is not below `value`."""
    return 1 << max(value - 1, 0).bit_length()


@jit
def fetch_ahead(at, wanted):  # type: ignore[no-untyped-def]
    """Within a kernel: ask for the lines at addresses, where `wanted`, to be brought to the L2 cache."""
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.s32 p, $2, 0; @p prefetch.global.L2 [$1]; mov.b32 $0, 0; }",
        "=r,l,r",
        [at, wanted.to(tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
