"""The blocks of one group of layers: which of them a sequence still sees, shares, or has to copy.

`CacheManager` asks all groups, so that a sequence has room in each of them or in none. A group of another
kind (a recurrent state, of which the newest snapshot is all that later tokens see) gives another answer in
`first_seen` and another copy in `grow`; sharing, swapping, prefix reuse and the books do not change.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from collections.abc import Sequence as Seq

from server.scheduling.block_pool import BlockPair, BlockPool
from server.scheduling.block_table import NO_BLOCK, BlockTable
from server.scheduling.limits import GroupSize

Place = tuple[BlockTable, int]
"""A place in the table of a sequence, which holds a block there or is going to."""

Sources = dict[int, int | Place]
"""By place of a new sequence: the block of the pool that it shares, or the place in the table of an earlier
sequence of its request."""


class CacheGroup:
    """Pools of device and host for one group of layers, and what is done to tables of it.

    Methods with a `pool` take the one that the sequence's blocks are in.

    Args:
        size: how many blocks there are, and the window.
        block_size: tokens a block.
    """

    def __init__(self, size: GroupSize, block_size: int) -> None:
        self.size = size
        self.device = BlockPool(size.num_blocks)
        self.host = BlockPool(size.num_host_blocks)
        self._block_size = block_size

    @property
    def slides(self) -> bool:
        """Whether sequences give back blocks that they no longer see."""
        return self.size.window is not None

    def first_seen(self, position: int) -> int:
        """Place of the first block that tokens from `position` on see."""
        return self.size.first_seen(position, self._block_size)

    # -- reuse -----------------------------------------------------------------------------

    def longest_match(self, contents: Seq[bytes], known: Seq[Container[bytes]], most: int) -> int:
        """The most of the first `most` blocks of a sequence behind which nothing is to be computed again.

        Args:
            contents: hashes of the sequence's blocks.
            known: what is there, by hash, in several parts.
        """

        def is_known(place: int) -> bool:
            return any(contents[place] in part for part in known)

        if not self.slides:
            return next((place for place in range(most) if not is_known(place)), most)
        while most:
            seen = range(self.first_seen(most * self._block_size), most)
            missing = next((place for place in reversed(seen) if not is_known(place)), None)
            if missing is None:
                return most
            most = missing  # every end behind it sees it, too
        return 0

    def sources(self, contents: Seq[bytes], own: Mapping[bytes, Place]) -> Sources:
        """Where a new sequence finds the blocks of `contents` that later tokens see.

        What is at no place of `own`, by its hash, is in the pool.
        """
        found: Sources = {}
        for place in range(self.first_seen(len(contents) * self._block_size), len(contents)):
            source = own.get(contents[place]) or self.device.lookup(contents[place])
            assert source is not None
            found[place] = source
        return found

    def share_known(self, table: BlockTable, length: int, sources: Sources) -> None:
        """Let an empty `table`, of which the first `length` blocks need not be computed, hold those of the
        pool; nothing is allocated, so that nothing which another sequence is to share is lost."""
        table.first = self.first_seen(length * self._block_size)
        table.blocks = [NO_BLOCK] * length
        for place, source in sources.items():
            if isinstance(source, int):
                self.device.share(source)
                table.blocks[place] = source

    def share_own(self, table: BlockTable, sources: Sources) -> None:
        """Let `table` hold the blocks of earlier sequences of its request, which get those that they still
        lack."""
        for place, source in sources.items():
            if not isinstance(source, int):
                other, at = source
                self.hold(other, at, at + 1)
                self.device.share(other.blocks[at])
                table.blocks[place] = other.blocks[at]

    # -- room ------------------------------------------------------------------------------

    def blocks_to_open(self, length: int, sources: Sources, tokens: int) -> int:
        """How many available blocks a new sequence takes before it decodes; in a group that slides, the most
        that it takes at once.

        Until it reaches its last block it gives back no more than it takes. So the most is what it holds
        then, without what others hold anyway. What it shared before and has left behind by then does not
        count: its later blocks are its own.

        Args:
            length: blocks that need not be computed.
            sources: those of them that it shares.
            tokens: what is computed before it decodes.
        """
        blocks = -(-tokens // self._block_size)
        first = self.first_seen(max(blocks - 1, length) * self._block_size)
        in_use = 0
        for place, source in sources.items():
            if isinstance(source, int):
                in_use += place >= first and not self.device.is_cached(source)
            else:  # an earlier sequence has it, but where blocks are given back it is held only for this one
                in_use += not self.slides
        return blocks - first - in_use

    def room(self, table: BlockTable, start: int, tokens: int) -> int:
        """For how many of `tokens` tokens from position `start` on there are blocks, held or available."""
        size, blocks = self._block_size, table.blocks
        end, left = -(-(start + tokens) // size), self.device.num_available
        if not self.slides and len(blocks) >= end:
            return tokens
        for place in range(start // size, end):
            if place >= len(blocks) or blocks[place] == NO_BLOCK:
                if not left:
                    return max(place * size - start, 0)
                left -= 1
        return tokens

    def hold(self, table: BlockTable, first: int, end: int) -> None:
        """Let `table` hold a block at each place from `first` to `end` (exclusive)."""
        blocks, allocate, length = table.blocks, self.device.allocate, len(table.blocks)
        for place in range(first, min(end, length)):
            if blocks[place] == NO_BLOCK:
                blocks[place] = allocate()
                table.mirrored = min(table.mirrored, place)
        if length < end:
            blocks.extend([NO_BLOCK] * (end - length))
            fresh = max(first, length)
            table.mirrored = min(table.mirrored, fresh)
            for place in range(fresh, end):
                blocks[place] = allocate()

    def blocks_to_grow(self, tables: Iterable[tuple[BlockTable, int]], pool: BlockPool) -> int:
        """How many available blocks `grow` takes for (table, place) of each sequence of a request."""
        need = 0
        shared: dict[int, int] = {}
        for table, place in tables:
            if place == len(table.blocks):
                need += 1
                continue
            block = table.blocks[place]
            references = pool.references[block]
            if references > 1 and shared.setdefault(block, references - 1) > 0:
                shared[block] -= 1  # the last owner keeps the block
                need += 1
        return need

    def owns(self, table: BlockTable, place: int) -> bool:
        """Whether `table` holds a block at `place` that no other sequence does."""
        blocks = table.blocks
        return place < len(blocks) and self.device.references[blocks[place]] == 1

    def grow(self, table: BlockTable, place: int) -> BlockPair | None:
        """Let `table`, which owns none at `place`, its end, hold a block there; returns the copy to make, if
        any."""
        pool, blocks = self.device, table.blocks
        if place == len(blocks):
            blocks.append(pool.allocate())
            return None
        block = blocks[place]
        copy = pool.allocate()
        pool.release(block)
        blocks[place] = copy
        table.mirrored = min(table.mirrored, place)
        return block, copy

    def slide(self, table: BlockTable, position: int) -> None:
        """Give back the blocks that tokens from `position` on do not see; they can be found as long as they
        are not taken for something else."""
        first = min(self.first_seen(position), len(table.blocks))
        for place in range(table.first, first):
            if table.blocks[place] != NO_BLOCK:
                self.device.release(table.blocks[place])
                table.blocks[place] = NO_BLOCK
        table.first = max(table.first, first)

    def shrink(self, table: BlockTable, places: int) -> None:
        """Give back the blocks behind the first `places`."""
        while len(table.blocks) > places:
            block = table.blocks.pop()
            if block != NO_BLOCK:
                self.device.release(block)
        table.mirrored = min(table.mirrored, places)

    def share(self, parent: BlockTable, child: BlockTable) -> None:
        """Let `child`, of the same request, hold the blocks of `parent` instead of its own."""
        theirs, own = parent.blocks, child.blocks
        common = min(len(theirs), len(own))
        while common and theirs[common - 1] != own[common - 1]:
            common -= 1  # two that have a block in common have all before it in common
        for block in theirs[common:]:
            if block != NO_BLOCK:
                self.device.share(block)
        for block in reversed(own[common:]):
            if block != NO_BLOCK:
                self.device.release(block)
        own[common:] = theirs[common:]
        child.first = parent.first  # of one length, they see the same
        child.mirrored = min(child.mirrored, common)

    # -- swapping --------------------------------------------------------------------------

    def present(self, tables: Iterable[tuple[BlockTable, Seq[bytes]]]) -> dict[int, int]:
        """Which blocks of swapped-out (table, hashes) have a twin on the device, and which that is."""
        twins: dict[int, int] = {}
        for table, contents in tables:
            for block, content in zip(table.blocks, contents, strict=False):
                twin = self.device.lookup(content)
                if twin is not None and block != NO_BLOCK:
                    twins[block] = twin
        return twins

    def move(
        self, tables: Iterable[BlockTable], source: BlockPool, target: BlockPool, present: dict[int, int]
    ) -> list[BlockPair]:
        """Re-home the blocks of a request; sharing between its tables is kept.

        Args:
            present: source blocks whose content the target has already, and where.

        Returns:
            (source, target) of the copies to make.
        """
        pairs: list[BlockPair] = []
        source_blocks: list[int] = []
        moved = {NO_BLOCK: NO_BLOCK}
        for block in present.values():  # hold them: allocating below must not evict them
            target.share(block)
        for table in tables:
            for place, block in enumerate(table.blocks):
                new = moved.get(block, present.get(block))
                if new is None:
                    new = target.allocate()
                    pairs.append((block, new))
                elif new != NO_BLOCK:
                    target.share(new)
                moved[block] = table.blocks[place] = new
                source_blocks.append(block)
            table.mirrored = 0
        for block in reversed(source_blocks):  # the end of a prefix is evicted before its start
            if block != NO_BLOCK:
                source.release(block)
        for block in present.values():
            target.release(block)
        return pairs
