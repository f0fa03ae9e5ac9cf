"""A model split over GPUs: ``.venv/bin/python -m benchmarks.gpu.ranks OUT [--vllm SITE] [--minutes 9]``.

Collectives alone; W1 to W4 of the 8b shape on all GPUs and on one; vLLM with as many GPUs; while that starts,
tokens in float32 of all ranks beside those of one, and a rank that is killed; W2 and W3 of the 70b shape; and
W2 and W1 with NCCL alone. Each part is a process, in the order of what matters; its figures and its log are
in the directory OUT, and ``ranks.json`` there has what all come to, written anew after each. A part that
fails or finds no time is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.child import Child, environment
from benchmarks.gpu.ranks import report
from benchmarks.gpu.ranks.tokens import checkpoint
from benchmarks.gpu.timing import READY
from benchmarks.gpu.versions import versions
from utils.commands import with_interpreter

QUIET = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "VLLM_ALLREDUCE_USE_SYMM_MEM": "0"}
"""Multicast over NVLink is not to be had on every host."""
REST_SECONDS = 2.0
CACHE_GIGABYTES = 60


class Part:
    """A process and what it finds; behind a gate, its imports are done while another part measures.

    Args:
        name: of its files.
        module: what it runs.
        arguments: of its command line; its file of figures goes where OUT stands.
    """

    def __init__(self, command: argparse.Namespace, name: str, module: str, *arguments: object) -> None:
        self.name, self.out = name, command.out / f"{name}.json"
        self.out.unlink(missing_ok=True)
        given = [str(self.out) if each == "OUT" else str(each) for each in arguments]
        line = [sys.executable, "-m", module, *given]
        self.child = Child(line, command.out / f"{name}.log", environment(command.vllm) | QUIET)
        self._begin = time.monotonic()

    def go(self) -> None:
        """Open its gate."""
        self._begin = time.monotonic()
        self.child.go()

    def end(self, seconds: float) -> dict[str, Any]:
        """Wait for it up to `seconds`, kill what still runs, and return what it found."""
        status = self.child.end(seconds)
        took = time.monotonic() - self._begin
        print(f"{self.name}: {took:.0f} s, status {status}, see {self.child.log}", flush=True)
        time.sleep(REST_SECONDS)
        found: dict[str, Any] = {"status": status, "took_seconds": took}
        with suppress(FileNotFoundError, json.JSONDecodeError):
            found |= json.loads(self.out.read_text())
        return found


class Suite:
    """All parts, while there is time."""

    def __init__(self, command: argparse.Namespace) -> None:
        self._command = command
        self._end = time.monotonic() + 60 * command.minutes
        self.found: dict[str, Any] = {"versions": versions("transformers")}

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def part(self, name: str, module: str, *arguments: object) -> Part | None:
        """Started, at its gate; None: it was not asked for."""
        if name not in self._command.parts:
            return None
        return Part(self._command, name, module, *arguments)

    def times(self, name: str, shape: str, workloads: str, ranks: int, *more: object) -> Part | None:
        """A `Part` with workloads of this project's engine."""
        repeats, models = self._command.repeats, self._command.models
        return self.part(
            name, "benchmarks.gpu.ranks.times", shape, workloads, "OUT", "--ranks", ranks,
            "--repeats", repeats, "--models", models, "--gate", *more,
        )  # fmt: skip

    def keep(self, part: Part | None, seconds: float = 150.0) -> None:
        """Let it end, keep what it found."""
        if part is not None:
            self.found[part.name] = part.end(min(seconds, self.left))
            self.found["figures"] = report.figures(self.found)
            kept = {name: report.without_answers(part) for name, part in self.found.items()}
            (self._command.out / "ranks.json").write_text(json.dumps(kept, indent=1))

    def measure(self, part: Part | None, seconds: float = 150.0) -> None:
        """Open its gate, let it end, keep what it found."""
        if part is not None:
            part.go()
            self.keep(part, seconds)

    def run(self) -> None:
        """One part after the other; the next one's imports are done meanwhile."""
        many, repeats, models = self._command.ranks, self._command.repeats, self._command.models
        alone = self.part("collectives", "benchmarks.gpu.ranks.collectives", "OUT", "--ranks", many)
        swaps = ("--traces", "W2,W3,W4", "--host-blocks", 1000)
        split = self.times("8b-all", "8b", "W2,W1,W4,W3", many, *swaps)
        self.keep(alone, 75)
        one = self.times("8b-one", "8b", "W2,W1,W4,W3", 1, "--traces", "W2")
        self.measure(split)
        self.measure(one)
        peer = None
        if self._command.vllm is not None:
            peer = self.part(
                "8b-vllm", "benchmarks.gpu.peer_vllm", "8b", "W2,W1,W4,W3", "OUT", "--ranks", many,
                "--repeats", repeats, "--models", models, "--cache-gigabytes", CACHE_GIGABYTES, "--gate",
            )  # fmt: skip
        self._beside(peer, many)
        large = self.times("70b-all", "70b", "W2,W3", many, "--rows", 32, "--traces", "W2")
        nccl = self.times("8b-nccl", "8b", "W2,W1", many, "--nccl-alone", "--traces", "W2")
        self.measure(large)
        self.measure(nccl)

    def _beside(self, peer: Part | None, many: int) -> None:
        """While vLLM starts, what is not timed; then its workloads."""
        models = ("--models", self._command.models)
        checkpoint(self._command.models / "small")
        parts = [
            self.part(f"tokens-{ranks}", "benchmarks.gpu.ranks.tokens", "OUT", "--ranks", ranks, *models)
            for ranks in (1, many)
        ]
        for part in parts:
            self.keep(part, 100)
        self.keep(self.part("lost", "benchmarks.gpu.ranks.lost", "OUT", "--ranks", many, *models), 100)
        if peer is not None and peer.child.says(READY, min(200, self.left)):
            peer.go()
        self.keep(peer, 100)


PARTS = ["collectives", "8b-all", "8b-one", "8b-vllm", "tokens-1", "tokens-2", "lost", "70b-all", "8b-nccl"]


def main() -> None:
    """Run the parts; print what they come to."""
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("out", type=Path)
    parser.add_argument("--vllm", type=Path, help="directory that holds vLLM and what it needs")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--models", type=Path, default=Path("/tmp/models"))
    parser.add_argument("--parts", type=lambda names: names.split(","), default=PARTS)
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - {*PARTS, f"tokens-{arguments.ranks}"}:
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    if arguments.ranks > (there_are := torch.cuda.device_count()):
        parser.error(f"{arguments.ranks} ranks, but {there_are} GPUs are visible")
    arguments.out.mkdir(parents=True, exist_ok=True)
    suite = Suite(arguments)
    suite.run()
    print(json.dumps(suite.found.get("figures", {}), indent=1))


if __name__ == "__main__":
    main()
