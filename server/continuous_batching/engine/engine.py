"""The step loop: schedule, run, decode, collect."""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch

from server.continuous_batching.cache.manager import CacheManager
from server.continuous_batching.decoding.decoder import Decoded, Decoder, PendingTokens
from server.continuous_batching.decoding.verification import DraftLines
from server.continuous_batching.engine.collector import Collector
from server.continuous_batching.engine.outputs import RequestFailure, StepOutput
from server.continuous_batching.engine.runner import ModelRunner
from server.continuous_batching.engine.stats import EngineStats
from server.continuous_batching.scheduler.limits import Limits
from server.continuous_batching.scheduler.plan import Draft, Plan
from server.continuous_batching.scheduler.request import Phase, Request, Sequence
from server.continuous_batching.scheduler.scheduler import Scheduler

logger = logging.getLogger(__name__)

NO_DRAFTS = "steps overlap on this device, so that drafts cannot be made of the tokens of the last one"


@dataclass(slots=True)
class Launched:
    """A step under way: the plan, the sequences that get a token, and their choice."""

    plan: Plan
    sequences: list[Sequence]
    choice: Decoded | PendingTokens | None


class Engine:
    """Continuous batching over one model.

    Args:
        scheduler: decides who runs.
        runner: computes.
        decoder: chooses tokens.
        collector: takes the tokens back into the requests.
        clock: monotonic seconds.
        overlap: launch a step before the tokens of the last one are read; needs a runner that keeps
            tokens on the device.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        decoder: Decoder,
        collector: Collector,
        clock: Callable[[], float],
        *,
        overlap: bool = False,
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self._decoder = decoder
        self._collector = collector
        self._clock = clock
        self._overlap = overlap
        self._launched: Launched | None = None
        self._requests: dict[str, Request] = {}
        self._dependent: set[str] = set()  # live requests whose tokens the host chooses: beams
        self._steps = 0
        self._prompt_tokens = 0
        self._step_failures = 0
        self._speculator = scheduler.speculator

    @property
    def limits(self) -> Limits:
        return self.scheduler.limits

    @property
    def cache(self) -> CacheManager:
        return self.scheduler.cache

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def add(self, request: Request) -> RequestFailure | None:
        """Queue a request; returns the reason if it is refused."""
        refusal = self._refusal(request)
        if refusal is None:
            self._requests[request.id] = request
            if request.params.uses_beams:
                self._dependent.add(request.id)
            self._collector.watch(request)
            if self._speculator is not None:
                self._speculator.watch(request)
            self.scheduler.add(request)
        return refusal

    def _refusal(self, request: Request) -> RequestFailure | None:
        params = request.params
        objection = self.limits.objection(request.prompt_length, params.num_rows, params.max_new_tokens)
        if objection is not None:
            return RequestFailure(request.id, 422, "cannot_fit", objection[1])
        if request.id in self._requests:
            return RequestFailure(request.id, 422, "duplicate_id", f"request id {request.id!r} is in use")
        if params.prompt_lookup.num_tokens and self._speculator is None:
            message = f"prompt_lookup_num_tokens cannot be honoured: {NO_DRAFTS}"
            return RequestFailure(request.id, 422, "unsupported_option", message)
        waiting = len(self.scheduler.waiting)
        if waiting >= self.limits.max_waiting:
            return RequestFailure(request.id, 429, "queue_full", f"{waiting} requests are waiting already")
        return None

    def cancel(self, request_id: str) -> None:
        """Forget a request, in whatever state, and free all it holds; unknown ids are ignored."""
        request = self._forget(request_id)
        if request is not None:
            self.scheduler.remove(request)
            self._collector.forget(request)

    @torch.inference_mode()
    def step(self) -> StepOutput:
        """One iteration; returns what it has to tell (nothing, if there was nothing to do).

        With `overlap`, a step is scheduled and launched before the tokens of the one before are
        read: the device always has work. An answer that ends by a token is then found out one step
        late, and its surplus token dropped.
        """
        output, begin = StepOutput(), self._clock()
        if not self._overlaps:
            self._settle(output)
        plan = self.scheduler.schedule(begin)
        for request in plan.expired:
            self._collector.forget(request)
            message = "the request waited longer than the queue timeout"
            output.failures.append(RequestFailure(request.id, 408, "queue_timeout", message))
        output.started = [request.id for request in plan.started]
        self.runner.copy_blocks(plan)
        launched = None
        try:
            launched = self._launch(plan)
        except Exception:
            logger.exception("a step of %d tokens failed, running its requests one by one", plan.num_tokens)
            self._settle(output)
            self._run_apart(plan, output)
        self._settle(output)
        self._launched = launched
        if not self._overlaps:
            self._settle(output)
        if launched is not None and self._speculator is not None and not self._speculator.is_idle:
            self._speculator.observe_step(plan.num_tokens, self._clock() - begin)
        for request_id in (*output.done, *(failure.request_id for failure in output.failures)):
            self._forget(request_id)
        return output

    @property
    def _overlaps(self) -> bool:
        """Whether the next step can be planned without knowing this one's tokens."""
        return self._overlap and not self._dependent

    def _forget(self, request_id: str) -> Request | None:
        self._dependent.discard(request_id)
        if self._speculator is not None:
            self._speculator.forget(request_id)
        return self._requests.pop(request_id, None)

    def _launch(self, plan: Plan) -> Launched | None:
        """Set up who joined, then start a forward pass, if there is one, and the choice of tokens."""
        for request in plan.joined:
            self._decoder.join(request)
        if plan.is_empty:
            return None
        logits = self.runner.forward(plan)
        sequences = plan.sampled()
        drafts = DraftLines(plan.drafts, len(plan.decodes)) if plan.drafts else None
        choice = self._decoder.choose(logits, sequences, drafts) if sequences else None
        # nothing above changed a request, so a failure up to here can be repeated by `_run_apart`
        self._steps += 1
        for sequence in plan.decodes:
            sequence.num_computed += 1
        for chunk in plan.chunks:
            chunk.sequence.num_computed = chunk.end
            self._prompt_tokens += chunk.length
        for sequence in sequences:
            sequence.pending += 1
        if plan.drafts:
            assert isinstance(choice, Decoded)
            self._accept(plan.drafts, choice.accepted)
        return Launched(plan, sequences, choice)

    def _accept(self, drafts: Seq[Draft], accepted: Seq[int]) -> None:
        """Keep what is right of each draft: its keys and values, and the tokens chosen behind it."""
        assert self._speculator is not None
        for draft, count in zip(drafts, accepted, strict=True):
            draft.sequence.num_computed += count
            draft.sequence.pending -= len(draft.tokens) - count
            self._speculator.observe_draft(draft, count)

    def _settle(self, output: StepOutput) -> None:
        """Read the tokens of the step that is under way, if there is one."""
        launched, self._launched = self._launched, None
        if launched is None:
            return
        if launched.choice is not None:
            self._collector.collect(launched.sequences, launched.choice.read(), output)
        for sequence in launched.plan.decodes:
            if sequence.row >= 0:
                self.cache.commit(sequence, sequence.num_computed)
        for draft in launched.plan.drafts:
            if draft.sequence.row >= 0:
                self.cache.shrink(draft.sequence, draft.sequence.num_computed)

    def _run_apart(self, plan: Plan, output: StepOutput) -> None:
        """Find out whose fault a failed step was: that request alone is given up.

        Computing tokens again writes the same keys and values to the same places, and what the failed
        step may have chosen on the device is put right, so the other requests lose nothing. Requests
        that reuse blocks which the failed one was to fill in this very step are computed anew.
        """
        self._step_failures += 1
        for draft in plan.drafts:
            self.cache.shrink(draft.sequence, draft.sequence.num_computed + 1)
        unsound: set[int] = set()
        for owner, part in plan.by_request():
            part.decodes = [sequence for sequence in part.decodes if sequence.row >= 0]
            if owner.phase is not Phase.RUNNING:
                continue  # the step before this one turned out to be its last
            if unsound.intersection(block for s in owner.sequences for block in s.blocks):
                self.scheduler.recompute(owner)
                continue
            try:
                self._decoder.join(owner)
                self._launched = self._launch(part)
                self._settle(output)
            except Exception as error:
                for chunk in part.chunks:
                    first = chunk.start // self.cache.block_size
                    unsound.update(chunk.sequence.blocks[first:])
                    self.cache.forget(chunk.sequence, first)
                self._collector.fail(owner, f"this request failed: {error}", output)

    def stats(self) -> EngineStats:
        """Load, cache and counters as of now."""
        scheduler, cache = self.scheduler, self.cache
        device, host = cache.device, cache.host
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            swapped=len(scheduler.swapped),
            running_rows=self.limits.max_rows - scheduler.num_free_rows,
            pending_tokens=sum(r.expected_work() for r in self._requests.values()),
            cache_usage=device.num_used / device.num_blocks,
            cached_blocks=device.num_cached,
            host_cache_usage=host.num_used / host.num_blocks if host.num_blocks else 0.0,
            steps=self._steps,
            generated_tokens=self._collector.generated_tokens,
            computed_prompt_tokens=self._prompt_tokens,
            prefix_queries=cache.counters.prefix_queries,
            prefix_hits=cache.counters.prefix_hits,
            preempted_by_swap=scheduler.preemptions.swapped,
            preempted_by_recompute=scheduler.preemptions.recomputed,
            swapped_out_blocks=cache.counters.swapped_out_blocks,
            swapped_in_blocks=cache.counters.swapped_in_blocks,
            copies_on_write=cache.counters.copies_on_write,
            step_failures=self._step_failures,
            drafted_tokens=0 if self._speculator is None else self._speculator.drafted_tokens,
            accepted_tokens=0 if self._speculator is None else self._speculator.accepted_tokens,
        )

    def check(self) -> None:
        """Verify that nothing leaked; raises if something did."""
        self.scheduler.check()
        live = {request.id for request in self.scheduler.requests()}
        if live != set(self._requests) or any(
            request.phase is Phase.FINISHED for request in self._requests.values()
        ):
            raise RuntimeError(f"live requests disagree: {live ^ set(self._requests)}")
