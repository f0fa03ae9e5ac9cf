"""Whether an answer is the same in any company, on your model and machine.

    .venv/bin/python -m benchmarks.same_bits MODEL [--dtype bfloat16] [--prompts 20] [--places 20]

Each prompt is answered alone, greedily and with a seed. Then it is answered again: among others, in chunks
of other sizes, with prefix-cache hits, on one thread, with drafts, in a cache so small that requests are
swapped out or computed anew, and resumed from many places as when another server takes a stream over. Tokens
and log probabilities are compared to the last bit. The exit code is 1 if something differs although the
engine promises that nothing does (`same_bits` in ``/status``).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.same_bits.answers import Answerer, Asked, Told
from utils.commands import with_interpreter

BATCHES = (7, 33, 64)
CHUNKS = (1, 5, 16, 100, 2048)
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"do_sample": True, "temperature": 0.8, "top_p": 0.95},
}


@dataclass(slots=True)
class Finding:
    """What came of one setting and kind of request.

    Attributes:
        parted: for each answer that differs, the place of its first other token or log probability.
    """

    setting: str
    kind: str
    compared: int
    parted: dict[str, int]
    note: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        text = f"{len(self.parted)} of {self.compared}"
        return f"{text} ({self.note})" if self.note else text


class Check:
    """Compares answers with those that each prompt got alone.

    Args:
        options: of the command.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.findings: list[Finding] = []
        self.capabilities: dict[str, Any] = {}
        self._asked: dict[str, list[Asked]] = {}
        self._whole: dict[str, dict[str, Told]] = {}

    def run(self) -> None:
        """Everything, one engine after the other."""
        self._with_much_room()
        self._with_cache()
        self._with_little_room()
        if torch.get_num_threads() > 1:
            before = torch.get_num_threads()
            self._compare("on one thread", Answerer(self.options, threads=1, enable_prefix_cache=False), 64)
            torch.set_num_threads(before)

    def _with_much_room(self) -> None:
        engine = Answerer(self.options, enable_prefix_cache=False)
        self.capabilities = engine.llm.capabilities
        prompts = [engine.prompt(index) for index in range(self.options.prompts)]
        for kind, options in KINDS.items():
            options = options | {"max_new_tokens": self.options.tokens}
            self._asked[kind] = [
                Asked(f"{kind} {i}", prompt, options | ({"seed": i} if "do_sample" in options else {}))
                for i, prompt in enumerate(prompts)
            ]
            self._whole[kind] = engine.answer(self._asked[kind], 1)
        for rows in BATCHES:
            self._compare(f"in a batch of {rows}", engine, rows, fill=rows)
        self._compare("resumed", engine, 64, places=self.options.places)
        if engine.llm.engine.scheduler.speculator is not None:
            self._compare("with drafts", engine, 16, lookup=5)
            self.findings[-1].note = f"{engine.llm.engine.stats().drafted_tokens} tokens drafted for both"
        scheduler = engine.llm.engine.scheduler
        for chunk in CHUNKS:
            scheduler.limits = replace(scheduler.limits, chunk_tokens=chunk)
            self._compare(f"in chunks of {chunk}", engine, 16)

    def _with_cache(self) -> None:
        engine = Answerer(self.options, enable_prefix_cache=True)
        for kind, asked in self._asked.items():
            engine.answer(asked, 64)
            before = engine.llm.engine.stats().prefix_hits
            self._compare_kind("with prefix hits", kind, engine, 64)
            hits = engine.llm.engine.stats().prefix_hits - before
            self.findings[-1].note = f"{hits} tokens found"

    def _with_little_room(self) -> None:
        needs = [-(-(len(one.prompt) + self.options.tokens) // 16) for one in self._asked["greedy"]]
        blocks = max(sum(needs) // 4, *needs)
        engine = Answerer(
            self.options, num_blocks=blocks, num_blocks_cpu=4 * blocks, enable_prefix_cache=False
        )
        scheduler = engine.llm.engine.scheduler
        for policy in ("swap", "recompute"):
            scheduler.cost.policy = policy  # type: ignore[assignment]
            for kind in KINDS:
                counters = scheduler.queues.preemptions
                before = counters.swapped + counters.recomputed
                self._compare_kind(f"preempted: {policy}", kind, engine, 64)
                self.findings[-1].note = f"{counters.swapped + counters.recomputed - before} times"

    # -- one setting -------------------------------------------------------------------------

    def _compare(self, setting: str, engine: Answerer, at_once: int, **more: int) -> None:
        for kind in KINDS:
            self._compare_kind(setting, kind, engine, at_once, **more)

    def _compare_kind(
        self,
        setting: str,
        kind: str,
        engine: Answerer,
        at_once: int,
        *,
        fill: int = 0,
        places: int = 0,
        lookup: int = 0,
    ) -> None:
        """Answer the prompts in a setting.

        Args:
            at_once: requests that are live at a time.
            fill: requests that there are at least: others stand between those that are compared.
            places: number of places that each answer is resumed from; 0: none.
            lookup: tokens of drafts.
        """
        begin, whole = time.perf_counter(), self._whole[kind]
        asked = [*self._resumed(kind, places)] if places else [*self._asked[kind]]
        compared = len(asked)
        others = [
            Asked(
                f"other {i}",
                self._asked[kind][i % len(whole)].prompt,
                self._asked[kind][0].options | {"seed": 1000 + i},
            )
            for i in range(fill - compared)
        ]
        told = engine.answer([*others[::2], *asked, *others[1::2]], at_once, lookup)
        parted = {}
        for one in asked:
            place = told[one.name].part_from(whole[one.name.partition(" from ")[0]])
            if place is not None:
                parted[one.name] = place
        finding = Finding(setting, kind, compared, parted, seconds=time.perf_counter() - begin)
        self.findings.append(finding)
        print(f"{setting}, {kind}: {finding}", file=sys.stderr, flush=True)

    def _resumed(self, kind: str, places: int) -> Iterator[Asked]:
        for one in self._asked[kind]:
            tokens = self._whole[kind][one.name].tokens
            cuts = sorted({1 + i * (len(tokens) - 2) // max(places - 1, 1) for i in range(places)})
            for cut in cuts:
                yield Asked(f"{one.name} from {cut}", one.prompt, one.options, tokens[:cut])


def table(findings: list[Finding]) -> str:
    """Markdown: a row for each setting, answers that differ of those compared."""
    lines = ["| answers that differ | " + " | ".join(KINDS) + " |", "|---|" + "---|" * len(KINDS)]
    for setting in dict.fromkeys(finding.setting for finding in findings):
        cells = {finding.kind: str(finding) for finding in findings if finding.setting == setting}
        lines.append(f"| {setting} | " + " | ".join(cells.get(kind, "") for kind in KINDS) + " |")
    return "\n".join(lines)


def main() -> None:
    """Check, print a table and what differs, and write JSON where asked to."""
    parser = argparse.ArgumentParser(
        description=with_interpreter(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="checkpoint directory")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--quantization", help="as in the configuration of a server")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--places", type=int, default=20, help="where each answer is resumed")
    parser.add_argument("--tokens", type=int, default=300, help="of each answer")
    parser.add_argument(
        "--blocks", type=int, help="cache blocks, where 64 answers at once take too much memory"
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    check = Check(options)
    check.run()
    print(table(check.findings))
    for finding in check.findings:
        for name, place in finding.parted.items():
            print(f"{finding.setting}: {name} differs from token {place} on")
    promise = check.capabilities["same_bits"]
    print(f"promised: {'yes' if promise['promised'] else 'no'}, {promise['reason']}")
    if options.output is not None:
        settings = {key: str(value) for key, value in vars(options).items() if key != "output"}
        result = {"options": settings, "capabilities": check.capabilities}
        result["findings"] = [asdict(finding) for finding in check.findings]
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    if promise["promised"] and any(finding.parted for finding in check.findings):
        sys.exit(1)


if __name__ == "__main__":
    main()
