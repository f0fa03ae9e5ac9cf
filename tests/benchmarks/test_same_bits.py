"""The check that answers are the same in any batch: it passes where they are, and tells where not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.same_bits import __main__ as same_bits
from benchmarks.same_bits import settings
from benchmarks.same_bits.answers import Told
from server.ops.cpu.backend import NativeBackend


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command on a small model; returns its JSON."""
    monkeypatch.setattr(settings, "BATCHES", (3,))
    monkeypatch.setattr(settings, "CHUNKS", (5,))

    def run() -> dict[str, Any]:
        out, threads = tmp_path / "found.json", torch.get_num_threads()
        options = ["--prompts", "3", "--places", "2", "--tokens", "6", "--output", str(out)]
        monkeypatch.setattr(sys, "argv", ["same_bits", str(tiny_model), *options])
        try:
            same_bits.main()
        finally:
            torch.set_num_threads(threads)
        result: dict[str, Any] = json.loads(out.read_text())
        return result

    return run


def test_it_passes(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = run()
    assert found["capabilities"]["same_bits"]["promised"]
    settings = {finding["setting"] for finding in found["findings"]}
    assert {"in a batch of 3", "in chunks of 5", "resumed", "with prefix hits"} < settings
    assert {"preempted: swap", "preempted: recompute", "with drafts"} < settings
    assert not any(finding["parted"] for finding in found["findings"])
    assert "| resumed | 0 of 6 | 0 of 6 |" in capsys.readouterr().out


def test_it_tells_what_differs(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here: logits that depend, in their last bits, on how many there are."""
    forward = NativeBackend.forward

    def disturbed(self: NativeBackend, *arguments: Any) -> torch.Tensor:
        logits = forward(self, *arguments)
        return logits.mul_(1 + 2e-7 * len(logits))

    monkeypatch.setattr(NativeBackend, "forward", disturbed)
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 1
    assert "in a batch of 3: greedy 0 differs from token" in capsys.readouterr().out


def test_a_difference_is_found_where_it_begins() -> None:
    whole = Told([5, 6, 7, 8], [-0.5, -0.25, -1.0, -2.0])
    assert Told([5, 6, 7, 8], [-1.0, -2.0]).part_from(whole) is None
    assert Told([5, 6, 9, 8], [-1.0, -2.0]).part_from(whole) == 2
    assert Told([5, 6, 7, 8], [-1.0, -2.0000002]).part_from(whole) == 3
    assert Told([5, 6, 7], [-0.5, -0.25, -1.0]).part_from(whole) == 3
