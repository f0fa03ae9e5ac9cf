"""This checkout beside another one, in paired turns: whether a change costs speed.

    git worktree add ../before COMMIT
    .venv/bin/python -m benchmarks.paired ../before

Both are measured one after the other in every turn, and the one that begins changes, so that whatever
else the machine does meets both alike. Three parts, each with what it measures already:

- *steps*: `benchmarks.engine.step_cost`, each checkout its own;
- *cpu*: C1 to C4 of `benchmarks.cpu` on the 125m;
- *gateway*: `benchmarks.gateway.run`.

A ratio is the speed of this checkout over that of the other. Speed is kept where the median of a
figure's ratios is at least 0.98, or their 95 % interval includes 1. Writes ``paired.json`` after
every turn.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from benchmarks.checkpoints import SHAPES, LlamaShape, make_llama
from benchmarks.cpu.engines import ENGINES
from benchmarks.cpu.peer import Peer, timed
from benchmarks.cpu.workloads import LOWER_IS_BETTER, NAMES
from benchmarks.gateway.measure import CELLS, build
from benchmarks.gateway.run import Bench
from benchmarks.machine import processor, today
from benchmarks.processes import ROOT
from utils.commands import with_interpreter

KEPT = 0.98
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t at 97.5 %, for 1 to 9 degrees of freedom."""
QUICK = LlamaShape(hidden=64, layers=2, heads=4, kv_heads=2, inner=128, vocab=8_000)

Figures = dict[str, float]
Measure = Callable[[int], Figures]
"""The number of a turn → figures by name."""

HIGHER = ("rps", "tok/s")
"""How the names of figures end of which more is better."""
GATEWAY = {"c=1": ("p50_us",), "c=64": ("rps", "cpu_us_per_request"), "64 streams": ("cpu_us_per_event",)}


@contextmanager
def steps(root: Path, directory: Path, quick: bool) -> Iterator[Measure]:
    """A step's cost outside the forward pass, and of beams."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "step_cost.json"
    command = [sys.executable, "-m", "benchmarks.engine.step_cost", "--repeats", "1", "--out", str(file)]
    command += ["--steps", "5" if quick else "150"]

    def measure(turn: int) -> Figures:
        path = [str(root), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
        subprocess.run(command, cwd=root, env=environment, check=True, stdout=subprocess.DEVNULL)
        found = json.loads(file.read_text())
        return {
            "bookkeeping, ms": found["bookkeeping_ms"]["median"],
            "beams over greedy": found["beams_over_greedy"]["median"],
        }

    yield measure


@contextmanager
def cpu(root: Path, directory: Path, quick: bool) -> Iterator[Measure]:
    """The engine on this machine's processors."""
    directory.mkdir(parents=True, exist_ok=True)
    model = make_llama(directory.parent / "model", QUICK if quick else SHAPES["125m"])
    names = ("C2", "C4") if quick else NAMES
    peer = Peer(ENGINES["own"], model, directory, len(os.sched_getaffinity(0)), root=root)
    try:
        for name in names:
            timed(peer, name, -1)
        yield lambda turn: {
            f"{name}, {'ms/token' if name in LOWER_IS_BETTER else 'tok/s'}": timed(peer, name, turn)
            for name in names
        }
    finally:
        peer.close()


@contextmanager
def gateway(root: Path, directory: Path, quick: bool) -> Iterator[Measure]:
    """What a request and an event of a stream cost."""
    directory.mkdir(parents=True, exist_ok=True)
    build(directory)
    load_core, gateway_core, *_ = sorted(os.sched_getaffinity(0))
    bench = Bench(directory, gateway_core, load_core, seconds=0.4 if quick else 5)
    bench.install(["ours"], {"ours": str(root)})

    def measure(turn: int) -> Figures:
        record = bench.run("ours")
        errors = sum(record[cell.name]["errors"] for cell in CELLS)
        if errors:
            raise SystemExit(f"{errors:.0f} requests to the gateway of {root} failed")
        return {f"{cell}, {name}": record[cell][name] for cell, names in GATEWAY.items() for name in names}

    yield measure


PARTS = {"steps": steps, "cpu": cpu, "gateway": gateway}


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the geometric mean, by Student's t; of one ratio it is everything."""
    if len(ratios) == 1:
        return 0.0, math.inf
    logs = [math.log(ratio) for ratio in ratios]
    reach = STUDENT[min(len(logs) - 1, len(STUDENT)) - 1] * statistics.stdev(logs) / math.sqrt(len(logs))
    middle = statistics.mean(logs)
    return math.exp(middle - reach), math.exp(middle + reach)


def ratio(name: str, this: float, other: float) -> float:
    """How many times as fast this checkout is."""
    return this / other if name.endswith(HIGHER) else other / this


def is_kept(ratios: Sequence[float]) -> bool:
    """Whether speed is kept, by the rule above."""
    low, high = interval(ratios)
    return statistics.median(ratios) >= KEPT or low <= 1 <= high


def table(turns: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """A line for each figure; `turns` are its (this, other)."""
    rows = ["| figure | this | other | ratio | 95 % | kept |", "|---|---|---|---|---|---|"]
    for name, pairs in turns.items():
        ratios = [ratio(name, *pair) for pair in pairs]
        low, high = interval(ratios)
        this, other = (statistics.median(values) for values in zip(*pairs, strict=True))
        middle, kept = statistics.median(ratios), "yes" if is_kept(ratios) else "NO"
        rows.append(f"| {name} | {this:.4g} | {other:.4g} | {middle:.3f} | {low:.3f}–{high:.3f} | {kept} |")
    return "\n".join(rows)


def main() -> None:
    """Parse the command line, measure, report."""
    parser = argparse.ArgumentParser(
        description=with_interpreter(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try it out")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/local/paired")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    roots = (ROOT, options.other.resolve())
    turns: dict[str, list[tuple[float, float]]] = {}
    for part in options.parts:
        with ExitStack() as stack, tempfile.TemporaryDirectory() as scratch:
            start = partial(PARTS[part], quick=options.quick)
            pair = [
                stack.enter_context(start(root, Path(scratch) / name))
                for name, root in zip(("this", "other"), roots, strict=True)
            ]
            for turn in range(options.turns):
                order = (0, 1) if turn % 2 == 0 else (1, 0)
                figures = {place: pair[place](turn) for place in order}
                for name in figures[0]:
                    turns.setdefault(name, []).append((figures[0][name], figures[1][name]))
                print(f"{part}: turn {turn + 1} of {options.turns}", file=sys.stderr, flush=True)
                result = {"processor": processor(), "date": today(), "quick": options.quick, "turns": turns}
                (options.output / "paired.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(turns))


if __name__ == "__main__":
    main()
