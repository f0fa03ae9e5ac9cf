"""Puts an engine together from a configuration."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from server.checkpoints.plain_config import PlainConfig
from server.continuous_batching.build_rank import BuiltRank
from server.continuous_batching.collector import Collector
from server.continuous_batching.config import ServerConfig
from server.continuous_batching.draft_head import HeadDrafter
from server.continuous_batching.draft_model import DraftModel
from server.continuous_batching.engine import Engine
from server.continuous_batching.grammars import Grammars
from server.continuous_batching.model_texts import ModelTexts
from server.continuous_batching.phases import phase
from server.continuous_batching.ranks.start import build_ranks
from server.models.config import ModelConfig
from server.ops.backend import Backend
from server.scheduling.block_hash import cache_root
from server.scheduling.cache_manager import CacheManager
from server.scheduling.policies import POLICIES
from server.scheduling.preemption import PreemptionCost
from server.scheduling.scheduler import Scheduler
from server.scheduling.speculation.by_model import ModelSpeculator
from server.scheduling.speculation.speculator import Speculator
from server.scheduling.step_builder import StepBuilder
from server.scheduling.step_time import StepTime
from server.text.grammars.compiler import GrammarCompiler
from server.worker.worker import Worker


@dataclass(slots=True)
class BuiltEngine:
    """An engine, and what was decided while it was built.

    Attributes:
        capabilities: what was chosen at load and why, for the operator.
        fingerprint: of the checkpoint.
    """

    engine: Engine
    model: ModelConfig
    capabilities: dict[str, Any]
    fingerprint: str


def build_engine(
    config: ServerConfig,
    hf: PlainConfig | None,
    texts: Callable[[], ModelTexts],
    lost: Callable[[str], None] | None = None,
) -> BuiltEngine:
    """Load the model and make everything around it.

    Args:
        config: the server's configuration.
        hf: that of the checkpoint; None: transformers reads it here.
        texts: gives what is needed besides, once the model is loaded.
        lost: as of `ranks.leader.Ranks`, where the model is split.

    Raises:
        ModelError: the checkpoint cannot be served as configured.
    """
    built, ranks = build_ranks(config, hf, lost)
    loaded, specs, limits, worker = built.loaded, built.specs, built.limits, built.worker
    loading, storage, sampling = config.model_loading_config, built.storage, built.sampling
    scheduler = _make_scheduler(config, built)
    builder = StepBuilder(longest_first=worker.overlaps)
    with phase("tokenizer"):
        told = texts()
    collector = Collector(scheduler.queues, builder.moves, told.vocabulary)
    root = cache_root(
        told.fingerprint.encode(), loading.torch_dtype.encode(), loaded.cache_dtype_name.encode()
    )
    compiler = GrammarCompiler(told.grammar_tokens, loaded.config.vocab_size, loaded.config.eos_token_ids)
    grammars = Grammars(compiler, loaded.config.vocab_size)
    engine = Engine(scheduler, builder, worker, collector, grammars, time.monotonic, cache_root=root)
    capabilities = {
        **loaded.describe(),
        "ranks": ranks,
        "sampling": sampling,
        "short_prompts": worker.runner.short_prompts,
        "num_blocks": limits.num_blocks,
        "num_host_blocks": limits.groups[0].num_host_blocks,
        "cache_groups": [
            {"layers": len(spec.layers), **asdict(group)}
            for group, spec in zip(limits.groups, specs, strict=True)
        ],
        "block_size": limits.block_size,
        "prefix_cache": config.cache_config.enable_prefix_cache,
        "swap_policy": config.cache_config.swap_policy,
        "scheduling_policy": scheduler.policy.name,
        "same_bits": _same_bits(loaded.backend, worker),
        "block_copies": storage.block_copies.name,
        "speculation": _speculation(built.drafter),
    }
    return BuiltEngine(engine, loaded.config, capabilities, told.fingerprint)


def _make_scheduler(config: ServerConfig, built: BuiltRank) -> Scheduler:
    limits, redecodes = built.limits, not built.worker.chunks_like_decodes
    cache = CacheManager(
        limits.groups,
        limits.block_size,
        prefix_cache=config.cache_config.enable_prefix_cache,
        separates_decoded=redecodes and built.loaded.backend.same_bits,
    )
    cost = PreemptionCost(config.cache_config.swap_policy)
    policy = POLICIES[config.batcher_config.policy]
    speculator = Speculator() if built.drafter is None else ModelSpeculator(built.drafter)
    target = config.batcher_config.target_step_ms
    replayed = built.worker.runner.replayed_tokens
    times = StepTime(None if target is None else target / 1e3, replayed)
    return Scheduler(limits, cache, cost, policy, speculator, step_time=times, redecodes=redecodes)


def _speculation(drafter: DraftModel | HeadDrafter | None) -> dict[str, Any]:
    """What drafts, for the operator."""
    asked = "prompt lookup where a request or the configuration asks for it and it pays"
    if drafter is None:
        return {"name": "prompt lookup", "reason": asked}
    return {
        "name": f"{drafter.label}, prompt lookup",
        "reason": f"{drafter.label} where it pays; {asked}",
        **(drafter.describe() if isinstance(drafter, HeadDrafter) else {}),
    }


def _same_bits(backend: Backend, worker: Worker) -> dict[str, Any]:
    """Whether an answer is the same in any batch, for the operator."""
    if not backend.same_bits:
        reason = "roundings of products and attention depend on the rows that are computed together"
    elif worker.chunks_like_decodes:
        reason = "every sum has one order, in prompts and decodes, whatever is computed beside it"
    else:
        reason = "every sum has one order; what was decoded is decoded again, and cached apart from prompts"
    return {"promised": backend.same_bits, "reason": reason}
