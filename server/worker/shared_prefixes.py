"""Which decodes of a step begin with the same cache blocks: beams of a prompt, drafted tokens of a sequence,
and sequences whose beginning the prefix cache knows.

They are looked for in a copy of the block tables on the CPU, among decodes that follow each other.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from server.ops.attention import AttentionBackend
from server.ops.paged_attention import PagedAttention
from server.scheduling.limits import Limits
from server.scheduling.step import StepInput

LEAST_TOKENS = 128
"""Of a prefix: less is not worth the piece more that each of its decodes is then merged from."""


class PrefixFinder:
    """Keeps the block tables of one group of layers, and finds what their rows begin with.

    Args:
        group: which one.
        rows: of the tables.
        max_blocks: blocks of the longest sequence.
        block_size: tokens a block.
        most: decodes that may share a prefix.
    """

    def __init__(self, group: int, rows: int, max_blocks: int, block_size: int, most: int) -> None:
        self.group = group
        self._tables = np.zeros((rows, max_blocks), np.int32)
        self._block_size = block_size
        self._most = most
        self._least = -(-LEAST_TOKENS // block_size)

    def follow(self, step: StepInput) -> None:
        """Note what the step changes in the tables."""
        slots, places, blocks = step.table_slots, step.table_places, step.table_blocks
        if len(slots):
            own = step.table_groups == self.group
            self._tables[slots[own], places[own]] = blocks[own]

    def find(self, slots: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """int32 [2, decodes]: `tokens` and `sharers` of `SharedPrefixes`.

        Args:
            slots: [decodes], rows of the tables.
            positions: [decodes], of their new tokens.
        """
        found = np.zeros((2, len(slots)), np.int32)
        found[1] = 1
        common = self._common(slots, positions)
        leader, blocks = 0, 0
        for after, shared in enumerate(common, 1):
            begins = leader == after - 1
            # what is much less, or much more, is for others to share
            alike = begins or blocks <= 2 * shared <= 4 * blocks
            if shared < self._least or not alike or after - leader == self._most:
                leader = after
                continue
            blocks = shared if begins else min(blocks, shared)
            found[0, leader : after + 1] = blocks * self._block_size
            found[1, leader], found[1, after] = after - leader + 1, leader - after
        return found

    def _common(self, slots: np.ndarray, positions: np.ndarray) -> list[int]:
        """[decodes - 1]: blocks that each begins with as the next one does, before the new token of both; 0
        where there are too few. Empty if there are for all."""
        full = positions // self._block_size
        least, both = self._least, np.minimum(full[1:], full[:-1])
        if not len(both) or least > self._tables.shape[1]:
            return []
        last = self._tables[slots, least - 1]
        near = (last[1:] == last[:-1]) & (both >= least)
        if not near.any():
            return []
        rows = self._tables[slots, : int(both[near].max())]
        differ = rows[1:] != rows[:-1]
        equal = np.where(differ.any(1), differ.argmax(1), rows.shape[1])
        common: list[int] = np.where(near, np.minimum(equal, both), 0).tolist()
        return common


def prefix_finder(attention: AttentionBackend[Any], limits: Limits, max_blocks: int) -> PrefixFinder | None:
    """Of the first group of layers without a window; None where attention reads each context alone."""
    for index, (size, backend) in enumerate(zip(limits.groups, attention.groups, strict=True)):
        if size.window is None and isinstance(backend, PagedAttention) and backend.most_sharers > 1:
            return PrefixFinder(
                index, limits.max_rows + 1, max_blocks, limits.block_size, backend.most_sharers
            )
    return None
