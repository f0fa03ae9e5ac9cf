"""Cost of a step outside the forward pass, and of beams against as many greedy rows.

    .venv/bin/python -m benchmarks.engine.step_cost

Three figures, each the median of many steps:

- *bookkeeping*: 512 running requests that decode; everything a step does in Python but the forward
  pass and the choice of tokens: scheduling, batch tensors, taking tokens back, finding ends.
- *bookkeeping of beams*: the same for 100 requests with 4 beams each, without the copies of blocks;
- *beams*: step time of one request with 8 beams over that of 8 greedy requests, on a random model
  of about 30 M parameters.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoints import LlamaShape, make_llama
from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from server.scheduling.params import SamplingParams
from server.scheduling.request import Request
from utils.commands import with_interpreter

ROWS = 512
BEAM_REQUESTS = 100
TINY = LlamaShape(hidden=64, layers=2, heads=4, kv_heads=2, inner=128, vocab=512)
SMALL = LlamaShape(hidden=512, layers=6, heads=8, kv_heads=4, inner=1_408, vocab=16_000)


def engine_of(path: Path, rows: int, blocks: int) -> LLM:
    """An engine on the CPU with room for `rows` sequences."""
    return LLM(
        path,
        model_loading_config={"torch_dtype": "float32", "device": "cpu", "model_max_length": 1024},
        batcher_config={
            "batch_max_beams": rows, "batch_max_tokens": 65_536,
            "prefill_chunk_tokens": 65_536, "max_waiting": 4 * rows,
        },
        cache_config={"num_blocks": blocks, "num_blocks_cpu": 0},
    )  # fmt: skip


def add(llm: LLM, count: int, **options: Any) -> None:
    """Queue `count` requests of 20 prompt tokens."""
    params = SamplingParams.of(GenerationConfig(ignore_eos=True, **options), model_eos=())
    for i in range(count):
        prompt = [(31 * i + j) % 400 + 3 for j in range(20)]
        refusal = llm.engine.add(Request(f"{time.monotonic_ns()}-{i}", prompt, params, time.monotonic()))
        assert refusal is None, refusal


class Stopwatch:
    """Sums the time spent in wrapped functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.seconds += time.perf_counter() - begin

        return timed


def bookkeeping(path: Path, steps: int, requests: int, **options: Any) -> list[float]:
    """Milliseconds that a step with `requests` running requests spends outside model, block copies and
    decoder."""
    llm = engine_of(path, ROWS, ROWS * 20)
    engine, model = llm.engine, Stopwatch()
    runner: Any = engine.worker.runner
    decoder: Any = engine.worker.decoder
    for part, name in ((runner, "_compute"), (runner, "copy"), (decoder, "choose")):
        setattr(part, name, model.wrap(getattr(part, name)))
    add(llm, requests, max_new_tokens=200, **options)
    while engine.stats().running < requests:
        engine.step()
    costs = []
    for _ in range(steps):
        model.seconds, begin = 0.0, time.perf_counter()
        engine.step()
        costs.append(1e3 * (time.perf_counter() - begin - model.seconds))
    assert engine.stats().running == requests
    return costs


def step_times(path: Path, requests: int, steps: int, **options: Any) -> list[float]:
    """Milliseconds of decoding steps with `requests` equal requests."""
    llm = engine_of(path, 64, 2000)
    add(llm, requests, max_new_tokens=steps + 20, **options)
    for _ in range(5):
        llm.engine.step()
    times = []
    for _ in range(steps):
        begin = time.perf_counter()
        llm.engine.step()
        times.append(1e3 * (time.perf_counter() - begin))
    return times


def main() -> None:
    """Measure, print a table, and write it as JSON where asked to."""
    parser = argparse.ArgumentParser(
        description=with_interpreter(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="file to write the result to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        tiny = make_llama(Path(directory) / "tiny", TINY)
        small = make_llama(Path(directory) / "small", SMALL)

        def costs(requests: int, **kind: Any) -> list[float]:
            repeats = range(options.repeats)
            return [statistics.median(bookkeeping(tiny, options.steps, requests, **kind)) for _ in repeats]

        greedy_costs, beam_costs = costs(ROWS), costs(BEAM_REQUESTS, num_beams=4)
        ratios = []
        for _ in range(options.repeats):  # by turns, so that a drift of the machine hits both
            greedy = statistics.median(step_times(small, 8, options.steps))
            beams = statistics.median(step_times(small, 1, options.steps, num_beams=8))
            ratios.append(beams / greedy)
    result = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "bookkeeping_ms": {"rows": ROWS, "median": statistics.median(greedy_costs), "repeats": greedy_costs},
        "bookkeeping_of_beams_ms": {
            "requests": BEAM_REQUESTS, "beams": 4,
            "median": statistics.median(beam_costs), "repeats": beam_costs,
        },
        "beams_over_greedy": {"beams": 8, "median": statistics.median(ratios), "repeats": ratios},
    }  # fmt: skip
    print(json.dumps(result, indent=2))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
