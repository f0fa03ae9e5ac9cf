"""Collectives that write to the memory of others: in Triton's interpreter, by processes that share some."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from server.device import peer_memory
from server.device.peer_memory import PeerMemoryError

RANK = """
import hashlib
import sys

import torch

from server.device.peer_collectives import PeerCollectives, inbox_bytes, largest_bytes
from tests.interpreter import make_faster

make_faster()
path, rank, ranks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
size = inbox_bytes(ranks, largest_bytes(ranks))
memory = torch.from_file(path, shared=True, size=ranks * size, dtype=torch.uint8)
peers = PeerCollectives([memory.data_ptr() + i * size for i in range(ranks)], rank, torch.device("cpu"))
found_by_rank = hashlib.sha256()
for call, (rows, columns, dtype) in enumerate([
    (1, 8, torch.float32), (1, 1536, torch.bfloat16), (3, 700, torch.float16), (1, 2, torch.bfloat16),
    (5, 1024, torch.bfloat16), (1, 8, torch.bfloat16), (2, 514, torch.float32), (5, 1024, torch.bfloat16),
] * 2):
    torch.manual_seed(call)
    parts = torch.randn(ranks, rows, columns).to(dtype)
    own = parts[rank].clone()
    assert peers.takes(own)
    total = peers.reduce(own)
    expected = sum(part.float() for part in parts).to(dtype)
    assert total is own
    # the interpreter cuts off what the GPU rounds
    torch.testing.assert_close(total, expected, rtol=2**-7 if dtype == torch.bfloat16 else 0, atol=0)
    found_by_rank.update(total.view(torch.uint8).numpy().tobytes())
    for cut in (0, 2):
        out = torch.full((rows, ranks * columns - cut), torch.nan, dtype=dtype)
        found = peers.gather(parts[rank].contiguous(), out)
        assert found is out and torch.equal(found, torch.cat(tuple(parts), 1)[:, : out.shape[1]]), call
for other in (torch.zeros(1, 3, dtype=torch.bfloat16), torch.zeros(2, 2, dtype=torch.int64),
              torch.zeros(4, 4).t()[:2], torch.zeros(0, 4), torch.zeros(1 << 20 | 4)):
    assert not peers.takes(other)
print(found_by_rank.hexdigest())
"""


LARGE = """
import hashlib
import sys

import torch

from server.device.two_shot_sums import TwoShotSums, inbox_bytes
from tests.interpreter import make_faster

make_faster()
path, rank, ranks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
largest, chunk_bytes = 4096, 64
size = inbox_bytes(ranks, largest, chunk_bytes)
memory = torch.from_file(path, shared=True, size=ranks * size, dtype=torch.uint8)
boxes, cpu = [memory.data_ptr() + i * size for i in range(ranks)], torch.device("cpu")
sums = TwoShotSums(boxes, rank, cpu, torch.zeros(1, dtype=torch.int32), largest, chunk_bytes, programs=3)
found_by_rank = hashlib.sha256()
for call, (rows, columns, dtype) in enumerate([
    (1, 1, torch.float32), (7, 33, torch.bfloat16), (3, 700, torch.float16), (9, 250, torch.float32),
    (2, 16, torch.bfloat16), (20, 150, torch.bfloat16),
] * 2):
    torch.manual_seed(call)
    parts = torch.randn(ranks, rows, columns).to(dtype)
    own = parts[rank].clone()
    assert sums.takes(own)
    total = sums.reduce(own)
    expected = sum(part.float() for part in parts).to(dtype)
    assert total is own
    # the interpreter cuts off what the GPU rounds
    torch.testing.assert_close(total, expected, rtol=2**-7 if dtype == torch.bfloat16 else 0, atol=0)
    found_by_rank.update(total.view(torch.uint8).numpy().tobytes())
for other in (torch.zeros(2, 2, dtype=torch.int64), torch.zeros(4, 4).t()[:2], torch.zeros(0, 4)):
    assert not sums.takes(other)
print(found_by_rank.hexdigest())
"""


@pytest.mark.parametrize("collectives", [RANK, LARGE], ids=["whole", "in-two-shots"])
@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_sums_and_parts(tmp_path: Path, ranks: int, collectives: str) -> None:
    """Calls of many sizes in turn, so that places are used again, by ranks that are not in step."""
    command = [sys.executable, "-c", collectives, str(tmp_path / "memory")]
    processes = [
        subprocess.Popen([*command, str(rank), str(ranks)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for rank in range(ranks)
    ]
    try:
        sums = set()
        for process in processes:
            out, error = process.communicate(timeout=120)
            assert process.returncode == 0, error.decode()[-3000:]
            sums.add(out)
        assert len(sums) == 1, "the same to the bit on all of them"
    finally:
        for process in processes:
            process.kill()


def test_memory_is_shared_by_all_or_by_none() -> None:
    """A rank that cannot says why to all of them."""

    def exchange(own: bytes) -> list[bytes]:
        return [b"+" + bytes(64), b"-cuMemAlloc_v2 of the CUDA driver failed with status 2"]

    with (
        mock.patch.object(peer_memory, "_allocate", return_value=(4096, bytes(64))),
        pytest.raises(PeerMemoryError, match=r"^rank 1: cuMemAlloc_v2 .* status 2$"),
    ):
        peer_memory.share(torch.device("cuda"), 1, exchange)


def test_without_a_driver() -> None:
    with (
        mock.patch.object(torch.cuda, "synchronize"),
        mock.patch.object(peer_memory.ctypes, "CDLL", side_effect=OSError("no libcuda.so.1")),
        pytest.raises(PeerMemoryError, match=r"^rank 0: no libcuda\.so\.1$"),
    ):
        peer_memory.share(torch.device("cuda"), 1, lambda own: [own])
