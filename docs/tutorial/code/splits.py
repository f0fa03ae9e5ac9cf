"""Chapter 7: attention over blocks, in pieces that are merged, and what the pieces are good for.

.venv/bin/python -m docs.tutorial.code.splits
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from docs.tutorial.code.common import table

PROCESSORS = 132  # of an H100


def piece(query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of one query to a piece of its context: (greatest score, sum, weighted values)."""
    scores = keys @ query / len(query) ** 0.5
    top = scores.max()
    weights = torch.exp(scores - top)
    return top, weights.sum(), weights @ values


def merge(pieces: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The whole from its pieces, however they were cut."""
    tops, sums, parts = (torch.stack(each) for each in zip(*pieces, strict=True))
    share = torch.exp(tops - tops.max())
    return (share[:, None] * parts).sum(0) / (share * sums).sum()


def paged(query: Tensor, cache: Tensor, blocks: Sequence[int], length: int) -> Tensor:
    """The same over blocks that lie anywhere in `cache` [2, blocks, block_size, dim]."""
    size = cache.shape[2]
    ends = [min(size, length - start) for start in range(0, length, size)]
    read = [(cache[0, at, :end], cache[1, at, :end]) for at, end in zip(blocks, ends, strict=True)]
    return merge([piece(query, keys, values) for keys, values in read])


def makespan(programs: Sequence[float]) -> float:
    """Until the last program ends, if each begins in order on the first processor that is free."""
    free = [0.0] * PROCESSORS
    for work in programs:
        heapq.heappush(free, heapq.heappop(free) + work)
    return max(free)


def split(lengths: Sequence[int], programs: int, heads: int = 8) -> list[float]:
    """Tokens that each program reads: pieces of a context that are alike, about `programs` in all."""
    longest = max(64, -(-sum(lengths) * heads // programs))
    counts = [-(-length // longest) for length in lengths]
    return [length / n for length, n in zip(lengths, counts, strict=True) for _ in range(n * heads)]


def main(argv: list[str] | None = None) -> None:
    dice, noise = random.Random(0), torch.Generator().manual_seed(0)
    cache, query = torch.randn(2, 64, 16, 64, generator=noise), torch.randn(64, generator=noise)
    blocks = dice.sample(range(64), 20)
    keys, values = cache[:, blocks].flatten(1, 2)[:, :313]
    whole = torch.softmax(keys @ query / 8, 0) @ values
    off = (paged(query, cache, blocks, 313) - whole).abs().max()
    print("20 blocks merged, off by less than 1e-6:", bool(off < 1e-6))
    rows = []
    for name, lengths in (
        ("1 context of 8,192", [8192]),
        ("64 contexts of 1,024", [1024] * 64),
        ("64, from 64 to 8,192", [int(64 * 128 ** dice.random()) for _ in range(64)]),
    ):
        ideal = sum(lengths) * 8 / PROCESSORS
        pieces = split(lengths, 1024)
        ways = split(lengths, 1), pieces, sorted(pieces, reverse=True)
        rows.append([name, *(f"{ideal / makespan(programs):.0%}" for programs in ways)])
    table(["share of time that processors work", "whole", "split", "longest first"], rows)


if __name__ == "__main__":
    main()
