"""Puts a draft model together: a second, smaller model on the same device, with a cache of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from server.checkpoints.errors import ModelError
from server.checkpoints.tokenizer import read_tokenizer
from server.continuous_batching.build_worker import build_storage, build_worker
from server.continuous_batching.cache_size import chunk_tokens
from server.continuous_batching.config import ModelLoadingConfig, ServerConfig
from server.continuous_batching.draft_model import DraftModel
from server.continuous_batching.loaded_model import LoadedModel, load
from server.continuous_batching.phases import phase
from server.layers.cache_spec import CacheSpec, cache_specs
from server.models.heads.load import holds_eagle3
from server.scheduling.limits import DRAFTED_LINES, Limits
from server.worker.cache_sizing import CacheWishes, GroupNeed, blocks_that_fit, size_groups

KEY = "speculation_config.draft_model"
MEMORY_SHARE = 0.1
"""Of what is free once both are loaded, for the keys and values of what drafts at most."""


def build_draft_model(config: ServerConfig, target: LoadedModel) -> DraftModel | None:
    """The draft model of a configuration that names one.

    Args:
        target: the model that it drafts for, loaded already.

    Raises:
        ModelError: it cannot be loaded, or has another tokenizer.
    """
    path = config.speculation_config.draft_model
    if path is None:
        return None
    try:
        return _build(config, path, target)
    except ModelError as error:
        raise ModelError(f"{KEY}: {error}") from error


def _build(config: ServerConfig, path: str, target: LoadedModel) -> DraftModel:
    loading = config.model_loading_config
    if holds_eagle3(Path(path)):
        raise ModelError(f"{path} is a draft head: name it in speculation_config.draft_head")
    with phase("tokenizer of the draft model"):
        own, targets = (
            read_tokenizer(
                Path(place), use_fast=loading.use_fast_tokenizer, trust_remote_code=loading.trust_remote_code
            )
            for place in (path, loading.tokenizer_path)
        )
        if own.get_vocab() != targets.get_vocab():
            raise ModelError(
                f"the tokenizer of {path} has other tokens than that of {loading.tokenizer_path}"
            )
    kept = {"torch_dtype", "trust_remote_code", "device", "num_threads", "attention_backend"}
    alone = ModelLoadingConfig(
        model_name_or_path=path, **{name: getattr(loading, name) for name in kept}
    )  # fmt: skip
    cache = config.cache_config.model_copy(update={"cache_dtype": "auto"})
    loaded = load(config.model_copy(update={"model_loading_config": alone, "cache_config": cache}))
    specs = cache_specs(loaded.config.spec.layers, loaded.cache_dtype_name)
    limits = draft_limits(config, specs, min(loaded.max_length, target.max_length), loaded.device)
    storage = build_storage(specs, limits, loaded.cache_dtype, loaded.device)
    worker, _ = build_worker(loaded, specs, storage, limits)
    most = config.speculation_config.draft_num_tokens
    return DraftModel(worker, limits, most, target.config.vocab_size)


def draft_limits(
    config: ServerConfig, specs: Sequence[CacheSpec], max_length: int, device: torch.device
) -> Limits:
    """The budgets of what drafts: as many sequences as a step can hold drafts of, as far as memory goes."""
    batcher, size = config.batcher_config, config.cache_config.block_size
    rows = min(batcher.batch_max_beams, DRAFTED_LINES // 2)
    needs = [GroupNeed(spec.bytes_per_block(size), rows * -(-max_length // size)) for spec in specs]
    blocks = blocks_that_fit(device, needs, MEMORY_SHARE)
    return Limits(
        max_tokens=batcher.batch_max_tokens,
        max_rows=rows,
        max_waiting=1,
        chunk_tokens=chunk_tokens(batcher, device),
        model_max_length=max_length,
        groups=size_groups(
            specs,
            CacheWishes(blocks, None, 0, size, MEMORY_SHARE),
            device,
            max_rows=rows,
            max_tokens=batcher.batch_max_tokens,
            max_length=max_length,
        ),
        block_size=size,
        watermark=0.0,
    )
