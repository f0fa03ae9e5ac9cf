"""What drafts by prompt lookup give: ``.venv/bin/python -m benchmarks.gpu.speculation SHAPE TEXTS OUT.json``.

The weights are random, so the texts are forced: the embedding of each token is much larger than what the
layers add to it, and the output layer scores highest the one token that is to follow. All layers are
computed.

- *repeats*: greedy; tokens walk in circles of 48, so that a text comes again after 48 tokens;
- *new*: greedy; each token is followed by the next id, so that no token comes twice;
- *noise*: drawn from 50 tokens, about equally likely, so that there is always something to find and nearly
  every guess is wrong.

One engine answers the same requests with and without drafts, by turns. Figures are milliseconds for a token
of each row. Greedy answers must be equal, drawn ones but for roundings (a step with drafts has other sizes),
and no kernel may be compiled once the engine is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.checkpoints import SHAPES
from benchmarks.gpu import own, timing
from benchmarks.gpu.own import random_weights
from benchmarks.gpu.versions import versions
from benchmarks.machine import today
from protocol.generation import GenerationConfig
from server.models.decoder import Decoder
from utils.commands import with_interpreter

CIRCLE = 48
"""Tokens of a text that repeats itself."""
CIRCLES = 256 * CIRCLE
"""Ids below this walk in circles, those above go on to the next one."""
PROMPT_TOKENS = 128
APART = 640
"""From the prompt of a row to that of the next: a text of 512 tokens meets no other one."""
NOISE = {
    "do_sample": True, "temperature": 50.0, "top_k": 50, "seed": 1,
    "logit_bias": dict.fromkeys(range(1_000, 1_050), 100.0),
}  # fmt: skip
TEXTS: dict[str, dict[str, Any]] = {"repeats": {}, "new": {}, "noise": NOISE}
EMBEDDED = 32.0
"""Standard deviation of the embedding: what all layers add to it has less than half of that."""


def followers(vocab: int) -> torch.Tensor:
    """int64 [vocab]: the token behind each."""
    token = torch.arange(vocab)
    begin = token // CIRCLE * CIRCLE
    around = begin + (token - begin + 1) % CIRCLE
    onward = CIRCLES + (token - CIRCLES + 1) % (vocab - CIRCLES)
    return torch.where(token < CIRCLES, around, onward)


def forced_weights(path: Path, model: Decoder, quantized: None = None) -> None:
    """Random weights whose greedy text is that of `followers`."""
    random_weights(path, model)
    weights = model.weights()
    embedding = weights["model.embed_tokens.weight"].tensor
    embedding.normal_(0.0, EMBEDDED)
    head = weights["lm_head.weight"].tensor
    head[followers(len(head)).to(head.device)] = embedding / (EMBEDDED * embedding.shape[1] ** 0.5)


def prompts(text: str, rows: int, vocab: int) -> list[list[int]]:
    """A prompt for each row, which its text goes on from."""
    follow, made = followers(vocab).tolist(), []
    for row in range(rows):
        onward = CIRCLES + row * APART % (vocab - CIRCLES)
        tokens = [row * CIRCLE if text == "repeats" else onward]
        while len(tokens) < PROMPT_TOKENS:
            tokens.append(follow[tokens[-1]])
        made.append(tokens)
    return made


def case_name(text: str, rows: int) -> str:
    """Of a case in reports."""
    return f"LOOKUP {text}, {rows} rows"


def answer(llm: Any, text: str, asked: list[list[int]], new_tokens: int, drafted: int) -> dict[str, Any]:
    """Milliseconds for a token of each row, and what came of the drafts."""
    config = GenerationConfig(
        max_new_tokens=new_tokens, ignore_eos=True, prompt_lookup_num_tokens=drafted, **TEXTS[text]
    )
    before = llm.engine.stats()
    torch.cuda.synchronize()
    began = time.perf_counter()
    generations = llm.generate(asked, config)
    seconds = time.perf_counter() - began
    after = llm.engine.stats()
    return {
        "ms": 1e3 * seconds / new_tokens,
        "steps": after.steps - before.steps,
        "drafted": after.drafted_tokens - before.drafted_tokens,
        "accepted": after.accepted_tokens - before.accepted_tokens,
        "answers": [generation.answers[0].token_ids for generation in generations],
    }


def compare(llm: Any, text: str, rows: int, options: argparse.Namespace, vocab: int) -> dict[str, Any]:
    """Figures with and without drafts, by turns."""
    follow, asked = followers(vocab).tolist(), prompts(text, rows, vocab)
    turns: dict[str, list[dict[str, Any]]] = {"plain": [], "drafts": []}
    for turn in range(-1, options.repeats):  # the first one warms up
        told = {
            "plain": answer(llm, text, asked, options.tokens, 0),
            "drafts": answer(llm, text, asked, options.tokens, options.drafted),
        }
        equal = told["plain"].pop("answers") == (answers := told["drafts"].pop("answers"))
        forced = text == "noise" or all(
            token == follow[before]
            for prompt, tokens in zip(asked, answers, strict=True)
            for before, token in zip([prompt[-1], *tokens], tokens, strict=False)
        )
        if turn >= 0:
            for kind, figures in told.items():
                turns[kind].append(figures | {"equal": equal, "as_forced": forced})
    ratios = [
        plain["ms"] / drafts["ms"] for plain, drafts in zip(turns["plain"], turns["drafts"], strict=True)
    ]
    return {
        "name": case_name(text, rows), "text": text, "rows": rows,
        "speedup": statistics.median(ratios), "ratios": ratios,
        "plain_ms": statistics.median(turn["ms"] for turn in turns["plain"]),
        "ms": statistics.median(turn["ms"] for turn in turns["drafts"]),
        "equal": all(turn["equal"] for turn in turns["drafts"]),
        "as_forced": all(turn["as_forced"] for turn in turns["drafts"]),
        "turns": turns,
    }  # fmt: skip


def save(result: dict[str, Any], out: Path, *finished: str) -> None:
    """Write what is measured so far, and the names of the workloads that are complete."""
    out.write_text(json.dumps(result | {"finished": finished}, indent=1) + "\n")


def watch_compiler() -> list[str]:
    """The kernels that are compiled from now on, as they come."""
    import triton

    compiled: list[str] = []
    triton.knobs.runtime.jit_cache_hook = lambda **kernel: compiled.append(kernel["repr"])
    return compiled


def parse(about: str | None, known: set[str]) -> argparse.Namespace:
    """The options of a command that measures texts of `known`; `about` is what it says of itself."""
    parser = argparse.ArgumentParser(
        description=with_interpreter(about), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("texts", type=lambda names: names.split(","), help=f"of {', '.join(sorted(known))}")
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", type=Path, default=Path("/tmp/models"))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=256, help="of each answer")
    parser.add_argument("--drafted", type=int, default=15, help="tokens of a draft at most")
    parser.add_argument("--blocks", type=int, help="of the cache; default: what memory allows")
    timing.add_gate(parser)
    options = parser.parse_args()
    if unknown := set(options.texts) - known:
        parser.error(f"unknown texts: {', '.join(sorted(unknown))}")
    return options


def main() -> None:
    """Measure, show a line for each case, and write all there is so far."""
    options = parse(__doc__, set(TEXTS))
    compiled, began = watch_compiler(), time.perf_counter()
    with mock.patch.object(own, "random_weights", forced_weights):
        llm = own.load(options.shape, options.models, beams=max(options.rows), num_blocks=options.blocks)
    result: dict[str, Any] = {
        "date": today(), "versions": versions(), "gpu": torch.cuda.get_device_name(),
        "shape": options.shape, "engine": "own",
        "drafted_at_most": options.drafted, "start_seconds": time.perf_counter() - began, "cases": [],
    }  # fmt: skip
    compiled.clear()
    for _ in timing.turns(options.gate):
        for rows in options.rows:
            for text in options.texts:
                case = compare(llm, text, rows, options, SHAPES[options.shape].vocab)
                cost = llm.engine.scheduler.speculator.cost
                learned = zip(cost._tokens, cost._seconds, strict=True)
                case["ms_by_tokens"] = [(tokens, 1e3 * seconds) for tokens, seconds in learned]
                result["cases"].append(case)
                result["compiled_while_serving"] = compiled
                result["stats"] = dataclasses.asdict(llm.engine.stats())
                save(result, options.out)
                _show(case, compiled)
        save(result, options.out, "LOOKUP")


def drafted_and_accepted(case: dict[str, Any]) -> tuple[int, int]:
    """Draft tokens of all turns of a case: how many were proposed, and how many of them were accepted."""
    turns = case["turns"]["drafts"]
    return sum(turn["drafted"] for turn in turns), sum(turn["accepted"] for turn in turns)


def _show(case: dict[str, Any], compiled: list[str]) -> None:
    drafted, accepted = drafted_and_accepted(case)
    print(
        f"{case['text']:8} {case['rows']:4} rows  {case['plain_ms']:7.3f} ms  drafts {case['ms']:7.3f} ms  "
        f"{case['speedup']:5.2f} ×  {accepted / max(drafted, 1):4.0%} accepted  equal {case['equal']}  "
        f"as forced {case['as_forced']}  compiled {len(compiled)}",
        flush=True,
    )


if __name__ == "__main__":
    main()
