"""Weights of 4 and 8 bits beside bfloat16 on this processor: ``.venv/bin/python -m benchmarks.cpu.int4``.

All forms of a model are loaded into one process and take turns: bfloat16 and GPTQ of 4 bits, each exact and
in 8-bit arithmetic, and GGUF files of the same model where they are named (``--gguf``; `benchmarks.cpu.gguf`
makes them). The checkpoints are made where they are missing (random weights, rounded to nearest in groups of
128). Writes one JSON file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoints import SHAPES, make_llama
from benchmarks.machine import today
from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from tools.round_to_nearest import Recipe, quantize_checkpoint
from utils.commands import with_interpreter

ROWS = (1, 2, 4, 8, 16, 32)
PROMPT_TOKENS = (128, 512)
STEPS = 48


def load(path: Path, tokenizer: Path, arithmetic: str) -> LLM:
    """An engine on the CPU, without a prefix cache."""
    return LLM(
        path,
        model_loading_config={
            "torch_dtype": "bfloat16",
            "device": "cpu",
            "quantization": "auto",
            "tokenizer_name_or_path": str(tokenizer),
            "cpu_arithmetic": arithmetic,
        },
        batcher_config={"batch_max_tokens": 4096, "prefill_chunk_tokens": 512},
        cache_config={"num_blocks": 512, "enable_prefix_cache": False},
    )


def tokens(count: int, seed: int) -> list[int]:
    """Random token ids."""
    return torch.randint(16, 7_900, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def seconds(llm: LLM, rows: int, prompt: int, new: int, seed: int) -> float:
    """Of `rows` requests with the given numbers of tokens in and out."""
    prompts = [tokens(prompt, seed + row) for row in range(rows)]
    began = time.perf_counter()
    llm.generate(prompts, GenerationConfig(max_new_tokens=new, ignore_eos=True))
    return time.perf_counter() - began


def decode_ms(llm: LLM, rows: int, seed: int) -> float:
    """Milliseconds of a step that gives each of `rows` requests a token."""
    short = seconds(llm, rows, 32, 1, seed)
    return (seconds(llm, rows, 32, STEPS + 1, seed) - short) / STEPS * 1e3


def measure(shape: str, models: Path, repeats: int, kinds: list[str]) -> dict[str, Any]:
    """All figures of a shape; each the median of `repeats` turns.

    Args:
        kinds: of GGUF files ``models/SHAPE/model-KIND.gguf``.
    """
    plain = make_llama(models / shape, SHAPES[shape])
    quantized = models / f"{shape}-int4"
    if not quantized.exists():
        quantize_checkpoint(plain, quantized, Recipe())
    paths = {"bfloat16": plain, "int4": quantized}
    paths |= {kind: plain / f"model-{kind}.gguf" for kind in kinds}
    engines = {}
    for name, path in paths.items():
        engines[name] = load(path, plain, "exact")
        engines[f"{name} in 8 bits"] = load(path, plain, "int8")
    cases = {f"decode {rows}": (decode_ms, rows) for rows in ROWS}
    cases |= {f"prompt {length}": (prompt_ms, length) for length in PROMPT_TOKENS}
    times: dict[str, dict[str, list[float]]] = {name: {e: [] for e in engines} for name in cases}
    for turn in range(-1, repeats):  # the first one warms up
        for name, (timed, size) in cases.items():
            for engine, llm in engines.items():
                figure = timed(llm, size, turn * 100)
                if turn >= 0:
                    times[name][engine].append(figure)
    return {
        "shape": shape,
        "kernels": engines["int4"].capabilities["kernels"]["name"],
        "weights": {name: llm.capabilities["weights"]["name"] for name, llm in engines.items()},
        "milliseconds": times,
    }


def prompt_ms(llm: LLM, length: int, seed: int) -> float:
    """Milliseconds until the first token after a prompt."""
    return seconds(llm, 1, length, 1, seed) * 1e3


def main() -> None:
    """Measure; print a table, write all figures."""
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["125m", "500m"])
    parser.add_argument("--models", type=Path, default=Path("/tmp/models"))
    parser.add_argument("--gguf", nargs="*", default=[], metavar="TYPE", help="of files of the shapes")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/local/cpu-int4.json"))
    options = parser.parse_args()
    results = [measure(shape, options.models, options.repeats, options.gguf) for shape in options.shapes]
    report = {
        "date": today(),
        "threads": torch.get_num_threads(),
        "results": results,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1))
    for result in results:
        print(f"{result['shape']}, {result['kernels']}: ms, medians, and bfloat16 divided by them")
        for name, figures in result["milliseconds"].items():
            plain = statistics.median(figures["bfloat16"])
            for engine, times in figures.items():
                found = statistics.median(times)
                print(f"  {name:10}  {engine:20} {found:8.2f}  {plain / found:5.2f}x", flush=True)


if __name__ == "__main__":
    main()
