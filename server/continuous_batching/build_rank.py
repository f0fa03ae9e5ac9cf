"""Puts together what every rank has: its part of the model, of the cache, and the choice of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from server.checkpoints.errors import computes_nan
from server.checkpoints.plain_config import PlainConfig
from server.continuous_batching.build_draft import build_draft_model
from server.continuous_batching.build_draft_head import build_draft_head
from server.continuous_batching.build_worker import build_storage, build_worker
from server.continuous_batching.cache_size import size_cache
from server.continuous_batching.config import ServerConfig
from server.continuous_batching.draft_head import HeadDrafter
from server.continuous_batching.draft_model import DraftModel
from server.continuous_batching.loaded_model import Join, LoadedModel, load
from server.continuous_batching.phases import phase
from server.layers.cache_spec import CacheSpec, cache_specs
from server.layers.shard import WHOLE, Shard
from server.scheduling.limits import Limits
from server.worker.cache_storage import CacheStorage
from server.worker.worker import Worker

_TRIED_TOKENS = 2
"""Of the prompt that is computed once the model is loaded; on GPUs its kernels are compiled already."""


@dataclass(frozen=True, slots=True)
class BuiltRank:
    """A worker, and what it was made of.

    Attributes:
        specs: what its part of the cache holds.
        limits: the same on all ranks.
        sampling: how it chooses tokens and why.
        drafter: drafts for it, where one is configured.
    """

    loaded: LoadedModel
    specs: Sequence[CacheSpec]
    limits: Limits
    storage: CacheStorage
    worker: Worker
    sampling: dict[str, str]
    drafter: DraftModel | HeadDrafter | None = None


def build_rank(
    config: ServerConfig, shard: Shard = WHOLE, join: Join | None = None, hf: PlainConfig | None = None
) -> BuiltRank:
    """Load the model, or a rank's part of it, and make what runs steps on it.

    Args:
        join: joins the ranks, where there are several: they do the same from then on.
        hf: configuration of the checkpoint, where it has been read.

    Raises:
        ModelError: the checkpoint cannot be served as configured.
    """
    loading = config.model_loading_config
    if loading.num_threads is not None:
        torch.set_num_threads(loading.num_threads)
    elif shard.ranks > 1:  # which share the processors
        torch.set_num_threads(max(torch.get_num_threads() // shard.ranks, 1))
    loaded = load(config, shard, join, hf)
    drafter = build_draft_model(config, loaded) or build_draft_head(config, loaded)
    specs = cache_specs(loaded.config.spec.layers, loaded.cache_dtype_name)
    head = drafter.runner.head.head_spec if isinstance(drafter, HeadDrafter) else None
    limits = size_cache(config, loaded, specs, 0 if head is None else head.read_width)
    storage = build_storage(specs, limits, loaded.cache_dtype, loaded.device)
    worker, sampling = build_worker(
        loaded,
        specs,
        storage,
        limits,
        prompt_graphs=config.batcher_config.prompt_graphs,
        read_layers=() if head is None else head.read_layers,
    )
    if isinstance(drafter, HeadDrafter):
        drafter.read_from(worker)
    with phase("a short prompt"):
        if not worker.computes_numbers(min(_TRIED_TOKENS, limits.block_size, limits.model_max_length)):
            raise computes_nan(loading.model_name_or_path)
    return BuiltRank(loaded, specs, limits, storage, worker, sampling, drafter)
