"""Step 5: preemption. Admit what fits now; where blocks run out, the newest request makes room."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor

from docs.tutorial.steps.model import Llama
from docs.tutorial.steps.step3_iteration import Request
from docs.tutorial.steps.step4_paged import PagedEngine


class PreemptingEngine(PagedEngine):
    """Swaps to `host_blocks` blocks of host memory while they last, and recomputes otherwise."""

    def __init__(self, model: Llama, num_blocks: int, host_blocks: int = 0, **options: Any) -> None:
        super().__init__(model, num_blocks, **options)
        self.host: dict[Request, dict[int, Tensor]] = {}
        self.host_blocks = host_blocks

    def fits(self, request: Request) -> bool:
        now = sum(self.blocks(len(sequence.tokens)) for sequence in request.sequences)
        held = len(self.host.get(request, range(now)))
        return held <= len(self.pool.idle) and self.worst(request) <= len(self.pool.references)

    def admit(self, request: Request) -> bool:
        if request not in self.host:
            return super().admit(request)
        if not self.fits(request):
            return False
        places: dict[int, int] = {}
        for old, content in self.host.pop(request).items():
            places[old] = block = self.pool.allocate()
            self.pool.memory[block] = content
        for sequence in request.sequences:
            sequence.blocks = [places[old] for old in sequence.blocks]
        uses = Counter(block for sequence in request.sequences for block in sequence.blocks)
        for block, count in uses.items():
            self.pool.references[block] = count  # shared as before
        return True

    def make_room(self, request: Request) -> bool:
        """False: `request` had to leave itself."""
        while self._missing(request) > len(self.pool.idle):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is request:
                return False
        return super().make_room(request)

    def _missing(self, request: Request) -> int:
        ends = [(s, s.computed // self.pool.size) for s in request.sequences]
        written = Counter(s.blocks[at] for s, at in ends if at < len(s.blocks))
        copies = sum(min(count, self.pool.references[b] - 1) for b, count in written.items())
        return copies + sum(at == len(s.blocks) for s, at in ends)

    def _preempt(self, request: Request) -> None:
        held = {block for sequence in request.sequences for block in sequence.blocks}
        swaps = len(held) + sum(map(len, self.host.values())) <= self.host_blocks
        if swaps:
            self.host[request] = {block: self.pool.memory[block].clone() for block in held}
        self.counts["swapped" if swaps else "recomputed"] += 1
        for sequence in request.sequences:
            kept = list(sequence.blocks)
            self.release(sequence)
            sequence.blocks, sequence.computed = (kept, sequence.computed) if swaps else ([], 0)
        self.running.remove(request)
        self.waiting.appendleft(request)
