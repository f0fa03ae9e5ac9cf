"""What one step shall do: the scheduler's decision, as plain data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from server.scheduling.block_pool import BlockMove
from server.scheduling.request import Phase, Request, Sequence


@dataclass(slots=True)
class Chunk:
    """A run of known tokens to compute: a prompt, or a piece of it, or what is computed again.

    Attributes:
        start: place of its first token.
        length: tokens.
        decoded: they were decoded before, and are computed as decodes again.
        scored: (first, end), places of tokens whose successors' log probabilities are reported.
    """

    sequence: Sequence
    start: int
    length: int
    decoded: bool = False
    scored: tuple[int, int] = (0, 0)

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def samples(self) -> bool:
        """Whether the chunk ends with the last known token, so that the next one can be chosen."""
        return self.end == len(self.sequence.history)

    @property
    def num_scored(self) -> int:
        first, end = self.scored
        return end - first


@dataclass(slots=True)
class Draft:
    """Guessed tokens of a decoding sequence, computed behind its last one as if they were known.

    Attributes:
        sequence: decodes in the same step.
        line: its place among the plan's decodes.
        tokens: the guess.
        ngram_size: tokens of the n-gram that it followed before.
    """

    sequence: Sequence
    line: int
    tokens: list[int]
    ngram_size: int


@dataclass(slots=True)
class Plan:
    """One step: copies within the device pools, then one forward pass; beside it, swaps, out before in.

    The forward pass neither reads nor writes what is swapped in. It may write to blocks that are
    swapped out; these are to be copied before.

    Attributes:
        decodes: sequences whose last token is computed and whose next one is chosen.
        drafts: guesses for some of the decodes; their tokens follow the decodes in the forward pass.
        chunks: runs of known tokens; they follow the drafts, those that were decoded first.
        swap_out: (group of layers, device block, host block).
        swap_in: (group, host block, device block).
        copies: (group, device block, device block), copy-on-write.
        started: requests that left the waiting queue for the first time.
        joined: requests that entered the batch, or split into answers, and have decoding rows to be set up.
        expired: requests that waited too long.
    """

    decodes: list[Sequence] = field(default_factory=list)
    drafts: list[Draft] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    swap_out: list[BlockMove] = field(default_factory=list)
    swap_in: list[BlockMove] = field(default_factory=list)
    copies: list[BlockMove] = field(default_factory=list)
    started: list[Request] = field(default_factory=list)
    joined: list[Request] = field(default_factory=list)
    expired: list[Request] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not (self.decodes or self.chunks)

    @property
    def num_tokens(self) -> int:
        drafted = sum(len(draft.tokens) for draft in self.drafts)
        return len(self.decodes) + drafted + self.num_prompt_tokens

    @property
    def num_prompt_tokens(self) -> int:
        return sum(chunk.length for chunk in self.chunks)

    @property
    def num_scored(self) -> int:
        """Tokens whose successors' log probabilities are reported."""
        return sum(chunk.num_scored for chunk in self.chunks)

    def sampled(self) -> list[Sequence]:
        """The sequences that get new tokens: those that decode, then those whose chunk is their last."""
        return [*self.decodes, *(chunk.sequence for chunk in self.chunks if chunk.samples)]

    def scored(self) -> list[Sequence]:
        """The sequences whose prompts are reported on."""
        return [chunk.sequence for chunk in self.chunks if chunk.num_scored]

    def sequences(self) -> list[Sequence]:
        """All sequences of the forward pass, in its order."""
        return self.decodes + [chunk.sequence for chunk in self.chunks]

    def written_blocks(self, block_size: int) -> set[tuple[int, int]]:
        """(group, device block) that the copies and the forward pass write to."""
        written = {(group, target) for group, _, target in self.copies}
        computed = [(s, s.num_computed, s.num_computed + 1) for s in self.decodes]
        computed += [(chunk.sequence, chunk.start, chunk.end) for chunk in self.chunks]
        for draft in self.drafts:
            start = draft.sequence.num_computed
            computed.append((draft.sequence, start, start + 1 + len(draft.tokens)))
        for sequence, start, end in computed:
            for group, table in enumerate(sequence.tables):
                blocks = table.held_in(start // block_size, -(-end // block_size))
                written.update((group, block) for block in blocks)
        return written

    def moves_by_request(self, requests: Iterable[Request]) -> list[tuple[Request, Plan]]:
        """The swaps and copies of this plan, in parts for each request: who holds the targets."""
        parts = []
        for request in requests:
            blocks = {block for sequence in request.sequences for block in sequence.held()}
            pairs = [self.swap_out, self.swap_in, self.copies]
            if request.phase is Phase.SWAPPED:
                pairs[1:] = [], []
            else:
                pairs[0] = []
            moves = [[move for move in kind if (move[0], move[2]) in blocks] for kind in pairs]
            if any(moves):
                parts.append((request, Plan(swap_out=moves[0], swap_in=moves[1], copies=moves[2])))
        return parts

    def by_request(self) -> list[tuple[Request, Plan]]:
        """What this plan computes and sets up, without drafts, in parts that concern one request each."""
        parts: dict[str, tuple[Request, Plan]] = {}

        def part_of(request: Request) -> Plan:
            return parts.setdefault(request.id, (request, Plan()))[1]

        for sequence in self.decodes:
            part_of(sequence.request).decodes.append(sequence)
        for chunk in self.chunks:
            part_of(chunk.sequence.request).chunks.append(chunk)
        for request in self.joined:
            part_of(request).joined.append(request)
        return list(parts.values())
