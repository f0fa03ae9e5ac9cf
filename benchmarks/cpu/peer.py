"""An engine under test, in a process of its own that takes one workload after the other."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.cpu.engines import ENGINES, ROOT, Engine, environment, interpreter
from benchmarks.cpu.peers.worker import MARK
from benchmarks.cpu.workloads import figure

_PAUSE_SECONDS = 0.5
"""Between turns, until the threads of the last engine have stopped spinning."""


class Peer:
    """A running engine.

    Args:
        engine: which.
        model: checkpoint directory.
        environments: where engines are installed.
        threads: processors that it may use.
        kind: of the GGUF file that it runs; None: the checkpoint as it is.
        root: the checkout of this project whose code is run.
    """

    def __init__(
        self,
        engine: Engine,
        model: Path,
        environments: Path,
        threads: int,
        kind: str | None = None,
        root: Path = ROOT,
    ) -> None:
        self.engine = engine
        python = interpreter(engine, environments)
        arguments = [str(model)]
        if engine.module == "llama_cpp_peer":
            arguments = [str(_gguf(model, python, kind)), str(threads)]
        elif engine.module == "own":
            llama = interpreter(ENGINES["llama.cpp"], environments) if kind else python
            weights = _gguf(model, llama, kind) if kind else model
            arguments = [str(weights), str(model), engine.arithmetic]
        name = f"{engine.module}-{engine.arithmetic}{'-avx2' if engine.masked else ''}-{root.name}.log"
        self._log = (environments / name).open("w")
        self._process = subprocess.Popen(
            [python, "-m", f"benchmarks.cpu.peers.{engine.module}", *arguments],
            cwd=root,
            env=environment(engine, python, threads, root),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.versions: dict[str, str] = self._read()["versions"]

    def time(self, workload: str, repetition: int) -> float:
        """Seconds that a workload takes."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{workload} {repetition}\n")
        self._process.stdin.flush()
        return float(self._read()["seconds"])

    def _read(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
            self._log.write(line)
        raise RuntimeError(f"{self.engine.name} ended; its log is {self._log.name}")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._log.close()


def _gguf(model: Path, python: Path, kind: str | None) -> Path:
    """The checkpoint as llama.cpp reads it, written by that engine's own environment."""
    file = model / f"model-{kind or 'bf16'}.gguf"
    if not file.is_file():
        wanted = [kind] if kind else []
        subprocess.run([python, "-m", "benchmarks.cpu.gguf", model, file, *wanted], cwd=ROOT, check=True)
    return file


def timed(peer: Peer, workload: str, repetition: int) -> float:
    """The figure of one turn."""
    time.sleep(_PAUSE_SECONDS)
    seconds = peer.time(workload, repetition)
    first = peer.time("C2-first", repetition) if workload == "C2" else 0.0
    return figure(workload, seconds, first)
