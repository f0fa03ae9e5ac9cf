"""The budgets of an engine: those of its configuration, and as many cache blocks as there is memory for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from server.checkpoints.errors import ModelError
from server.continuous_batching.config import BatcherConfig, ServerConfig
from server.continuous_batching.loaded_model import LoadedModel
from server.device.collectives import Group
from server.layers.cache_spec import CacheSpec
from server.sampling.sampling_state import table_bytes
from server.scheduling.limits import DRAFTED_LINES, GroupSize, Limits
from server.worker.cache_sizing import CacheWishes, free_memory, size_groups

CPU_CHUNK_TOKENS = 512
"""Prompt tokens a step on a CPU, so that running answers are not held up by long prompts."""
SCORES_OF_PROMPTS = 1 << 25
"""Logits of a step for the log probabilities of prompts: 128 MiB in float32."""
MOST_SCORED = 512
"""Tokens of prompts that a step reports on: the HTTP process reads a report at once."""


def size_cache(
    config: ServerConfig, loaded: LoadedModel, specs: Sequence[CacheSpec], read_width: int = 0
) -> Limits:
    """The budgets, for a model and the memory that is free; of several ranks, as all of them have it.

    Args:
        read_width: numbers of each token of a step that are kept for a draft head.

    Raises:
        ModelError: more blocks are configured than there is memory for.
    """
    batcher, cache = config.batcher_config, config.cache_config
    device, max_length = loaded.device, loaded.max_length
    reserved = 0
    if cache.num_blocks is None and device.type == "cuda":
        reserved = table_bytes(max(batcher.batch_max_beams, DRAFTED_LINES), loaded.config.vocab_size)
        reserved += SCORES_OF_PROMPTS * loaded.dtype.itemsize
        if reserved >= (free := free_memory(device)):
            raise ModelError(
                f"batcher_config.batch_max_beams: options of sampling can take {reserved / 2**30:.1f} "
                f"GiB, and {free / 2**30:.1f} GiB of memory are free beside the model"
            )
        reserved += batcher.batch_max_tokens * read_width * loaded.dtype.itemsize
    wishes = CacheWishes(
        num_blocks=cache.num_blocks,
        num_window_blocks=cache.num_window_blocks,
        num_blocks_cpu=cache.num_blocks_cpu,
        block_size=cache.block_size,
        memory_fraction=cache.memory_fraction,
        ranks=1 if loaded.group is None else loaded.group.size,
    )
    groups = size_groups(
        specs,
        wishes,
        device,
        max_rows=batcher.batch_max_beams,
        max_tokens=batcher.batch_max_tokens,
        max_length=max_length,
        reserved=reserved,
    )
    return Limits(
        max_tokens=batcher.batch_max_tokens,
        max_rows=batcher.batch_max_beams,
        max_waiting=batcher.max_waiting,
        chunk_tokens=chunk_tokens(batcher, device),
        model_max_length=max_length,
        groups=groups if loaded.group is None else _agree(groups, loaded.group),
        block_size=cache.block_size,
        watermark=cache.watermark,
        scored_tokens=max(1, min(SCORES_OF_PROMPTS // loaded.config.vocab_size, MOST_SCORED)),
    )


def chunk_tokens(batcher: BatcherConfig, device: torch.device) -> int:
    """Prompt tokens of a step at most."""
    usual = CPU_CHUNK_TOKENS if device.type == "cpu" else batcher.batch_max_tokens
    chunk = batcher.prefill_chunk_tokens or max(usual, batcher.batch_max_beams)
    return min(chunk, batcher.batch_max_tokens)


def _agree(groups: Sequence[GroupSize], ranks: Group) -> tuple[GroupSize, ...]:
    """Of each group, as many blocks as all ranks have room for: they share one block table."""
    counts = ranks.smallest(
        [count for group in groups for count in (group.num_blocks, group.num_host_blocks)]
    )
    pairs = zip(groups, counts[::2], counts[1::2], strict=True)
    return tuple(replace(group, num_blocks=blocks, num_host_blocks=host) for group, blocks, host in pairs)
