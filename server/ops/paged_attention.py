"""What attention kernels that walk block tables on the device are given."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from server.ops.attention import AttentionBackend

QUERY_TILE = 128
"""Query tokens of a chunk that one program attends for."""


@dataclass(slots=True)
class Chunks:
    """The chunks of a step: runs of consecutive tokens of one sequence each.

    Attributes:
        tiles: int32 [tiles, 2], pieces of at most `QUERY_TILE` tokens, longest context first:
            first token of the piece, end of its chunk (rows of the step's tokens).
        bounds: int32 [chunks + 1], where each chunk begins, counted from the first chunk's token.
        lengths: int32 [chunks], tokens of each sequence up to and with its chunk.
        rows: int32 [chunks], row of the block tables.
        longest: tokens of the longest chunk.
        longest_context: the greatest of `lengths`.
    """

    tiles: Tensor
    bounds: Tensor
    lengths: Tensor
    rows: Tensor
    longest: int
    longest_context: int


@dataclass(slots=True)
class SharedPrefixes:
    """Which decodes of a step begin with the same cache blocks, so that attention can read these once.

    Decodes that share a prefix follow each other; the first of them is their leader.

    Attributes:
        tokens: int32 [decodes], of the prefix of each, a multiple of the block size, and no more than stand
            before its new token; 0: none.
        sharers: int32 [decodes]; of a leader how many share its prefix, itself included; -n: the leader
            is n decodes before; 1: it shares none.
    """

    tokens: Tensor
    sharers: Tensor


@dataclass(slots=True)
class PagedBatch:
    """Which token of a step sits where: the same for every layer, all of it on the device.

    The tokens are those of the decodes, then those of the chunks. The decodes are each of another sequence,
    but for the last ones, which are drafted or computed again: those may be several of a sequence.

    Attributes:
        num_decodes: how many decodes.
        rows: int32 [tokens], row of `tables` of each token's sequence.
        positions: int32 [tokens], place of each token in its sequence; -1 for padding, of which
            nothing is stored and whose output means nothing.
        tables: int32 [rows, blocks], cache blocks of every running sequence.
        chunks: None in a step of decodes only.
        redone: how many of the decodes may attend to each other, and to chunks of this step.
        shared: what decodes begin with; None: nothing is looked for.
    """

    num_decodes: int
    rows: Tensor
    positions: Tensor
    tables: Tensor
    chunks: Chunks | None = None
    redone: int = 0
    shared: SharedPrefixes | None = None

    def chunk_tables(self, block_size: int) -> Tensor:
        """int32 [chunks, blocks]: the tables of the chunks, for kernels that take no rows of a table."""
        assert self.chunks is not None
        width = -(-self.chunks.longest_context // block_size)
        return self.tables[:, :width].index_select(0, self.chunks.rows)


class PagedAttention(AttentionBackend[PagedBatch]):
    """Backends that take a `PagedBatch`."""

    batch: PagedBatch

    @property
    def most_sharers(self) -> int:
        """How many decodes may share a prefix that is read once for all of them; 1: none do."""
        return 1

    def prepare(self, batch: PagedBatch) -> None:
        self.batch = batch
        self.positions = batch.positions
