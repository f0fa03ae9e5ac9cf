"""Whether models fit where they should: ``.venv/bin/python -m benchmarks.gpu.memory_bars OUT.json``.

Each part serves 16 requests of 2,048 tokens on a GPU that is made to look as small as its bar: `template`,
the shape of Llama 7B in float16 under the first template of the continuous-batching server, nothing changed
but the path, within 40 GB; `dense`, a shape of 20B in bfloat16 within 80 GB; `gptq`, the same in 4 bits
within 24 GB. Checkpoints are real files as to names, shapes and reading; their matrices are holes in these
files, which read as zeros, so that they need not be written. Each part is a process of its own, ended after
LIMIT seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.checkpoints import LlamaShape, describe_llama
from benchmarks.gpu.child import Child
from benchmarks.gpu.versions import versions
from protocol.generation import GenerationConfig
from server.continuous_batching.config import ServerConfig
from server.layers.cache_spec import cache_specs
from server.models.config import ModelConfig
from tools.size import weight_bytes
from utils.commands import with_interpreter
from utils.config import load_config

GB = 10**9
LIMIT = 90
REQUESTS, PROMPT, NEW = 16, 1_984, 64
CONTEXT = 700 << 20
"""Bytes that CUDA and its libraries take, which torch does not count: left out of its share."""
CLOSE = 0.05
"""How far the weights may be from what `tools.size` says."""
TEMPLATE = Path(__file__).resolve().parents[2] / "tests" / "utils" / "templates" / "cb_server_config.json"
SHAPES = {
    "template": LlamaShape(4_096, 32, 32, 32, 11_008, max_length=2_048),
    "dense": LlamaShape(6_144, 50, 48, 8, 16_384, vocab=64_000, max_length=4_096),
    "gptq": LlamaShape(6_144, 50, 48, 8, 16_384, vocab=64_000, max_length=4_096),
}
BARS = {"template": 40 * GB, "dense": 80 * GB, "gptq": 24 * GB}
TYPES = {"template": "float16", "dense": "bfloat16", "gptq": "bfloat16"}
GROUP = 128
GPTQ = {
    "quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True,
    "checkpoint_format": "gptq_v2",
}  # fmt: skip
MIDDLE = struct.pack("<I", 0x88888888)
"""Zero points of symmetric codes."""

Stored = Mapping[str, tuple[str, tuple[int, ...], bytes]]
"""Name → (type as safetensors calls it, shape, bytes that it repeats; none: it is a hole)."""


def tensors_of(shape: LlamaShape, dtype: str, *, codes: bool) -> Stored:
    """What a checkpoint of a shape holds."""
    kind, head = {"float16": "F16", "bfloat16": "BF16"}[dtype], shape.hidden // shape.heads
    one = torch.ones(1, dtype=getattr(torch, dtype)).view(torch.uint8).numpy().tobytes()
    keys = shape.kv_heads * head
    sizes = {
        "self_attn.q_proj": (shape.hidden, shape.hidden), "self_attn.k_proj": (keys, shape.hidden),
        "self_attn.v_proj": (keys, shape.hidden), "self_attn.o_proj": (shape.hidden, shape.hidden),
        "mlp.gate_proj": (shape.inner, shape.hidden), "mlp.up_proj": (shape.inner, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.inner),
    }  # fmt: skip
    found: dict[str, tuple[str, tuple[int, ...], bytes]] = {
        "model.embed_tokens.weight": (kind, (shape.vocab, shape.hidden), b""),
        "lm_head.weight": (kind, (shape.vocab, shape.hidden), b""),
        "model.norm.weight": (kind, (shape.hidden,), one),
    }
    for index in range(shape.layers):
        layer = f"model.layers.{index}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{layer}.{norm}.weight"] = (kind, (shape.hidden,), one)
        for name, (outputs, inputs) in sizes.items():
            if not codes:
                found[f"{layer}.{name}.weight"] = (kind, (outputs, inputs), b"")
                continue
            groups = inputs // GROUP
            found[f"{layer}.{name}.qweight"] = ("I32", (inputs // 8, outputs), b"")
            found[f"{layer}.{name}.qzeros"] = ("I32", (groups, outputs // 8), MIDDLE)
            found[f"{layer}.{name}.scales"] = ("F16", (groups, outputs), b"")
    return found


def write_holes(path: Path, stored: Stored) -> int:
    """Write a safetensors file of these tensors; its bytes, as far as it looks."""
    sizes = {"I32": 4}
    header: dict[str, Any] = {}
    end = 0
    for name, (kind, shape, _) in stored.items():
        size = torch.Size(shape).numel() * sizes.get(kind, 2)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": (end, end + size)}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        begin = file.tell()
        file.truncate(begin + end)
        for name, (_, _, repeated) in stored.items():
            if repeated:
                first, last = header[name]["data_offsets"]
                os.pwrite(file.fileno(), repeated * ((last - first) // len(repeated)), begin + first)
    return begin + end


def make(path: Path, part: str) -> int:
    """Save the checkpoint of a part; bytes of its weights."""
    shape, dtype = SHAPES[part], TYPES[part]
    describe_llama(path, shape, dtype=dtype)
    if part == "gptq":
        fields = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(fields | {"quantization_config": GPTQ}))
    return write_holes(path / "model.safetensors", tensors_of(shape, dtype, codes=part == "gptq"))


def configuration(path: Path, part: str) -> ServerConfig:
    """What the server is told."""
    if part == "template":
        text = TEMPLATE.read_text(encoding="utf-8").replace("PATH_TO_MODEL_DIR", str(path))
        (path / "server.json").write_text(text, encoding="utf-8")
        return load_config(path / "server.json", ServerConfig)
    loading = {"model_name_or_path": str(path), "torch_dtype": TYPES[part], "quantization": "auto"}
    return ServerConfig.model_validate({"model_loading_config": loading})


def smaller_gpu(bar: int) -> Callable[..., tuple[int, int]]:
    """Let torch take no more than `bar` of the GPU; what it is to say of the GPU's memory from now on."""
    true = torch.cuda.mem_get_info
    _, total = true()
    torch.cuda.set_per_process_memory_fraction((bar - CONTEXT) / total)

    def told(device: Any = None) -> tuple[int, int]:
        free, total = true(device)
        return max(bar - (total - free), 0), bar

    return told


