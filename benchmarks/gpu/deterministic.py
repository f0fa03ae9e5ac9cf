"""What `deterministic` keeps and costs: ``.venv/bin/python -m benchmarks.gpu.deterministic SHAPE OUT.json``.

First the products alone: whether a row has the same bits in every number of rows, and their times. Then
answers of a whole engine with random weights, greedy and seeded: each alone, and again in a batch of 64, in
chunks of several sizes, with prefix-cache hits, resumed in the middle, and in so small a cache that requests
are swapped out or computed anew. Tokens and log probabilities are compared to the last bit. Without
`deterministic`, answers alone and in a batch of 64 show how many tokens part. Last, workloads with and
without in turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoints import SHAPES
from benchmarks.gpu import own
from benchmarks.gpu.fixed_kernels import examine
from benchmarks.gpu.workloads import figures, peak_blocks, workload
from benchmarks.same_bits.answers import Answerer, Asked, Told
from utils.commands import with_interpreter

BATCH = 64
CHUNKS = {33: 8, 100: 40, 1000: 64}
"""Tokens of a chunk, and how many prompts of each kind go through chunks of that size."""
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"do_sample": True, "temperature": 0.8, "top_p": 0.95},
}
TURNS = {"1b": {"W2": 5, "W4": 3, "W1": 3}, "8b": {"W2": 3, "W4": 2, "W1": 1}}
"""How often each workload is run with and without."""


def ask(kind: str, count: int, tokens: int) -> list[Asked]:
    """Requests: half of them begin alike, some are far longer than others."""
    rng = random.Random(0)
    preface = [rng.randint(0, 10_000) for _ in range(160)]
    asked = []
    for index in range(count):
        own_part = [rng.randint(0, 10_000) for _ in range(rng.randint(5, 300))]
        if index % 8 == 7:
            own_part += [rng.randint(0, 10_000) for _ in range(1000)]
        prompt = preface + own_part if index % 2 else own_part
        options = KINDS[kind] | {"max_new_tokens": tokens} | ({"seed": index} if KINDS[kind] else {})
        asked.append(Asked(f"{kind} {index}", prompt, options))
    return asked


@dataclasses.dataclass(slots=True)
class Compared:
    """Answers in one setting beside those alone.

    Attributes:
        parted: of those whose tokens differ, the place of the first that does.
        rounded: how many others have a log probability that differs.
        tokens: that were compared, up to where answers part.
    """

    answers: int = 0
    parted: list[int] = dataclasses.field(default_factory=list)
    rounded: int = 0
    tokens: int = 0
    seconds: float = 0.0
    note: str = ""

    def add(self, alone: Told, other: Told) -> None:
        """Take one more answer."""
        begin = len(other.tokens) - len(other.logprobs)
        wrong = [i for i, (a, b) in enumerate(zip(alone.tokens, other.tokens, strict=True)) if a != b]
        self.answers += 1
        self.tokens += (wrong[0] + 1 if wrong else len(alone.tokens)) - begin
        if wrong:
            self.parted.append(wrong[0])
        elif other.part_from(alone) is not None:
            self.rounded += 1

    def per_10_000(self) -> float:
        """Tokens that part."""
        return 1e4 * len(self.parted) / max(self.tokens, 1)


class Check:
    """Answers alone, and what becomes of them in company."""

    def __init__(self, count: int, tokens: int) -> None:
        self.asked = {kind: ask(kind, count, tokens) for kind in KINDS}
        self.alone: dict[str, dict[str, Told]] = {}
        self.found: dict[str, Any] = {}

    def answer_alone(self, engine: Answerer) -> None:
        begin = time.perf_counter()
        self.alone = {kind: engine.answer(asked, 1) for kind, asked in self.asked.items()}
        print(f"alone: {time.perf_counter() - begin:.1f} s", flush=True)

    def compare(
        self,
        setting: str,
        engine: Answerer,
        at_once: int = BATCH,
        *,
        cut: int = 0,
        most: int = BATCH,
        note: Any = None,
    ) -> None:
        """Answer everything again.

        Args:
            cut: tokens of each answer that are there already.
            most: requests of each kind.
            note: gives words on what happened.
        """
        begin, compared = time.perf_counter(), Compared()
        for kind, asked in self.asked.items():
            alone = self.alone[kind]
            again = [dataclasses.replace(one, emitted=alone[one.name].tokens[:cut]) for one in asked[:most]]
            told = engine.answer(again, at_once)
            for name, answer in told.items():
                compared.add(alone[name], answer)
        compared.seconds = round(time.perf_counter() - begin, 2)
        compared.note = "" if note is None else note()
        self.found[setting] = dataclasses.asdict(compared) | {"per 10,000": round(compared.per_10_000(), 2)}
        print(
            f"{setting}: {len(compared.parted)} of {compared.answers} answers part, {compared.rounded} more "
            f"differ in bits, {compared.seconds} s {compared.note}",
            flush=True,
        )


def check_with(shape: str, models: Path, llm: Any, count: int, tokens: int) -> dict[str, Any]:
    """Every setting, with `deterministic`."""
    check, engine = Check(count, tokens), Answerer(llm)
    scheduler = llm.engine.scheduler
    check.answer_alone(engine)
    check.compare("in a batch of 64", engine)
    check.compare("in a batch of 7", engine, 7)
    check.compare("resumed", engine, cut=tokens // 2)
    whole = scheduler.limits
    for chunk, prompts in CHUNKS.items():
        scheduler.limits = dataclasses.replace(whole, chunk_tokens=chunk)
        check.compare(f"in chunks of {chunk}", engine, most=prompts)
    scheduler.limits = whole
    scheduler.cache.prefix_cache = True
    engine.answer(check.asked["greedy"], BATCH)
    before = llm.engine.stats().prefix_hits
    hits = lambda: f"{llm.engine.stats().prefix_hits - before} tokens found"  # noqa: E731
    check.compare("with prefix hits", engine, note=hits)
    scheduler.cache.prefix_cache = False
    needs = sorted(-(-(len(one.prompt) + tokens) // 16) for one in check.asked["greedy"])
    blocks = max(sum(needs) // 3, *needs) + 1
    little = own.load(
        shape, models, deterministic=True, beams=BATCH, num_blocks=blocks, num_blocks_cpu=4 * blocks
    )
    counters = little.engine.scheduler.queues.preemptions
    for policy in ("swap", "recompute"):
        little.engine.scheduler.cost.policy = policy
        before = counters.swapped + counters.recomputed
        times = lambda before=before: f"{counters.swapped + counters.recomputed - before} times"  # noqa: E731
        check.compare(f"preempted: {policy}", Answerer(little), note=times)
    return check.found


def check_without(llm: Any, count: int, tokens: int) -> dict[str, Any]:
    """How many tokens part between alone and a batch."""
    check, engine = Check(count, tokens), Answerer(llm)
    check.answer_alone(engine)
    check.compare("in a batch of 64", engine)
    return check.found


def in_turns(shape: str, with_it: Any, without: Any) -> dict[str, Any]:
    """Workloads with and without, one after the other."""
    result = {}
    for name, turns in TURNS[shape].items():
        load = workload(name)
        for llm in (with_it, without):
            own.run(llm, load.shortened(24))
        seconds = [(own.run(with_it, load), own.run(without, load)) for _ in range(turns)]
        medians = [statistics.median(side) for side in zip(*seconds, strict=True)]
        result[name] = {
            "seconds": seconds,
            "with": figures(name, load, medians[0]),
            "without": figures(name, load, medians[1]),
            "ratio": round(medians[1] / medians[0], 4),
        }
        print(name, result[name], flush=True)
    return result


def main() -> None:
    """Check, time, and write JSON as it comes."""
    parser = argparse.ArgumentParser(
        description=with_interpreter(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=tuple(TURNS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", type=Path, default=Path("/tmp/models"))
    parser.add_argument("--parts", default="kernels,bits,speed", help="which of the three to do")
    arguments = parser.parse_args()
    shape, parts = arguments.shape, arguments.parts.split(",")
    count, tokens = (64, 48) if shape == "1b" else (64, 32)
    result: dict[str, Any] = {
        "shape": shape,
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }

    def write(name: str, value: Any) -> None:
        result[name] = value
        result["seconds"] = round(time.perf_counter() - begin, 1)
        arguments.out.write_text(json.dumps(result, indent=1))

    begin = time.perf_counter()
    if "kernels" in parts:
        write("kernels", examine(SHAPES[shape]))
        torch.cuda.empty_cache()
    blocks = int(1.05 * peak_blocks(workload("W1"), 16)) + 512
    with_it = own.load(shape, arguments.models, deterministic=True, beams=256, num_blocks=blocks)
    write("capabilities", with_it.capabilities)
    if "bits" in parts:
        write("with", check_with(shape, arguments.models, with_it, count, tokens))
    without = own.load(shape, arguments.models, beams=256, num_blocks=blocks)
    if "speed" in parts:
        write("turns", in_turns(shape, with_it, without))
    if "bits" in parts:
        write("without", check_without(without, count // 2, tokens))


if __name__ == "__main__":
    main()
