"""Which blocks a sequence holds: allocation, sharing, copy-on-write, prefix reuse and swapping.

The manager decides; `cache.storage` moves the bytes. Methods that need room come with a question
(`can_…`, `blocks_to_…`) that changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from server.continuous_batching.cache.block_pool import BlockPool
from server.continuous_batching.cache.hashing import ROOT, block_hash
from server.continuous_batching.scheduler.request import Phase, Request, Sequence

BlockPair = tuple[int, int]
"""(source block, destination block) of a copy."""


@dataclass(slots=True)
class CacheCounters:
    """What happened since the start."""

    prefix_queries: int = 0
    """Prompt tokens looked up in the prefix cache."""
    prefix_hits: int = 0
    """Prompt tokens found there."""
    copies_on_write: int = 0
    swapped_out_blocks: int = 0
    swapped_in_blocks: int = 0


class CacheManager:
    """Blocks of the device pool, and of the host pool for swapped-out requests.

    Args:
        num_blocks: size of the device pool.
        num_host_blocks: size of the swap pool (0: no swapping).
        block_size: tokens a block.
        prefix_cache: reuse blocks of equal content across requests.
    """

    def __init__(
        self, num_blocks: int, num_host_blocks: int, block_size: int, *, prefix_cache: bool = True
    ) -> None:
        self.block_size = block_size
        self.device = BlockPool(num_blocks)
        self.host = BlockPool(num_host_blocks)
        self.prefix_cache = prefix_cache
        self.counters = CacheCounters()

    def _pool_of(self, request: Request) -> BlockPool:
        return self.host if request.phase is Phase.SWAPPED else self.device

    # -- prompts ---------------------------------------------------------------------------

    def blocks_to_admit(self, request: Request) -> int:
        """How many available blocks `admit` would take."""
        need = 0
        seen: set[bytes] = set()
        for sequence in request.sequences:
            self._hash_full_blocks(sequence, len(sequence.history) - 1)
            total = self._count(sequence.prefill_end)
            reused = 0
            for content in sequence.hashes:
                if content in seen:
                    reused += 1
                    continue
                block = self.device.lookup(content) if self.prefix_cache else None
                if block is None:
                    break
                reused += not self.device.is_cached(block)
            seen.update(sequence.hashes)
            need += total - reused
        return need

    def admit(self, request: Request) -> None:
        """Give every sequence the blocks for its `prefill_end` tokens, reusing what is known.

        Sequences of one request share the blocks of their common beginning: the first computes
        them, the others start behind.
        """
        own: dict[bytes, int] = {}
        for sequence in request.sequences:
            self._hash_full_blocks(sequence, len(sequence.history) - 1)
            reused: list[int] = []
            for content in sequence.hashes:
                block = own.get(content)
                if block is None and self.prefix_cache:
                    block = self.device.lookup(content)
                if block is None:
                    break
                self.device.share(block)
                reused.append(block)
            fresh = [self.device.allocate() for _ in range(self._count(sequence.prefill_end) - len(reused))]
            sequence.blocks = reused + fresh
            sequence.num_computed = len(reused) * self.block_size
            sequence.mirrored = 0
            sequence.committed = len(reused)
            own.update(zip(sequence.hashes, sequence.blocks, strict=False))
            self.counters.prefix_queries += sequence.prefill_end
            self.counters.prefix_hits += sequence.num_computed

    def _count(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def _hash_full_blocks(self, sequence: Sequence, tokens: int) -> None:
        """Extend `sequence.hashes` to the blocks that the first `tokens` tokens fill."""
        size, hashes = self.block_size, sequence.hashes
        for index in range(len(hashes), tokens // size):
            parent = hashes[-1] if hashes else ROOT
            hashes.append(block_hash(parent, sequence.history.slice(index * size, (index + 1) * size)))

    def commit(self, sequence: Sequence, tokens: int) -> None:
        """Make the blocks that the first `tokens` tokens fill findable; their content is, or will
        be within this step, in the cache."""
        full = tokens // self.block_size
        if not self.prefix_cache or full <= sequence.committed:
            return
        self._hash_full_blocks(sequence, tokens)
        for index in range(sequence.committed, full):
            self.device.register(sequence.blocks[index], sequence.hashes[index])
        sequence.committed = full

    # -- decoding --------------------------------------------------------------------------

    def blocks_to_grow(self, sequences: Iterable[Sequence]) -> int:
        """How many available blocks `grow` would take for one more token of each."""
        size = self.block_size
        need = 0
        shared: dict[int, int] = {}
        for sequence in sequences:
            index = sequence.num_computed // size
            if index == len(sequence.blocks):
                need += 1
                continue
            block = sequence.blocks[index]
            references = self._pool_of(sequence.request).references[block]
            if references > 1 and shared.setdefault(block, references - 1) > 0:
                shared[block] -= 1  # the last owner keeps the block
                need += 1
        return need

    def grow(self, sequence: Sequence) -> BlockPair | None:
        """Room for one more token; returns the copy to make if the last block was shared."""
        index = sequence.num_computed // self.block_size
        if index == len(sequence.blocks):
            sequence.blocks.append(self.device.allocate())
            return None
        block = sequence.blocks[index]
        if self.device.references[block] == 1:
            return None
        copy = self.device.allocate()
        self.device.release(block)
        sequence.blocks[index] = copy
        sequence.mirrored = min(sequence.mirrored, index)
        self.counters.copies_on_write += 1
        return block, copy

    def extend(self, sequence: Sequence, tokens: int) -> int:
        """Room for `tokens` more tokens of a sequence that has room for one, as far as blocks are left.

        Returns:
            For how many there is room now, at most `tokens`.
        """
        wanted = self._count(sequence.num_computed + tokens)
        while len(sequence.blocks) < wanted and self.device.num_available:
            sequence.blocks.append(self.device.allocate())
        return min(tokens, len(sequence.blocks) * self.block_size - sequence.num_computed)

    def shrink(self, sequence: Sequence, tokens: int) -> None:
        """Give back the blocks behind those of the first `tokens` tokens."""
        kept = self._count(tokens)
        while len(sequence.blocks) > kept:
            self.device.release(sequence.blocks.pop())
        sequence.mirrored = min(sequence.mirrored, kept)

    def share(self, parent: Sequence, child: Sequence) -> None:
        """Let `child`, of the same request, hold the blocks of `parent` instead of its own."""
        common = min(len(parent.blocks), len(child.blocks))
        while common and parent.blocks[common - 1] != child.blocks[common - 1]:
            common -= 1  # two that have a block in common have all before it in common
        for block in parent.blocks[common:]:
            self.device.share(block)
        for block in reversed(child.blocks[common:]):
            self.device.release(block)
        child.blocks[common:] = parent.blocks[common:]
        child.committed = parent.committed
        child.mirrored = min(child.mirrored, common)

    def free(self, sequence: Sequence) -> None:
        """Give back all blocks of `sequence`, in whichever pool they are."""
        pool = self._pool_of(sequence.request)
        for block in reversed(sequence.blocks):  # the end of a prefix is evicted before its start
            pool.release(block)
        sequence.blocks = []
        sequence.committed = sequence.mirrored = 0

    def forget(self, sequence: Sequence, first: int) -> None:
        """What the blocks of `sequence` hold from index `first` on is not sound: nobody may find it."""
        for block in sequence.blocks[first:]:
            self.device.forget(block)

    # -- swapping --------------------------------------------------------------------------

    def blocks_held(self, request: Request) -> int:
        """Distinct blocks of a request."""
        return len({block for sequence in request.sequences for block in sequence.blocks})

    def can_swap_out(self, request: Request) -> bool:
        return self.blocks_held(request) <= self.host.num_available

    def swap_out(self, request: Request) -> list[BlockPair]:
        """Move a request's blocks to the host pool; sharing between its sequences is kept."""
        pairs = self._move(request, self.device, self.host, {})
        self.counters.swapped_out_blocks += len(pairs)
        return pairs

    def swap_in(self, request: Request) -> list[BlockPair]:
        """Move a request's blocks back; content still known on the device is not copied."""
        present: dict[int, int] = {}
        if self.prefix_cache:
            for sequence in request.sequences:
                for host_block, content in zip(sequence.blocks, sequence.hashes, strict=False):
                    block = self.device.lookup(content)
                    if block is not None:
                        present[host_block] = block
        pairs = self._move(request, self.host, self.device, present)
        self.counters.swapped_in_blocks += len(pairs)
        return pairs

    def _move(
        self, request: Request, source: BlockPool, target: BlockPool, present: dict[int, int]
    ) -> list[BlockPair]:
        """Re-home all blocks; `present` maps source blocks whose content the target has already."""
        pairs: list[BlockPair] = []
        moved: dict[int, int] = {}
        for block in present.values():  # hold them: allocating below must not evict them
            target.share(block)
        for sequence in request.sequences:
            blocks: list[int] = []
            for block in sequence.blocks:
                new = moved.get(block, present.get(block))
                if new is None:
                    new = target.allocate()
                    pairs.append((block, new))
                else:
                    target.share(new)
                moved[block] = new
                blocks.append(new)
            for block in reversed(sequence.blocks):
                source.release(block)
            sequence.blocks = blocks
            sequence.committed = sequence.mirrored = 0
        for block in present.values():
            target.release(block)
        return pairs

    # -- health ----------------------------------------------------------------------------

    def check(self, requests: Iterable[Request]) -> None:
        """Verify both pools against the sequences that hold blocks.

        Raises:
            CacheIntegrityError: something leaked or is owned twice.
        """
        live = list(requests)
        host = [r for r in live if r.phase is Phase.SWAPPED]
        device = [r for r in live if r.phase is not Phase.SWAPPED]
        self.device.check(s.blocks for r in device for s in r.sequences)
        self.host.check(s.blocks for r in host for s in r.sequences)
