"""Weights of 4 bits on a GPU: ``python -m benchmarks.gpu.gptq PART [--shape 8b] [--out FILE.json]``.

`kernels` times the products of one layer by rows, by each kernel there is; `bfloat16` and `int4` time
whole decode steps of the engine, graphs replayed back to back. Weights are random, groups of 128.
With vLLM on the path int4 uses Marlin, without it own Triton kernels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.checkpoints import SHAPES, LlamaShape, describe_llama
from benchmarks.gptq_kernels import random_weight
from benchmarks.gpu.step_time import replay_ms
from benchmarks.gpu.tune_gemv import graph_us
from server.gptq.checkpoint import GPTQCheckpoint
from server.gptq.config import GPTQConfig
from server.gptq.kernels.select import choose_kernels
from server.gptq.kernels.triton import TritonKernel

GROUP = 128
ROWS = (1, 16, 64, 256)
CONTEXTS = (128, 512)
PROJECTIONS = {"self_attn": ("q", "k", "v", "o"), "mlp": ("gate", "up", "down")}


def quantised_weights(path: Path, targets: dict[str, torch.Tensor], **_: Any) -> None:
    """Random codes around a zero point of 8, and floats as `benchmarks.gpu.own` makes them up."""
    torch.manual_seed(0)
    for name, tensor in targets.items():
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
    tensors = {f"{layer}.{kind}" for layer in layers for kind in ("qweight", "qzeros", "scales", "g_idx")}
    config = GPTQConfig(bits=4, group_size=GROUP, desc_act=False, sym=True, zero_offset=1)
    return GPTQCheckpoint(path, config, path, (path,), frozenset(tensors), torch.float16)


def load(shape: str, directory: Path) -> Any:
    """An `LLM` of that shape with random 4-bit weights on the GPU."""
    from server.continuous_batching import LLM

    path = directory / f"{shape}-int4"
    path.mkdir(parents=True, exist_ok=True)
    describe_llama(path, SHAPES[shape])
    module = "server.continuous_batching.models.load"
    checkpoint = checkpoint_of(path, SHAPES[shape])
    with (
        mock.patch(f"{module}.load_weights", quantised_weights),
        mock.patch(f"{module}.open_checkpoint", lambda *_: checkpoint),
    ):
        return LLM(
            path,
            model_loading_config={
                "torch_dtype": "bfloat16",
                "model_max_length": 4096,
                "quantize_method": "gptq",
            },
            batcher_config={"batch_max_tokens": 16384, "batch_max_beams": 256, "prefill_chunk_tokens": 8192},
            cache_config={"enable_prefix_cache": False, "num_blocks_cpu": 0},
        )


def steps(llm: Any) -> dict[str, Any]:
    """Milliseconds of decode steps: rows → context → time."""
    return {
        "capabilities": {part: llm.capabilities[part] for part in ("weights", "kernels")},
        "ms": {
            rows: {context: replay_ms(llm, rows, context) for context in CONTEXTS} for rows in (1, 16, 256)
        },
    }


def layer_sizes(shape: LlamaShape) -> list[tuple[int, int]]:
    """(inputs, outputs) of the products of a layer."""
    qkv = (shape.heads + 2 * shape.kv_heads) * (shape.hidden // shape.heads)
    hidden, inner = shape.hidden, shape.inner
    return [(hidden, qkv), (hidden, hidden), (hidden, 2 * inner), (inner, hidden)]


@torch.inference_mode()
def kernels(shape: str) -> dict[str, Any]:
    """Microseconds by product, kernel and rows; weights rotate, so that no cache holds them."""
    device, dtype = torch.device("cuda"), torch.bfloat16
    found: dict[str, Any] = {}
    for inputs, outputs in layer_sizes(SHAPES[shape]):
        copies = max(2, int(1.2e8 / (inputs * outputs / 2)))
        weights = [random_weight(inputs, outputs, GROUP, device) for _ in range(copies)]
        ways: dict[str, list[Callable[[torch.Tensor], torch.Tensor]]] = {}
        own = [TritonKernel(weight, dtype) for weight in weights]
        ways["triton"] = [kernel.fused for kernel in own]
        ways["dequantised"] = [kernel.dense for kernel in own]
        choice = choose_kernels(4, device, dtype)
        if choice.usable[0] is not TritonKernel:
            ways[choice.usable[0].name] = [choice.kernel_for(weight) for weight in weights]
        floats = [weight.dequantised(dtype).contiguous() for weight in weights]
        ways["bfloat16"] = [lambda x, w=w: torch.nn.functional.linear(x, w) for w in floats]  # type: ignore[misc]
        exact = floats[0].double()
        for rows in ROWS:
            x = torch.randn(rows, inputs, device=device, dtype=dtype)
            expected = x.double() @ exact.t()
            for name, products in ways.items():
                error = (products[0](x).double() - expected).norm() / expected.norm()
                assert error < 1e-2, f"{name} is wrong: {inputs} → {outputs}, {rows} rows, {error:.1e}"
                microseconds = graph_us(lambda p=products, x=x: [f(x) for f in p] and None, copies)  # type: ignore[misc]
                found.setdefault(f"{inputs} -> {outputs}", {}).setdefault(name, {})[rows] = microseconds
        for name, by_rows in found[f"{inputs} -> {outputs}"].items():
            print(f"{inputs}->{outputs} {name:11}", *(f"{t:.1f}" for t in by_rows.values()), flush=True)
    return found


def main() -> None:
    """Measure a part, print it and write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("kernels", "bfloat16", "int4"))
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--models", type=Path, default=Path("/tmp/models"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.part == "kernels":
        result = kernels(options.shape)
    elif options.part == "int4":
        result = steps(load(options.shape, options.models))
    else:
        from benchmarks.gpu.own import load as load_float

        result = steps(load_float(options.shape, options.models))
    if options.part != "kernels":
        print(options.part, json.dumps(result), flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
