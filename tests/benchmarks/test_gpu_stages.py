"""What the GPU's benchmark runs, and how long it takes that to last."""

from __future__ import annotations

import pytest

from benchmarks.gpu.stages import DRAFTS, ENGINES, EXTRA, LASTS, LONG, PLAIN, SAMPLED, SERVED, stages
from benchmarks.gpu.workloads import figures, peak_blocks, workload

MEASURED = {*PLAIN, *EXTRA} - {"TESTS"}


def test_every_workload_is_run_and_known() -> None:
    every = [stage for shape in ("1b", "8b", "32b") for stage in stages(shape, ["own"])]
    assert {name for stage in every for name in stage.workloads} == MEASURED
    for name in MEASURED - {"SWAP", *SERVED, *DRAFTS}:
        load = workload(name)
        assert len(load.prompts) == len(load.new_tokens)
        assert all(value > 0 for value in figures(name, load, 2.0).values())


def test_engines_are_chosen_and_every_peer_runs_what_its_bars_ask_for() -> None:
    for shape, extra in {"1b": set(), "8b": {"FULL", *LONG, *SERVED, "LOOKUP"}}.items():
        chosen = stages(shape, ["vllm"])
        assert {stage.engine for stage in chosen} == {"vllm"}
        assert {name for stage in chosen for name in stage.workloads} == {*PLAIN, *SAMPLED, *extra}
        every = [stage.module for stage in stages(shape, ENGINES.values())]
        assert len(every) == len(stages(shape, ["own", "vllm"])) + 1 and "peer_transformers" in every


def test_what_is_not_asked_for_takes_no_time() -> None:
    assert set(LASTS) < MEASURED
    for stage in stages("8b", ENGINES.values()):
        assert sum(stage.seconds([name]) for name in stage.workloads) == pytest.approx(stage.repeat)
    own = stages("8b", ["own"])[0]
    assert own.seconds(["W2", "W4"]) < own.seconds(["W1"]) < own.repeat / 4


def test_the_full_cache_is_a_quarter_of_what_w1_needs() -> None:
    (full,) = [stage for stage in stages("8b", ["own"]) if stage.workloads == ["FULL"]]
    load = workload("W1")
    assert full.flags["blocks"] == peak_blocks(load, 16) // 4
    assert full.flags["blocks"] * 16 * 4 < load.prompt_tokens + load.output_tokens
