"""What several processes on one host compute together: sums, and what each has side by side.

Where each has a GPU and these can write to each other's memory, sums go that way: small tensors whole
(`peer_collectives.py`), large ones part by part (`two_shot_sums.py`); the rest goes over NCCL. All of it is
in the order of the stream, so that graphs can hold it. On CPUs all goes over gloo, but for what the C++ pass
exchanges in memory that it has `share` make.
The processes find each other by a file in a directory that is theirs alone, and their sockets are bound to
the loopback interface: nothing listens where others could call.
"""

from __future__ import annotations

import ctypes
import os
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import AllgatherOptions, AllreduceOptions, FileStore, ReduceOp, Store

from server.device.peer_memory import Exchange, PeerMemoryError, share

if TYPE_CHECKING:
    from server.device.peer_collectives import PeerCollectives
    from server.device.two_shot_sums import TwoShotSums

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
        self._directory = directory
        self._shared: list[Tensor] = []
        store = FileStore(str(directory / "group"), size)
        on_gpu = device.type == "cuda"
        self._group = _nccl(store, rank, size, device) if on_gpu else _gloo(store, rank, size)
        self._sum, self._least = AllreduceOptions(), AllreduceOptions()
        self._side_by_side = AllgatherOptions()
        self._least.reduceOp = ReduceOp(ReduceOp.MIN)
        for options in (self._sum, self._least, self._side_by_side):
            options.asyncOp = False  # on the stream of the steps itself
        self.smallest([0])  # connects
        self._peers: PeerCollectives | None = None
        self._large: TwoShotSums | None = None
        self._reason = "ranks on CPUs"
        if on_gpu:
            try:
                self._peers, self._large = _over_peers(_exchange(store, rank, size), rank, size, device)
                self._reason = "GPUs write to each other's memory; large parts side by side go over NCCL"
            except (ImportError, PeerMemoryError) as error:  # the same on all of them
                self._reason = f"GPUs do not write to each other's memory: {error}"

    def describe(self) -> dict[str, str]:
        """What carries it and why, for the operator."""
        if self._shared:
            return {"name": "shared memory, gloo", "reason": "the C++ pass adds up in memory of all ranks"}
        name = "nccl" if self.device.type == "cuda" else "gloo"
        return {"name": name if self._peers is None else f"peer memory, {name}", "reason": self._reason}

    def reduce(self, x: Tensor) -> Tensor:
        """The sum of `x` over all ranks, in its place where it is contiguous."""
        x = x.contiguous()
        if self._peers is not None and self._peers.takes(x):
            return self._peers.reduce(x)
        if self._large is not None and self._large.takes(x):
            return self._large.reduce(x)
        self._wait(self._group.allreduce([x], self._sum))
        return x

    def gather(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """``[rows, n]`` of each rank → ``[rows, size · n]``, or as many columns as `out` has, in that."""
        rows, columns = x.shape
        if self._peers is not None and self._peers.takes(x):
            if out is None:
                out = x.new_empty(rows, self.size * columns)
            if self._peers.takes_rows(out):
                return self._peers.gather(x, out)
        found = torch.empty(self.size, rows, columns, dtype=x.dtype, device=x.device)
        if self.device.type == "cuda" and rows:
            self._wait(self._group._allgather_base(found, x.contiguous(), self._side_by_side))
        elif rows:  # a step may have prompts alone that do not end in it
            self._wait(self._group.allgather([list(found.unbind(0))], [x.contiguous()], self._side_by_side))
        beside, width = found.transpose(0, 1), self.size * columns
        if out is None:
            return beside.reshape(rows, width)
        if out.shape[1] == width:
            out.view(beside.shape).copy_(beside)
            return out
        return out.copy_(beside.reshape(rows, width)[:, : out.shape[1]])

    def share(self, size: int) -> Tensor | None:
        """uint8 [size], zeros: memory that all ranks on CPUs have in common. None: these are on GPUs.

        `abort` sets the first byte.
        """
        if self.device.type != "cpu":
            return None
        path = self._directory / f"shared-{len(self._shared)}"
        self._shared.append(torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8))
        self.smallest([0])  # all have it
        path.unlink(missing_ok=True)
        return self._shared[-1]

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
        for memory in self._shared:
            memory[0] = 1
        if self._peers is not None:
            self._peers.abort()
        self._group.abort()


def _exchange(store: Store, rank: int, size: int) -> Exchange:
    calls = count()

    def exchange(own: bytes) -> list[bytes]:
        call = next(calls)
        store.set(f"exchange-{call}-{rank}", own.hex())
        return [bytes.fromhex(store.get(f"exchange-{call}-{other}").decode()) for other in range(size)]

    return exchange


def _over_peers(
    exchange: Exchange, rank: int, size: int, device: torch.device
) -> tuple[PeerCollectives, TwoShotSums]:
    """Collectives over the memory of all ranks.

    Raises:
        ImportError: Triton is not there.
        PeerMemoryError: as `share` does.
    """
    from server.device import peer_collectives, two_shot_sums

    small = share(device, peer_collectives.inbox_bytes(size, peer_collectives.largest_bytes(size)), exchange)
    large = share(device, two_shot_sums.inbox_bytes(size), exchange)
    peers = peer_collectives.PeerCollectives(small, rank, device)
    return peers, two_shot_sums.TwoShotSums(large, rank, device, peers.stop)


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
