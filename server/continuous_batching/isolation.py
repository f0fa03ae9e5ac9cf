"""What one request causes fails that request alone: who is given up when part of a step fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from server.continuous_batching.collector import Collector
from server.continuous_batching.outputs import StepOutput
from server.scheduling.plan import Plan
from server.scheduling.request import Phase, Request, Sequence
from server.scheduling.scheduler import Scheduler
from server.scheduling.step import StepInput
from server.scheduling.step_builder import block_moves
from server.worker.worker import Worker

logger = logging.getLogger(__name__)


class Isolation:
    """Repeats what failed for a whole step request by request.

    Where the device itself can compute no more, its error is raised: only a new process helps then.

    Args:
        scheduler: holds the requests that are computed anew.
        worker: computes and moves blocks.
        collector: ends the requests that are given up.

    Attributes:
        failures: steps that failed.
    """

    def __init__(self, scheduler: Scheduler, worker: Worker, collector: Collector) -> None:
        self._scheduler = scheduler
        self._worker = worker
        self._collector = collector
        self.failures = 0

    def move_blocks(self, plan: Plan, output: StepOutput) -> bool:
        """Start the plan's swaps and copies; False: some request was given up, and may be in the plan still.

        Each kind is repeated before the next begins, which may overwrite what it reads.
        """
        sound, step = True, block_moves(plan, self._scheduler.cache.block_size)
        for move in (self._worker.swap, self._worker.copy):
            try:
                move(step)
            except Exception:
                logger.exception("blocks could not be moved, moving those of each request by themselves")
                sound = False
                for owner, part in plan.moves_by_request(self._scheduler.queues.requests()):
                    try:
                        move(block_moves(part, self._scheduler.cache.block_size))
                    except Exception as error:
                        self._collector.give_up(owner, error, output)
                move(StepInput())  # lets what follows wait for the parts
        return sound

    def run_apart(self, plan: Plan, run: Callable[[Plan], None], output: StepOutput) -> None:
        """Run the requests of a failed step one by one, and give up those that fail again.

        Computing tokens again writes the same keys and values to the same places, and what is kept for the
        slots is written anew, so the other requests lose nothing. Requests that reuse blocks which the
        failed one was to fill in this very step are computed anew.

        Args:
            run: computes a part of the plan to its end.
        """
        self.failures += 1
        cache = self._scheduler.cache
        for draft in plan.drafts:
            if draft.sequence.slot >= 0:
                cache.shrink(draft.sequence, draft.sequence.num_computed + 1)
        unsound: set[tuple[int, int]] = set()
        for owner, part in plan.by_request():
            part.decodes = [sequence for sequence in part.decodes if sequence.slot >= 0]
            if owner.phase is not Phase.RUNNING:
                continue  # it was given up, or the step before this one turned out to be its last
            if unsound.intersection(block for s in owner.sequences for block in s.held()):
                self._scheduler.queues.recompute(owner)
                continue
            try:
                _start_anew(owner, part)
                run(part)
            except Exception as error:
                for chunk in part.chunks:
                    first = chunk.start // cache.block_size
                    unsound.update(chunk.sequence.held(first))
                    cache.forget(chunk.sequence, first)
                self._collector.give_up(owner, error, output)
        self._worker.check_device()

    def lose_tokens(self, sequences: Iterable[Sequence], output: StepOutput) -> None:
        """The tokens of `sequences` were computed but cannot be read: another try may have them."""
        self.failures += 1
        for sequence in sequences:
            self._collector.fail(sequence.request, "the tokens of a step were lost", output, status=503)
        self._worker.check_device()


def _start_anew(owner: Request, part: Plan) -> None:
    """Let `part` tell the worker everything about the sequences of `owner`."""
    part.joined = [owner]
    for sequence in owner.sequences:
        sequence.stale = True
        for table in sequence.tables:
            table.mirrored = 0
