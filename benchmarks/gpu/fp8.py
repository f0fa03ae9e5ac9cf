"""FP8 beside bfloat16 on one GPU: ``.venv/bin/python -m benchmarks.gpu.fp8 OUT.json [--shape 8b]``.

`logits`: log probabilities of small checkpoints in FP8, and of a cache in FP8, beside those of the bfloat16
weights that they stand for. `workloads`: W1, W2 and W4, in turns. `cache`: a decode step of 16
sequences of 16,000 tokens. `steps`: decode steps of 1 to 256 rows. `profiled`: the kernels of such steps.
`products`: microseconds of a layer's products by rows. `attention`, `gemvs`, `row_products`, `quantizing`:
each kernel alone, over the ways to divide its work. `--parts` names some.
Weights are random; what is found is written after each part.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.checkpoints import SHAPES
from benchmarks.gpu import own
from benchmarks.gpu.fp8_kernels import attention, gemvs, profiled, quantizing, row_products
from benchmarks.gpu.fp8_models import SMALL, WAYS, load_large, make_pair
from benchmarks.gpu.graph_time import graph_us
from benchmarks.gpu.step_time import replay_ms
from benchmarks.gpu.versions import versions
from benchmarks.gpu.workloads import figures, peak_blocks, workload
from protocol.generation import GenerationConfig
from server.quantization.fp8.linear import BlockScaledLinear, Float8Linear
from server.quantization.fp8.scheme import Activations
from utils.commands import with_interpreter

ROWS = (1, 2, 4, 8, 16, 64, 256, 1024, 8192)
COPIES = 4
"""Of a matrix, more together than the second-level cache holds."""
ENGINES = {"bfloat16": (False, "auto"), "fp8": (True, "auto"), "fp8, cache too": (True, "fp8_e4m3")}
"""Name → whether weights are in FP8, and the cache's type."""
TURNS = {"W1": 2, "W4": 3, "W2": 2}
"""Workload → runs of each engine."""
BARS = {"W1": 1.35, "W4": 1.4}
SEQUENCES, CONTEXT, STEP_BAR = 16, 16_000, 0.72
FARTHEST = {"weights": 0.2, "cache": 0.1}
"""Root mean square of the differences between log probabilities, by the spread of these, that is let pass."""


def logits(directory: Path, shape: str) -> dict[str, Any]:
    """How far log probabilities are from those of bfloat16 weights, prompts and decodes of 1 and 16 rows."""
    found: dict[str, Any] = {}
    for way in WAYS:
        quantized, floats = make_pair(directory, way)
        reference = _small(floats)
        checked = {"weights": _small(quantized)}
        if way == "output":
            checked["cache"] = _small(floats, cache_dtype="fp8_e4m3")
        for what, llm in checked.items():
            far = _distances(llm, reference)
            parts = {part: llm.capabilities[part] for part in ("weights", "attention", "cache_dtype")}
            passed = all(value < FARTHEST[what] for value in far.values())
            found[f"{what} by {way}" if what == "weights" else what] = {**far, "passed": passed, **parts}
            print(way, what, far, "passed" if passed else "FAILED", flush=True)
        del reference, checked, llm
        _free()
    return found


def _small(path: Path, **cache: Any) -> Any:
    from server.continuous_batching import LLM

    loading = {"torch_dtype": "bfloat16", "quantization": "auto"}
    sizes = {"num_blocks": 1024, "num_blocks_cpu": 0}
    return LLM(
        path, model_loading_config=loading, batcher_config={"batch_max_beams": 16}, cache_config=sizes | cache
    )


def _distances(llm: Any, reference: Any) -> dict[str, float]:
    torch.manual_seed(1)
    prompts = torch.randint(3, SMALL.vocab, (16, 300)).tolist()
    scored = GenerationConfig(max_new_tokens=1, ignore_eos=True, prompt_logprobs=0)
    long = GenerationConfig(max_new_tokens=48, ignore_eos=True, logprobs=0, do_sample=True, seed=3)
    expected = [_prompt(generation) for generation in reference.generate(prompts, scored)]
    found = [_prompt(generation) for generation in llm.generate(prompts, scored)]
    far = {"prompts": _distance(found, expected)}
    for rows in (1, 16):
        answers = [each.answers[0] for each in llm.generate(prompts[:rows], long)]
        whole = [p + answer.token_ids for p, answer in zip(prompts[:rows], answers, strict=True)]
        expected = [_prompt(generation)[-48:] for generation in reference.generate(whole, scored)]
        found = [[each.logprob for each in answer.logprobs or ()] for answer in answers]
        far[f"decodes of {rows}"] = _distance(found, expected)
    return far


def _prompt(generation: Any) -> list[float]:
    return [each.logprob for each in generation.answers[0].prompt_logprobs]


def _distance(found: list[list[float]], expected: list[list[float]]) -> float:
    ours, theirs = torch.tensor(found), torch.tensor(expected)
    return ((ours - theirs).square().mean().sqrt() / theirs.std()).item()


