"""How much GPU memory an engine needs, so that several can be loaded side by side."""

from __future__ import annotations

import subprocess

from benchmarks.checkpoints import LlamaShape

BLOCK_TOKENS = 16
BESIDE_GIGABYTES = 9.0
"""Needed besides weights and cache: CUDA context, libraries, CUDA graphs, activations of the largest step."""


def gigabytes_of(shape: LlamaShape, blocks: int) -> float:
    """GPU memory that an engine needs in bfloat16 with a KV cache of `blocks` blocks."""
    embedding = 2 * shape.vocab * shape.hidden
    token = 4 * shape.layers * shape.kv_heads * (shape.hidden // shape.heads)
    return (shape.bytes_per_token + embedding + blocks * BLOCK_TOKENS * token) / 1e9 + BESIDE_GIGABYTES


def gpu_gigabytes() -> float:
    """Memory of the first GPU, from nvidia-smi: if this process initialized CUDA, vLLM could not fork."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits", "--id=0"]
    mebibytes = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(mebibytes) * 2**20 / 1e9
