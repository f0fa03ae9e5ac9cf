"""What one step shall do: the scheduler's decision, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from server.continuous_batching.cache.manager import BlockPair
from server.continuous_batching.scheduler.request import Request, Sequence


@dataclass(slots=True)
class Chunk:
    """A run of known tokens to compute: a prompt, or a piece of it, or what was recomputed."""

    sequence: Sequence
    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def samples(self) -> bool:
        """Whether the chunk ends with the last known token, so that the next one can be chosen."""
        return self.end == len(self.sequence.history)


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
    """One step: copies within the device pool, then one forward pass; beside it, swaps, out before in.

    The forward pass neither reads nor writes what is swapped in. It may write to blocks that are
    swapped out; these are to be copied before.

    Attributes:
        decodes: sequences whose last token is computed and whose next one is chosen.
        drafts: guesses for some of the decodes; their tokens follow the decodes in the forward pass.
        chunks: runs of prompt tokens; they follow the drafts.
        swap_out: (device block, host block).
        swap_in: (host block, device block).
        copies: (device block, device block), copy-on-write.
        started: requests that left the waiting queue for the first time.
        joined: requests that entered the batch, or split into answers, and have decoding rows to be set up.
        expired: requests that waited too long.
    """

    decodes: list[Sequence] = field(default_factory=list)
    drafts: list[Draft] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    swap_out: list[BlockPair] = field(default_factory=list)
    swap_in: list[BlockPair] = field(default_factory=list)
    copies: list[BlockPair] = field(default_factory=list)
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

    def sampled(self) -> list[Sequence]:
        """The sequences of the forward pass's logits, in their order: those that get a new token, and
        again for every drafted token, whose successor is chosen too."""
        drafted = [draft.sequence for draft in self.drafts for _ in draft.tokens]
        return [*self.decodes, *drafted, *(chunk.sequence for chunk in self.chunks if chunk.samples)]

    def sequences(self) -> list[Sequence]:
        """All sequences of the forward pass, in its order."""
        return self.decodes + [chunk.sequence for chunk in self.chunks]

    def written_blocks(self, block_size: int) -> set[int]:
        """Device blocks that the copies and the forward pass write to."""
        written = {target for _, target in self.copies}
        written.update(s.blocks[s.num_computed // block_size] for s in self.decodes)
        for draft in self.drafts:
            written.update(draft.sequence.blocks[draft.sequence.num_computed // block_size :])
        for chunk in self.chunks:
            written.update(chunk.sequence.blocks[chunk.start // block_size : -(-chunk.end // block_size)])
        return written

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
