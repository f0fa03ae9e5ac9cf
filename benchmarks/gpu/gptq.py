"""Weights of 4 bits on a GPU:
``.venv/bin/python -m benchmarks.gpu.gptq kernels,steps [--shape 8b] [--out DIR]``.

`kernels` times the products of one layer by rows: own, vLLM's Marlin and Machete where it is installed,
dequantized first, and bfloat16. `steps` times whole decode steps of the engine, graphs replayed back to
back: in bfloat16, and in 4 bits with each kernel. Ways take turns, several times; medians are told.
Weights are random, groups of 128.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.checkpoints import SHAPES, LlamaShape, describe_llama
from benchmarks.gptq_kernels import random_weight
from benchmarks.gpu.graph_time import graph_us
from benchmarks.gpu.own import load as load_float
from benchmarks.gpu.step_time import replay_ms
from benchmarks.gpu.versions import versions
from server.checkpoints.files import StoredTensor
from server.models.decoder import Decoder
from server.quantization.formats.gptq import OpenGPTQ
from server.quantization.gptq.checkpoint import GPTQCheckpoint
from server.quantization.gptq.config import GPTQConfig
from server.quantization.gptq.kernels.marlin import MarlinKernel
from server.quantization.gptq.kernels.triton import TritonKernel
from server.quantization.gptq.weight import QuantizedWeight
from utils.commands import with_interpreter

GROUP = 128
ROWS = (1, 16, 32, 64, 128, 256, 512, 1024, 2048)
STEP_ROWS = (1, 16, 256)
CONTEXTS = (128, 512)
REPEATS = 3
BLOCKS = 4096
"""Of each engine's cache: several engines share the GPU, and a step's blocks only have to miss its L2."""
PROJECTIONS = {"self_attn": ("q", "k", "v", "o"), "mlp": ("gate", "up", "down")}

Product = Callable[[Tensor], Tensor]


def quantized_weights(path: Path, model: Decoder, quantized: OpenGPTQ) -> None:
    """Random codes around a zero point of 8, and floats as `benchmarks.gpu.own` makes them up."""
    torch.manual_seed(0)
    for name, target in model.weights().items():
        tensor = target.tensor
        if name.endswith("g_idx"):
            tensor.copy_(torch.arange(len(tensor), device=tensor.device) // GROUP)
        elif name.endswith("qzeros"):
            tensor.fill_(0x77777777)
        elif name.endswith("qweight"):
            tensor.random_(-(2**31), 2**31 - 1)
        elif name.endswith("norm.weight"):
            tensor.fill_(1.0)
        else:
            tensor.normal_(0.0, 0.02).abs_().mul_(0.2 if name.endswith("scales") else 1.0)


def checkpoint_of(path: Path, shape: LlamaShape) -> GPTQCheckpoint:
    """The description of a checkpoint of that shape, without files."""
    layers = [
        f"model.layers.{index}.{part}.{name}_proj"
        for index in range(shape.layers)
        for part, names in PROJECTIONS.items()
        for name in names
    ]
    tensors = {
        f"{layer}.{kind}": StoredTensor(path, "F16" if kind == "scales" else "I32", ())
        for layer in layers
        for kind in ("qweight", "qzeros", "scales", "g_idx")
    }
    config = GPTQConfig(bits=4, group_size=GROUP, desc_act=False, sym=True, zero_offset=1)
    return GPTQCheckpoint(path, config, path, tensors, torch.float16)


def load_quantized(shape: str, directory: Path, kernel: type[TritonKernel | MarlinKernel]) -> Any:
    """An `LLM` of that shape with random 4-bit weights on the GPU, multiplied with by `kernel`."""
    from server.continuous_batching import LLM

    path = directory / f"{shape}-int4"
    path.mkdir(parents=True, exist_ok=True)
    describe_llama(path, SHAPES[shape])
    module = "server.models.load"
    checkpoint = checkpoint_of(path, SHAPES[shape])
    with (
        mock.patch(f"{module}.load_weights", quantized_weights),
        mock.patch(f"{module}.open_format", lambda *_: OpenGPTQ.of(checkpoint)),
        mock.patch("server.quantization.gptq.kernels.select.cuda_kernels", lambda *_: (kernel,)),
    ):
        return LLM(
            path,
            model_loading_config={
                "torch_dtype": "bfloat16",
                "model_max_length": 4096,
                "quantize_method": "gptq",
            },
            batcher_config={"batch_max_tokens": 16384, "batch_max_beams": 256, "prefill_chunk_tokens": 8192},
            cache_config={"enable_prefix_cache": False, "num_blocks": BLOCKS, "num_blocks_cpu": 0},
        )


def steps(shape: str, directory: Path) -> dict[str, Any]:
    """Milliseconds of decode steps: way → rows → context → time of each turn."""
    engines = {
        "bfloat16": load_float(shape, directory, num_blocks=BLOCKS),
        "own": load_quantized(shape, directory, TritonKernel),
    }
    if MarlinKernel.refuses(4, torch.device("cuda"), torch.bfloat16) is None:
        engines["marlin"] = load_quantized(shape, directory, MarlinKernel)
    found: dict[str, Any] = {"capabilities": {}, "ms": {}}
    for name, llm in engines.items():
        found["capabilities"][name] = {part: llm.capabilities[part] for part in ("weights", "kernels")}
    for _ in range(REPEATS):
        for rows in STEP_ROWS:
            for context in CONTEXTS:
                for name, llm in engines.items():
                    times = found["ms"].setdefault(name, {}).setdefault(rows, {}).setdefault(context, [])
                    times.append(replay_ms(llm, rows, context))
    for rows in STEP_ROWS:
        for context in CONTEXTS:
            medians = {name: statistics.median(by[rows][context]) for name, by in found["ms"].items()}
            told = ", ".join(
                f"{name} {ms:.3f} ({medians['bfloat16'] / ms:.2f})" for name, ms in medians.items()
            )
            print(f"step of {rows} rows at {context}: {told}", flush=True)
    return found


def layer_sizes(shape: LlamaShape) -> list[tuple[int, int]]:
    """(inputs, outputs) of the products of a layer."""
    qkv = (shape.heads + 2 * shape.kv_heads) * (shape.hidden // shape.heads)
    hidden, inner = shape.hidden, shape.inner
    return [(hidden, qkv), (hidden, hidden), (hidden, 2 * inner), (inner, hidden)]


def machete(weight: QuantizedWeight, dtype: torch.dtype) -> Product:
    """vLLM's kernel for Hopper, which it prefers to Marlin there."""
    from vllm import _custom_ops as ops
    from vllm.scalar_type import scalar_types

    kind = scalar_types.uint4b8
    words = ops.machete_prepack_B(weight.qweight.t().contiguous().t(), dtype, kind, dtype)
    scales = weight.scales.to(dtype).contiguous()
    return lambda x: ops.machete_mm(x, words, kind, b_group_scales=scales, b_group_size=GROUP)  # type: ignore[no-any-return]