def products(directory: Path, shape: str) -> dict[str, Any]:
    """Microseconds of a layer's products: inputs × outputs → rows → way."""
    sizes = SHAPES[shape]
    joint = sizes.hidden + 2 * sizes.kv_heads * (sizes.hidden // sizes.heads)
    matrices = ((sizes.hidden, joint), (sizes.hidden, 2 * sizes.inner), (sizes.inner, sizes.hidden))
    found: dict[str, Any] = {}
    for inputs, outputs in matrices:
        by_rows = found[f"{inputs} x {outputs}"] = _products_of(inputs, outputs)
        for rows, times in by_rows.items():
            print(f"{inputs} x {outputs}, {rows} rows: {times}", flush=True)
    return found


@torch.inference_mode()
def _products_of(inputs: int, outputs: int) -> dict[int, dict[str, float]]:
    """Rows → way → microseconds; each launch reads another copy of the weights, as steps do."""
    device, dtype = torch.device("cuda"), torch.bfloat16
    weights = [torch.randn(outputs, inputs, device=device, dtype=dtype) for _ in range(COPIES)]
    layers: dict[str, list[Float8Linear]] = {"output": [], "block": []}
    for weight in weights:
        for name, kind in (("output", Float8Linear), ("block", BlockScaledLinear)):
            made = kind(inputs, [outputs], bias=False, activations=Activations(), dtype=dtype, device=device)
            made.weight.copy_(weight * 64)
            made.weight_scale.fill_(1 / 64)
            layers[name].append(made)
    found: dict[int, dict[str, float]] = {}
    for rows in ROWS:
        x = torch.randn(rows, inputs, device=device, dtype=dtype)

        def plain(x: Tensor = x) -> None:
            for weight in weights:
                torch.mm(x, weight.t())

        def quantized(kind: str, x: Tensor = x) -> None:
            for layer in layers[kind]:
                layer(x)

        ways = {"bfloat16": plain, **{kind: partial(quantized, kind) for kind in layers}}
        found[rows] = {name: round(graph_us(way, COPIES), 2) for name, way in ways.items()}
    return found


def steps(directory: Path, shape: str) -> dict[str, Any]:
    """Milliseconds of decode steps at 512 tokens by rows and engine; one at a time in memory."""
    found: dict[str, Any] = {}
    for way, (float8, dtype) in ENGINES.items():
        llm = load_large(shape, directory, float8=float8, beams=256, num_blocks=256 * 34, cache_dtype=dtype)
        found[way] = {rows: replay_ms(llm, rows, 512) for rows in (1, 2, 4, 8, 16, 32, 64, 128, 256)}
        print(f"decode steps, {way}, ms: {found[way]}", flush=True)
        del llm
        _free()
    return found


def workloads(directory: Path, shape: str) -> dict[str, Any]:
    """W1, W2 and W4 of all three, in turns."""
    blocks = peak_blocks(workload("W1"), 16) + 1024
    engines = {
        way: load_large(shape, directory, float8=float8, beams=256, num_blocks=blocks, cache_dtype=dtype)
        for way, (float8, dtype) in ENGINES.items()
    }
    found: dict[str, Any] = {"weights": {n: llm.capabilities["weights"] for n, llm in engines.items()}}
    steps = {
        rows: {name: replay_ms(llm, rows, 512) for name, llm in engines.items()} for rows in (1, 16, 64, 256)
    }
    print("decode steps, ms:", steps, flush=True)
    found["decode_steps_ms"] = steps
    for name, turns in TURNS.items():
        timed = workload(name)
        seconds: dict[str, list[float]] = {way: [] for way in engines}
        for llm in engines.values():
            own.run(llm, timed.shortened(8))
        for _ in range(turns):
            for way, llm in engines.items():
                seconds[way].append(own.run(llm, timed))
        medians = {way: statistics.median(times) for way, times in seconds.items()}
        ratios = {way: round(medians["bfloat16"] / median, 3) for way, median in medians.items()}
        made = {way: figures(name, timed, median) for way, median in medians.items()}
        found[name] = {"seconds": seconds, **made, "ratios": ratios, "bar": BARS.get(name)}
        print(f"{name}: {made}, times bfloat16: {ratios} (bar {BARS.get(name)})", flush=True)
    del engines, llm
    _free()
    return found


def cache(directory: Path, shape: str) -> dict[str, Any]:
    """Milliseconds of a decode step over long contexts, by type of the cache and of the weights."""
    found: dict[str, Any] = {}
    blocks = SEQUENCES * (CONTEXT // 16 + 2)
    for float8, dtype in ((False, "auto"), (False, "fp8_e4m3"), (True, "fp8_e4m3")):
        sizes = {"num_blocks": blocks, "cache_dtype": dtype}
        llm = load_large(shape, directory, float8=float8, beams=SEQUENCES, length=CONTEXT + 256, **sizes)
        weights = "fp8" if float8 else "bfloat16"
        found[f"{weights} weights, {dtype}"] = replay_ms(llm, SEQUENCES, CONTEXT)
        del llm
        _free()
    ratio = found["bfloat16 weights, fp8_e4m3"] / found["bfloat16 weights, auto"]
    print(f"step of {SEQUENCES} x {CONTEXT}: {found}, {ratio:.3f} (bar {STEP_BAR})", flush=True)
    return {"ms": found, "ratio": ratio, "bar": STEP_BAR}


def _free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


PARTS = {
    "logits": logits,
    "cache": cache,
    "attention": attention,
    "gemvs": gemvs,
    "row_products": row_products,
    "quantizing": quantizing,
    "profiled": profiled,
    "steps": steps,
    "workloads": workloads,
    "products": products,
}
"""Name → what measures it, in `main`'s order."""


def main() -> None:
    """Run the parts and write what they find as JSON."""
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--parts", type=lambda names: names.split(","), default=list(PARTS))
    arguments = parser.parse_args()
    found: dict[str, Any] = {"shape": arguments.shape, "versions": versions()}
    with tempfile.TemporaryDirectory() as directory:
        for name in arguments.parts:
            begin = time.perf_counter()
            try:
                found[name] = PARTS[name](Path(directory), arguments.shape)
            except Exception as error:  # the other parts are still worth their time
                found[name] = {"error": repr(error)}
                print(f"{name} failed: {error!r}", flush=True)
            found[name]["took_seconds"] = round(time.perf_counter() - begin, 1)
            arguments.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
