"""The step loop: schedule, compute, choose tokens, collect."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial

from server.continuous_batching.admission import objection, refusal_for_now, unknown_tokens
from server.continuous_batching.beam_turns import BeamTurns
from server.continuous_batching.collector import Collector
from server.continuous_batching.grammars import OPTION, Grammars
from server.continuous_batching.isolation import Isolation
from server.continuous_batching.launched import Launched
from server.continuous_batching.outputs import QUEUE_TIMEOUT, RequestFailure, StepOutput
from server.continuous_batching.pace import Pace
from server.continuous_batching.stats import EngineStats, stats_of
from server.scheduling.block_hash import cache_root
from server.scheduling.cache_manager import CacheManager
from server.scheduling.limits import Limits
from server.scheduling.plan import Plan
from server.scheduling.request import Phase, Request, Sequence
from server.scheduling.scheduler import Scheduler
from server.scheduling.step import SampleInput, StepResult
from server.scheduling.step_builder import StepBuilder, beam_scores
from server.text.grammars.source import GrammarError
from server.worker.worker import Worker

logger = logging.getLogger(__name__)

NOBODY: frozenset[Sequence] = frozenset()


class Engine:
    """Continuous batching over one model.

    Args:
        scheduler: decides who runs.
        builder: makes the worker's input.
        worker: computes and chooses tokens.
        collector: takes the tokens back into the requests.
        grammars: the tokens that may come next in constrained answers.
        clock: monotonic seconds.
        cache_root: what all keys and values of this engine depend on beside tokens.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        builder: StepBuilder,
        worker: Worker,
        collector: Collector,
        grammars: Grammars,
        clock: Callable[[], float],
        *,
        cache_root: bytes = b"",
    ) -> None:
        self.scheduler = scheduler
        self.worker = worker
        self._builder = builder
        self._collector = collector
        self._grammars = grammars
        self._clock = clock
        self._cache_root = cache_root
        self._isolation = Isolation(scheduler, worker, collector)
        self._launched: Launched | None = None
        self._pace = Pace(scheduler.step_time, clock)
        self._beam_turns = BeamTurns(scheduler)
        self._requests: dict[str, Request] = {}
        self._dependent: set[str] = set()  # requests that have begun and whose tokens are chosen here: beams
        self._settled = 0.0  # when the last step was, or when the one under way began
        self._steps = self._prompt_tokens = 0
        self._speculator = scheduler.speculator
        self._speculator.allowed = grammars.accepted

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
        refusal = (
            self.objection(request)
            or unknown_tokens(request, self.worker.vocab_size)
            or refusal_for_now(request, self._requests, len(self.scheduler.queues.waiting), self.limits)
        )
        if refusal is not None:
            return refusal
        request.cache_root = cache_root(self._cache_root, request.cache_salt)
        self.scheduler.queues.add(request)
        self._requests[request.id] = request
        try:
            self._collector.watch(request)
            self._grammars.watch(request)
            self._speculator.watch(request)
        except Exception as error:
            logger.exception("request %s cannot be set up", request.id)
            self.cancel(request.id)
            return RequestFailure(request.id, 422, "generation_failed", f"this request failed: {error}")
        return None

    def objection(self, request: Request) -> RequestFailure | None:
        """Why the engine can never run `request`, whatever its tokens, or None."""
        return objection(request, self.limits)

    @property
    def has_room(self) -> bool:
        """Whether one more request may wait."""
        return self.limits.has_room(len(self.scheduler.queues.waiting))

    def cancel(self, request_id: str) -> None:
        """Forget a request, in whatever state, and free all it holds; unknown ids are ignored."""
        request = self._forget(request_id)
        if request is not None:
            self.scheduler.queues.remove(request)

    def slack(self) -> float:
        """As `Pace.slack`."""
        queues, most = self.scheduler.queues, self.limits.chunk_tokens
        return self._pace.slack(self._launched, 0 if self._launched is None else queues.waiting_tokens(most))

    def step(self) -> StepOutput:
        """One iteration; returns its output (empty if there was nothing to do).

        Where steps overlap, one is scheduled and launched before the tokens of the one before are
        read: the device always has work. An answer that ends by a token is then found out one step
        late, and its surplus token dropped. Where drafts are to follow the tokens, these are read first.
        """
        output, begin = StepOutput(), self._clock()
        if self._launched is None:
            self._settled = begin
        most_beams = self._beam_turns.most() if self._dependent else None
        if not self._overlaps(most_beams) or self._awaits_tokens:
            self._settle(output)
        if not self._grammars.is_idle:
            self._grammars.hold(partial(self._fail_grammar, output))
        plan = self.scheduler.schedule(begin, most_beams=most_beams or math.inf)
        output.failures += [RequestFailure(request.id, 408, *QUEUE_TIMEOUT) for request in plan.expired]
        output.started = {request.id: request.cached_tokens for request in plan.started}
        self._dependent.update(request.id for request in plan.started if request.params.uses_beams)
        launched, sound = None, self._isolation.move_blocks(plan, output)
        if sound:
            try:
                launched = self._launch(plan, output)
                self._pace.launched(plan, begin)
            except Exception:
                logger.exception("a step of %d tokens failed, running its requests apart", plan.num_tokens)
                sound = False
        self._settle(output)
        if not sound:
            self._isolation.run_apart(plan, lambda part: self._run_to_end(part, output), output)
        self._launched = launched
        if not self._overlaps(most_beams):
            self._settle(output)
            if self._dependent and launched is not None and launched.choice is not None:
                self._beam_turns.observe(self._clock() - begin - self._pace.seconds)
        if launched is None and not self._grammars.is_idle:
            self._grammars.rest()
        self.scheduler.cost.observe(self.worker.take_timings())
        for request_id in (*output.done, *(failure.request_id for failure in output.failures)):
            self._forget(request_id)
        output.seconds = self._clock() - begin
        return output

    def _overlaps(self, most_beams: int | None) -> bool:
        """Whether the next step can be planned without knowing this one's tokens."""
        return self.worker.overlaps and (most_beams is not None or not self._dependent)

    @property
    def _awaits_tokens(self) -> bool:
        """Whether the step under way has drafts, or the next one shall have some."""
        if self._launched is None:
            return False
        return bool(self._launched.plan.drafts) or self._speculator.awaits(self.scheduler.queues.running)

    def _fail_grammar(self, output: StepOutput, request: Request, error: Exception) -> None:
        if isinstance(error, GrammarError):
            self._collector.fail(request, str(error), output, code="invalid_grammar", param=OPTION)
        else:
            self._collector.give_up(request, error, output)

    def _forget(self, request_id: str) -> Request | None:
        self._dependent.discard(request_id)
        self._collector.forget(request_id)
        self._grammars.forget(request_id)
        self._speculator.forget(request_id)
        return self._requests.pop(request_id, None)

    def _launch(self, plan: Plan, output: StepOutput) -> Launched | None:
        """Start a forward pass, if there is one, and the choice of tokens."""
        if plan.is_empty and not plan.joined:
            return None
        begin = self._clock()
        self.worker.launch(self._builder.build(plan))
        sequences = plan.sampled()
        choice, absent = None, NOBODY
        if sequences or plan.num_scored:
            sample, absent = self._sample_input(plan, sequences, output)
            choice = self.worker.sample(sample)
        if not self._speculator.is_idle:
            self._speculator.launched(plan)
        # nothing above changed a request, so a failure up to here can be repeated by `Isolation.run_apart`
        self._steps += not plan.is_empty
        for sequence in plan.decodes:
            sequence.num_computed += 1
        for chunk in plan.chunks:
            chunk.sequence.num_computed = chunk.end
            self._prompt_tokens += chunk.length
        for sequence in sequences:
            sequence.pending += 1
        for sequence in absent:  # as if they had not been computed
            sequence.pending -= 1
            sequence.num_computed -= 1
        return Launched(plan, sequences, choice, begin)

    def _sample_input(
        self, plan: Plan, sequences: list[Sequence], output: StepOutput
    ) -> tuple[SampleInput, frozenset[Sequence]]:
        """What the choice of tokens needs, and the sequences for which it has no meaning.

        Masks follow from the tokens of the step before: these are read while the device computes.
        """
        sample, absent = SampleInput(), NOBODY
        if self._grammars.constrains(sequences):
            self._settle(output)
            sample, absent = self._grammars.masks(sequences, plan.drafts)
        if self._dependent:  # without beams there is nothing to look for in them
            sample.beam_scores = beam_scores(sequences)
        return sample, absent

    def _settle(self, output: StepOutput) -> None:
        """Read the tokens of the step that is under way, if there is one."""
        launched, self._launched = self._launched, None
        if launched is None:
            return
        if launched.choice is not None:
            try:
                result = launched.choice.read()
                self._pace.read(launched)
                self._accept(launched.plan, result)
                if result.prompts is not None:
                    self._collector.collect_prompts(launched.plan.chunks, result.prompts, output)
                self._collector.collect(launched.sequences, result, output)
            except Exception:
                logger.exception("the tokens of a step could not be read")
                lost = launched.sequences + launched.plan.scored()
                self._isolation.lose_tokens(lost, output)
        block_size = self.cache.block_size
        for sequence in launched.plan.decodes:
            if sequence.num_computed // block_size > sequence.committed and sequence.slot >= 0:
                try:
                    self.cache.commit(sequence, sequence.num_computed)
                except Exception as error:
                    self._collector.give_up(sequence.request, error, output)
        self._observe_step(launched.plan)

    def _observe_step(self, plan: Plan) -> None:
        """Tell how long the step that was just settled took, counted from the end of the one before."""
        begin, self._settled = self._settled, self._clock()
        if not (self._speculator.is_idle or plan.is_empty or plan.chunks):
            self._speculator.observe_step(plan.num_tokens, self._settled - begin)

    def _accept(self, plan: Plan, result: StepResult) -> None:
        """Keep the keys and values of what is right of each draft."""
        for draft in plan.drafts:
            accepted = int(result.counts[draft.line]) - 1
            if draft.sequence.slot >= 0:
                draft.sequence.num_computed += accepted
                self.cache.shrink(draft.sequence, draft.sequence.num_computed)
            self._speculator.observe_draft(draft, accepted)

    def _run_to_end(self, part: Plan, output: StepOutput) -> None:
        self._launched = self._launch(part, output)
        self._settle(output)

    def stats(self) -> EngineStats:
        """Load, cache and counters as of now."""
        stats = stats_of(self.scheduler)
        stats.pending_tokens = sum(request.expected_work() for request in self._requests.values())
        stats.steps, stats.step_failures = self._steps, self._isolation.failures
        stats.generated_tokens = self._collector.generated_tokens
        stats.computed_prompt_tokens = self._prompt_tokens
        return stats

    def check(self) -> None:
        """Verify that nothing leaked; raises if something did."""
        self.scheduler.queues.check()
        live = {request.id for request in self.scheduler.queues.requests()}
        finished = any(request.phase is Phase.FINISHED for request in self._requests.values())
        if finished or live != set(self._requests):
            raise RuntimeError(f"live requests disagree: {live ^ set(self._requests)}")
