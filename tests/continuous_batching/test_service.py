"""The HTTP side's bookkeeping, with a stand-in for the engine process."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import ApiError
from protocol.generation import GenerationConfig
from protocol.status import ServerState
from server.api.service import Job
from server.continuous_batching import messages, restarts
from server.continuous_batching.checkpoint_reader import CheckpointReader
from server.continuous_batching.config import ServerConfig
from server.continuous_batching.outputs import AnswerDelta, StepOutput
from server.continuous_batching.phases import StartClock
from server.continuous_batching.service import ContinuousBatchingService
from server.continuous_batching.stats import EngineStats
from server.scheduling.limits import GroupSize, Limits
from server.text.detokenizer import Detokenizer
from server.text.tokenizer import Tokenizer

LIMITS = Limits(
    max_tokens=64, max_rows=8, max_waiting=10, chunk_tokens=64,
    model_max_length=128, groups=(GroupSize(100),), block_size=8, watermark=0.0,
)  # fmt: skip


class StubSupervisor:
    """Encodes what it is sent, as the real one does, and keeps it."""

    pid, restarts, problem = 1, 0, None

    def __init__(self) -> None:
        self.start_clock = StartClock("process")
        self.sent: list[Any] = []

    def send(self, message: messages.ToEngine) -> None:
        self.sent.append(messages.decode_to_engine(messages.encode(message)))


@pytest.fixture
async def service(tiny_model: Path) -> ContinuousBatchingService:
    """Ready, without a process behind."""
    config = ServerConfig.model_validate({"model_loading_config": {"model_name_or_path": str(tiny_model)}})
    service = ContinuousBatchingService(CheckpointReader(config), "tiny")
    service.tokenizer = Tokenizer(tiny_model)
    service._supervisor = StubSupervisor()  # type: ignore[assignment]
    service._loaded = True
    service._on_ready(messages.Ready(LIMITS, 512, (1,), {}, "weights"))
    assert service.state is ServerState.READY
    return service


async def test_a_job_that_cannot_be_sent_leaves_nothing_behind(service: ContinuousBatchingService) -> None:
    with pytest.raises(OverflowError):
        service.submit(Job("big", [10**30], GenerationConfig()))
    assert not service.cancel("big")
    assert service.pending_tokens == 0
    await asyncio.wait_for(service.drain(), 30)


async def test_a_lost_engine_has_no_load(service: ContinuousBatchingService) -> None:
    stream, waiting = (service.submit(Job(i, [5, 6, 7], GenerationConfig(max_new_tokens=50))) for i in "xy")
    stats = EngineStats(running=1, waiting=2, pending_tokens=487, cache_usage=0.5, generated_tokens=7)
    service._on_report(messages.Report(StepOutput(started={"x": 0}), stats))
    assert service.status().load.pending_tokens == service.pending_tokens == 487
    service._on_lost(ServerState.LOADING)
    load = service.status().load
    assert (load.running, load.waiting, load.pending_tokens, load.kv_cache_usage) == (0, 0, 0, 0.0)
    assert service.pending_tokens == 0
    gauges = {m.name: m.samples[0].value for m in service.collect() if m.name.startswith("vllm:num_requests")}
    assert set(gauges.values()) == {0}
    for job, code in ((stream, "engine_lost"), (waiting, "loading")):  # what waited did not end the engine
        with pytest.raises(ApiError, match="engine was lost") as lost:
            await anext(job)
        assert lost.value.body.code == code


async def test_an_answer_that_cannot_be_written_fails_alone(
    service: ContinuousBatchingService, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = (service.submit(Job(i, [5, 6], GenerationConfig(max_new_tokens=5))) for i in ("bad", "good"))
    healthy = Detokenizer.feed

    def feed(self: Detokenizer, tokens: list[int]) -> str:
        if tokens == [7]:
            raise OverflowError("cannot write this")
        return healthy(self, tokens)

    monkeypatch.setattr(Detokenizer, "feed", feed)
    deltas = [AnswerDelta("bad", 0, [7]), AnswerDelta("good", 0, [8], "stop")]
    service._on_report(
        messages.Report(StepOutput(started={"bad": 0, "good": 0}, deltas=deltas, done=["good"]))
    )
    with pytest.raises(ApiError, match="cannot write this") as failed:
        await anext(bad)
    assert failed.value.status == 500
    assert (await anext(good)).token_ids == [8]
    assert service._supervisor.sent[-1] == messages.Cancel("bad")  # type: ignore[union-attr]


async def test_a_model_that_is_gone_is_told_and_given_up(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine dies when its model cannot be loaded any more."""
    monkeypatch.setattr(restarts, "PAUSES", (0.01, 0.01, 0.01))
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    loading = {"model_name_or_path": str(model), "device": "cpu"}
    config = ServerConfig.model_validate(
        {"model_loading_config": loading, "cache_config": {"num_blocks": 9, "num_blocks_cpu": 0}}
    )
    service = ContinuousBatchingService(CheckpointReader(config), "tiny")
    try:
        await service.start()
        assert service.state is ServerState.READY and service.health() is None
        model.rename(tmp_path / "away")
        os.kill(service.status().details["engine_pid"], signal.SIGKILL)
        async with asyncio.timeout(60):
            while "given up" not in (service.status().problem or ""):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert service.state is ServerState.FAILED
        assert service.status().details["engine_restarts"] == 3
        problem = service.health()
        assert problem is not None and "model_name_or_path" in problem and "does not exist" in problem
        with pytest.raises(ApiError, match="does not exist") as refused:
            service.submit(Job("late", [5, 6], GenerationConfig()))
        assert (refused.value.status, refused.value.body.code) == (503, "failed")
    finally:
        await service.close()
