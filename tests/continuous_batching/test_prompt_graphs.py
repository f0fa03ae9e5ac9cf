"""Short prompts as they are replayed on a GPU: padded, with attention between the pieces (`overlapped`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from protocol.generation import GenerationConfig
from server.checkpoints.errors import ModelError
from server.continuous_batching import LLM, build_worker
from server.worker.prompt_graphs import MOST_LINES, SIZES
from server.worker.runner import PagedModelRunner
from tests.continuous_batching.overlapped import RunAnew, overlapped_llm
from tests.continuous_batching.reference import Reference

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the real thing")


def test_padded_prompts_have_the_tokens_of_transformers(
    tiny_model: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several sizes, a longer one before a shorter one, and beside decodes."""
    monkeypatch.setattr(RunAnew, "runs", 0)
    llm = overlapped_llm(tiny_model, monkeypatch, num_blocks=200, replayed=True)
    config = GenerationConfig(max_new_tokens=6, ignore_eos=True)
    requests = [
        ([3 + (seed * 7 + place) % 90 for place in range(length)], config)
        for seed, length in enumerate((70, 5, 33, 1, 64, 20))
    ]
    generations = llm.generate([prompt for prompt, _ in requests], [config for _, config in requests])
    assert not reference.contradicted(requests, generations)
    assert RunAnew.runs > 0 and llm.engine.stats().step_failures == 0


def test_which_steps_are_replayed(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = overlapped_llm(tiny_model, monkeypatch, num_blocks=50, replayed=True)
    runner = llm.engine.worker.runner
    assert isinstance(runner, PagedModelRunner) and runner._prompts is not None
    graphs = runner._prompts
    lines, longest = min(MOST_LINES, llm.engine.limits.max_rows), 1024
    assert longest in SIZES
    assert graphs.fits(1, 0) and graphs.fits(1, 1) and graphs.fits(longest, lines)
    assert not graphs.fits(longest + 1, 1), "longer steps are bound by arithmetic"
    assert not graphs.fits(1, lines + 1)
    assert runner.short_prompts == {"name": "replayed", "reason": "steps of up to 1024 tokens"}


def test_graphs_that_cannot_be_captured(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They are done without and that is said, or refused where they were asked for."""
    llm = overlapped_llm(tiny_model, monkeypatch, num_blocks=50)
    runner = llm.engine.worker.runner
    assert isinstance(runner, PagedModelRunner)

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(runner, "capture_prompts", fail)
    with pytest.raises(
        ModelError, match=r"batcher_config.prompt_graphs: prompts cannot be captured: no room"
    ):
        build_worker._capture_prompts(runner, 100, required=True)
    assert build_worker._capture_prompts(runner, 100, required=False) is not None
    assert "no room" in caplog.text and "launched kernel by kernel" in caplog.text
    assert runner.short_prompts == {"name": "launched", "reason": "there is no GPU"}


def test_a_cpu_refuses_what_it_cannot_do(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"prompt_graphs is not supported: there is no GPU"):
        LLM(
            tiny_model,
            model_loading_config={"torch_dtype": "float32", "device": "cpu"},
            batcher_config={"prompt_graphs": True},
        )
