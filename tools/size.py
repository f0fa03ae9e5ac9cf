"""What of a model fits on a GPU or CPU, by calculation: weights, cache, requests at once, and a
step's least time.

    .venv/bin/python -m tools.size MODEL L4
    .venv/bin/python -m tools.size MODEL H100 --length 8192 --beams 256
    .venv/bin/python -m tools.size MODEL H200 --cache_dtype fp8_e4m3
    .venv/bin/python -m tools.size MODEL laptop --memory 16

MODEL is a directory with config.json; its weights need not be there. The server measures what is really free
when it starts (`num_blocks: null`); this tells beforehand whether it is worth starting.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a plain script: python tools/size.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from server.checkpoints.errors import ModelError
from server.checkpoints.files import StoredTensor, stored_tensors
from server.continuous_batching.loaded_model import CACHE_DTYPES
from server.layers.cache_spec import CacheSpec, cache_specs
from server.models.config import ModelConfig
from server.models.weights import sources_of
from server.quantization.formats.registry import AUTO, Quantization, open_format
from server.sampling.sampling_state import table_bytes
from server.scheduling.limits import most_held
from server.worker.cache_sizing import RAM_SHARE
from utils.commands import with_interpreter

GIB = 2**30
FRACTION = 0.9
"""Default of `cache_config.memory_fraction`."""
FLOATS = {"F64", "F32", "F16", "BF16"}
BYTES = {"U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1, "I16": 2, "U16": 2, "I64": 8}
"""Of stored types that are kept as they are; all others have four bytes."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Attributes:
    memory: bytes that a program can use.
    bandwidth: bytes a second, as the vendor has it.
    taken: bytes of them that context, graphs and activations need.
    share: of the free memory that the cache may take.
    float8: it multiplies FP8, so that such weights stay as they are, and keeps keys and values in it.
    gpu: it is an NVIDIA GPU, on which matrices of experts stay as they are stored.
    """

    memory: float
    bandwidth: float
    taken: float = 1.5 * GIB
    share: float = FRACTION
    float8: bool = True
    gpu: bool = True


MACHINES = {
    "L4": Machine(22.0 * GIB, 300e9),
    "A10": Machine(22.0 * GIB, 600e9, float8=False),
    "4090": Machine(23.5 * GIB, 1008e9),
    "L40S": Machine(44.4 * GIB, 864e9),
    "A100-40": Machine(39.4 * GIB, 1555e9, float8=False),
    "A100-80": Machine(79.2 * GIB, 2039e9, float8=False),
    "H100": Machine(79.2 * GIB, 3350e9),
    "H200": Machine(139.8 * GIB, 4800e9),
    "laptop": Machine(16 * GIB, 60e9, taken=4 * GIB, share=FRACTION * RAM_SHARE, float8=False, gpu=False),
}


@dataclass(frozen=True, slots=True)
class Size:
    """Attributes:
    weights: bytes.
    blocks: of the first group of layers; 0: the weights leave no room.
    tokens: that these blocks hold.
    requests: of the length asked for, side by side.
    step: seconds to read the weights once.
    """

    weights: int
    blocks: int
    tokens: int
    requests: int
    step: float


def weight_bytes(
    path: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    *,
    float8: bool = True,
    experts: bool = True,
    gpu: bool = True,
) -> int:
    """Bytes of the weights in memory: as they are stored or as what they become, floats in `dtype`; counted
    from the configuration where none are stored.

    Args:
        float8, experts: the device multiplies FP8, and matrices of experts as they are stored.
        gpu: it is one; on a CPU an embedding that is the output layer too is kept a second time, packed.

    Raises:
        ModelError: damaged files.
    """
    architecture = config.architecture
    model = architecture.decoder(architecture.spec, dtype, torch.device("meta"), architecture.names)
    packed = model.embedding.nbytes if model.tied and not gpu else 0
    if not any(path.glob("*.safetensors*")):
        unique = {id(weight): weight for weight in model.parameters()}
        return packed + sum(weight.nbytes for weight in unique.values())
    checkpoint = open_format(path, Quantization(AUTO))
    if checkpoint is None:
        tensors: Mapping[str, StoredTensor] = stored_tensors(path)
    else:
        no = "the device does not multiply it"
        checkpoint = checkpoint.for_float8(None if float8 else no)
        tensors = checkpoint.for_experts(None if experts else no).tensors
    head = f"{model.names.head}.weight"
    if architecture.load is not None:  # by transformers' modules, whose names are not ours
        return sum(_bytes(tensor, dtype) for tensor in tensors.values())
    found = sources_of(tensors, model.weights().keys() | {head}, model.names)
    if model.tied and f"{model.names.embedding}.weight" in found:
        found.pop(head, None)  # of files that hold both, they are the same
    return packed + sum(_bytes(tensor, dtype) for _, tensor in found.values())


def _bytes(tensor: StoredTensor, dtype: torch.dtype) -> int:
    each = dtype.itemsize if tensor.dtype in FLOATS else BYTES.get(tensor.dtype, 4)
    return math.prod(tensor.shape) * each


def size(
    machine: Machine,
    weights: int,
    specs: Iterable[CacheSpec],
    vocab: int,
    *,
    length: int,
    beams: int,
    block: int,
) -> Size:
    """What fits.

    Args:
        weights: bytes.
        specs: the model's groups of layers.
        vocab: tokens of the vocabulary, of which options of sampling keep tables.
        length: tokens of a request, prompt and answer.
        beams: `batch_max_beams`.
        block: tokens of a block.
    """
    specs = list(specs)
    tables = table_bytes(beams, vocab) if machine.gpu else 0
    free = max(machine.memory - machine.taken - weights - tables, 0) * machine.share
    request = sum(most_held(length, block, each.window) * each.bytes_per_block(block) for each in specs)
    requests = int(free // request)
    # a window needs no more than its rows do; what it leaves, the layers that see everything take
    windows = [each for each in specs[1:] if each.window is not None]
    least = sum(
        beams * most_held(length, block, each.window) * each.bytes_per_block(block) for each in windows
    )
    rest = [each for each in specs if each not in windows]
    blocks = int(max(free - least, 0) // sum(each.bytes_per_block(block) for each in rest))
    return Size(weights, blocks, blocks * block, requests, weights / machine.bandwidth)


def report(name: str, machine: Machine, config: ModelConfig, found: Size, args: Any) -> str:
    """What fits, for people."""
    specs = cache_specs(config.spec.layers, cache_type(args))
    cache = "" if args.cache_dtype == "auto" else f", cache in {args.cache_dtype}"
    token = sum(each.bytes_per_block(args.block_size) for each in specs) / args.block_size
    lines = [
        f"model     {config.model_type}, {len(config.spec.layers)} layers, {args.dtype}{cache}",
        f"weights   {found.weights / GIB:.2f} GiB of the {machine.memory / GIB:.1f} GiB of {name}",
        f"cache     {token / 1024:.1f} KiB a token: {found.blocks:,} blocks, {found.tokens:,} tokens",
        f"requests  {found.requests:,} of {args.length:,} tokens side by side",
        f"floor     {1000 * found.step:.2f} ms a step: the weights, read once at "
        f"{machine.bandwidth / 1e9:,.0f} GB/s",
    ]
    return "\n".join(lines)


def cache_type(args: argparse.Namespace) -> str:
    """torch's name of the type of keys and values."""
    return str(CACHE_DTYPES.get(args.cache_dtype, args.dtype)).removeprefix("torch.")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=with_interpreter(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="directory with config.json")
    parser.add_argument("machine", choices=MACHINES, metavar="MACHINE", help=", ".join(MACHINES))
    parser.add_argument(
        "--memory", type=float, metavar="GIB", help="memory of the machine, if it has another"
    )
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="bfloat16")
    parser.add_argument(
        "--cache_dtype", choices=("auto", *CACHE_DTYPES), default="auto", help="of keys and values"
    )
    parser.add_argument("--length", type=int, default=2048, help="tokens of a request (default: %(default)s)")
    parser.add_argument("--beams", type=int, default=64, help="batch_max_beams (default: %(default)s)")
    parser.add_argument("--block_size", type=int, default=16, help="tokens of a block (default: %(default)s)")
    return parser


