"""How the ranks of an engine come to be: this process is the first, and starts the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from server.checkpoints.errors import ModelError
from server.checkpoints.plain_config import PlainConfig
from server.continuous_batching.build_rank import BuiltRank, build_rank
from server.continuous_batching.config import ServerConfig
from server.continuous_batching.ranks import messages
from server.continuous_batching.ranks.leader import Ranks
from server.continuous_batching.ranks.worker import RankedWorker
from server.layers.shard import Shard


def build_ranks(
    config: ServerConfig, hf: PlainConfig | None, lost: Callable[[str], None] | None
) -> tuple[BuiltRank, dict[str, Any]]:
    """(what this rank has, with a worker that speaks for all; what ranks there are, for the operator).

    Args:
        hf: configuration of the checkpoint, where it has been read.
        lost: as of `Ranks`.

    Raises:
        ModelError: the checkpoint cannot be served as configured.
    """
    count = count_ranks(config)
    if count == 1:
        return build_rank(config, hf=hf), {"count": 1}
    speculation = config.speculation_config
    for key in ("draft_model", "draft_head"):
        if getattr(speculation, key) is None:
            continue
        raise ModelError(
            f"speculation_config.{key} is not supported where a model is split over ranks "
            f"(parallel_config.tensor_parallel_size: {count})"
        )
    ranks = Ranks(config, count, lost)
    try:
        built = build_rank(config, Shard(0, count), ranks.join, hf)
        ranks.wait_until_loaded()
    except BaseException:
        ranks.close()
        raise
    own = messages.Loaded(str(built.loaded.device), built.loaded.weights_bytes)
    return replace(built, worker=RankedWorker(built.worker, ranks)), ranks.describe(own)


def count_ranks(config: ServerConfig) -> int:
    """How many ranks there are to be."""
    wanted = config.parallel_config.tensor_parallel_size
    if wanted != "auto":
        return wanted
    on_cpu = config.model_loading_config.device == "cpu" or not torch.cuda.is_available()
    return 1 if on_cpu else max(torch.cuda.device_count(), 1)
