"""Who runs in the next step.

Pure bookkeeping on plain data: no tensor, no clock, no I/O. One call of `schedule` makes the plan
of one forward pass:

1. every decoding sequence gets room for its next token, oldest request first; where there is none,
   the newest request leaves (swapped to the host pool, or dropped to be computed again);
2. prompts under way go on, in chunks;
3. if nobody had to leave, requests enter: swapped ones and waiting ones in one order, the first
   that does not fit ends it, so that nobody is overtaken for ever;
4. what room is left in the step and in the pool is for drafts, where they pay.

Source: iteration-level scheduling, Orca (Yu et al., OSDI 2022); preemption of whole groups, vLLM
(Kwon et al., SOSP 2023); chunked prompts beside decodes, Sarathi (Agrawal et al., 2023).
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

from server.continuous_batching.cache.manager import CacheManager
from server.continuous_batching.scheduler.cost import PreemptionCost
from server.continuous_batching.scheduler.limits import Limits
from server.continuous_batching.scheduler.plan import Chunk, Plan
from server.continuous_batching.scheduler.request import Phase, Request, Sequence
from server.continuous_batching.speculation.speculator import Speculator


def _by_order(request: Request) -> tuple[float, str]:
    return request.order


@dataclass(slots=True)
class PreemptionCounters:
    """How often a running request had to leave, by what was done with its cache."""

    swapped: int = 0
    recomputed: int = 0


class Scheduler:
    """Requests waiting, running and swapped out; makes a `Plan` a step.

    Args:
        limits: the budgets.
        cache: who holds which blocks.
        cost: which way of preemption is cheaper.
        speculator: makes drafts; None: there are none.
    """

    def __init__(
        self,
        limits: Limits,
        cache: CacheManager,
        cost: PreemptionCost,
        speculator: Speculator | None = None,
    ) -> None:
        self.limits = limits
        self.cache = cache
        self.cost = cost
        self.speculator = speculator
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.swapped: list[Request] = []
        self.preemptions = PreemptionCounters()
        self._free_rows = list(range(limits.max_rows - 1, -1, -1))
        self._watermark_blocks = int(limits.watermark * limits.num_blocks)

    # -- requests come and go --------------------------------------------------------------

    @property
    def num_free_rows(self) -> int:
        return len(self._free_rows)

    def requests(self) -> list[Request]:
        """Every live request."""
        return [*self.running, *self.swapped, *self.waiting]

    def add(self, request: Request) -> None:
        """Queue a request; the caller has checked that it fits in the limits."""
        insort(self.waiting, request, key=_by_order)

    def remove(self, request: Request) -> None:
        """Forget a request in whatever phase, and free all it holds."""
        for sequence in list(request.sequences):
            self.finish(sequence)

    def continue_with(self, beam: Sequence, parent: Sequence) -> None:
        """What `beam` has found is given up: it becomes a second `parent`, in its own row."""
        beam.follow(parent)
        self.cache.share(parent, beam)

    def finish(self, sequence: Sequence) -> None:
        """A sequence is complete: its blocks and its row are free at once."""
        request = sequence.request
        self.cache.free(sequence)
        self._release_row(sequence)
        sequence.pending = 0
        request.sequences.remove(sequence)
        if not request.sequences:
            self._queue_of(request).remove(request)
            self._release_rows(request)
            request.phase = Phase.FINISHED

    def _queue_of(self, request: Request) -> list[Request]:
        queues = {Phase.WAITING: self.waiting, Phase.RUNNING: self.running, Phase.SWAPPED: self.swapped}
        return queues[request.phase]

    # -- one step --------------------------------------------------------------------------

    def schedule(self, now: float) -> Plan:
        """The plan of the next forward pass; `now` is in monotonic seconds."""
        plan = Plan()
        self._expire(plan, now)
        running_before = len(self.running)
        self._plan_decodes(plan)
        budget = self.limits.max_tokens - len(plan.decodes)
        budget = min(budget, self.limits.chunk_tokens)
        for request in self.running:
            if not request.is_decoding:
                budget -= self._plan_chunks(request, plan, budget)
        if len(self.running) == running_before:
            self._admit(plan, budget)
        if self.speculator is not None and plan.decodes and not self.speculator.is_idle:
            self._plan_drafts(plan, self.speculator)
        return plan

    def _expire(self, plan: Plan, now: float) -> None:
        plan.expired = [
            r for r in self.waiting if r.deadline is not None and not r.started and r.deadline <= now
        ]
        for request in plan.expired:
            self.remove(request)

    def _plan_decodes(self, plan: Plan) -> None:
        """Room for one token in every decoding sequence; the newest requests pay for it."""
        cache, block_size = self.cache, self.cache.block_size
        index = 0
        while index < len(self.running):
            request = self.running[index]
            index += 1
            if not request.is_decoding:
                continue
            if request.expands:
                self._expand(request, plan)
            sequences = [s for s in request.sequences if not s.is_full]
            if not sequences:
                continue
            alone = len(request.sequences) == 1 and sequences[0].num_computed % block_size != 0
            if not alone:
                self._make_room(request, sequences, plan)
                if request.phase is not Phase.RUNNING:
                    break  # the newest of all was this one
            plan.decodes.extend(sequences)
            if not alone:
                for sequence in sequences:
                    copy = cache.grow(sequence)
                    if copy is not None:
                        plan.copies.append(copy)

    def _make_room(self, request: Request, sequences: list[Sequence], plan: Plan) -> None:
        """Preempt from the newest request backwards until `sequences` of `request` can grow, or it is
        gone itself."""
        need = self.cache.blocks_to_grow(sequences)
        while self.cache.device.num_available < need and request.phase is Phase.RUNNING:
            self._preempt(self.running[-1], plan)

    def _expand(self, request: Request, plan: Plan) -> None:
        """Split a computed prompt into its answers; they share all blocks for now."""
        stem = request.sequences[0]
        for index in range(1, request.params.num_rows):
            child = stem.fork(index)
            self.adopt(stem, child)
        plan.joined.append(request)

    def adopt(self, parent: Sequence, child: Sequence) -> None:
        """Let `child`, a fork of `parent`, run: it shares the blocks and takes a spare row."""
        request = parent.request
        self.cache.share(parent, child)
        child.row = request.spare_rows.pop()
        request.sequences.append(child)

    def _plan_chunks(self, request: Request, plan: Plan, budget: int) -> int:
        """Continue the prompt(s) of `request`; returns the tokens taken."""
        taken = 0
        for sequence in request.sequences:
            length = min(sequence.prefill_end - sequence.num_computed, budget - taken)
            if length > 0:
                chunk = Chunk(sequence, sequence.num_computed, length)
                plan.chunks.append(chunk)
                self.cache.commit(sequence, chunk.end)
                taken += length
            if sequence.num_computed + length < sequence.prefill_end:
                break  # later sequences build upon this one's blocks
        return taken

    def _plan_drafts(self, plan: Plan, speculator: Speculator) -> None:
        """Guesses for the decodes, as far as blocks are left: nobody leaves for a guess."""
        tokens = plan.num_tokens
        for draft in speculator.propose(plan.decodes, tokens, self.limits.max_tokens - tokens):
            room = self.cache.extend(draft.sequence, 1 + len(draft.tokens)) - 1
            if room:
                del draft.tokens[room:]
                plan.drafts.append(draft)

    # -- entering --------------------------------------------------------------------------

    def _admit(self, plan: Plan, budget: int) -> None:
        while (request := self._next_candidate()) is not None:
            if request.width > len(self._free_rows):
                return
            if request.phase is Phase.SWAPPED:
                growth = self.cache.blocks_to_grow(request.sequences)
                if not self._fits(self.cache.blocks_held(request) + growth):
                    return
                plan.swap_in += self.cache.swap_in(request)
                self._enter(self.swapped, request, plan)  # its next token is the next step's
            else:
                if budget <= 0 or not self._fits(self.cache.blocks_to_admit(request)):
                    return
                self._enter(self.waiting, request, plan)
                self.cache.admit(request)
                budget -= self._plan_chunks(request, plan, budget)

    def _next_candidate(self) -> Request | None:
        if self.swapped and self.waiting:
            return min(self.swapped[0], self.waiting[0], key=_by_order)
        queue = self.swapped or self.waiting
        return queue[0] if queue else None

    def _fits(self, blocks: int) -> bool:
        """Whether so many blocks can be given; an idle engine need not keep the watermark."""
        spare = self._watermark_blocks if self.running else 0
        return self.cache.device.num_available - blocks >= spare

    def _enter(self, queue: list[Request], request: Request, plan: Plan) -> None:
        queue.remove(request)
        request.phase = Phase.RUNNING
        if not request.started:
            request.started = True
            plan.started.append(request)
        request.spare_rows = [self._free_rows.pop() for _ in range(request.width)]
        for sequence in request.sequences:
            sequence.row = request.spare_rows.pop()
        insort(self.running, request, key=_by_order)
        plan.joined.append(request)

    # -- leaving ---------------------------------------------------------------------------

    def _preempt(self, request: Request, plan: Plan) -> None:
        """Take a running request out of the batch, all its sequences together."""
        self.running.remove(request)
        tokens = sum(sequence.num_computed for sequence in request.sequences)
        swap = (
            request.is_decoding
            and not request.expands
            and self.cache.can_swap_out(request)
            and self.cost.prefers_swap(self.cache.blocks_held(request), tokens)
        )
        if swap:
            plan.swap_out += self.cache.swap_out(request)
            request.phase = Phase.SWAPPED
            insort(self.swapped, request, key=_by_order)
            self.preemptions.swapped += 1
        else:
            self._requeue(request)
            self.preemptions.recomputed += 1
        self._release_rows(request)

    def _requeue(self, request: Request) -> None:
        for sequence in request.sequences:
            self.cache.free(sequence)
        request.restart()
        request.phase = Phase.WAITING
        insort(self.waiting, request, key=_by_order)

    def recompute(self, request: Request) -> None:
        """What the cache holds of a running request is not sound: compute it again."""
        self.running.remove(request)
        self._requeue(request)
        self._release_rows(request)

    def _release_row(self, sequence: Sequence) -> None:
        if sequence.row >= 0:
            self._free_rows.append(sequence.row)
            sequence.row = -1

    def _release_rows(self, request: Request) -> None:
        for sequence in request.sequences:
            self._release_row(sequence)
        self._free_rows.extend(request.spare_rows)
        request.spare_rows = []

    # -- health ----------------------------------------------------------------------------

    def check(self) -> None:
        """Verify that blocks and rows are owned exactly once.

        Raises:
            CacheIntegrityError: blocks do not add up.
            RuntimeError: rows do not add up.
        """
        self.cache.check(self.requests())
        rows = list(self._free_rows)
        for request in self.requests():
            rows += request.spare_rows + [s.row for s in request.sequences if s.row >= 0]
        if sorted(rows) != list(range(self.limits.max_rows)):
            raise RuntimeError(f"rows leaked or owned twice: {sorted(rows)}")
