"""A model split over GPUs: ``.venv/bin/python -m benchmarks.gpu.ranks OUT.json``.

First tokens: in float32, those of all ranks together must be those of one, greedy, drawn, of beams, swapped
and from the prefix cache. Then times of W1, W2 and W4, with one rank and with all, each in its own process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.checkpoints import SHAPES, LlamaShape, describe_llama
from benchmarks.gpu import timing
from benchmarks.gpu.own import run
from protocol.generation import GenerationConfig
from utils.commands import with_interpreter

SMALL = LlamaShape(512, 4, 8, 2, 1_024)
"""For tokens: its weights are drawn wide, so that the likeliest token leads clearly."""
LIMIT_SECONDS = 240
_FILE_BYTES = 4 << 30


def save_random(path: Path, shape: LlamaShape, dtype: torch.dtype, width: float) -> Path:
    """A checkpoint with random weights of standard deviation `width`, unless it is there."""
    from server.models.config import ModelConfig

    if (path / "model.safetensors.index.json").is_file():
        return path
    path.mkdir(parents=True, exist_ok=True)
    describe_llama(path, shape, dtype=str(dtype).removeprefix("torch."))
    architecture = ModelConfig.load(path).architecture
    model = architecture.decoder(architecture.spec, dtype, torch.device("meta"), architecture.names)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    places: dict[str, str] = {}
    waiting: dict[str, torch.Tensor] = {}

    def flush() -> None:
        name = f"model-{len(set(places.values())):05}.safetensors"
        save_file(waiting, path / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(waiting, name))
        waiting.clear()

    for name, target in model.weights().items():
        made = torch.empty(target.stored_shape(), dtype=dtype, device=device)
        waiting[name] = (made.fill_(1.0) if "norm" in name else made.normal_(0.0, width)).cpu()
        if sum(tensor.nbytes for tensor in waiting.values()) > _FILE_BYTES:
            flush()
    flush()
    index = {"metadata": {}, "weight_map": places}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def load(path: Path, ranks: int, dtype: str, rows: int, **cache: Any) -> Any:
    """An `LLM` of the checkpoint, split over `ranks` GPUs, with batches of `rows` sequences."""
    from server.continuous_batching import LLM

    return LLM(
        path,
        model_loading_config={"torch_dtype": dtype, "model_max_length": 4096},
        batcher_config={"batch_max_tokens": 16384, "batch_max_beams": rows, "prefill_chunk_tokens": 8192},
        cache_config=cache,
        parallel_config={"tensor_parallel_size": ranks},
    )


OPTIONS: list[dict[str, Any]] = [
    {}, {"do_sample": True, "temperature": 0.8}, {"num_beams": 3}, {"repetition_penalty": 1.3},
    {"do_sample": True, "top_p": 0.9, "top_k": 50}, {"do_sample": True, "min_p": 0.05, "logprobs": 2},
    {"do_sample": True, "n": 2},
]  # fmt: skip


BLOCKS = {"ample": 4000, "swaps": 160}
"""Of the cache, where tokens are compared."""


def tokens(path: Path, ranks: int, cache: str) -> dict[str, Any]:
    """Answers of every kind, and again from what is in the cache."""
    dice = random.Random(1)
    prompts = [[dice.randint(300, 9_999) for _ in range(dice.randint(1, 200))] for _ in range(70)]
    configs = [
        GenerationConfig(**{"max_new_tokens": 40, "seed": i, "ignore_eos": True, **OPTIONS[i % len(OPTIONS)]})
        for i in range(len(prompts))
    ]
    sizes = {"num_blocks": BLOCKS[cache], "num_blocks_cpu": 1000, "swap_policy": "swap"}
    llm = load(path, ranks, "float32", 96, **sizes)
    answers = [
        [answer.token_ids for answer in each.answers]
        for _ in range(2)
        for each in llm.generate(prompts, configs)
    ]
    stats = llm.engine.stats()
    found = {
        "swapped": stats.preempted_by_swap,
        "prefix_hits": stats.prefix_hits,
        "failures": stats.step_failures,
    }
    return {"answers": answers, "stats": found, "capabilities": llm.capabilities}


def times(path: Path, shape: str, ranks: int, names: list[str], repeats: int, out: Path) -> dict[str, Any]:
    """Seconds of the workloads."""
    begin = time.perf_counter()
    llm = load(path, ranks, "bfloat16", 512, enable_prefix_cache=False, num_blocks_cpu=0)
    result: dict[str, Any] = {
        "shape": shape,
        "start_seconds": time.perf_counter() - begin,
        "capabilities": llm.capabilities,
        "workloads": {},
    }
    for name in names:
        timing.note(result, name, timing.repeat(lambda work: run(llm, work), name, repeats), out)
    return result


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--workloads", type=lambda names: names.split(","), default=["W2", "W4", "W1"])
    parser.add_argument("--ranks", type=int, default=torch.cuda.device_count() or 2, help="default: all GPUs")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--models", type=Path, default=Path("/tmp/models"))
    parser.add_argument("--part", choices=[*BLOCKS, "times"], help="only this, with that many ranks")
    return parser.parse_args()


def _alone(arguments: argparse.Namespace, part: str, ranks: int) -> dict[str, Any]:
    """What a process of its own finds."""
    out = arguments.out.with_name(f"{arguments.out.stem}-{part}-{ranks}.json")
    command = [sys.executable, "-m", "benchmarks.gpu.ranks", str(out), "--part", part, "--ranks", str(ranks)]
    command += ["--shape", arguments.shape, "--workloads", ",".join(arguments.workloads)]
    command += ["--repeats", str(arguments.repeats), "--models", str(arguments.models)]
    subprocess.run(command, check=True, timeout=LIMIT_SECONDS)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def compare(arguments: argparse.Namespace) -> None:
    """One rank beside all of them."""
    counts, report, different = (1, arguments.ranks), {}, 0
    for part in (*BLOCKS, "times"):
        found = {ranks: _alone(arguments, part, ranks) for ranks in counts}
        if part in BLOCKS:
            one, many = (found[ranks].pop("answers") for ranks in counts)
            wrong = sum(a != b for a, b in zip(one, many, strict=True))
            different += wrong
            print("tokens", part, {"answers": len(one), "different": wrong}, flush=True)
            print("tokens", part, [each["stats"] for each in found.values()], flush=True)
        else:
            for name in arguments.workloads:
                seconds = [min(each["workloads"][name]["seconds"]) for each in found.values()]
                print(name, {"seconds": seconds, "share": seconds[1] / seconds[0]}, flush=True)
        report[part] = found
        arguments.out.write_text(json.dumps(report | {"different": different}, indent=1))
    if different:
        raise SystemExit("the tokens of all ranks are not those of one")


def main() -> None:
    """Check and time; what was found is written as JSON."""
    arguments = _parse()
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")  # multicast over NVLink, which not every host lets one use
    if arguments.part is None:
        compare(arguments)
        return
    if arguments.part in BLOCKS:
        small = save_random(arguments.models / "ranks-small", SMALL, torch.float32, 0.2)
        result = tokens(small, arguments.ranks, arguments.part)
    else:
        shape = SHAPES[arguments.shape]
        path = save_random(arguments.models / f"ranks-{arguments.shape}", shape, torch.bfloat16, 0.02)
        names, repeats = arguments.workloads, arguments.repeats
        result = times(path, arguments.shape, arguments.ranks, names, repeats, arguments.out)
    arguments.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
