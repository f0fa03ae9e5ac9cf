"""Memory of each GPU that the other ranks of a host write to directly, over NVLink or PCIe.

The CUDA driver shares it between processes (``cuIpcGetMemHandle``); torch has no call of its own for that
which does not also map multicast objects, and those are not to be had on every host.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch

Exchange = Callable[[bytes], list[bytes]]
"""Gives every rank what each of them passed, by rank."""


class PeerMemoryError(RuntimeError):
    """The ranks cannot write to each other's memory; says why."""


class _Handle(ctypes.Structure):
    """``CUipcMemHandle``."""

    _fields_ = (("data", ctypes.c_ubyte * 64),)


_MAP_PEERS = 1
"""``CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS``"""


def share(device: torch.device, size: int, exchange: Exchange) -> list[int]:
    """Addresses, in this process, of `size` bytes of zeros on each rank's GPU, by rank.

    All ranks call it. The memory stays as long as the processes: captured graphs hold its addresses.

    Args:
        device: of this rank; the others have other GPUs of the same host.
        exchange: between all ranks.

    Raises:
        PeerMemoryError: it cannot be shared, on this rank or on another one.
    """
    try:
        own, handle = _allocate(device, size)
        told = b"+" + handle
    except PeerMemoryError as error:
        told = b"-" + str(error).encode()
    handles = _agreed(exchange(told))
    try:
        addresses = [own if each == handle else _open(each) for each in handles]
        told = b"+"
    except PeerMemoryError as error:
        told = b"-" + str(error).encode()
    _agreed(exchange(told))
    return addresses


def _agreed(answers: list[bytes]) -> list[bytes]:
    """What every rank said, if none of them failed."""
    for rank, answer in enumerate(answers):
        if not answer.startswith(b"+"):
            raise PeerMemoryError(f"rank {rank}: {answer[1:].decode()}")
    return [answer[1:] for answer in answers]


def _allocate(device: torch.device, size: int) -> tuple[int, bytes]:
    """(address, handle for the other processes) of new memory, zeros."""
    torch.cuda.synchronize(device)  # makes the device's context the current one of this thread
    address, handle = ctypes.c_uint64(), _Handle()
    _call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
    _call("cuMemsetD8_v2", address, ctypes.c_ubyte(0), ctypes.c_size_t(size))
    _call("cuCtxSynchronize")
    _call("cuIpcGetMemHandle", ctypes.byref(handle), address)
    return address.value, bytes(handle)


def _open(handle: bytes) -> int:
    """The address that another process's memory has in this one."""
    address = ctypes.c_uint64()
    found = _Handle.from_buffer_copy(handle)
    _call("cuIpcOpenMemHandle_v2", ctypes.byref(address), found, ctypes.c_uint(_MAP_PEERS))
    return address.value


def _call(name: str, *arguments: object) -> None:
    try:
        status = getattr(ctypes.CDLL("libcuda.so.1"), name)(*arguments)
    except (OSError, AttributeError) as error:
        raise PeerMemoryError(str(error)) from error
    if status:
        raise PeerMemoryError(f"{name} of the CUDA driver failed with status {status}")
