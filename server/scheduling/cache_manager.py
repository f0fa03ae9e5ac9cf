"""Which blocks a sequence holds: allocation, sharing, copy-on-write, prefix reuse and swapping.

A sequence holds blocks in every group of layers (`cache_group`), and has room in all of them or in none. The
manager decides; `worker.cache_storage` moves the bytes. Methods that need room come with a question (`can_…`,
`blocks_to_…`) that changes nothing; where there is no room after all, they raise and change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from server.scheduling.block_pool import BlockMove, CacheIntegrityError, OutOfBlocksError
from server.scheduling.block_table import BlockTable
from server.scheduling.cache_group import CacheGroup
from server.scheduling.limits import GroupSize
from server.scheduling.prefix_match import PrefixMatcher
from server.scheduling.request import Phase, Request, Sequence


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
    """Blocks of the device pools, and of the host pools for swapped-out requests.

    Args:
        sizes: blocks of each group of layers.
        block_size: tokens a block.
        prefix_cache: reuse blocks of equal content across requests.
        separates_decoded: decoded tokens hash differently from those of a prompt: blocks that hold any are
            reused only where a request decoded the same tokens.
    """

    def __init__(
        self,
        sizes: Seq[GroupSize],
        block_size: int,
        *,
        prefix_cache: bool = True,
        separates_decoded: bool = False,
    ) -> None:
        self.block_size = block_size
        self.groups = [CacheGroup(size, block_size) for size in sizes]
        self.slides = any(group.slides for group in self.groups)
        self.prefix_cache = prefix_cache
        self._prefixes = PrefixMatcher(
            self.groups, block_size, prefix_cache=prefix_cache, separates_decoded=separates_decoded
        )
        self.counters = CacheCounters()

    def has_blocks(self, count: int) -> bool:
        """Whether every group has `count` blocks available."""
        return min([group.device.num_available for group in self.groups]) >= count

    def fits(self, needs: Iterable[int], spare: float = 0.0) -> bool:
        """Whether each group has the blocks that it `needs`, with a share `spare` of its pool to spare."""
        return all(
            group.device.num_available - need >= int(spare * group.size.num_blocks)
            for group, need in zip(self.groups, needs, strict=True)
        )

    # -- prompts ---------------------------------------------------------------------------

    def blocks_to_admit(self, request: Request) -> list[int]:
        """How many available blocks of each group the request takes before it decodes, or must have at once
        where sequences give blocks back on their way."""
        needs = [0] * len(self.groups)
        for sequence, _, length, sources in self._prefixes.openings(request):
            for index, group in enumerate(self.groups):
                needs[index] += group.blocks_to_open(length, sources[index], sequence.prefill_end)
        return needs

    def admit(self, request: Request) -> None:
        """Let every sequence hold what it reuses, and blocks for its `prefill_end` tokens where it keeps all.

        Sequences of one request share the blocks of their common beginning: the first computes
        them, the others start behind.

        Raises:
            OutOfBlocksError: there is no room.
        """
        openings = self._prefixes.openings(request)
        for sequence, tables, length, sources in openings:
            sequence.tables, sequence.stale = tables, True
            for group, table, found in zip(self.groups, tables, sources, strict=True):
                group.share_known(table, length, found)
        try:
            for sequence, tables, length, sources in openings:
                for group, table, found in zip(self.groups, tables, sources, strict=True):
                    group.share_own(table, found)
                    if not group.slides:
                        group.hold(table, length, self._count(sequence.prefill_end))
                sequence.num_computed = length * self.block_size
                sequence.committed = length
                self.counters.prefix_queries += sequence.prefill_end
                self.counters.prefix_hits += sequence.num_computed
        except OutOfBlocksError:
            for sequence in request.sequences:
                self.free(sequence)
                sequence.num_computed = 0
            raise

    def _count(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def commit(self, sequence: Sequence, tokens: int) -> None:
        """Make the blocks that the first `tokens` tokens fill findable; their content is, or will
        be within this step, in the cache."""
        full = tokens // self.block_size
        if not self.prefix_cache or full <= sequence.committed:
            return
        self._prefixes.hash_full_blocks(sequence, tokens)
        hashes, committed = sequence.hashes, sequence.committed
        for group, table in zip(self.groups, sequence.tables, strict=True):
            for place in range(max(committed, table.first), full):
                group.device.register(table.blocks[place], hashes[place])
        sequence.committed = full

    def slide(self, sequence: Sequence) -> None:
        """Give back what tokens that are still to be computed do not see."""
        if self.slides:
            for group, table in zip(self.groups, sequence.tables, strict=True):
                group.slide(table, sequence.num_computed)

    # -- decoding --------------------------------------------------------------------------

    def blocks_to_grow(self, sequences: Seq[Sequence]) -> list[int]:
        """How many available blocks of each group `grow` takes for one more token of each."""
        size = self.block_size
        pools = [
            group.host if sequences[0].request.phase is Phase.SWAPPED else group.device
            for group in self.groups
        ]
        return [
            group.blocks_to_grow([(s.tables[index], s.num_computed // size) for s in sequences], pools[index])
            for index, group in enumerate(self.groups)
        ]

    def grow(self, sequences: Seq[Sequence]) -> list[BlockMove]:
        """Room for one more token of each; returns the copies to make where the last block was shared.

        Args:
            sequences: of one request.

        Raises:
            OutOfBlocksError: there is no room in some group.
        """
        if not (self.has_blocks(len(sequences)) or self.fits(self.blocks_to_grow(sequences))):
            raise OutOfBlocksError(f"{len(sequences)} sequences cannot grow in every group of layers")
        copies: list[BlockMove] = []
        for index, group in enumerate(self.groups):
            for sequence in sequences:
                table, place = sequence.tables[index], sequence.num_computed // self.block_size
                if group.owns(table, place):
                    continue
                if (pair := group.grow(table, place)) is not None:
                    copies.append((index, *pair))
                sequence.stale = True
        self.counters.copies_on_write += len(copies)
        return copies

    def extend(self, sequence: Sequence, tokens: int) -> int:
        """Room for `tokens` more tokens, as far as blocks are left in all groups.

        Returns:
            For how many there is room now, at most `tokens`.
        """
        start = sequence.num_computed
        pairs = list(zip(self.groups, sequence.tables, strict=True))
        for group, table in pairs:
            tokens = group.room(table, start, tokens)
        if tokens:
            first, end = start // self.block_size, self._count(start + tokens)
            for group, table in pairs:
                group.hold(table, first, end)
            sequence.stale = True
        return tokens

    def shrink(self, sequence: Sequence, tokens: int) -> None:
        """Give back the blocks behind those of the first `tokens` tokens, and what is no longer seen."""
        for group, table in zip(self.groups, sequence.tables, strict=True):
            group.shrink(table, self._count(tokens))
        self.slide(sequence)

    def share(self, parent: Sequence, child: Sequence) -> None:
        """Let `child`, of the same request, hold the blocks of `parent` instead of its own."""
        if not child.tables:
            child.tables = [BlockTable() for _ in self.groups]
        for group, first, second in zip(self.groups, parent.tables, child.tables, strict=True):
            group.share(first, second)
        child.committed, child.stale = parent.committed, True

    def free(self, sequence: Sequence) -> None:
        """Give back all blocks of `sequence`, in whichever pools they are."""
        swapped = sequence.request.phase is Phase.SWAPPED
        for group, table in zip(self.groups, sequence.tables, strict=False):  # none, where it never ran
            pool = group.host if swapped else group.device
            for block in reversed([*table.held()]):  # the end of a prefix is evicted before its start
                pool.release(block)
        sequence.tables = []
        sequence.committed = 0

    def forget(self, sequence: Sequence, first: int) -> None:
        """Invalidate the prefix-cache entries of `sequence` from place `first` on."""
        for group, table in zip(self.groups, sequence.tables, strict=True):
            for block in table.held_in(first, len(table.blocks)):
                group.device.forget(block)

    # -- swapping --------------------------------------------------------------------------

    def blocks_held(self, request: Request) -> list[int]:
        """Distinct blocks of a request in each group."""
        return [
            len({block for sequence in request.sequences for block in sequence.tables[index].held()})
            for index in range(len(self.groups))
        ]

    def bytes_held(self, request: Request) -> int:
        """Memory of these."""
        held = self.blocks_held(request)
        return sum(count * group.size.block_bytes for count, group in zip(held, self.groups, strict=True))

    def can_swap_out(self, request: Request) -> bool:
        held = self.blocks_held(request)
        return all(count <= group.host.num_available for count, group in zip(held, self.groups, strict=True))

    def swap_out(self, request: Request) -> list[BlockMove]:
        """Move a request's blocks to the host pools; sharing between its sequences is kept.

        Raises:
            OutOfBlocksError: there is no room.
        """
        if not self.can_swap_out(request):
            raise OutOfBlocksError(f"the host pools have no room for {self.blocks_held(request)} blocks")
        moves: list[BlockMove] = []
        for index, (group, tables) in enumerate(self._moving(request)):
            moves += [(index, *pair) for pair in group.move(tables, group.device, group.host, {})]
        self.counters.swapped_out_blocks += len(moves)
        return moves

    def swap_in(self, request: Request) -> list[BlockMove]:
        """Move a request's blocks back; content still known on the device is not copied.

        Raises:
            OutOfBlocksError: there is no room.
        """
        if not self.fits(self.blocks_held(request)):
            raise OutOfBlocksError(f"the device has no room for {self.blocks_held(request)} blocks")
        moves: list[BlockMove] = []
        for index, (group, tables) in enumerate(self._moving(request)):
            present = group.present(zip(tables, (s.hashes for s in request.sequences), strict=True))
            moves += [(index, *pair) for pair in group.move(tables, group.host, group.device, present)]
        self.counters.swapped_in_blocks += len(moves)
        return moves

    def _moving(self, request: Request) -> Iterator[tuple[CacheGroup, list[BlockTable]]]:
        """Each group, and the tables whose blocks change in it."""
        for sequence in request.sequences:
            sequence.committed, sequence.stale = 0, True
        for index, group in enumerate(self.groups):
            yield group, [sequence.tables[index] for sequence in request.sequences]

    # -- health ----------------------------------------------------------------------------

    def check(self, requests: Iterable[Request]) -> None:
        """Verify all pools against the sequences that hold blocks.

        Raises:
            CacheIntegrityError: something leaked or is owned twice.
        """
        live = list(requests)
        host = [s for r in live if r.phase is Phase.SWAPPED for s in r.sequences if s.tables]
        device = [s for r in live if r.phase is not Phase.SWAPPED for s in r.sequences if s.tables]
        for index, group in enumerate(self.groups):
            try:
                group.device.check(s.tables[index].held() for s in device)
                group.host.check(s.tables[index].held() for s in host)
            except CacheIntegrityError as error:
                raise CacheIntegrityError(f"cache group {group.size.name!r}: {error}") from error
