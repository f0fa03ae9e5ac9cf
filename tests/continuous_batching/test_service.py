"""The HTTP side's bookkeeping, with a stand-in for the engine process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import ApiError
from protocol.generation import GenerationConfig
from protocol.status import ServerState
from server.api.service import Job
from server.continuous_batching.config import ServerConfig
from server.continuous_batching.engine import messages
from server.continuous_batching.engine.outputs import StepOutput
from server.continuous_batching.engine.stats import EngineStats
from server.continuous_batching.scheduler.limits import Limits
from server.continuous_batching.service import ContinuousBatchingService
from server.text.tokenizer import Tokenizer

LIMITS = Limits(
    max_tokens=64, max_rows=8, max_waiting=10, chunk_tokens=64,
    model_max_length=128, num_blocks=100, block_size=8, watermark=0.0,
)  # fmt: skip


class StubSupervisor:
    """Encodes what it is sent, as the real one does, and keeps it."""

    pid, restarts = 1, 0

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: messages.ToEngine) -> None:
        self.sent.append(messages.decode_to_engine(messages.encode(message)))


@pytest.fixture
async def service(tiny_model: Path) -> ContinuousBatchingService:
    """Ready, without a process behind."""
    config = ServerConfig.model_validate({"model_loading_config": {"model_name_or_path": str(tiny_model)}})
    service = ContinuousBatchingService(config, "tiny")
    service.tokenizer = Tokenizer(tiny_model)
    service._supervisor = StubSupervisor()  # type: ignore[assignment]
    service._loaded = True
    service._on_ready(messages.Ready(LIMITS, 512, (1,), {}))
    assert service.state is ServerState.READY
    return service


async def test_a_job_that_cannot_be_sent_leaves_nothing_behind(service: ContinuousBatchingService) -> None:
    with pytest.raises(OverflowError):
        service.submit(Job("big", [10**30], GenerationConfig()))
    assert not service.cancel("big")
    assert service.pending_tokens == 0
    await asyncio.wait_for(service.drain(), 5)


async def test_a_lost_engine_has_no_load(service: ContinuousBatchingService) -> None:
    stream, waiting = (service.submit(Job(i, [5, 6, 7], GenerationConfig(max_new_tokens=50))) for i in "xy")
    stats = EngineStats(running=1, waiting=2, pending_tokens=487, cache_usage=0.5, generated_tokens=7)
    service._on_report(messages.Report(StepOutput(started=["x"]), stats))
    assert service.status().load.pending_tokens == service.pending_tokens == 487
    service._on_lost()
    load = service.status().load
    assert (load.running, load.waiting, load.pending_tokens, load.kv_cache_usage) == (0, 0, 0, 0.0)
    assert service.pending_tokens == 0
    gauges = {m.name: m.samples[0].value for m in service.collect() if m.name.startswith("vllm:num_requests")}
    assert set(gauges.values()) == {0}
    for job, code in ((stream, "engine_lost"), (waiting, "loading")):  # what waited did not end the engine
        with pytest.raises(ApiError, match="engine was lost") as lost:
            await anext(job)
        assert lost.value.body.code == code
