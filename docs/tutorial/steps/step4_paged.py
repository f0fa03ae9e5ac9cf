"""Step 4: a paged cache. Blocks are shared, found again by content, and copied before they are written."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from docs.tutorial.steps.model import Llama
from docs.tutorial.steps.step3_iteration import Engine, Request, Sequence


class Pool:
    """Memory in blocks. A free block keeps its content until it is reused."""

    def __init__(self, model: Llama, count: int, size: int) -> None:
        self.memory = torch.zeros(count, model.layers, 2, size, model.kv_heads, model.dim)
        self.size, self.references = size, [0] * count
        self.idle = dict.fromkeys(range(count))  # oldest first
        self.found: dict[tuple[int, ...], int] = {}  # all tokens up to the end of a block → the block
        self.content: dict[int, tuple[int, ...]] = {}

    def allocate(self) -> int:
        block = next(iter(self.idle))
        self.found.pop(self.content.pop(block, ()), None)
        self.share(block)
        return block

    def share(self, block: int) -> None:
        self.idle.pop(block, None)
        self.references[block] += 1

    def release(self, block: int) -> None:
        self.references[block] -= 1
        if not self.references[block]:
            self.idle[block] = None

    def remember(self, sequence: Sequence) -> None:
        """Make the full blocks of `sequence` findable."""
        for index, block in enumerate(sequence.blocks[: sequence.computed // self.size]):
            tokens = tuple(sequence.tokens[: (index + 1) * self.size])
            if block not in self.content and tokens not in self.found:
                self.found[tokens], self.content[block] = block, tokens


class PagedEngine(Engine):
    """Keys and values live in `num_blocks` blocks of `block_size` tokens."""

    def __init__(self, model: Llama, num_blocks: int, block_size: int = 16, **limits: Any) -> None:
        super().__init__(model, **limits)
        self.pool = Pool(model, num_blocks, block_size)
        self.counts: Counter[str] = Counter()

    def blocks(self, tokens: int) -> int:
        return -(-tokens // self.pool.size)

    def worst(self, request: Request) -> int:
        """The most blocks that `request` can ever hold."""
        return request.width * self.blocks(len(request.prompt) + request.limit)

    def fits(self, request: Request) -> bool:
        """Whether all that run, and `request`, can come to their ends; step 5 asks for less."""
        return sum(map(self.worst, [*self.running, request])) <= len(self.pool.references)

    def admit(self, request: Request) -> bool:
        if not self.fits(request):
            return False
        for sequence in request.sequences:
            self._reuse(sequence)
            while len(sequence.blocks) < self.blocks(len(sequence.tokens)):
                sequence.blocks.append(self.pool.allocate())
        return True

    def _reuse(self, sequence: Sequence) -> None:
        size = self.pool.size  # one token at least is computed: its logits are wanted
        while (end := (len(sequence.blocks) + 1) * size) < len(sequence.tokens):
            if (block := self.pool.found.get(tuple(sequence.tokens[:end]))) is None:
                break
            self.pool.share(block)
            sequence.blocks.append(block)
        sequence.computed = len(sequence.blocks) * size
        self.counts["reused"] += sequence.computed

    def make_room(self, request: Request) -> bool:
        """A block of its own for the next token of every sequence."""
        for sequence in request.sequences:
            at = sequence.computed // self.pool.size
            if at == len(sequence.blocks):
                sequence.blocks.append(self.pool.allocate())
            elif self.pool.references[old := sequence.blocks[at]] > 1:
                sequence.blocks[at] = new = self.pool.allocate()
                self.pool.memory[new] = self.pool.memory[old]
                self.pool.release(old)
                self.counts["copied"] += 1
        return True

    def step(self) -> None:
        super().step()
        for request in self.running:
            for sequence in request.sequences:
                self.pool.remember(sequence)

    def release(self, sequence: Sequence) -> None:
        self.pool.remember(sequence)
        for block in sequence.blocks:
            self.pool.release(block)
        sequence.blocks = []

    def store(self, sequence: Sequence, layer: int, start: int, new: Tensor) -> None:
        places = torch.arange(start, start + new.shape[1])
        blocks = torch.tensor(sequence.blocks)[places // self.pool.size]
        self.pool.memory[blocks, layer, :, places % self.pool.size] = new.transpose(0, 1)

    def load(self, sequence: Sequence, layer: int, end: int) -> Tensor:
        return self.pool.memory[sequence.blocks, layer].transpose(0, 1).flatten(1, 2)[:, :end]
