"""The kernels of FP8, each alone, over the ways that they can be divided: for `benchmarks.gpu.fp8`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.checkpoints import SHAPES, LlamaShape
from benchmarks.gpu.decode_scene import DEVICE, DecodeScene
from benchmarks.gpu.fp8_models import load_large
from benchmarks.gpu.graph_time import graph_us
from benchmarks.gpu.replays import place_decodes, replay_decodes
from server.ops.triton.decode_attention import Tuning
from server.quantization.fp8.product import Tiling as RowsTiling
from server.quantization.fp8.product import product
from server.quantization.fp8.rows import FLOAT8, Rows, RowScales, quantize
from server.quantization.gemv import Tiling, gemv

COPIES = 4
"""Of a matrix, more together than the second-level cache holds."""
CONTEXTS = (
    (1, 512),
    (1, 16_000),
    (16, 512),
    (16, 2_000),
    (16, 16_000),
    (64, 1_000),
    (256, 512),
    (256, 1_000),
    (1_024, 300),
)
"""Sequences and tokens of each."""
TUNINGS = [
    Tuning(*way)
    for way in (
        (16384, 256, 4, 3), (16384, 512, 4, 4), (8192, 512, 4, 3), (8192, 256, 4, 4), (8192, 1024, 4, 3),
        (8192, 512, 2, 3), (8192, 512, 2, 4), (4096, 512, 2, 3), (4096, 1024, 2, 4), (4096, 512, 1, 3),
        (2048, 1024, 1, 4), (2048, 512, 1, 3), (2048, 1024, 1, 3),
    )
]  # fmt: skip
SHARED_TUNINGS = [
    Tuning(*way, by_warps=False)
    for way in (
        (4096, 512, 4, 3), (4096, 512, 4, 4), (4096, 1024, 4, 3), (4096, 512, 2, 3), (4096, 512, 2, 4),
        (8192, 512, 4, 3), (8192, 256, 4, 3), (2048, 512, 4, 3), (2048, 512, 2, 4),
    )
]  # fmt: skip
"""Of kernels whose warps share a tile; a cache in FP8 has none."""


def tried(ways: dict[str, Callable[[], None]], launches: int) -> dict[str, Any]:
    """Microseconds of each, the fastest first; what does not run, with its error, at the end."""
    found: dict[str, float] = {}
    failed: dict[str, str] = {}
    for name, way in ways.items():
        try:
            found[name] = round(graph_us(way, launches, replays=4), 2)
        except Exception as error:  # of a tiling that there is no room for
            failed[name] = repr(error)[:120]
    return dict(sorted(found.items(), key=lambda item: item[1])) | failed


@torch.inference_mode()
def attention(directory: Path, shape: str) -> dict[str, Any]:
    """Microseconds of a layer's attention of decodes by type of the cache, contexts and division."""
    found: dict[str, Any] = {}
    for count, length in CONTEXTS:
        for float8 in (False, True):
            name = f"{count} x {length}, {'float8' if float8 else 'bfloat16'}"
            found[name] = made = _attention_of(SHAPES[shape], count, length, float8)
            print(name, made, flush=True)
    return found


def _attention_of(sizes: LlamaShape, count: int, length: int, float8: bool) -> dict[str, Any]:
    scene = DecodeScene(sizes, count, length, float8=float8)
    ways = {"as it is": partial(scene.launch, None)}
    tunings = TUNINGS if float8 else [*TUNINGS, *SHARED_TUNINGS]
    ways |= {str(tuning): partial(scene.launch, tuning) for tuning in tunings}
    times = tried(ways, scene.LAYERS)
    terabytes = (1 if float8 else 2) * 2e-6 * count * length * scene.elements
    return {"TB/s": {way: round(terabytes / us, 2) for way, us in _numbers(times)}, "us": times}


def _numbers(times: dict[str, Any]) -> list[tuple[str, float]]:
    return [(way, us) for way, us in times.items() if isinstance(us, float)]


