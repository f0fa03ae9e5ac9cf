"""Whether an answer is the same in any company, on your model and machine.

    .venv/bin/python -m benchmarks.same_bits MODEL [--dtype bfloat16] [--prompts 20] [--places 20]

Each prompt is answered alone, greedily and with a seed. Then it is answered again: among others, in chunks
of other sizes, with prefix-cache hits, on one thread, with drafts, in a cache so small that requests are
swapped out or computed anew, and resumed from many places as when another server takes a stream over. Tokens
and log probabilities are compared to the last bit.

The exit code is 1 if something differs although the engine promises that nothing does (`same_bits` in
``/status``), and 3 if `--seconds` were over first: the same command goes on from what `--output` holds.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from benchmarks.same_bits.check import Check
from benchmarks.same_bits.record import Finding, Record
from benchmarks.same_bits.settings import KINDS, settings
from server.ops.cpu.variants import VARIANTS
from utils.commands import with_interpreter

UNFINISHED = 3


def table(findings: list[Finding]) -> str:
    """Markdown: a row for each setting, answers that differ of those compared."""
    lines = ["| answers that differ | " + " | ".join(KINDS) + " |", "|---|" + "---|" * len(KINDS)]
    for setting in dict.fromkeys(finding.setting for finding in findings if finding.compared):
        cells = {finding.kind: str(finding) for finding in findings if finding.setting == setting}
        lines.append(f"| {setting} | " + " | ".join(cells.get(kind, "") for kind in KINDS) + " |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        description=with_interpreter(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="checkpoint directory or GGUF file")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--quantization", help="as in the configuration of a server")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument(
        "--kernels",
        choices=[*(variant.name for variant in VARIANTS), "none"],
        help="variant of the C++ kernels; none: torch operations; the best that runs here unless given",
    )
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="number of the first prompt")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--places", type=int, default=20, help="where each answer is resumed")
    parser.add_argument("--tokens", type=int, default=300, help="of each answer")
    parser.add_argument(
        "--blocks", type=int, help="cache blocks, where 64 answers at once take too much memory"
    )
    names = [setting.name for setting in settings()]
    parser.add_argument("--settings", nargs="+", choices=names, metavar="SETTING", help=f"of {names}")
    parser.add_argument("--output", type=Path, help="JSON file to write, or to go on from")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin nothing new after them")
    return parser.parse_args()


def main() -> None:
    """Check, print a table and what differs, and write JSON where asked to."""
    options = parse()
    record = Record(options)
    check = Check(options, record)
    check.run()
    print(table(record.findings))
    for finding in record.findings:
        for name, place in finding.parted.items():
            print(f"{finding.setting}: {name} differs from token {place} on")
    promise = record.capabilities["same_bits"]
    print(f"promised: {'yes' if promise['promised'] else 'no'}, {promise['reason']}")
    if promise["promised"] and any(finding.parted for finding in record.findings):
        sys.exit(1)
    if not check.complete:
        sys.exit(UNFINISHED)


if __name__ == "__main__":
    main()
