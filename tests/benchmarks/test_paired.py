"""Two checkouts in paired turns: what the figures say."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import paired
from benchmarks.processes import ROOT


def test_the_interval_is_that_of_students_t() -> None:
    low, high = paired.interval([1.0, 1.1, 1.21])  # logarithms 0, a, 2a: mean a, deviation a
    reach = 1.1 ** (4.303 / 3**0.5)
    assert low == pytest.approx(1.1 / reach) and high == pytest.approx(1.1 * reach)
    assert paired.interval([0.5]) == (0.0, float("inf"))


@pytest.mark.parametrize(
    ("ratios", "kept"),
    [
        ([0.99, 0.98, 0.97], True),  # the median is enough
        ([0.9, 0.9, 1.2], True),  # nothing is certain
        ([0.97, 0.971, 0.969, 0.97, 0.97], False),
        ([1.5, 1.6, 1.4], True),
    ],
)
def test_whether_speed_is_kept(ratios: list[float], kept: bool) -> None:
    assert paired.is_kept(ratios) is kept


def test_both_are_measured_in_every_turn_and_begin_by_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, int]] = []

    @contextmanager
    def part(root: Path, directory: Path, quick: bool) -> Iterator[paired.Measure]:
        def measure(turn: int) -> paired.Figures:
            calls.append((root.name, turn))
            slower = 2.0 if root == tmp_path else 1.0
            return {"cost, ms": 3.0 * slower, "speed, rps": 10.0 / slower}

        yield measure

    monkeypatch.setattr(paired, "PARTS", {"cpu": part})
    out = tmp_path / "out"
    arguments = [str(tmp_path), "--turns", "3", "--output", str(out)]
    monkeypatch.setattr(sys, "argv", ["paired", *arguments])
    paired.main()
    own, other = ROOT.name, tmp_path.name
    assert calls == [(own, 0), (other, 0), (other, 1), (own, 1), (own, 2), (other, 2)]
    turns = json.loads((out / "paired.json").read_text())["turns"]
    assert turns == {"cost, ms": [[3.0, 6.0]] * 3, "speed, rps": [[10.0, 5.0]] * 3}
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert all("| 2.000 | 2.000–2.000 | yes |" in line for line in lines)