def serve(part: str, out: Path) -> None:
    """Make, load, and answer."""
    from server.continuous_batching import LLM, build_rank
    from server.continuous_batching.ranks import start

    built: list[build_rank.BuiltRank] = []

    def remembered(*arguments: Any, **options: Any) -> build_rank.BuiltRank:
        built.append(build_rank.build_rank(*arguments, **options))
        return built[-1]

    bar = BARS[part]
    result: dict[str, Any] = {"part": part, "bar_bytes": bar, **versions()}
    directory = Path(tempfile.mkdtemp(prefix="memory-bars-"))
    try:
        result["stored_bytes"] = make(directory, part)
        began = time.perf_counter()
        with (
            mock.patch("torch.cuda.mem_get_info", smaller_gpu(bar)),
            mock.patch.object(start, "build_rank", remembered),
        ):
            config = configuration(directory, part)
            llm = LLM(config)
            result["start_seconds"] = time.perf_counter() - began
            result |= _weights(directory, built[0].loaded, TYPES[part])
            result["num_blocks"] = llm.capabilities["num_blocks"]
            result["weights"] = llm.capabilities["weights"]
            write(result, out)
            began = time.perf_counter()
            prompts = torch.randint(3, 300, (REQUESTS, PROMPT), generator=torch.Generator().manual_seed(0))
            options = GenerationConfig(max_new_tokens=NEW, ignore_eos=True)
            answers = llm.generate(prompts.tolist(), options)
            result["seconds"] = time.perf_counter() - began
            result["answers"] = [len(each.answers[0].token_ids) for each in answers]
        free, total = torch.cuda.mem_get_info()
        result["torch_peak_bytes"] = torch.cuda.max_memory_reserved()
        result["used_bytes"] = total - free  # what torch reserves it keeps, so this is the peak
        fits, all_there = result["used_bytes"] <= bar, result["answers"] == [NEW] * REQUESTS
        close = abs(result["weights_predicted"] / result["weights_bytes"] - 1) <= CLOSE
        result["passed"] = fits and all_there and close
    finally:
        write(result, out)
        shutil.rmtree(directory)


def _weights(path: Path, loaded: Any, dtype: str) -> dict[str, int]:
    """Bytes of the weights and of a block, beside what `tools.size` says of them."""
    config = ModelConfig.load(path)
    tensors = (*loaded.model.parameters(), *loaded.model.buffers())
    held = {tensor.data_ptr(): tensor.nbytes for tensor in tensors}
    block = sum(each.bytes_per_block(16) for each in cache_specs(config.spec.layers, dtype))
    predicted = weight_bytes(path, config, getattr(torch, dtype))
    return {"weights_bytes": sum(held.values()), "weights_predicted": predicted, "block_bytes": block}


def write(result: Mapping[str, Any], out: Path) -> None:
    """Put the result of a part among those of the others."""
    known = json.loads(out.read_text()) if out.is_file() else {}
    out.write_text(json.dumps(known | {result["part"]: result}, indent=1))


def main() -> None:
    """Serve every part in a process of its own, or, as a child, one."""
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("out", type=Path)
    parser.add_argument("--parts", type=lambda names: names.split(","), default=list(BARS))
    parser.add_argument("--one", choices=list(BARS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        serve(arguments.one, arguments.out)
        return
    for part in arguments.parts:
        command = [sys.executable, "-m", "benchmarks.gpu.memory_bars", str(arguments.out), "--one", part]
        log = arguments.out.with_suffix(f".{part}.log")
        status = Child(command, log, os.environ).end(LIMIT)
        found = json.loads(arguments.out.read_text()).get(part, {}) if arguments.out.is_file() else {}
        figures = {key: found.get(key) for key in ("passed", "used_bytes", "bar_bytes", "weights_bytes")}
        print(f"{part}: status {status}, {figures}, see {log}", flush=True)


if __name__ == "__main__":
    main()
