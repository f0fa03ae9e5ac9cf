"""What several processes on one host compute together: sums, and what each has side by side.

Over NCCL where each has a GPU, in the order of its stream, so that graphs can hold them; over gloo on CPUs.
The processes find each other by a file in a directory that is theirs alone, and their sockets are bound to
the loopback interface: nothing listens where others could call.
"""

from __future__ import annotations

import ctypes
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import AllgatherOptions, AllreduceOptions, FileStore, ReduceOp, Store

_PATIENCE = timedelta(days=1)
"""A rank that is gone is found out by its beats; one that computes may take its time."""


class Group:
    """The processes, as one of them sees them.

    Args:
        directory: of all of them and of nobody else.
        rank: which one this is.
        size: how many there are; returns once all are there.
        device: where their tensors are: a GPU of its own for each, or the CPU.
    """

    def __init__(self, directory: Path, rank: int, size: int, device: torch.device) -> None:
        self.rank, self.size, self.device = rank, size, device
        store = FileStore(str(directory / "group"), size)
        on_gpu = device.type == "cuda"
        self._group = _nccl(store, rank, size, device) if on_gpu else _gloo(store, rank, size)
        self._sum, self._least, self._beside = AllreduceOptions(), AllreduceOptions(), AllgatherOptions()
        self._least.reduceOp = ReduceOp(ReduceOp.MIN)
        for options in (self._sum, self._least, self._beside):
            options.asyncOp = False  # on the stream of the steps itself
        self.smallest([0])  # connects

    @property
    def name(self) -> str:
        """Of what carries it, for the operator."""
        return "nccl" if self.device.type == "cuda" else "gloo"

    def reduce(self, x: Tensor) -> Tensor:
        """The sum of `x` over all ranks, in its place where it is contiguous."""
        x = x.contiguous()
        self._wait(self._group.allreduce([x], self._sum))
        return x

    def gather(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """``[rows, n]`` of each rank → ``[rows, size · n]``, or as many columns as `out` has, in that."""
        rows, columns = x.shape
        found = torch.empty(self.size, rows, columns, dtype=x.dtype, device=x.device)
        if self.device.type == "cuda" and rows:
            self._wait(self._group._allgather_base(found, x.contiguous(), self._beside))
        elif rows:  # a step may have prompts alone that do not end in it
            self._wait(self._group.allgather([list(found.unbind(0))], [x.contiguous()], self._beside))
        beside, width = found.transpose(0, 1), self.size * columns
        if out is None:
            return beside.reshape(rows, width)
        if out.shape[1] == width:
            out.view(beside.shape).copy_(beside)
            return out
        return out.copy_(beside.reshape(rows, width)[:, : out.shape[1]])

    def smallest(self, numbers: list[int]) -> list[int]:
        """Of each number, the least that any rank has."""
        least = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        self._wait(self._group.allreduce([least], self._least))
        return [int(number) for number in least.tolist()]

    @staticmethod
    def _wait(work: dist.Work | None) -> None:
        if work is not None:  # of a GPU the stream waits, not the host
            work.wait()

    def abort(self) -> None:
        """Let go of what waits for ranks that are gone; the group is of no use afterwards."""
        self._group.abort()


def _gloo(store: Store, rank: int, size: int) -> Any:
    options: Any = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = _PATIENCE
    options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    return dist.ProcessGroupGloo(store, rank, size, options)


def _nccl(store: Store, rank: int, size: int, device: torch.device) -> Any:
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    os.environ.setdefault("NCCL_RAS_ENABLE", "0")  # its thread listens for whoever asks
    torch.cuda.set_device(device)
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = _PATIENCE
    group = dist.ProcessGroupNCCL(store, rank, size, options)
    # it lives as long as the process: its destructor waits for the end of all graphs that hold a collective,
    # and nothing says that these are destroyed before it
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))
    return group