def matrices(shape: str) -> dict[str, tuple[int, int]]:
    """Name → inputs and outputs of a layer's products."""
    sizes = SHAPES[shape]
    joint = sizes.hidden + 2 * sizes.kv_heads * (sizes.hidden // sizes.heads)
    return {
        "qkv": (sizes.hidden, joint),
        "output": (sizes.hidden, sizes.hidden),
        "gate-up": (sizes.hidden, 2 * sizes.inner),
        "down": (sizes.inner, sizes.hidden),
    }


def _weights(inputs: int, outputs: int) -> tuple[list[Tensor], Tensor]:
    """(float8 weights, their scales)."""
    made = [torch.randn(outputs, inputs, device=DEVICE).mul_(64).to(FLOAT8) for _ in range(COPIES)]
    return made, torch.full((outputs, 1), 1 / 64, device=DEVICE)


@torch.inference_mode()
def gemvs(directory: Path, shape: str) -> dict[str, Any]:
    """Microseconds of the products of one row, by division."""
    found: dict[str, Any] = {}
    for name, (inputs, outputs) in matrices(shape).items():
        found[name] = made = _gemvs_of(inputs, outputs, gated=name == "gate-up")
        print(f"one row, {name}: {made}", flush=True)
    return found


def _gemvs_of(inputs: int, outputs: int, *, gated: bool) -> dict[str, Any]:
    weights, scales = _weights(inputs, outputs)
    x = torch.randn(1, inputs, device=DEVICE, dtype=torch.bfloat16)
    norm = torch.ones(inputs, device=DEVICE, dtype=torch.bfloat16) if outputs > inputs else None
    residual = torch.zeros(1, outputs, device=DEVICE, dtype=torch.bfloat16) if norm is None else None
    floats = [torch.randn(outputs, inputs, device=DEVICE, dtype=torch.bfloat16) for _ in range(COPIES)]

    def launch(tiling: Tiling | None) -> None:
        for weight in weights:
            gemv(x, weight, scales, norm=norm, gated=gated, residual=residual, shape=tiling)

    def of_floats() -> None:
        for weight in floats:
            gemv(x, weight, norm=norm, gated=gated, residual=residual)

    ways = {"bfloat16": of_floats, "as it is": partial(launch, None)}
    for rows, columns, warps, ahead in (
        (8, 1024, 4, 2), (8, 1024, 8, 4), (4, 1024, 4, 4), (4, 2048, 4, 2), (4, 2048, 8, 2), (8, 2048, 8, 2),
        (8, 2048, 8, 1), (4, 4096, 8, 1), (16, 512, 4, 4),
    ):  # fmt: skip
        tiling = Tiling(rows // 2 if gated else rows, columns, warps, ahead)
        ways[str(tiling)] = partial(launch, tiling)
    return {"us at 4.3 TB/s": round(inputs * outputs / 4.3e6, 2), "us": tried(ways, COPIES)}


@torch.inference_mode()
def row_products(directory: Path, shape: str) -> dict[str, Any]:
    """Microseconds of products of quantized rows: own kernel by division, and torch's."""
    found: dict[str, Any] = {}
    for name, (inputs, outputs) in matrices(shape).items():
        weights, scales = _weights(inputs, outputs)
        for count in (2, 16, 64, 128, 256):
            made = _row_products_of(count, weights, scales)
            found[f"{name}, {count} rows"] = made
            print(f"{name}, {count} rows: {made}", flush=True)
    return found


def _row_products_of(count: int, weights: list[Tensor], scales: Tensor) -> dict[str, Any]:
    x = torch.randn(count, weights[0].shape[1], device=DEVICE).to(FLOAT8)
    rows = Rows(x, torch.ones(count, 1, device=DEVICE))

    def torchs() -> None:
        for weight in weights:
            torch._scaled_mm(
                rows.numbers, weight.t(), scale_a=rows.scales, scale_b=scales.t(),
                out_dtype=torch.bfloat16, use_fast_accum=True,
            )  # fmt: skip

    def own(tiling: RowsTiling) -> None:
        for weight in weights:
            product(rows, weight, scales, None, torch.bfloat16, shape=tiling)

    ways: dict[str, Callable[[], None]] = {"torch": torchs}
    tilings = [(64, 32, 4, 4), (64, 32, 4, 6), (64, 64, 4, 4), (64, 128, 4, 4)]
    if count > 64:
        tilings += [(128, 64, 4, 4), (128, 128, 8, 3), (128, 128, 4, 4)]
    for each in tilings:
        ways["{} x {}, {} warps, {} stages".format(*each)] = partial(own, RowsTiling(*each))
    return tried(ways, COPIES)


@torch.inference_mode()
def quantizing(directory: Path, shape: str) -> dict[str, Any]:
    """Microseconds of quantizing rows: behind a norm, behind a gate, and alone."""
    sizes, found = SHAPES[shape], {}
    norm = torch.ones(sizes.hidden, device=DEVICE, dtype=torch.bfloat16)
    for count in (16, 256, 8192):
        x = torch.randn(count, sizes.hidden, device=DEVICE, dtype=torch.bfloat16)
        y = torch.randn(count, 2 * sizes.inner, device=DEVICE, dtype=torch.bfloat16)
        residual = torch.zeros_like(x)
        ways: dict[str, Callable[[], Any]] = {
            "norm": partial(quantize, x, RowScales(), norm=norm, eps=1e-5),
            "gate": partial(quantize, y, RowScales(), gated=True),
            "alone": partial(quantize, x, RowScales()),
            "adding": partial(residual.add_, x),
        }
        found[f"{count} rows"] = {name: round(graph_us(way, 1), 2) for name, way in ways.items()}
        print(f"quantizing {count} rows: {found[f'{count} rows']}", flush=True)
    return found


def profiled(directory: Path, shape: str) -> dict[str, Any]:
    """Microseconds of a decode step at 512 tokens by kernel, and what reading alone takes."""
    found: dict[str, Any] = {}
    for way, options in (("fp8", {}), ("fp8, cache too", {"cache_dtype": "fp8_e4m3"})):
        llm = load_large(shape, directory, float8=True, beams=256, num_blocks=256 * 34, **options)
        for rows in (1, 16, 64, 256):
            place_decodes(llm, rows, 512)
            replay_decodes(llm, rows)
            torch.cuda.synchronize()
            with profile(activities=[ProfilerActivity.CUDA]) as trace:
                for _ in range(3):
                    replay_decodes(llm, rows)
                torch.cuda.synchronize()
            totals: dict[str, float] = defaultdict(float)
            for event in trace.profiler.kineto_results.events():
                if event.device_type() == DeviceType.CUDA:
                    totals[event.name()[:70]] += event.duration_ns() / 3e3
            largest = sorted(totals.items(), key=lambda item: -item[1])[:9]
            found[f"{way}, {rows} rows"] = {name: round(us, 1) for name, us in largest}
            print(f"{way}, {rows} rows: {found[f'{way}, {rows} rows']}", flush=True)
        del llm
        torch.cuda.empty_cache()
    return found
