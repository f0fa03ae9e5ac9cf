"""Who runs in the next step.

Pure bookkeeping on plain data: no tensor, no clock, no I/O. One call of `schedule` makes the plan
of one forward pass. By default:

1. every decoding sequence gets room for its next token, oldest request first; where there is none,
   the newest request leaves (swapped to the host pool, or dropped to be computed again);
2. prompts under way go on, in chunks;
3. if no request had to leave, others enter: swapped ones and waiting ones in one order, the first
   that does not fit ends it, so that no request is overtaken without end;
4. what room is left in the step and in the pool is for drafts, where they pay.

The order of requests, who has to leave, and whether prompts and decodes share a step are decided by
the policy (`policies`).

Source: iteration-level scheduling, Orca (Yu et al., OSDI 2022); preemption of whole groups, vLLM
(Kwon et al., SOSP 2023); chunked prompts beside decodes, Sarathi (Agrawal et al., 2023).
"""

from __future__ import annotations

import math

from server.scheduling.cache_manager import CacheManager
from server.scheduling.limits import DRAFTED_LINES, Limits
from server.scheduling.plan import Chunk, Plan
from server.scheduling.policies import Mix, SchedulingPolicy
from server.scheduling.preemption import PreemptionCost
from server.scheduling.queues import Queues
from server.scheduling.request import Phase, Request, Sequence
from server.scheduling.slots import SlotPool
from server.scheduling.speculation.speculator import Speculator
from server.scheduling.step_time import StepTime


