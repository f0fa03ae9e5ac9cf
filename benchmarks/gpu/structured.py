"""What structured outputs cost on a GPU:
``.venv/bin/python -m benchmarks.gpu.structured OUT_DIR [--shape 8b] [--vllm SITE] [--minutes 4]``.

The same prompts and answers of the same length, once free and once held to a JSON schema, in turns: 256
sequences at once (`BATCH`, as W1 but with at most 256 new tokens), and one (`ONE`, as W2 but drawn, 256 new
tokens). Our engine comes first, then vLLM with its default library (xgrammar), each in a process of its own,
with one tokenizer of about 100,000 tokens, trained on the Python sources of this machine. Each process writes
its figures turn by turn. What is left out for lack of time is missing in ``results.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import SHAPES, SPECIAL_TOKENS
from benchmarks.engine.structured_cost import PERSON
from benchmarks.gpu.child import Child, environment
from benchmarks.gpu.tasks import REST_SECONDS
from benchmarks.gpu.versions import versions
from benchmarks.gpu.workloads import Workload, workload
from utils.commands import with_interpreter

ENGINES = ("own", "vllm")
SCHEMA = {"type": "array", "items": PERSON, "minItems": 30}
"""Longer than any answer gets: an item has nine tokens at least."""
TEXT_BYTES = 60_000_000
"""That the tokenizer is trained on."""
MOST_VOCAB = 128_000


def loads() -> dict[str, Workload]:
    """The workloads, free."""
    batch, one = workload("W1").shortened(256), workload("W2").shortened(256)
    return {"BATCH": batch, "ONE": replace(one, temperature=batch.temperature)}


def train_tokenizer(path: Path) -> int:
    """Save a byte-level BPE tokenizer of this machine's Python sources; returns how many tokens it has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MOST_VOCAB,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sources(), trainer)
    tokenizer.save(str(path))
    return int(tokenizer.get_vocab_size())


def _sources() -> Iterator[str]:
    taken = 0
    for root in dict.fromkeys(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")):
        for path in sorted(Path(root).rglob("*.py")):
            text = path.read_text(encoding="utf-8", errors="ignore")
            taken += len(text)
            yield text
            if taken > TEXT_BYTES:
                return


def prepare_own(
    shape: str, directory: Path, tokenizer: Path
) -> tuple[Callable[[Workload], float], Any, Callable[[], int]]:
    """What runs a workload, the schema as an option of it, and what counts steps, of our engine."""
    from benchmarks.gpu import own

    llm = own.load(shape, directory, tokenizer=tokenizer)
    return lambda load: own.run(llm, load), {"json": SCHEMA}, lambda: llm.engine.stats().steps


def prepare_vllm(
    shape: str, directory: Path, tokenizer: Path
) -> tuple[Callable[[Workload], float], Any, Callable[[], int]]:
    """The same of vLLM, whose steps are not counted."""
    from vllm.sampling_params import StructuredOutputsParams

    from benchmarks.gpu import peer_vllm

    sizes = [
        1,
        8,
        32,
        64,
        128,
        192,
        256,
    ]  # captured sooner than all of its own; both sizes here are among them
    llm = peer_vllm.load(
        shape, directory, tokenizer=tokenizer, compilation_config={"cudagraph_capture_sizes": sizes}
    )
    return lambda load: peer_vllm.run(llm, load), StructuredOutputsParams(json=SCHEMA), lambda: 0


def measure(engine: str, arguments: argparse.Namespace) -> None:
    """Time one engine in turns, in this process."""
    out, begin = arguments.out / f"{engine}.json", time.perf_counter()
    prepare = prepare_own if engine == "own" else prepare_vllm
    run, schema, steps = prepare(arguments.shape, arguments.models, arguments.out / "tokenizer.json")
    result: dict[str, Any] = {"engine": engine, "start_seconds": time.perf_counter() - begin}
    for name, free in loads().items():
        held = replace(free, options={"structured_outputs": schema})
        for load in (free, held):
            run(load.shortened(24))
        turns: dict[str, list[float]] = {"free": [], "held": [], "free_steps": [], "held_steps": []}
        for _ in range(arguments.turns):
            for kind, load in (("free", free), ("held", held)):
                before = steps()
                turns[kind].append(run(load))
                turns[f"{kind}_steps"].append(steps() - before)
            result[name] = {**turns, **ratios(turns["free"], turns["held"])}
            print(engine, name, result[name], flush=True)
            out.write_text(json.dumps(result, indent=1))


def ratios(free: list[float], held: list[float]) -> dict[str, float]:
    """Seconds with structured outputs by those without, turn by turn: median, least and greatest."""
    each = [theirs / ours for ours, theirs in zip(free, held, strict=True)]
    return {"ratio": statistics.median(each), "least": min(each), "greatest": max(each)}


def measure_all(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every engine in a process of its own, as far as there is time; what there is so far is on disk."""
    end = time.monotonic() + 60 * arguments.minutes
    arguments.out.mkdir(parents=True, exist_ok=True)
    size = train_tokenizer(arguments.out / "tokenizer.json")
    results: dict[str, Any] = {"versions": versions("transformers"), "vocabulary": size}
    for engine in ENGINES[: 2 if arguments.vllm else 1]:
        out = arguments.out / f"{engine}.json"
        out.unlink(missing_ok=True)
        command = [sys.executable, "-m", "benchmarks.gpu.structured", str(arguments.out), "--engine", engine]
        for option in ("shape", "turns", "models"):
            command += [f"--{option}", str(getattr(arguments, option))]
        site = arguments.vllm if engine == "vllm" else None
        log, left = out.with_suffix(".log"), max(1.0, end - time.monotonic())
        status = Child(command, log, environment(site)).end(left)
        print(f"{engine}: status {status}, see {log}", flush=True)
        results[engine] = json.loads(out.read_text()) if out.is_file() else None
        (arguments.out / "results.json").write_text(json.dumps(results, indent=1))
        time.sleep(REST_SECONDS)
    return results


def main() -> None:
    """Measure what was asked for, and print the ratios."""
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--models", type=Path, default=Path("/tmp/models"))
    parser.add_argument("--vllm", type=Path, help="directory that holds vLLM and what it needs")
    parser.add_argument("--minutes", type=float, default=4.0, help="for all of it")
    parser.add_argument("--engine", choices=ENGINES, help="measure one in this process")
    arguments = parser.parse_args()
    if arguments.engine is not None:
        measure(arguments.engine, arguments)
        return
    results = measure_all(arguments)
    for engine in ENGINES:
        for name, figures in (results.get(engine) or {}).items():
            if isinstance(figures, dict):
                print(f"{engine} {name}: with a schema {figures['ratio']:.3f} times the seconds without")


if __name__ == "__main__":
    main()
