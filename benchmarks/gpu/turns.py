"""Two checkouts in turns on one GPU: ``.venv/bin/python -m benchmarks.gpu.turns SHAPE W1,W2 OUT.json OTHER``.

Both engines are loaded first, side by side, each in a process of its checkout. Then each workload runs on one
and the other, again and again, so that what changes on the machine changes both. The ratio is OTHER's seconds
by this checkout's: above 1, this one is the faster.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu import timing
from utils.commands import with_interpreter

ROOT = Path(__file__).resolve().parents[2]

_ENGINE = """
import sys
from pathlib import Path
from benchmarks.gpu.own import load, run
from benchmarks.gpu.workloads import workload
llm = load(sys.argv[1], Path(sys.argv[2]), num_blocks=int(sys.argv[3]))
print("ready", flush=True)
for line in sys.stdin:
    name, kind = line.split()
    timed = workload(name)
    print("seconds", run(llm, timed.shortened(24) if kind == "short" else timed), flush=True)
"""


class Engine:
    """The engine of a checkout, in a process that runs workloads when told to."""

    def __init__(self, checkout: Path, shape: str, models: Path, blocks: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ENGINE, shape, str(models), str(blocks)],
            cwd=checkout,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait(self, word: str) -> str:
        """The rest of the next line that begins with `word`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(word):
                return line[len(word) :]
        raise RuntimeError(f"the engine ended with {self.process.wait()}")

    def run(self, name: str, kind: str = "whole") -> float:
        """Seconds that the workload takes."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{name} {kind}\n")
        self.process.stdin.flush()
        return float(self.wait("seconds"))


def paired(this: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """The ratio of each turn, other by this: median, least and greatest."""
    ratios = [theirs / ours for ours, theirs in zip(this, other, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios)}


def main() -> None:
    """Time both checkouts and write seconds and ratios as JSON."""
    parser = timing.parser(__doc__)
    parser.description = with_interpreter(__doc__)
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument("--blocks", type=int, default=12_000, help="size of each cache")
    arguments = parser.parse_args()
    result: timing.Result = {"shape": arguments.shape, "workloads": {}}
    with contextlib.ExitStack() as stack:
        engines = []
        for checkout in (ROOT, arguments.other):
            engine = Engine(checkout, arguments.shape, arguments.models, arguments.blocks)
            stack.callback(engine.process.kill)
            engine.wait("ready")
            engines.append(engine)
        for name in arguments.workloads:
            for engine in engines:
                engine.run(name, "short")
            turns = [[engine.run(name) for engine in engines] for _ in range(arguments.repeats)]
            this, other = (list(seconds) for seconds in zip(*turns, strict=True))
            figures = {"this": this, "other": other, "ratio": paired(this, other)}
            result["workloads"][name] = figures
            timing.write(result, name, figures, arguments.out)


if __name__ == "__main__":
    main()
