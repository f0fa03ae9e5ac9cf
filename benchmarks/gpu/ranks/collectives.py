"""Collectives alone, each in a graph: ``python -m benchmarks.gpu.ranks.collectives OUT.json``.

Sums of 8 KiB to 128 MiB by NCCL, by writing to peers whole (`server.device.peer_collectives`) and in two
shots (`server.device.two_shot_sums`), and by torch's symmetric memory; the parts of one token's logits side
by side; and whether sums are right. One process a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from utils.commands import with_interpreter

SIZES = [8 << 10 << doublings for doublings in range(11)]
LARGE_SIZES = [32 << 20, 128 << 20]
LARGEST = 8 << 20
CHUNKS = (128, 512, 1024)
CHUNK_BYTES = (8 << 10, 16 << 10, 32 << 10)
CALLS, REPLAYS = 20, 15
LOGITS = 128_256


def timed(call: Callable[[], object]) -> float:
    """Microseconds of a call in a graph of `CALLS`; the median of replays.

    All ranks are in step after the first replays, for every one waits for the others.
    """
    call()
    torch.cuda.synchronize()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        for _ in range(CALLS):
            call()
    times = []
    for _ in range(REPLAYS + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(1e3 * begin.elapsed_time(end) / CALLS)
    return statistics.median(times[3:])


class Rank:
    """Measures on one GPU, in step with the other ranks; rank 0 keeps the figures."""

    def __init__(self, directory: Path, rank: int, ranks: int, out: Path) -> None:
        from server.device.collectives import Group

        self.rank, self.ranks, self.out = rank, ranks, out
        self.device = torch.device("cuda", rank)
        torch.cuda.set_device(self.device)
        self.directory = directory
        self.group = Group(directory, rank, ranks, self.device)
        self.found: dict[str, Any] = {"ranks": ranks, "collectives": self.group.describe()}

    def note(self, name: str, measure: Callable[[], Any]) -> None:
        """Keep what `measure` finds, or why it fails."""
        try:
            self.found[name] = measure()
        except Exception as error:
            self.found[name] = f"failed: {error!r}"[:500]
        if self.rank == 0:
            print(name, self.found[name], flush=True)
            self.out.write_text(json.dumps(self.found, indent=1))

    def sums(self, reduce: Callable[[Tensor], object], largest: int = SIZES[-1]) -> dict[str, float]:
        """Microseconds by size."""
        found = {}
        for size in [*SIZES, *LARGE_SIZES]:
            if size <= largest:
                x = torch.zeros(max(size >> 13, 1), 4096, dtype=torch.bfloat16, device=self.device)
                found[f"{size >> 10} KiB"] = timed(lambda x=x: reduce(x))
        return found

    def nccl(self) -> dict[str, float]:
        """The sums of `Group` without peers."""
        with mock.patch.multiple(self.group, _peers=None, _large=None):
            return self.sums(self.group.reduce, LARGE_SIZES[-1])

    def peers(self, chunk: int) -> dict[str, float]:
        """Sums by writing to peers, whatever their size."""
        from server.device.collectives import _exchange
        from server.device.peer_collectives import PeerCollectives, inbox_bytes
        from server.device.peer_memory import share

        exchange = _exchange(self.store(f"peers-{chunk}"), self.rank, self.ranks)
        boxes = share(self.device, inbox_bytes(self.ranks, LARGEST), exchange)
        made = PeerCollectives(boxes, self.rank, self.device, LARGEST, chunk)
        self.check(made.reduce)
        return self.sums(made.reduce)

    def two_shots(self, chunk_bytes: int) -> dict[str, float]:
        """Sums in two shots, of 512 KiB and more."""
        from server.device.collectives import _exchange
        from server.device.peer_memory import share
        from server.device.two_shot_sums import TwoShotSums, inbox_bytes

        exchange = _exchange(self.store(f"two-shots-{chunk_bytes}"), self.rank, self.ranks)
        boxes = share(self.device, inbox_bytes(self.ranks, chunk_bytes=chunk_bytes), exchange)
        stop = torch.zeros(1, dtype=torch.int32, device=self.device)
        made = TwoShotSums(boxes, self.rank, self.device, stop, chunk_bytes=chunk_bytes)
        self.check(made.reduce)
        return self.sums(made.reduce, LARGE_SIZES[-1])

    def check(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Raise unless 300 sums of changing sizes are right."""
        for call in range(300):
            torch.manual_seed(call)
            rows = 1 + call % 7 * (40 if call % 3 == 0 else 1)
            parts = torch.randn(self.ranks, rows, 4096, device=self.device).bfloat16()
            expected = sum(part.float() for part in parts).bfloat16()
            if not torch.equal(reduce(parts[self.rank].clone()), expected):
                raise RuntimeError(f"sum {call} of {rows} rows is wrong")

    def logits(self, *, alone: bool) -> float:
        """Microseconds to put one token's logits side by side."""
        part = torch.zeros(1, LOGITS // self.ranks, dtype=torch.bfloat16, device=self.device)
        out = torch.empty(1, LOGITS, dtype=torch.bfloat16, device=self.device)
        with mock.patch.object(self.group, "_peers", None) if alone else nullcontext():
            return timed(lambda: self.group.gather(part, out))

    def symmetric(self, operator: str) -> dict[str, float]:
        """Sums of torch's own operators on symmetric memory."""
        import torch.distributed as dist
        import torch.distributed._symmetric_memory as symmetric

        if not dist.is_initialized():
            dist.init_process_group(
                "nccl", store=self.store("torch"), rank=self.rank, world_size=self.ranks,
                device_id=self.device,
            )  # fmt: skip
        name = dist.group.WORLD.group_name
        memory = symmetric.empty(LARGEST // 2, dtype=torch.bfloat16, device=self.device)
        symmetric.rendezvous(memory, name)
        run = getattr(torch.ops.symm_mem, operator)
        return self.sums(lambda x: run(memory[: x.numel()], "sum", name))

    def copy_engine(self) -> float:
        """GB/s of a copy to the next GPU, all GPUs at once."""
        other = torch.device("cuda", (self.rank + 1) % self.ranks)
        a = torch.zeros(1 << 28, dtype=torch.uint8, device=self.device)
        b = torch.zeros(1 << 28, dtype=torch.uint8, device=other)
        self.group.smallest([0])
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        b.copy_(a)
        begin.record()
        for _ in range(20):
            b.copy_(a, non_blocking=True)
        end.record()
        torch.cuda.synchronize()
        return 20 * a.nbytes / begin.elapsed_time(end) / 1e6

    def store(self, name: str) -> Any:
        """A store of its own for what is measured."""
        from torch._C._distributed_c10d import FileStore

        return FileStore(str(self.directory / name), self.ranks)

    def bandwidth(self) -> float:
        """TB/s that are read and written, without a graph, whose copies are slower."""
        a = torch.zeros(1 << 30, dtype=torch.bfloat16, device=self.device)
        b, times = torch.empty_like(a), []
        for _ in range(REPLAYS):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            torch.neg(a, out=b)
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end))
        return 2 * a.nbytes / statistics.median(times) / 1e9

    def run(self) -> None:
        """All there is to find."""
        self.note("terabytes_per_second", self.bandwidth)
        self.note("nccl", self.nccl)
        for chunk in CHUNKS:
            self.note(f"peers, {chunk} words a program", lambda chunk=chunk: self.peers(chunk))
        for size in CHUNK_BYTES:
            self.note(f"two shots, {size >> 10} KiB a chunk", lambda size=size: self.two_shots(size))
        self.note("logits by nccl", lambda: self.logits(alone=True))
        self.note("logits", lambda: self.logits(alone=False))
        self.note("copies to the next GPU, GB/s", self.copy_engine)
        for operator in ("one_shot_all_reduce", "two_shot_all_reduce_"):
            self.note(f"symm_mem.{operator}", lambda operator=operator: self.symmetric(operator))


def main() -> None:
    """Start a process a GPU, or be one."""
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("out", type=Path)
    parser.add_argument("--ranks", type=int, default=torch.cuda.device_count())
    parser.add_argument("--rank", type=int)
    parser.add_argument("--directory", type=Path)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        Rank(arguments.directory, arguments.rank, arguments.ranks, arguments.out).run()
        sys.stdout.flush()
        os._exit(0)  # not to wait for graphs that hold collectives
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "benchmarks.gpu.ranks.collectives", str(arguments.out)]
        command += ["--ranks", str(arguments.ranks), "--directory", directory]
        ranks = [subprocess.Popen([*command, "--rank", str(rank)]) for rank in range(arguments.ranks)]
        sys.exit(max(rank.wait() for rank in ranks))


if __name__ == "__main__":
    main()
