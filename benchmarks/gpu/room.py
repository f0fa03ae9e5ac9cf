"""How much of a GPU's memory engines take, so that several can be loaded side by side."""

from __future__ import annotations

import subprocess

from benchmarks.checkpoints import LlamaShape

BLOCK_TOKENS = 16
BESIDE_GIGABYTES = 9.0
"""Of an engine beside weights and cache: what libraries take, graphs, and the tensors of the largest step."""


def gigabytes_of(shape: LlamaShape, blocks: int) -> float:
    """What an engine takes in bfloat16, with a cache of so many blocks."""
    embedding = 2 * shape.vocab * shape.hidden
    token = 4 * shape.layers * shape.kv_heads * (shape.hidden // shape.heads)
    return (shape.bytes_per_token + embedding + blocks * BLOCK_TOKENS * token) / 1e9 + BESIDE_GIGABYTES


def gpu_gigabytes() -> float:
    """All that the first GPU has; asked of its driver, since vLLM's processes are not to begin with CUDA."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits", "--id=0"]
    mebibytes = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(mebibytes) * 2**20 / 1e9