def ways_of(weights: list[QuantizedWeight], dtype: torch.dtype) -> dict[str, list[Product]]:
    """Products with each of `weights`, by name of the kernel."""
    own = [TritonKernel(weight, dtype) for weight in weights]
    floats = [kernel.dequantized(dtype) for kernel in own]
    ways: dict[str, list[Product]] = {
        "bfloat16": [lambda x, w=w: torch.nn.functional.linear(x, w) for w in floats],  # type: ignore[misc]
        "own": [kernel.fused for kernel in own],
        "dequantized": [
            lambda x, k=k: torch.nn.functional.linear(x, k.dequantized(x.dtype))  # type: ignore[misc]
            for k in own
        ],
    }
    if importlib.util.find_spec("vllm") is not None:
        ways["marlin"] = [MarlinKernel(weight, dtype) for weight in weights]
        ways["machete"] = [machete(weight, dtype) for weight in weights]
    return ways


@torch.inference_mode()
def kernels(shape: str) -> dict[str, Any]:
    """Microseconds by product, kernel and rows; weights rotate, so that no cache holds them."""
    device, dtype = torch.device("cuda"), torch.bfloat16
    found: dict[str, Any] = {}
    for inputs, outputs in layer_sizes(SHAPES[shape]):
        copies = max(2, int(1.2e8 / (inputs * outputs / 2)))
        weights = [random_weight(inputs, outputs, GROUP, device) for _ in range(copies)]
        ways = ways_of(weights, dtype)
        exact = weights[0].dequantized(torch.float32).double()
        by_way: dict[str, Any] = found.setdefault(f"{inputs} -> {outputs}", {name: {} for name in ways})
        for rows in ROWS:
            x = torch.randn(rows, inputs, device=device, dtype=dtype)
            expected = x.double() @ exact.t()
            for name, products in ways.items():
                error = (products[0](x).double() - expected).norm() / expected.norm()
                assert error < 1e-2, f"{name} is wrong: {inputs} → {outputs}, {rows} rows, {error:.1e}"
            turns: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(REPEATS):
                for name, products in ways.items():
                    launch = lambda p=products, x=x: [f(x) for f in p] and None  # type: ignore[misc]  # noqa: E731
                    turns[name].append(graph_us(launch, copies))
            for name, times in turns.items():
                by_way[name][rows] = statistics.median(times)
    print_layer(found)
    return found


def print_layer(found: Mapping[str, Any]) -> None:
    """The sums over a layer's products, by kernel and rows."""
    print(f"{'rows':12}", *(f"{rows:8}" for rows in ROWS))
    for name in next(iter(found.values())):
        sums = (sum(product[name][rows] for product in found.values()) for rows in ROWS)
        print(f"{name:12}", *(f"{time:8.1f}" for time in sums), flush=True)


def main() -> None:
    """Measure, print it and write it down."""
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("parts", type=lambda names: names.split(","))
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--models", type=Path, default=Path("/tmp/models"))
    parser.add_argument("--out", type=Path, help="a directory")
    options = parser.parse_args()
    result: dict[str, Any] = {**versions("vllm"), "shape": options.shape, "group_size": GROUP}
    for part in options.parts:
        if part == "kernels":
            result["kernels_us"] = kernels(options.shape)
        else:
            result["steps"] = steps(options.shape, options.models)
        if options.out is not None:
            (options.out / "gptq.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
