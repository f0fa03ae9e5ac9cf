"""Time of choosing tokens alone: ``.venv/bin/python -m benchmarks.gpu.choice_time [--out FILE.json]``.

For each vocabulary, set of options and number of rows, in microseconds: what the kernels take on the GPU
(captured and replayed back to back), what the host takes to launch them one by one and to replay them, and
what torch's operators for the same take from call to end. For beams: the kernel beside torch's operators.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.graph_time import graph_us
from benchmarks.gpu.versions import versions
from protocol.generation import GenerationConfig
from server.sampling.choice import choose_by_torch, choose_tokens
from server.sampling.gpu_sampler import GpuSampler
from server.sampling.lines import Lines
from server.sampling.pipeline import change_scores
from server.sampling.sampling_state import SamplingState
from server.sampling.step_logits import StepLogits
from server.sampling.token_table import TokenTable
from server.sampling.triton.beams import best_continuations
from server.scheduling.params import SamplingParams
from server.scheduling.step import SlotStart
from utils.commands import with_interpreter

OPTIONS: dict[str, dict[str, float]] = {
    "none": {},
    "top-p": {"top_p": 0.9},
    "top-k": {"top_k": 50},
    "both": {"top_k": 50, "top_p": 0.9},
    "penalties": {"repetition_penalty": 1.1, "frequency_penalty": 0.2},
    "all": {"top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1, "frequency_penalty": 0.2},
}
VOCABULARIES = (32_000, 128_256)
ROWS = (1, 16, 256)
CANDIDATES = (4, 8, 16, 32, 64, 168)
REPEATS = 7
CALLS = 10

Figures = dict[str, float | str]


def state_of(options: dict[str, float], vocab: int, device: torch.device) -> SamplingState:
    """Slots that sample with `options`."""
    state = SamplingState(max(ROWS), vocab, device, TokenTable(max(ROWS), 64, device))
    config = GenerationConfig.model_validate({"do_sample": True, "temperature": 0.8, **options})
    params = SamplingParams.of(config, model_eos=())
    for slot in range(max(ROWS)):
        state.assign(SlotStart(slot, params, slot, 3, np.arange(1, 6, dtype=np.int32)))
    state.flush()
    return state


def time_choice(state: SamplingState, logits: Tensor) -> Figures:
    """Choosing a token for each line of `logits`."""
    count = len(logits)
    lines = Lines.of_step(np.arange(count), np.full(count, 9))
    slots = torch.arange(count, dtype=torch.int32, device=logits.device)
    places = torch.full_like(slots, 9)
    choose = GpuSampler(state).choose
    launch = partial(choose, StepLogits(logits, slots, places), lines.slots, lines.positions)
    replay = partial(choose, StepLogits(logits, slots, places, slots), lines.slots, lines.positions)

    def by_torch() -> np.ndarray:
        scores = logits.float()
        change_scores(scores, state, lines)
        return choose_tokens(scores, state, lines, choose_by_torch)

    return {
        "rows": count,
        "gpu": graph_us(launch, 1, replays=30),
        "host_launching": call_us(launch, wait=False),
        "host_replaying": call_us(replay, wait=False),
        "torch": call_us(by_torch, wait=True),
    }


def call_us(call: Callable[[], object], *, wait: bool) -> float:
    """Median microseconds of the host in a call, or until the GPU is done."""
    call()
    times = []
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(CALLS):
            call()
        if wait:
            torch.cuda.synchronize()
        times.append(1e6 * (time.perf_counter() - begin) / CALLS)
    return statistics.median(times)


def time_beams(logits: Tensor, count: int) -> Figures:
    """The best continuations of as many beams as there are lines."""
    running = torch.randn(len(logits), device=logits.device)

    def by_torch() -> Tensor:
        scores = torch.log_softmax(logits.float(), dim=-1) + running[:, None]
        return torch.topk(scores, count, dim=-1).values

    own = partial(best_continuations, logits, running, count)
    return {
        "beams": len(logits),
        "candidates": count,
        "gpu": graph_us(own, 1),
        "torch": graph_us(by_torch, 1),
    }


@torch.inference_mode()
def main() -> None:
    """Print the figures, and write them."""
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = torch.device("cuda")
    results: list[Figures] = []

    def note(vocab: int, figures: Figures) -> None:
        results.append({"vocabulary": vocab, **figures})
        print(*(f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in results[-1].items()))

    for vocab in VOCABULARIES:
        torch.manual_seed(0)
        logits = (3 * torch.randn(max(ROWS), vocab, device=device)).bfloat16()
        for name, options in OPTIONS.items():
            state = state_of(options, vocab, device)
            for rows in ROWS:
                note(vocab, {"options": name, **time_choice(state, logits[:rows].clone())})
        for count in CANDIDATES:
            note(vocab, time_beams(logits, count))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({"versions": versions(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