def fitting(machine: Machine, args: argparse.Namespace, config: ModelConfig) -> Size:
    """What fits on a machine.

    Raises:
        ModelError: damaged files.
    """
    experts = machine.gpu and args.dtype != "float32"
    kept = {"float8": machine.float8 and experts, "experts": experts, "gpu": machine.gpu}
    weights = weight_bytes(args.model, config, getattr(torch, args.dtype), **kept)
    specs = cache_specs(config.spec.layers, cache_type(args))
    needs = {"length": args.length, "beams": args.beams, "block": args.block_size}
    return size(machine, weights, specs, config.vocab_size, **needs)


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    machine = MACHINES[args.machine]
    if args.cache_dtype != "auto" and not machine.float8:
        sys.exit(f"error: {args.machine} has no FP8 units, which cache_dtype {args.cache_dtype} needs")
    if args.memory is not None:
        machine = replace(machine, memory=args.memory * GIB)
    try:
        config = ModelConfig.load(args.model)
        found = fitting(machine, args, config)
        print(report(args.machine, machine, config, found, args))
        if not found.requests:
            others = {n: m for n, m in MACHINES.items() if m.float8 or args.cache_dtype == "auto"}
            able = [name for name, other in others.items() if fitting(other, args, config).requests]
            sys.exit(
                f"error: no request of {args.length} tokens fits; machines with room: "
                f"{', '.join(able) or 'none'}"
            )
    except ModelError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
