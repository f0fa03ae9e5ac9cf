"""What of a request need not be computed: blocks known by their content, and the longest prefix of them."""

from __future__ import annotations

from collections.abc import Container
from collections.abc import Sequence as Seq
from typing import NamedTuple

from server.scheduling.block_hash import block_hash
from server.scheduling.block_table import BlockTable
from server.scheduling.cache_group import CacheGroup, Place, Sources
from server.scheduling.request import Request, Sequence


class Opening(NamedTuple):
    """How a sequence starts.

    Attributes:
        tables: empty ones, of each group.
        length: blocks that it need not compute.
        sources: for each group, where those of them are that later tokens see.
    """

    sequence: Sequence
    tables: list[BlockTable]
    length: int
    sources: list[Sources]


class PrefixMatcher:
    """Names the full blocks of sequences by their content, and finds those that are there.

    Args:
        groups: of layers; a prefix counts as far as all of them have it.
        block_size: tokens a block.
        prefix_cache: whether requests share blocks; otherwise only the sequences of each do.
        separates_decoded: decoded tokens hash differently from those of a prompt.
    """

    def __init__(
        self, groups: Seq[CacheGroup], block_size: int, *, prefix_cache: bool, separates_decoded: bool
    ) -> None:
        self._groups = groups
        self._block_size = block_size
        self._prefix_cache = prefix_cache
        self._separates_decoded = separates_decoded

    def openings(self, request: Request) -> list[Opening]:
        """Of each sequence: a later one finds what earlier ones hold, or are going to hold."""
        openings: list[Opening] = []
        own: list[dict[bytes, Place]] = [{} for _ in self._groups]
        for sequence in request.sequences:
            if self._prefix_cache or len(request.sequences) > 1:
                self.hash_full_blocks(sequence, len(sequence.history) - 1)
            reusable = request.reusable(sequence) // self._block_size
            length = self._longest_match(sequence.hashes[:reusable], own)
            contents = sequence.hashes[:length]
            tables = [BlockTable() for _ in self._groups]
            sources = [group.sources(contents, held) for group, held in zip(self._groups, own, strict=True)]
            openings.append(Opening(sequence, tables, length, sources))
            if sequence is not request.sequences[-1]:
                for group, table, held in zip(self._groups, tables, own, strict=True):
                    for place in range(group.first_seen(length * self._block_size), len(sequence.hashes)):
                        held.setdefault(sequence.hashes[place], (table, place))
        return openings

    def hash_full_blocks(self, sequence: Sequence, tokens: int) -> None:
        """Extend `sequence.hashes` to the blocks that the first `tokens` tokens fill."""
        size, hashes, request = self._block_size, sequence.hashes, sequence.request
        first, end = len(hashes), tokens // size
        if first >= end:
            return
        contents = sequence.history.as_array(first * size, end * size).tobytes()
        width, keys = len(contents) // (end - first), request.block_keys
        parent = hashes[-1] if hashes else request.cache_root
        for index in range(first, end):
            key = keys.get(index, b"") if keys else b""
            if self._separates_decoded and request.prompt_end < (index + 1) * size:
                key += b"decoded from %d" % max(request.prompt_end - index * size, 0)
            begin = (index - first) * width
            parent = block_hash(parent, contents[begin : begin + width], key)
            hashes.append(parent)

    def _longest_match(self, contents: Seq[bytes], own: Seq[Container[bytes]]) -> int:
        """The most blocks that all groups have, as far as they are seen from behind."""
        most, longer = len(contents), -1
        while most != longer:
            longer = most
            for group, held in zip(self._groups, own, strict=True):
                most = group.longest_match(contents, (held, group.device.contents), most)
        return most
