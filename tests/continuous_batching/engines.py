"""Engines for tests, small enough that every limit is met."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from server.continuous_batching import LLM


def small_llm(
    path: Path,
    *,
    num_blocks: int = 400,
    num_blocks_cpu: int = 100,
    block_size: int = 8,
    dtype: str = "float32",
    beams: int = 32,
    tokens: int = 96,
    chunk: int = 64,
    max_length: int = 1024,
    quantize_method: str | None = None,
    speculation: dict[str, Any] | None = None,
    **cache: Any,
) -> LLM:
    """An `LLM` on the CPU with those sizes."""
    return LLM(
        path,
        model_loading_config={
            "torch_dtype": dtype,
            "model_max_length": max_length,
            "device": "cpu",
            "quantize_method": quantize_method,
        },
        batcher_config={
            "batch_max_tokens": tokens,
            "batch_max_beams": beams,
            "prefill_chunk_tokens": chunk,
            "max_waiting": 5000,
        },
        cache_config={
            "num_blocks": num_blocks,
            "num_blocks_cpu": num_blocks_cpu,
            "block_size": block_size,
            **cache,
        },
        speculation_config=speculation or {},
    )
