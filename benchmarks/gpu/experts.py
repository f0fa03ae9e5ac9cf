"""Models with experts on one GPU: ``.venv/bin/python -m benchmarks.gpu.experts OUT [--vllm SITE]``.

Shapes of Qwen3-30B-A3B in bfloat16, in codes of 4 bits (GPTQ, groups of 128) and in FP8 (blocks of 128),
and of gpt-oss-20b in MXFP4, weights made up on the GPU, the workloads of `benchmarks.gpu.workloads`. Each
engine runs each shape in a process of its own, which is ended after LIMIT seconds; OUT is a directory, in
which results and logs are written as they come.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.checkpoints import byte_tokenizer
from benchmarks.gpu import own, peer_vllm, timing
from benchmarks.gpu.child import Child, environment
from benchmarks.gpu.step_time import replay_ms
from server.checkpoints.files import StoredTensor
from server.models.decoder import Decoder
from server.quantization.formats.base import OpenFormat
from server.quantization.formats.gptq import OpenGPTQ
from server.quantization.formats.mxfp4 import BLOCKS, SCALES, OpenMXFP4
from server.quantization.formats.scaled import OpenScaled, open_scaled
from server.quantization.fp8.scheme import Activations
from server.quantization.gptq.checkpoint import GPTQCheckpoint
from server.quantization.gptq.config import GPTQConfig
from utils.commands import with_interpreter

LIMIT = 180
LENGTH = 4096
SHAPES = ("qwen3-30b-a3b", "gpt-oss-20b", "qwen3-30b-a3b-int4", "qwen3-30b-a3b-fp8")
GROUP, BLOCK = 128, 128
PEER_SHAPES = SHAPES[:2]
"""That vLLM makes up weights for."""
ENGINES = ("own", "vllm")
ROWS = (1, 4, 16, 64, 256)


def describe(path: Path, shape: str) -> Any:
    """Save configuration and tokenizer of a shape; the configuration."""
    from transformers import GptOssConfig, Qwen3MoeConfig

    common = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "tie_word_embeddings": False}
    config: Any
    if shape == "gpt-oss-20b":
        config = GptOssConfig(
            num_hidden_layers=24, num_local_experts=32, num_experts_per_tok=4, vocab_size=201_088,
            hidden_size=2_880, intermediate_size=2_880, head_dim=64, num_attention_heads=64,
            num_key_value_heads=8, sliding_window=128, max_position_embeddings=131_072,
            architectures=["GptOssForCausalLM"], dtype="bfloat16", **common,
        )  # fmt: skip
    else:
        config = Qwen3MoeConfig(
            hidden_size=2_048, num_hidden_layers=48, num_attention_heads=32, num_key_value_heads=4,
            head_dim=128, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768,
            intermediate_size=6_144, norm_topk_prob=True, vocab_size=151_936, max_position_embeddings=40_960,
            architectures=["Qwen3MoeForCausalLM"], dtype="bfloat16", **common,
        )  # fmt: skip
    path.mkdir(parents=True, exist_ok=True)
    byte_tokenizer(path, LENGTH)
    config.save_pretrained(path)
    return config


def mxfp4_of(path: Path, config: Any) -> OpenMXFP4:
    """The description of a checkpoint of gpt-oss as it is published, without files."""
    count, hidden, inner = config.num_local_experts, config.hidden_size, config.intermediate_size
    stored: dict[str, StoredTensor] = {}
    for index in range(config.num_hidden_layers):
        experts = f"model.layers.{index}.mlp.experts"
        for name, outputs, inputs in (("gate_up_proj", 2 * inner, hidden), ("down_proj", hidden, inner)):
            shape = (count, outputs, inputs // 32)
            stored[f"{experts}.{name}{BLOCKS}"] = StoredTensor(path, "U8", (*shape, 16))
            stored[f"{experts}.{name}{SCALES}"] = StoredTensor(path, "U8", shape)
    return OpenMXFP4(path, path, {}, frozenset(), stored)


def matrices_of(config: Any) -> dict[str, tuple[int, int]]:
    """Name → outputs and inputs of every quantized matrix of Qwen3 with experts."""
    hidden, inner, head = config.hidden_size, config.moe_intermediate_size, config.head_dim
    heads, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    found = {}
    for index in range(config.num_hidden_layers):
        layer = f"model.layers.{index}"
        for name, size in (("q", heads), ("k", keys), ("v", keys)):
            found[f"{layer}.self_attn.{name}_proj"] = (size, hidden)
        found[f"{layer}.self_attn.o_proj"] = (hidden, heads)
        for expert in range(config.num_experts):
            prefix = f"{layer}.mlp.experts.{expert}"
            found |= {f"{prefix}.{name}_proj": (inner, hidden) for name in ("gate", "up")}
            found[f"{prefix}.down_proj"] = (hidden, inner)
    return found


def gptq_of(path: Path, config: Any) -> OpenGPTQ:
    """The description of a GPTQ checkpoint, without files."""
    stored = {}
    for name, (outputs, inputs) in matrices_of(config).items():
        groups = inputs // GROUP
        stored[f"{name}.qweight"] = StoredTensor(path, "I32", (inputs // 8, outputs))
        stored[f"{name}.qzeros"] = StoredTensor(path, "I32", (groups, outputs // 8))
        stored[f"{name}.scales"] = StoredTensor(path, "F16", (groups, outputs))
    how = GPTQConfig(4, GROUP, desc_act=False, sym=True, zero_offset=0)
    return OpenGPTQ.of(GPTQCheckpoint(path, how, path, stored, torch.float16))


def fp8_of(path: Path, config: Any) -> OpenScaled:
    """The description of a checkpoint in FP8 as Qwen publishes it, without files."""
    stored = {}
    for name, (outputs, inputs) in matrices_of(config).items():
        stored[f"{name}.weight"] = StoredTensor(path, "F8_E4M3", (outputs, inputs))
        shape = (outputs // BLOCK, inputs // BLOCK)
        stored[f"{name}.weight_scale_inv"] = StoredTensor(path, "F32", shape)
    return open_scaled(path, path, stored, path, block=[BLOCK, BLOCK], activations=Activations())


CHECKPOINTS: dict[str, Callable[[Path, Any], OpenFormat]] = {
    "gpt-oss-20b": mxfp4_of,
    "qwen3-30b-a3b-int4": gptq_of,
    "qwen3-30b-a3b-fp8": fp8_of,
}


def random_weights(path: Path, model: Decoder, quantized: Any = None) -> None:
    """Weights made up in place: norms 1, codes of any kind with scales that make them small, others small."""
    torch.manual_seed(0)
    for name, target in model.weights().items():
        if name.endswith("norm.weight"):
            target.tensor.fill_(1.0)
        elif name.endswith("qzeros"):
            target.tensor.fill_(-0x77777778)  # 8 in every place
        elif name.endswith("qweight"):
            target.tensor.random_(-(2**31), 2**31 - 1)
        elif name.endswith((".scales", ".weight_scale")):
            target.tensor.fill_(0.004)
        elif target.tensor.dtype == torch.float8_e4m3fn:
            target.tensor.copy_(torch.randn(target.tensor.shape, device=target.tensor.device) * 5)
        elif name.endswith(SCALES):
            target.tensor.fill_(127 + round(math.log2(0.02 / 3)))
        elif name.endswith(BLOCKS):
            target.tensor.random_(0, 256)
        else:
            target.tensor.normal_(0.0, 0.02)


def load(path: Path, shape: str, layers: int | None = None) -> Any:
    """An `LLM` of that shape, or of some of its layers."""
    from server.continuous_batching import LLM

    config = describe(path, shape)
    if layers is not None:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
        config.save_pretrained(path)
    describe_stored = CHECKPOINTS.get(shape)
    checkpoint = None if describe_stored is None else describe_stored(path, config)
    with (
        mock.patch("server.models.load.load_weights", random_weights),
        mock.patch("server.models.load.open_format", lambda *_: checkpoint),
    ):
        return LLM(
            path,
            model_loading_config={"torch_dtype": "bfloat16", "model_max_length": LENGTH},
            batcher_config={
                "batch_max_tokens": 16384, "batch_max_beams": 256, "prefill_chunk_tokens": 8192
            },
            cache_config={"enable_prefix_cache": False, "num_blocks_cpu": 0},
        )  # fmt: skip


def load_vllm(path: Path, shape: str) -> Any:
    """vLLM with that shape, in the same type where its files say which."""
    import vllm

    config = describe(path, shape)
    if shape == "gpt-oss-20b":
        fields = json.loads((path / "config.json").read_text())
        fields["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": []}
        (path / "config.json").write_text(json.dumps(fields))
    assert config is not None
    return vllm.LLM(
        model=str(path), load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16",
        max_model_len=LENGTH, gpu_memory_utilization=0.9, enable_prefix_caching=False,
        generation_config="vllm", seed=0,
    )  # fmt: skip


def measure(engine: str, shape: str, out: Path) -> None:
    """W2, then W1 of an engine, written as they come."""
    begin = time.perf_counter()
    path = out / f"{engine}-{shape}"
    llm, run = (load(path, shape), own.run) if engine == "own" else (load_vllm(path, shape), peer_vllm.run)
    result: dict[str, Any] = {"engine": engine, "shape": shape, "workloads": {}}
    result["start_seconds"] = time.perf_counter() - begin
    file = out / f"{engine}-{shape}.json"
    if engine == "own":
        result["capabilities"] = {key: llm.capabilities.get(key) for key in ("weights", "attention")}
        result["decode_steps_ms"] = {rows: replay_ms(llm, rows, 512) for rows in ROWS}
        timing.write(result, "decode steps", result["decode_steps_ms"], file)
    for name in ("W2", "W1"):
        timing.note(result, name, timing.repeat(lambda work: run(llm, work), name, 1), file)


def main() -> None:
    """Run every engine on every shape, or, as a child, one on one."""
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("out", type=Path)
    parser.add_argument("--vllm", type=Path, help="directory that holds vLLM and what it needs")
    parser.add_argument("--shapes", type=lambda names: names.split(","), default=list(SHAPES))
    parser.add_argument("--engines", type=lambda names: names.split(","), default=list(ENGINES))
    parser.add_argument("--one", nargs=2, metavar=("ENGINE", "SHAPE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.one:
        measure(*arguments.one, arguments.out)
        return
    for shape in arguments.shapes:
        for engine in arguments.engines:
            if engine == "vllm" and (arguments.vllm is None or shape not in PEER_SHAPES):
                continue
            command = [sys.executable, "-m", "benchmarks.gpu.experts", str(arguments.out)]
            log = arguments.out / f"{engine}-{shape}.log"
            status = Child([*command, "--one", engine, shape], log, environment(arguments.vllm)).end(LIMIT)
            print(f"{engine} {shape}: status {status}, see {log}", flush=True)


if __name__ == "__main__":
    main()
