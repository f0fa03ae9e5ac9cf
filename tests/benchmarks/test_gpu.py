"""The command around the GPU's engines: what it runs, how it ends processes, what it prints."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import tasks
from benchmarks.gpu.child import Child
from benchmarks.gpu.report import pool, table
from benchmarks.gpu.stages import stages
from benchmarks.gpu.timing import DONE, READY


def test_a_process_that_runs_too_long_takes_its_children_along(tmp_path: Path) -> None:
    script = (
        "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    )
    log = tmp_path / "log"
    assert Child([sys.executable, "-c", script], log, os.environ).end(2.0) == "out of time"
    state = "S"
    for _ in range(100):
        told = subprocess.run(["ps", "-o", "stat=", "-p", log.read_text()], capture_output=True, text=True)
        state = told.stdout.strip() or "gone"
        if state == "gone" or state.startswith("Z"):
            break
        time.sleep(0.05)
    assert state == "gone" or state.startswith("Z")
    assert Child([sys.executable, "-c", "raise SystemExit(3)"], log, os.environ).end(60.0) == 3


def test_the_table_has_a_line_for_every_figure() -> None:
    seconds = [3.0, 2.0, 4.0]
    copies = {"gigabytes_per_second": 51.26, "slowdown": 0.014, "step_ms_beside": 1.0}
    lines = table(
        [
            {
                "shape": "1b",
                "engine": "own",
                "start_seconds": 16.94,
                "workloads": {"W2": {"seconds": seconds, "ms_per_token": 0.9834}},
                "swap": {"block_bytes": 1, "rows": 128, "context": 512, "step_ms": 1.0, "out": copies},
            },
            {
                "shape": "1b",
                "engine": "own, over HTTP",
                "workloads": {
                    "HTTP": {
                        "seconds": seconds,
                        "output_tokens_per_second": 38_700.4,
                        "share_of_offline": 0.955,
                    }
                },
            },
        ]
    ).splitlines()[2:]
    assert lines == [
        "| 1b | START | own | 16.9 s |  |",
        "| 1b | W2 | own | 0.983 ms/token | 2.000 to 4.000 |",
        "| 1b | SWAP out | own | 51.3 GB/s | steps +1.4% |",
        "| 1b | HTTP | own, over HTTP | 38,700 out tok/s | 2.000 to 4.000, 95.5% of offline |",
    ]


def test_cases_of_drafts_are_pooled_and_told() -> None:
    def run(ms: float, equal: bool = True, *more: dict[str, Any]) -> dict[str, Any]:
        case = {"name": "HEAD 0.8, 16 rows", "ms": ms, "plain_ms": 5.0, "speedup": 5.0 / ms, "equal": equal}
        case |= {"by_formula": {"ms": 2.0, "drafted": 6}}
        return {"shape": "8b", "engine": "own", "cases": [case, *more]}

    other = {"name": "HEAD 0.0, 1 rows", "ms": 4.0, "plain_ms": 4.0, "speedup": 1.0, "equal": True}
    pooled = pool([run(2.5), run(10.0, False, other), run(2.0)])
    bad = "2.00 × without drafts, 0.80 × by formula, not equal"
    assert table([pooled]).splitlines()[2:] == [
        f"| 8b | HEAD 0.8, 16 rows | own | 2.500 ms/token | {bad} |",
        "| 8b | HEAD 0.0, 1 rows | own | 4.000 ms/token | 1.00 × without drafts |",
    ]


def test_what_measures_drafts_is_run_again_where_it_did_not_finish(tmp_path: Path) -> None:
    (stage,) = [stage for stage in stages("8b", ["own"]) if stage.workloads == ["HEAD"]]
    arguments = argparse.Namespace(out=tmp_path, workloads=["HEAD"])
    written = {"shape": "8b", "engine": "own", "cases": []}
    file = tmp_path / "draft_head-8b.json"
    file.write_text(json.dumps(written))
    task = tasks.Task("8b", stage)
    assert tasks.finished(task, 1, arguments) is None
    file.write_text(json.dumps(written | {"finished": ["HEAD"]}))
    assert tasks.finished(task, 1, arguments) == written | {"finished": ["HEAD"]}


class Measured:
    """Stands for processes that write a figure of each workload asked for in each turn; tells what they did.

    Args:
        fails: (module, turn) of one that ends in that turn.
    """

    def __init__(self, fails: tuple[str, int] | None = None) -> None:
        self.fails = fails
        self.did: list[tuple[str, str]] = []

    def start(self, line: list[str], log: Path, environment: dict[str, str]) -> SimpleNamespace:
        module, shape, names, out = line[2].removeprefix("benchmarks.gpu."), line[3], line[4], Path(line[5])
        workloads: dict[str, Any] = {}
        turns = 0
        self.did.append((module, "start"))

        def measure() -> None:
            nonlocal turns
            turns += 1
            self.did.append((module, f"turn {turns}"))
            if self.fails == (module, turns):
                return
            for name in names.split(","):
                figure = workloads.setdefault(name, {"seconds": [], "ms_per_token": 1.0})
                figure["seconds"].append(0.512 * turns)
            out.write_text(json.dumps({"shape": shape, "engine": module, "workloads": workloads}))

        def end(seconds: float) -> int:
            self.did.append((module, "end"))
            return 0

        def says(words: str, seconds: float, times: int = 1) -> bool:
            return words == READY or self.fails != (module, turns)

        return SimpleNamespace(log=log, go=measure, end=end, says=says)


def command_for(tmp_path: Path, **more: Any) -> argparse.Namespace:
    options = {
        "engines": ["own", "vllm"], "shapes": ["8b"], "workloads": ["W2"], "rounds": 3, "repeats": 1,
        "minutes": 90.0, "vllm": tmp_path, "out": tmp_path, "resume": False,
    }  # fmt: skip
    return argparse.Namespace(**options | more)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    made = Measured()
    monkeypatch.setattr(tasks, "Child", lambda *of: made.start(*of))
    monkeypatch.setattr(tasks, "REST_SECONDS", 0.0)
    monkeypatch.setattr(command, "versions", lambda *_: {})
    monkeypatch.setattr(command, "gpu_gigabytes", lambda: 150.0)
    return made


def test_engines_are_loaded_side_by_side_and_take_turns(tmp_path: Path, measured: Measured) -> None:
    """Round after round; one that fails in a round is there with those before, and takes no more turns."""
    measured.fails = ("peer_vllm", 2)
    own, vllm = command.measure_all(command_for(tmp_path))
    both = ("own", "peer_vllm")
    assert measured.did == [
        *((module, "start") for module in both),
        *((module, f"turn {turn}") for turn in (1, 2) for module in both),
        ("peer_vllm", "end"), ("own", "turn 3"), *((module, "end") for module in both),
    ]  # fmt: skip
    assert len(own["workloads"]["W2"]["seconds"]) == 3 and len(vllm["workloads"]["W2"]["seconds"]) == 1
    assert json.loads((tmp_path / "results.json").read_text())["results"] == [own, vllm]


def test_a_call_goes_on_where_another_one_ended(tmp_path: Path, measured: Measured) -> None:
    """Stages that came to their end are read; those that lack a workload are measured."""

    def result(module: str, *names: str) -> dict[str, Any]:
        seconds = {name: {"seconds": [1.0], "ms_per_token": 1.0} for name in names}
        return {"shape": "8b", "engine": module, "workloads": seconds}

    (tmp_path / "own-8b.json").write_text(json.dumps(result("own", "W2", "W3")))
    (tmp_path / "peer_vllm-8b.json").write_text(json.dumps(result("peer_vllm", "W2")))
    (tmp_path / "over_http-8b-1.json").write_text(json.dumps(result("over_http", "HTTP")))
    asked = command_for(tmp_path, workloads=["W2", "W3", "HTTP"], rounds=2, resume=True)
    own, vllm, http = command.measure_all(asked)
    assert [did for did in measured.did if did[1] != "end"] == [
        ("peer_vllm", "start"), ("peer_vllm", "turn 1"), ("peer_vllm", "turn 2"),
        ("over_http", "start"), ("over_http", "turn 1"),
    ]  # fmt: skip
    for found, name, count in ((own, "W2", 1), (vllm, "W3", 2), (http, "HTTP", 2)):
        assert len(found["workloads"][name]["seconds"]) == count
    measured.did.clear()
    command.measure_all(argparse.Namespace(**{**vars(asked), "resume": False, "minutes": 0.0}))
    assert measured.did == []


def test_what_fits_into_memory_is_loaded_together() -> None:
    chosen = [tasks.Task("8b", stage) for stage in stages("8b", ["own", "vllm"])]
    groups = tasks.side_by_side(chosen, 150.0)
    assert [task for group in groups for task in group] == chosen
    for group in groups:
        if any(task.stage.alone for task in group):
            assert len(group) == 1
        else:
            assert sum(task.stage.gigabytes("8b") for task in group) <= 150.0
    assert [task.stage.engine for task in groups[0]][:2] == ["own", "vllm"]
    large = [tasks.Task("32b", stage) for stage in stages("32b", ["own", "vllm"])]
    assert [len(group) for group in tasks.side_by_side(large, 150.0)] == [1, 1]


def test_a_child_waits_at_its_gate_for_every_turn(tmp_path: Path) -> None:
    script = (
        "from benchmarks.gpu import timing\nfor turn in timing.turns(True): print('turn', turn, flush=True)"
    )
    child = Child([sys.executable, "-c", script], tmp_path / "log", os.environ)
    assert child.says(READY, 60.0) and not child.says(DONE, 0.0)
    for turn in (1, 2):
        child.go()
        assert child.says(DONE, 60.0, turn)
    assert child.end(60.0) == 0
    assert not child.says(DONE, 60.0, 3)
    assert (tmp_path / "log").read_text().splitlines() == [READY, "turn 0", DONE, "turn 1", DONE]


def test_what_clients_saw_is_pooled_and_printed() -> None:
    def result(shift: float, failed: int = 0) -> dict[str, Any]:
        values = {"p50": 30.9 + shift, "p95": 64.1, "p99": 83.9}
        figure = {"ttft_ms": values, "itl_ms": values, "tpot_ms": values, "requests": 60, "failed": failed}
        served = {"AT4": {**figure, "requests_per_second": 3.9, "output_tokens_per_second": 870.0}}
        return {"shape": "8b", "engine": "own, served", "workloads": {}, "served": served}

    pooled = pool([result(0.0), result(3.0, failed=2), result(1.0)])
    assert pooled["served"]["AT4"]["ttft_ms"]["p50"] == 31.9
    (line,) = table([pooled]).splitlines()[2:]
    seen = "31.9 / 64.1 / 83.9"
    assert line == f"| 8b | AT4 | own, served | TTFT {seen}, ITL {seen}, TPOT {seen}, ms | 3.90 req/s |"
    assert "2 of 60 failed" in table([result(0.0, failed=2)])


def test_rounds_are_pooled() -> None:
    """Figures are those of the median of all runs, whatever round they are of; a round may lack some."""

    def result(start: float, w2: list[float], http: list[float], rate: float) -> dict[str, Any]:
        return {
            "shape": "1b",
            "engine": "own",
            "start_seconds": start,
            "workloads": {
                **({"W2": {"seconds": w2, "ms_per_token": 9.9}} if w2 else {}),
                "HTTP": {"seconds": http, "offline_seconds": [3.0], "share_of_offline": 0.1},
            },
            "swap": {"block_bytes": 1, "out": {"gigabytes_per_second": rate, "slowdown": 0.01}},
        }

    pooled = pool([result(9.0, [0.512], [4.0], 50.0), result(12.0, [], [2.0, 6.0], 52.0),
                   result(10.0, [1.024, 2.048], [5.0], 54.0)])  # fmt: skip
    assert pooled["start_seconds"] == 10.0
    assert pooled["workloads"]["W2"] == {"seconds": [0.512, 1.024, 2.048], "ms_per_token": 2.0}
    assert pooled["workloads"]["HTTP"]["share_of_offline"] == 3.0 / 4.5
    assert pooled["swap"]["out"]["gigabytes_per_second"] == 52.0 and pooled["swap"]["block_bytes"] == 1


@pytest.mark.parametrize("arguments", [["--shapes", "9b"], ["--workloads", "W9"], ["--engines", "x"]])
def test_what_is_unknown_is_refused(arguments: list[str], tmp_path: Path) -> None:
    line = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path), *arguments]
    told = subprocess.run(line, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=60)
    assert told.returncode == 2 and "unknown" in told.stderr
