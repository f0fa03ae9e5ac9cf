"""Reference-counted cache blocks with reuse by content.

A block is in exactly one of three states: *used* (referenced by at least one sequence), *cached*
(referenced by none, its content still known by hash and reusable, oldest evicted first) or *free*.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Container, Iterable

BlockPair = tuple[int, int]
"""(source block, destination block) of a copy."""

BlockMove = tuple[int, int, int]
"""(group of layers, source block, destination block) of a copy."""


class OutOfBlocksError(Exception):
    """No block is free and none can be evicted; callers check `num_available` beforehand."""


class CacheIntegrityError(Exception):
    """The pool's books do not add up."""


class BlockPool:
    """The blocks of one memory; knows counts and hashes, not contents.

    Args:
        num_blocks: how many blocks there are; ids are 0 to ``num_blocks - 1``.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.references = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can give: free ones and cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_available

    @property
    def usage(self) -> float:
        """Share of the blocks that are in use, 0 to 1."""
        return self.num_used / self.num_blocks if self.num_blocks else 0.0

    def allocate(self) -> int:
        """A block with one reference and no content.

        Raises:
            OutOfBlocksError: every block is in use.
        """
        if self._free:
            block = self._free.pop()
        elif self._cached:
            block, _ = self._cached.popitem(last=False)
            self.forget(block)
        else:
            raise OutOfBlocksError(f"all {self.num_blocks} blocks are in use")
        self.references[block] = 1
        return block

    def share(self, block: int) -> None:
        """Add a reference; revives a cached block."""
        if self.references[block] == 0:
            del self._cached[block]
        self.references[block] += 1

    def release(self, block: int) -> None:
        """Drop a reference; the last one leaves the block cached if its content is known."""
        self.references[block] -= 1
        if self.references[block] == 0:
            if block in self._hash_of:
                self._cached[block] = None
            else:
                self._free.append(block)

    def register(self, block: int, content: bytes) -> None:
        """Make `block` findable by the hash of what it holds; the first of equals wins."""
        if content not in self._block_of and block not in self._hash_of:
            self._block_of[content] = block
            self._hash_of[block] = content

    def lookup(self, content: bytes) -> int | None:
        """The block with that content, or None; changes nothing."""
        return self._block_of.get(content)

    @property
    def contents(self) -> Container[bytes]:
        """The hashes by which a block can be found."""
        return self._block_of.keys()

    def is_cached(self, block: int) -> bool:
        """Whether `block` is unreferenced and would be taken from the available ones by `share`."""
        return self.references[block] == 0

    def forget(self, block: int) -> None:
        """Drop what is known of the content of `block`."""
        content = self._hash_of.pop(block, None)
        if content is not None:
            del self._block_of[content]
            if block in self._cached:
                del self._cached[block]
                self._free.append(block)

    def check(self, owners: Iterable[Iterable[int]]) -> None:
        """Verify free + cached + used = total and every count against `owners`' block lists.

        Raises:
            CacheIntegrityError: says what does not match.
        """
        counted = Counter(block for blocks in owners for block in blocks)
        wrong = [b for b in range(self.num_blocks) if self.references[b] != counted.get(b, 0)]
        if wrong:
            block = wrong[0]
            raise CacheIntegrityError(
                f"block {block} has {self.references[block]} references but {counted.get(block, 0)} owners"
            )
        idle = [*self._free, *self._cached]
        if len(set(idle)) != len(idle) or any(self.references[b] for b in idle):
            raise CacheIntegrityError("a block is free twice, or free and in use")
        used = sum(1 for count in self.references if count)
        if len(idle) + used != self.num_blocks:
            raise CacheIntegrityError(
                f"{len(self._free)} free + {len(self._cached)} cached + {used} used != {self.num_blocks}"
            )
        if {b: h for h, b in self._block_of.items()} != self._hash_of:
            raise CacheIntegrityError("the hash index and the blocks disagree")
        if any(block not in self._hash_of for block in self._cached):
            raise CacheIntegrityError("a cached block has no hash")
