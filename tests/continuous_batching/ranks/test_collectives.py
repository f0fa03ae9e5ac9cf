"""What ranks compute together, over gloo."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from server.device.collectives import Group

RANKS = 3
CPU = torch.device("cpu")


@pytest.mark.parametrize("rows", [0, 1, 4])
@pytest.mark.parametrize("columns", [None, 15, 13])
def test_parts_are_put_side_by_side(tmp_path: Path, rows: int, columns: int | None) -> None:
    """In new memory, in a given place, and in one that the last part does not fill."""
    parts = torch.randn(RANKS, rows, 5)

    def gather(rank: int) -> Tensor:
        out = None if columns is None else torch.full((rows, columns), torch.nan)
        found = Group(tmp_path, rank, RANKS, CPU).gather(parts[rank], out)
        assert out is None or found is out
        return found

    with ThreadPoolExecutor(RANKS) as pool:
        for found in pool.map(gather, range(RANKS)):
            assert torch.equal(found, torch.cat(tuple(parts), 1)[:, :columns])


def test_sums_and_smallest_numbers(tmp_path: Path) -> None:
    parts = torch.randn(RANKS, 2, 7)

    def join(rank: int) -> tuple[Tensor, list[int]]:
        group = Group(tmp_path, rank, RANKS, CPU)
        return group.reduce(parts[rank].t()), group.smallest([rank, 7 - rank])

    with ThreadPoolExecutor(RANKS) as pool:
        found = list(pool.map(join, range(RANKS)))
    for total, smallest in found:
        assert torch.equal(total, found[0][0]) and smallest == [0, 7 - RANKS + 1]
        torch.testing.assert_close(total, parts.sum(0).t())
