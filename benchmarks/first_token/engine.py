"""The engine process with stamps and random weights:
``.venv/bin/python -m benchmarks.first_token.engine …``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from collections.abc import Sequence as Seq

import server.models.load
from benchmarks.first_token.stamps import PLAN_AT_ONCE, after, before, own_stamps
from benchmarks.gpu.own import random_weights
from server.continuous_batching import messages
from server.continuous_batching.collector import Collector
from server.continuous_batching.engine import Engine
from server.continuous_batching.engine_process import EngineLoop, main
from server.continuous_batching.outputs import StepOutput
from server.scheduling.plan import Plan
from server.scheduling.preemption import PreemptionCost
from server.scheduling.request import Sequence
from server.scheduling.step_builder import StepBuilder
from server.worker.batch import BatchBuilder
from server.worker.paged_batch import PagedBatchBuilder
from server.worker.runner import ModelRunner
from server.worker.worker import Worker


def watch() -> None:
    """Note when requests pass through this process."""
    stamps = own_stamps()
    launching: list[str] = []

    def heard(_: EngineLoop, message: messages.ToEngine) -> None:
        if isinstance(message, messages.Add):
            stamps.note(message.request_id, "heard")

    def planned(_: Engine, plan: Plan, output: StepOutput) -> None:
        for request in plan.started:
            stamps.note(request.id, "planned")
        launching[:] = [chunk.sequence.request.id for chunk in plan.chunks if chunk.samples]

    def launching_has(stage: str) -> Callable[..., None]:
        """What notes that the requests whose prompts end in the step have reached `stage`."""

        def reached(*_: object) -> None:
            for request_id in launching:
                stamps.note(request_id, stage)

        return reached

    def launched(_: Engine, plan: Plan, output: StepOutput) -> None:
        for chunk in plan.chunks:
            if chunk.samples:
                stamps.note(chunk.sequence.request.id, "launched")

    def read(_: Collector, sequences: Seq[Sequence], *__: object) -> None:
        for sequence in sequences:
            if not sequence.num_generated:
                stamps.note(sequence.request.id, "read")

    def reported(_: EngineLoop, output: StepOutput) -> None:
        for delta in output.deltas:
            stamps.note(delta.request_id, "reported")

    before(EngineLoop, "_handle", heard)
    before(Engine, "_launch", planned)
    after(StepBuilder, "build", launching_has("built"))
    before(ModelRunner, "forward", launching_has("prepared"))
    for builder in (BatchBuilder, PagedBatchBuilder):
        after(builder, "build", launching_has("sent"))
    after(Worker, "launch", launching_has("passed"))
    after(Engine, "_launch", launched)
    before(PreemptionCost, "observe_prefill", lambda _, *timed: stamps.note_device(*timed))
    before(Collector, "collect", read)
    after(EngineLoop, "_report", reported)


if __name__ == "__main__":
    watch()
    server.models.load.load_weights = random_weights  # type: ignore[attr-defined,assignment]
    if os.environ.get(PLAN_AT_ONCE):
        Engine.slack = lambda engine: 0.0  # type: ignore[assignment]
    sys.exit(main())
