"""What speculative decoding by prompt lookup gives, and what it costs where there is nothing to gain.

    .venv/bin/python -m benchmarks.cpu.speculation

One engine answers the same requests with and without drafts, by turns; figures are milliseconds per
token of the batch. The weights are random, so the texts are steered:

- *loops*: greedy answers, which with random weights soon go in circles; as good as it gets.
- *half*: sampled answers over 2 equally likely tokens: there is always an n-gram to find, and every
  second guess is wrong.
- *noise*: the same over 50 tokens: nearly every guess is wrong.
- *new*: sampled answers over the whole vocabulary: nothing ever comes twice.

With `--demo`, the demo model tells stories besides (greedy, trained weights, 5 M parameters).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoints import SHAPES, make_llama
from benchmarks.cpu.engines import ROOT
from benchmarks.machine import processor, today
from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from utils.commands import with_interpreter

DRAFTED = 8
NEW_TOKENS = 256
DEMO = ROOT / "demo_model" / "checkpoint"


def among(count: int) -> dict[str, Any]:
    """Options that leave `count` tokens, about equally likely."""
    tokens = range(1_000, 1_000 + count)
    return {
        "do_sample": True,
        "temperature": 50.0,
        "logit_bias": dict.fromkeys(tokens, 100.0),
        "top_k": count,
    }


TEXTS: dict[str, dict[str, Any]] = {
    "loops": {},
    "half": among(2),
    "noise": among(50),
    "new": {"do_sample": True, "temperature": 50.0},
}


def load(path: Path) -> LLM:
    """An engine on the CPU, without a prefix cache."""
    return LLM(
        path,
        model_loading_config={"torch_dtype": "bfloat16", "device": "cpu"},
        cache_config={"enable_prefix_cache": False},
    )


def answer(llm: LLM, prompts: list[Any], options: dict[str, Any], drafted: int, seed: int) -> dict[str, Any]:
    """Milliseconds a token of the batch, and what came of the drafts."""
    configs = [
        GenerationConfig(
            **{"max_new_tokens": NEW_TOKENS, "ignore_eos": True, "prompt_lookup_num_tokens": drafted}
            | options
            | ({"seed": seed + row} if options.get("do_sample") else {})
        )
        for row in range(len(prompts))
    ]
    before = llm.engine.stats()
    began = time.perf_counter()
    generations = llm.generate(prompts, configs)
    seconds = time.perf_counter() - began
    after = llm.engine.stats()
    return {
        "ms": seconds / NEW_TOKENS * 1e3,
        "drafted": after.drafted_tokens - before.drafted_tokens,
        "accepted": after.accepted_tokens - before.accepted_tokens,
        "answers": [generation.answers[0].token_ids for generation in generations],
    }


def compare(llm: LLM, make_prompts: Any, options: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Figures with and without drafts, by turns; the answers must be the same."""
    found: dict[str, Any] = {"plain_ms": [], "drafts_ms": [], "drafted": [], "accepted": []}
    for turn in range(-1, repeats):  # the first one warms up
        prompts = make_prompts(turn)
        plain, drafts = (answer(llm, prompts, options, count, 100 * (turn + 1)) for count in (0, DRAFTED))
        if plain["answers"] != drafts["answers"]:
            raise RuntimeError("drafts changed an answer")
        if turn >= 0:
            found["plain_ms"].append(plain["ms"])
            found["drafts_ms"].append(drafts["ms"])
            found["drafted"].append(drafts["drafted"])
            found["accepted"].append(drafts["accepted"])
    ratio = statistics.median(found["plain_ms"]) / statistics.median(found["drafts_ms"])
    return found | {"speedup": ratio}


def random_prompts(rows: int, turn: int) -> list[list[int]]:
    """Prompts of 64 tokens."""
    rng = random.Random(f"{rows} {turn}")
    return [[rng.randint(16, 7_900) for _ in range(64)] for _ in range(rows)]


def stories(rows: int, turn: int) -> list[str]:
    """Prompts that the demo model knows how to go on."""
    animals = ["fox", "cat", "dog", "bear", "wolf", "owl", "mouse", "horse", "rabbit", "koala", "tiger"]
    return [f"Once upon a time there was a {animals[(turn + row) % len(animals)]}" for row in range(rows)]


def main() -> None:
    """Measure; print a table, write all figures."""
    parser = argparse.ArgumentParser(
        description=with_interpreter(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="125m")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=list(TEXTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--demo", action="store_true", help="let the demo model tell stories, too")
    parser.add_argument("--models", type=Path, default=ROOT / "build" / "cpu-engines")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/local/cpu-speculation.json")
    options = parser.parse_args()
    llm = load(make_llama(options.models / f"llama-{options.shape}", SHAPES[options.shape]))
    cases: list[tuple[str, LLM, Any, dict[str, Any]]] = [
        (name, llm, random_prompts, TEXTS[name]) for name in options.texts
    ]
    if options.demo:
        cases.append(("stories of the demo model", load(DEMO), stories, {}))
    results: list[dict[str, Any]] = []
    report = {
        "date": today(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "shape": options.shape,
        "drafted_at_most": DRAFTED,
        "results": results,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for rows in options.rows:
        for name, engine, prompts, choice in cases:
            figures = compare(engine, lambda turn, p=prompts, r=rows: p(r, turn), choice, options.repeats)
            results.append({"text": name, "rows": rows} | figures)
            options.out.write_text(json.dumps(report, indent=1) + "\n")
            plain, drafts = (statistics.median(figures[key]) for key in ("plain_ms", "drafts_ms"))
            share = sum(figures["accepted"]) / max(sum(figures["drafted"]), 1)
            print(
                f"{name:26} {rows:3} rows  {plain:7.2f} ms  with drafts {drafts:7.2f} ms  "
                f"{figures['speedup']:5.2f} ×  {share:4.0%} of {sum(figures['drafted'])} accepted",
                flush=True,
            )


if __name__ == "__main__":
    main()
