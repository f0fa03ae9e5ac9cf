"""The comparison on a CPU: cut off at any moment, it is gone on with where it stopped."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cpu import __main__ as cpu
from benchmarks.cpu import peer
from benchmarks.cpu.report import chart, table

SETTING = {"processor": "some", "threads": 2, "shape": "125m", "weight_bytes": 200_000_000}


class FakePeer:
    """Takes a second for everything, and may break down."""

    def __init__(self, turns: float = math.inf) -> None:
        self.turns = turns
        self.asked: list[tuple[str, int]] = []

    def time(self, workload: str, repetition: int) -> float:
        if len(self.asked) >= self.turns:
            raise RuntimeError("broke down")
        self.asked.append((workload, repetition))
        return 1.0 if workload != "C2-first" else 0.1


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "_PAUSE_SECONDS", 0.0)


def measure(record: cpu.Record, workloads: list[str], deadline: float = math.inf, **peers: Any) -> bool:
    record.result["versions"] |= {name: {} for name in peers}
    return cpu.measure(peers, workloads, 3, record, deadline)


def test_what_is_measured_is_not_measured_again(tmp_path: Path) -> None:
    own = FakePeer(turns=3)
    with pytest.raises(RuntimeError):
        measure(cpu.Record(tmp_path, SETTING), ["C1"], own=own, vllm=FakePeer())
    assert own.asked == [("C1", -1), ("C1", 0), ("C1", 1)]
    own, vllm = FakePeer(), FakePeer()
    record = cpu.Record(tmp_path, SETTING)
    assert {name: len(record.figures("C1", name)) for name in ("own", "vllm")} == {"own": 2, "vllm": 2}
    assert measure(record, ["C1", "C4"], own=own, vllm=vllm)
    assert own.asked == vllm.asked == [("C1", -1), ("C1", 2), *(("C4", turn) for turn in (-1, 0, 1, 2))]
    late = FakePeer()
    record = cpu.Record(tmp_path, SETTING)
    assert record.lacking("C1", ["own", "vllm", "llama.cpp"], 3) == ["llama.cpp"]
    assert measure(record, ["C1"], own=own, **{"llama.cpp": late})
    assert [turn for _, turn in late.asked] == [-1, 0, 1, 2]
    figures = json.loads((tmp_path / "result.json").read_text())["figures"]
    assert {name: len(values) for name, values in figures["C1"].items()} == dict.fromkeys(
        ("own", "vllm", "llama.cpp"), 3
    )


def test_the_time_that_is_given_holds(tmp_path: Path) -> None:
    own = FakePeer()
    assert not measure(cpu.Record(tmp_path, SETTING), ["C1"], deadline=-math.inf, own=own)
    assert own.asked == []


def test_other_settings_are_not_put_together(tmp_path: Path) -> None:
    cpu.Record(tmp_path, SETTING).save()
    with pytest.raises(SystemExit, match="threads"):
        cpu.Record(tmp_path, SETTING | {"threads": 1})


def test_the_report_shows_what_there_is(tmp_path: Path) -> None:
    record = cpu.Record(tmp_path, SETTING)
    record.result["read_bandwidths"] = [20e9, 25e9, 40e9]
    assert measure(record, ["C2"], own=FakePeer(), vllm=FakePeer())
    assert measure(record, ["C1"], own=FakePeer())
    text = table(record.result)
    assert "| | C1 output tok/s | C2 ms/token |" in text and "| vLLM CPU () | – | 7.09" in text
    assert "28.2 GB/s, 113% of the 25.0 GB/s" in text
    assert chart(record.result).count("<rect") == 1 + 3  # the background
