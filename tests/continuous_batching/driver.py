"""Drives an engine step by step, as the process does, and gathers what it reports."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from server.continuous_batching.outputs import RequestFailure
from server.sampling.step_logits import StepLogits
from server.scheduling.params import SamplingParams
from server.scheduling.plan import Plan
from server.scheduling.request import Request
from server.scheduling.step import StepInput


def around_forward(llm: LLM, forward: Callable[[Plan, Callable[[], StepLogits]], StepLogits]) -> None:
    """Let `forward(plan, compute)` stand for every forward pass of the engine."""
    builder, runner = llm.engine._builder, llm.engine.worker.runner
    build, compute, plans = builder.build, runner.forward, [Plan()]

    def remember(plan: Plan) -> StepInput:
        plans[0] = plan
        return build(plan)

    builder.build = remember  # type: ignore[method-assign]
    runner.forward = lambda step: forward(plans[0], lambda: compute(step))  # type: ignore[method-assign]


class Driver:
    """Requests by name; answers as token lists by index."""

    def __init__(self, llm: LLM) -> None:
        self.engine = llm.engine
        self.tokens: dict[str, dict[int, list[int]]] = {}
        self.failures: dict[str, RequestFailure] = {}
        self.done: set[str] = set()

    def add(self, name: str, prompt: list[int], options: dict[str, Any], **more: Any) -> None:
        params = SamplingParams.of(GenerationConfig(**options), model_eos=(1,))
        request = Request(name, prompt, params, time.monotonic(), **more)
        refusal = self.engine.add(request)
        assert refusal is None, refusal
        self.tokens[name] = {}

    def step(self) -> None:
        output = self.engine.step()
        for delta in output.deltas:
            self.tokens[delta.request_id].setdefault(delta.index, []).extend(delta.token_ids)
        self.done.update(output.done)
        self.failures |= {failure.request_id: failure for failure in output.failures}

    def finish(self, limit: int = 20_000) -> None:
        """Step until nothing is left to do."""
        for _ in range(limit):
            if not self.engine.has_work:
                break
            self.step()
        assert not self.engine.has_work, "the engine does not come to an end"
        self.engine.check()
        assert self.engine.stats().cache_usage == self.engine.stats().host_cache_usage == 0.0

    def answers(self, name: str) -> list[list[int]]:
        return [tokens for _, tokens in sorted(self.tokens[name].items())]
