"""How many tokens part between alone and a batch where no bits are promised, with this checkout and others.

    git worktree add ../before COMMIT
    .venv/bin/python -m benchmarks.parted MODEL OUT.json --others ../before

MODEL is a checkpoint, or a shape of `benchmarks.checkpoints` whose weights are made up on a GPU. Every
prompt is answered alone, then all of them at once. An answer counts up to its first token that is another
one: what comes behind it follows from that. On CPUs torch's operations compute, in whose sums a row's bits
depend on the rows beside it; the C++ kernels promise that nothing parts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import SHAPES
from benchmarks.machine import processor, today
from benchmarks.processes import ROOT
from benchmarks.same_bits.answers import PREFACE, TOPICS
from utils.commands import with_interpreter

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "T = 1": {"do_sample": True},
    "T = 0.8, top_p = 0.95": {"do_sample": True, "temperature": 0.8, "top_p": 0.95},
}
_ENGINE = """
import json, sys
from pathlib import Path
from protocol.generation import GenerationConfig
given = json.load(sys.stdin)
sizes = {"num_blocks": given["blocks"]}
if given["shape"]:
    from benchmarks.gpu.own import load
    llm = load(given["model"], Path("/tmp/models"), **sizes)
else:
    from server.continuous_batching import LLM
    llm = LLM(
        given["model"],
        model_loading_config={"torch_dtype": "bfloat16", "device": "cpu"},
        batcher_config={"batch_max_beams": len(given["prompts"])},
        cache_config={"num_blocks_cpu": 0, "enable_prefix_cache": False, **sizes},
    )
for kind, options in given["kinds"].items():
    options |= {"max_new_tokens": given["tokens"], "ignore_eos": True}
    configs = [GenerationConfig(seed=i, **options) for i in range(len(given["prompts"]))]
    alone = [llm.generate([p], [c])[0] for p, c in zip(given["prompts"], configs)]
    together = llm.generate(given["prompts"], configs)
    answers = [[each.answers[0].token_ids for each in part] for part in (alone, together)]
    print("ANSWERS", json.dumps([kind, *answers]), flush=True)
"""
"""What both checkouts understand."""


def parted(alone: list[list[int]], together: list[list[int]]) -> dict[str, float]:
    """What came of one kind of request."""
    places, tokens = [], 0
    for mine, other in zip(alone, together, strict=True):
        wrong = [place for place, (a, b) in enumerate(zip(mine, other, strict=True)) if a != b]
        tokens += wrong[0] + 1 if wrong else len(mine)
        places += wrong[:1]
    return {
        "answers": len(alone),
        "parted": len(places),
        "tokens": tokens,
        "per 10,000": round(1e4 * len(places) / tokens, 1),
    }


def measure(root: Path, given: dict[str, Any]) -> dict[str, Any]:
    """By kind, with the checkout at `root`."""
    path = [str(root), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
    if not given["shape"]:
        environment["CXX"] = "none"  # so that torch computes
    process = subprocess.Popen(
        [sys.executable, "-c", _ENGINE],
        cwd=root,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    output, _ = process.communicate(json.dumps(given))
    if process.returncode:
        raise SystemExit(f"the engine of {root} ended with {process.returncode}")
    lines = [line.split(" ", 1)[1] for line in output.splitlines() if line.startswith("ANSWERS ")]
    return {kind: parted(alone, together) for kind, alone, together in map(json.loads, lines)}


def main() -> None:
    """Measure each checkout, print its figures and write them as JSON."""
    parser = argparse.ArgumentParser(
        description=with_interpreter(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help=f"checkpoint, or one of {', '.join(SHAPES)} on a GPU")
    parser.add_argument("out", type=Path)
    parser.add_argument("--others", type=Path, nargs="*", default=[], help="other checkouts")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    options = parser.parse_args()
    given = {
        "model": options.model,
        "shape": options.model in SHAPES,
        "prompts": [
            f"{PREFACE * (i % 4)}{i + 1}. Explain {TOPICS[i % len(TOPICS)]}." for i in range(options.prompts)
        ],
        "kinds": {kind: KINDS[kind] for kind in options.kinds},
        "tokens": options.tokens,
        "blocks": options.prompts * (1500 + options.tokens) // 16,
    }
    result: dict[str, Any] = {"model": options.model, "date": today(), "processor": processor()}
    result["checkouts"] = {}
    for root in (ROOT, *options.others):
        result["checkouts"][str(root)] = found = measure(root.resolve(), given)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        for kind, figures in found.items():
            print(f"{root}, {kind}: {figures}", flush=True)


if __name__ == "__main__":
    main()
