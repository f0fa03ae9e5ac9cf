"""Typical sampling depends on nothing but a line's own scores."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from server.sampling.stages.typical import sum_rows

VOCAB = 49_152  # as many numbers as torch shares out among its threads


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_a_row_has_the_same_sum_alone_and_among_others() -> None:
    logs = torch.randn(24, VOCAB, generator=torch.Generator().manual_seed(0)).mul(3).log_softmax(dim=-1)
    values = logs * logs.exp()
    values[:, 5] = torch.nan
    together = sum_rows(values)
    rows = [values[index : index + 1] for index in range(len(values))]
    alone = torch.cat([sum_rows(row) for row in rows])
    assert torch.equal(alone, together)
    assert not torch.equal(torch.cat([row.nansum(dim=-1, keepdim=True) for row in rows]), together), (
        "torch adds a single row in the same order as several: the test shows nothing"
    )
    torch.set_num_threads(1)
    assert torch.equal(sum_rows(values), together)
