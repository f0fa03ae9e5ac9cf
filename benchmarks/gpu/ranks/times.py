"""Times of one engine: ``python -m benchmarks.gpu.ranks.times SHAPE W2,W1 OUT.json --ranks 2``.

Then traces of some workloads on rank 0, with the share of the collectives, and the rate of swaps on each.
Weights are made up. With --gate it waits for a line on standard input before it touches a GPU.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.checkpoints import SHAPES, describe_llama
from benchmarks.gpu import timing
from benchmarks.gpu.own import run
from benchmarks.gpu.profile_engine import covered, gpu_events
from benchmarks.gpu.ranks.switches import Switches, switched
from benchmarks.gpu.workloads import workload
from server.continuous_batching import LLM
from server.scheduling.step import StepInput

TRACED_TOKENS = {"W1": 24, "W2": 48, "W3": 24, "W4": 1}
SWAPPED_BLOCKS, SWAPS = 500, 6
_COLLECTIVES = ("nccl", "_reduce", "_gather")
"""How the kernels of collectives are called."""


def load(path: Path, ranks: int, rows: int, switches: Switches, **more: Any) -> LLM:
    """An `LLM` split over `ranks` GPUs, with batches of `rows` sequences.

    Args:
        more: ``dtype`` (bfloat16), and keys of `cache_config`.
    """
    with switched(switches):
        return LLM(
            path,
            model_loading_config={"torch_dtype": more.pop("dtype", "bfloat16"), "model_max_length": 4096},
            batcher_config={
                "batch_max_tokens": 16384, "batch_max_beams": rows, "prefill_chunk_tokens": 8192,
            },
            cache_config=more,
            parallel_config={"tensor_parallel_size": ranks},
        )  # fmt: skip


def trace(llm: LLM, name: str) -> dict[str, Any]:
    """Where the time of rank 0's GPU goes: kernels by name, and the share of the collectives.

    A collective lasts until the other ranks are there, so its time holds what they are late.
    """
    timed = workload(name).shortened(TRACED_TOKENS[name])
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        seconds = run(llm, timed)
    spans: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for event in gpu_events(found):
        spans[event.name()].append((event.start_ns(), event.start_ns() + event.duration_ns()))
    busy = covered(sorted(span for each in spans.values() for span in each))
    within = sorted(span for key, each in spans.items() if key.startswith(_COLLECTIVES) for span in each)
    kernels = [
        {"name": key[:90], "count": len(each), "milliseconds": sum(end - begin for begin, end in each) / 1e6}
        for key, each in spans.items()
    ]
    return {
        "seconds": seconds,
        "new_tokens": max(timed.new_tokens),
        "busy_milliseconds": busy / 1e6,
        "collectives_milliseconds": covered(within) / 1e6,
        "collectives_share": covered(within) / busy,
        "kernels": sorted(kernels, key=lambda kernel: -kernel["milliseconds"])[:30],
    }


def swap_rates(llm: LLM, others: Path | None) -> dict[str, Any]:
    """GB/s of each rank while all copy at once, out and in.

    Args:
        others: where the ranks beside rank 0 note their times.
    """
    (group,), worker = llm.engine.cache.groups, llm.engine.worker
    count = min(SWAPPED_BLOCKS, group.size.num_blocks, group.size.num_host_blocks)
    dice = np.random.default_rng(0)
    device = dice.permutation(group.size.num_blocks)[:count]
    host = dice.permutation(group.size.num_host_blocks)[:count]
    groups = np.zeros(count, np.int64)
    out, back = np.stack((groups, device, host), 1), np.stack((groups, host, device), 1)
    worker.take_timings()
    for step in (StepInput(swap_out=out), StepInput(swap_in=back)) * SWAPS:
        worker.swap(step)
        torch.cuda.synchronize()
        time.sleep(0.05)  # the other ranks, too
        worker.swap(StepInput())  # what was swapped is waited for
    found = {"0": _rates(worker.take_timings().copies)}
    if others is not None and others.is_file():
        found["others"] = _rates([json.loads(line) for line in others.read_text().splitlines()])
    return {"blocks": count, "gigabytes_per_second": found}


def _rates(copies: list[Any]) -> dict[str, float]:
    rates = sorted(size / seconds / 1e9 for size, seconds in copies if seconds > 0)
    return {"median": statistics.median(rates), "least": rates[0], "most": rates[-1]} if rates else {}


def main() -> None:
    """Time, trace and swap; what was found is written as it comes."""
    parser = timing.parser(__doc__)
    parser.add_argument("--ranks", type=int, default=torch.cuda.device_count())
    parser.add_argument("--rows", type=int, default=256, help="sequences of a step at most")
    parser.add_argument("--traces", type=lambda names: names.split(","), default=[])
    parser.add_argument("--nccl-alone", action="store_true", help="for small tensors, too")
    parser.add_argument("--host-blocks", type=int, default=0, help="of the swap pool; 0: no swaps are timed")
    parser.add_argument("--gate", action="store_true")
    arguments = parser.parse_args()
    if arguments.gate:
        sys.stdin.readline()
    begin = time.perf_counter()
    path, copies = arguments.models / arguments.shape, arguments.out.with_suffix(".copies")
    copies.unlink(missing_ok=True)
    path.mkdir(parents=True, exist_ok=True)
    describe_llama(path, SHAPES[arguments.shape])
    switches = Switches(nccl_alone=arguments.nccl_alone, copies=str(copies))
    sizes = {"enable_prefix_cache": False, "num_blocks_cpu": arguments.host_blocks}
    llm = load(path, arguments.ranks, arguments.rows, switches, **sizes)
    result: dict[str, Any] = {
        "shape": arguments.shape,
        "ranks": arguments.ranks,
        "start_seconds": time.perf_counter() - begin,
        "capabilities": llm.capabilities,
        "workloads": {},
        "traces": {},
    }
    names, repeats = arguments.workloads, arguments.repeats
    timing.time_workloads(lambda work: run(llm, work), names, repeats, result, arguments.out)
    if arguments.host_blocks:
        result["swap"] = swap_rates(llm, copies)
        timing.write(result, "swap", result["swap"], arguments.out)
    for name in arguments.traces:
        result["traces"][name] = trace(llm, name)
        timing.write(result, f"trace {name}", result["traces"][name]["collectives_share"], arguments.out)


if __name__ == "__main__":
    main()
