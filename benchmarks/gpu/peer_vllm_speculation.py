"""vLLM's drafts by n-grams, on the forced texts of `benchmarks.gpu.speculation`:

    .venv/bin/python -m benchmarks.gpu.peer_vllm_speculation SHAPE TEXTS OUT.json
    .venv/bin/python -m benchmarks.gpu.peer_vllm_speculation SHAPE TEXTS OUT.json --drafted 0

An engine drafts, or with 0 it does not: both are measured apart. Figures are milliseconds for a token of
each row. Greedy answers must be the forced text.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.checkpoints import SHAPES
from benchmarks.gpu import peer_vllm, speculation, timing
from benchmarks.machine import today

GREEDY = {"repeats", "new"}
"""Texts that are compared token by token."""


@torch.no_grad()
def force(vocab: int, model: nn.Module) -> None:
    """Weights as `speculation.forced_weights` makes them; the layers add next to nothing."""
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        if name.endswith("norm.weight"):
            weight.fill_(1.0)
    embedding, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    follow = speculation.followers(vocab).to(head.device)
    embedding.normal_(0.0, speculation.EMBEDDED)
    scale = speculation.EMBEDDED * embedding.shape[1] ** 0.5
    head.zero_()
    head[follow] = embedding[:vocab] / scale


def load(shape: str, directory: Path, drafted: int, blocks: int | None) -> Any:
    """vLLM's `LLM` in this process, with forced texts.

    Args:
        drafted: tokens of a draft; 0: none are made.
        blocks: of the cache; None: what memory allows.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the weights are changed here
    options: dict[str, Any] = {}
    if drafted:
        lookup = {"prompt_lookup_min": 1, "prompt_lookup_max": 3}
        options["speculative_config"] = {"method": "ngram", "num_speculative_tokens": drafted, **lookup}
    llm = peer_vllm.load(shape, directory, blocks=blocks, **options)
    llm.apply_model(partial(force, SHAPES[shape].vocab))
    return llm


def answer(llm: Any, asked: list[list[int]], new_tokens: int) -> tuple[float, list[list[int]]]:
    """(milliseconds for a token of each row, the answers)."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": prompt} for prompt in asked]
    begin = time.perf_counter()
    answers = llm.generate(prompts, params, use_tqdm=False)
    ms = 1e3 * (time.perf_counter() - begin) / new_tokens
    return ms, [[*answer.outputs[0].token_ids] for answer in answers]


def measure(llm: Any, text: str, rows: int, options: argparse.Namespace) -> dict[str, Any]:
    """One case; the first run warms up."""
    vocab = SHAPES[options.shape].vocab
    asked, follow = speculation.prompts(text, rows, vocab), speculation.followers(vocab).tolist()
    times, as_forced = [], True
    for _ in range(options.repeats + 1):
        ms, answers = answer(llm, asked, options.tokens)
        times.append(ms)
        for prompt, tokens in zip(asked, answers, strict=True):
            as_forced &= tokens == [follow[token] for token in [prompt[-1], *tokens[:-1]]]
    found = times[1:]
    return {
        "name": speculation.case_name(text, rows),
        "text": text,
        "rows": rows,
        "ms": statistics.median(found),
        "all_ms": found,
        "as_forced": as_forced,
    }


def main() -> None:
    """Measure, show a line for each case, and write all there is so far."""
    options = speculation.parse(__doc__, GREEDY)
    llm = load(options.shape, options.models, options.drafted, options.blocks)
    import vllm

    about = {"date": today(), "drafted": options.drafted}
    about["engine"] = f"vllm {vllm.__version__}" + ("" if options.drafted else ", no drafts")
    result: dict[str, Any] = {**about, "shape": options.shape, "cases": []}
    for _ in timing.turns(options.gate):
        for rows in options.rows:
            for text in options.texts:
                case = measure(llm, text, rows, options)
                result["cases"].append(case)
                speculation.save(result, options.out)
                told = f"{text:8} {rows:3} rows  {case['ms']:8.3f} ms  as forced {case['as_forced']}"
                print(told, flush=True)
        speculation.save(result, options.out, "LOOKUP")


if __name__ == "__main__":
    main()
