"""The programs that say what a token costs the HTTP process, and where a first token's time goes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.first_token.__main__ import stages
from benchmarks.first_token.stamps import STAGES, Stamps, after, before, read_stamps
from benchmarks.http_cost.__main__ import PATHS

ROOT = Path(__file__).parents[2]


def test_every_api_is_measured(tmp_path: Path) -> None:
    sizes = ["--streams", "4", "--steps", "40", "--steps_per_second", "40", "--rounds", "1", "--prompt", "8"]
    output = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.http_cost", *sizes, "--output", str(output)]
    told = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert told.returncode == 0, told.stderr
    found = json.loads(output.read_text())["apis"]
    assert set(found) == set(PATHS)
    for figures in found.values():
        assert 60 < figures["tokens"] <= 160, "an event a token, but for those before all streams had begun"
        assert 40 < figures["tokens_per_second"] < 400


def test_stages_add_up(tmp_path: Path) -> None:
    stamps = Stamps(str(tmp_path))
    for name in ("probe-0", "probe-1"):
        for stage in list(STAGES)[:-1]:
            stamps.note(f"{name}#7", stage)
            stamps.note(name, stage)  # only the first time counts
    stamps.note("another", "arrived")
    found = read_stamps(tmp_path)
    assert set(found) == {"probe-0", "probe-1"}
    seen = {name: (at["arrived"] - 0.001, at["written"] + 0.002) for name, at in found.items()}
    told = stages(found, seen)
    assert list(told["stages"]) == list(STAGES)
    assert told["stages"]["arrived"] == pytest.approx(1.0, abs=0.01)
    assert told["stages"]["seen"] == pytest.approx(2.0, abs=0.01)
    assert 3.0 <= told["p50"] < 1000.0


def test_calls_are_noted_before_and_after() -> None:
    class Owner:
        def __init__(self) -> None:
            self.calls: list[str] = []

        def work(self, what: str) -> str:
            self.calls.append(what)
            return what.upper()

    before(Owner, "work", lambda owner, what: owner.calls.append(f"before {what}"))
    after(Owner, "work", lambda owner, what: owner.calls.append(f"after {what}"))
    owner = Owner()
    assert owner.work("it") == "IT"
    assert owner.calls == ["before it", "it", "after it"]