class Scheduler:
    """Makes a `Plan` a step from the requests in its queues.

    Args:
        limits: the budgets.
        cache: who holds which blocks.
        cost: which way of preemption is cheaper.
        policy: the order of requests, who has to leave, and what a step is made of.
        speculator: makes drafts.
        step_time: learns how long steps take, and keeps them to a promised time.
        redecodes: what was decoded is decoded again, several tokens a step; otherwise it is computed as a
            prompt, which is for devices where that has the same bits.
    """

    def __init__(
        self,
        limits: Limits,
        cache: CacheManager,
        cost: PreemptionCost,
        policy: SchedulingPolicy,
        speculator: Speculator | None = None,
        *,
        step_time: StepTime | None = None,
        redecodes: bool = False,
    ) -> None:
        self.limits = limits
        self.cache = cache
        self.cost = cost
        self.policy = policy
        self.speculator = speculator or Speculator()
        self.step_time = step_time or StepTime()
        self._redecodes = redecodes
        self.queues = Queues(cache, SlotPool(limits.max_rows), policy)
        self._computed: list[Sequence] = []  # those of the chunks of the last plan

    def schedule(self, now: float, *, most_beams: float = math.inf) -> Plan:
        """The plan of the next forward pass; `now` is in monotonic seconds. Once `most_beams` decode in it,
        those of further requests wait for the next one."""
        plan = Plan()
        for sequence in self._computed:
            if sequence.slot >= 0:
                self.cache.slide(sequence)
        self._expire(plan, now)
        self._schedule(plan, most_beams)
        if self.cache.slides:
            self._computed = [chunk.sequence for chunk in plan.chunks]
        return plan

    def _schedule(self, plan: Plan, most_beams: float) -> None:
        running = self.queues.running
        mix, running_before = self.policy.mix(running), len(running)
        if mix is Mix.PROMPTS_FIRST:
            prompts = [request for request in running if not request.is_decoding]
            budget = self._continue_prompts(prompts, plan, self.limits.max_tokens)
            if budget is not None:
                self._admit(plan, budget, whole=True)
            if plan.chunks or len(running) > running_before:
                return
        prompts = self._plan_decodes(plan, most_beams)
        if mix is not Mix.PROMPTS_FIRST:
            decodes = len(plan.decodes)
            tokens = min(self.limits.max_tokens - decodes, self.limits.chunk_tokens)
            waiting = self.queues.backlog(prompts, self.limits.max_tokens) if self.step_time.replayed else 0
            tokens = self.step_time.chunk_tokens(decodes, tokens, waiting)
            budget = self._continue_prompts(prompts, plan, tokens)
            if mix is Mix.TOGETHER and len(running) == running_before and budget is not None:
                self._admit(plan, budget)
        if plan.decodes and not self.speculator.is_idle:
            self._plan_drafts(plan)

    def _expire(self, plan: Plan, now: float) -> None:
        plan.expired = [
            r for r in self.queues.waiting if r.deadline is not None and not r.started and r.deadline <= now
        ]
        for request in plan.expired:
            self.queues.remove(request)

    # -- decodes ---------------------------------------------------------------------------

    def _plan_decodes(self, plan: Plan, most_beams: float) -> list[Request]:
        """Room for one token in every decoding sequence, but for beams whose tokens are under way; other
        requests leave for it. Returns the requests that do not decode: their prompts are under way.
        """
        block_size, running, decodes = self.cache.block_size, self.queues.running, plan.decodes
        prompts: list[Request] = []
        index = beams = 0
        while index < len(running):
            request = running[index]
            index += 1
            sequence = request.sequences[0]
            if request.held:
                continue
            if not request.is_decoding:
                prompts.append(request)
            elif request.beams is not None and (sequence.pending or beams >= most_beams):
                pass
            elif len(request.sequences) > 1 or request.expands or sequence.num_computed % block_size == 0:
                beams += 0 if request.beams is None else request.width
                # one that has to leave gives its place to the next
                index -= not self._grow(index - 1, plan)
            elif not sequence.is_full:  # its last block has room: nothing is to be done in nearly every step
                decodes.append(sequence)
        return prompts

    def _grow(self, place: int, plan: Plan) -> bool:
        """Let the request at `place` decode; False: it had to leave itself."""
        request = self.queues.running[place]
        if request.expands:
            self._expand(request, plan)
        sequences = [s for s in request.sequences if not s.is_full]
        if self.cache.slides:
            for sequence in request.sequences:
                self.cache.slide(sequence)
        if not self.cache.has_blocks(len(sequences)):  # the most that they can need
            self._make_room(place, sequences, plan)
            if request.phase is not Phase.RUNNING:
                return False
        plan.decodes += sequences
        plan.copies += self.cache.grow(sequences)
        return True

    def _make_room(self, place: int, sequences: list[Sequence], plan: Plan) -> None:
        """Preempt requests until `sequences` of the one at `place` can grow, or it is gone itself."""
        running = self.queues.running
        request = running[place]
        needs = self.cache.blocks_to_grow(sequences)
        while not self.cache.fits(needs) and request.phase is Phase.RUNNING:
            self._preempt(self.policy.victim(running[place:]), plan)

    def _preempt(self, request: Request, plan: Plan) -> None:
        """Take a running request out of the batch, all its sequences together."""
        tokens = sum(sequence.num_computed for sequence in request.sequences)
        for sequence in request.sequences:
            self.cache.slide(sequence)
        swap = (
            request.is_decoding
            and not request.expands
            and self.cache.can_swap_out(request)
            and self.cost.prefers_swap(self.cache.bytes_held(request), tokens)
        )
        if swap:
            plan.swap_out += self.queues.swap_out(request)
        else:
            self.queues.drop(request)

    def _expand(self, request: Request, plan: Plan) -> None:
        """Split a computed prompt into its answers; they share all blocks for now."""
        stem = request.sequences[0]
        for index in range(1, request.params.num_rows):
            self.queues.adopt(stem, stem.fork(index))
        request.expands = False
        plan.joined.append(request)

    def _plan_drafts(self, plan: Plan) -> None:
        """Guesses for the decodes, as far as blocks are left: no request leaves for a guess."""
        budget = min(self.limits.max_tokens - plan.num_tokens, DRAFTED_LINES - len(plan.sampled()))
        for draft in self.speculator.propose(plan.decodes, budget):
            room = self.cache.extend(draft.sequence, 1 + len(draft.tokens)) - 1
            if room:
                del draft.tokens[room:]
                plan.drafts.append(draft)

    # -- prompts ---------------------------------------------------------------------------

    def _continue_prompts(self, requests: list[Request], plan: Plan, budget: int) -> int | None:
        """Chunks of `requests`, whose prompts are under way.

        Where sequences give blocks back on their way, they take them on their way, too, and may find none:
        then later prompts leave for earlier ones, and what only decodes can give back is waited for.

        Returns:
            What is left of `budget`; None if some prompt waits for blocks, so that no other may enter.
        """
        waits = False
        for place, request in enumerate(requests):
            taken = 0
            if self._redecodes and request.is_redone and not self._most_redone(plan):
                continue  # others have taken what a step can decode again
            if request.scores_next and not self._most_scored(plan):
                continue  # the same for what a step can report on
            while budget > 0 and request.phase is Phase.RUNNING and not taken:
                taken = self._plan_chunks(request, plan, budget)
                later = [other for other in requests[place + 1 :] if other.phase is Phase.RUNNING]
                if not taken and not later:
                    waits = True
                    break
                if not taken:
                    self._preempt(self.policy.victim([request, *later]), plan)
            budget -= taken
        return None if waits else budget

    def _plan_chunks(self, request: Request, plan: Plan, budget: int) -> int:
        """Continue the prompt(s) of `request`; returns the tokens taken."""
        taken = 0
        for sequence in request.sequences:
            decoded = self._redecodes and sequence.num_computed >= request.prompt_end
            end = sequence.chunk_end if self._redecodes else sequence.prefill_end
            length = min(end - sequence.num_computed, budget - taken)
            if decoded:
                length = min(length, self._most_redone(plan))
            place = sequence.num_computed
            first, end = request.scored(sequence, place, place + length)
            if first < end and end - first > (most := self._most_scored(plan)):
                length = first + most - place
            if length > 0:
                self.cache.slide(sequence)
                length = self.cache.extend(sequence, length)
            if length > 0:
                scored = request.scored(sequence, place, place + length)
                chunk = Chunk(sequence, place, length, decoded, scored)
                plan.chunks.append(chunk)
                self.cache.commit(sequence, chunk.end)
                taken += length
            if sequence.num_computed + length < sequence.prefill_end:
                break  # later sequences build upon this one's blocks
        return taken

    def _most_redone(self, plan: Plan) -> int:
        """How many tokens more a step may decode again: memory of attention is made for as many decodes."""
        return self.limits.max_rows - sum(chunk.length for chunk in plan.chunks if chunk.decoded)

    def _most_scored(self, plan: Plan) -> int:
        """How many tokens more of prompts a step may report on."""
        return self.limits.scored_tokens - plan.num_scored

    def _admit(self, plan: Plan, budget: int, *, whole: bool = False) -> None:
        """Let requests enter as far as slots, blocks and `budget` go.

        Args:
            whole: a prompt that exceeds what is left of `budget` waits, unless it is the step's first.
        """
        while (request := self.queues.next_candidate()) is not None:
            if request.width > self.queues.slots.num_free:
                return
            if request.scores_next and not self._most_scored(plan):
                return
            if request.phase is Phase.SWAPPED:
                growth = self.cache.blocks_to_grow(request.sequences)
                held = self.cache.blocks_held(request)
                if not self._fits([sum(needs) for needs in zip(held, growth, strict=True)]):
                    return
                plan.swap_in += self.cache.swap_in(request)
                self._enter(request, plan)  # its next token is the next step's
            else:
                if budget <= 0 or not self._fits(self.cache.blocks_to_admit(request)):
                    return
                if whole and plan.chunks and request.prompt_work > budget:
                    return
                is_new = not request.started
                self._enter(request, plan)
                self.cache.admit(request)
                if is_new:
                    request.cached_tokens = min(request.sequences[0].num_computed, request.prompt_length)
                budget -= self._plan_chunks(request, plan, budget)

    def _fits(self, needs: list[int]) -> bool:
        """Whether each group has the blocks that it `needs`; an idle engine need not keep the watermark."""
        return self.cache.fits(needs, self.limits.watermark if self.queues.running else 0.0)

    def _enter(self, request: Request, plan: Plan) -> None:
        if not request.started:
            request.started = True
            plan.started.append(request)
        self.queues.enter(request)
        plan.joined.append(request)
