"""The blocks that a sequence holds in one group of layers."""

from __future__ import annotations

from collections.abc import Iterator

NO_BLOCK = -1
"""In place of a block that is not held. No worker ever hears of it: where a table has none, what the worker
keeps there is some block of the pool, which no kernel reads."""


class BlockTable:
    """Blocks by their place in the sequence.

    Attributes:
        blocks: of the device pool, or of the host pool while the request is swapped out; `NO_BLOCK` where
            none is held, because no token sees it any more, or because its tokens are still to be computed.
        first: places before it hold none and never will.
        mirrored: places before it are known to the worker.
    """

    __slots__ = ("blocks", "first", "mirrored")

    def __init__(self) -> None:
        self.blocks: list[int] = []
        self.first = 0
        self.mirrored = 0

    def at(self, place: int) -> int:
        """The block at `place`, which may be behind the last one."""
        return self.blocks[place] if place < len(self.blocks) else NO_BLOCK

    def held(self) -> Iterator[int]:
        """The blocks that are held, in order."""
        return (block for block in self.blocks[self.first :] if block != NO_BLOCK)

    def held_in(self, start: int, end: int) -> list[int]:
        """The blocks that are held at places `start` to `end` (exclusive)."""
        return [block for block in self.blocks[start:end] if block != NO_BLOCK]
