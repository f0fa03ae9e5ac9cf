"""Puts an engine together from a configuration."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from server.checkpoints.errors import ModelError
from server.checkpoints.fingerprint import fingerprint
from server.continuous_batching.admission import NO_DRAFTS
from server.continuous_batching.build_worker import build_storage, build_worker
from server.continuous_batching.collector import Collector
from server.continuous_batching.config import ServerConfig
from server.continuous_batching.engine import Engine
from server.continuous_batching.grammars import Grammars
from server.continuous_batching.loaded_model import LoadedModel, load
from server.continuous_batching.phases import phase
from server.layers.cache_spec import CacheSpec, cache_specs
from server.models.config import ModelConfig
from server.ops.backend import Backend
from server.sampling.sampling_state import table_bytes
from server.scheduling.block_hash import cache_root
from server.scheduling.cache_manager import CacheManager
from server.scheduling.limits import Limits
from server.scheduling.policies import POLICIES
from server.scheduling.preemption import PreemptionCost
from server.scheduling.scheduler import Scheduler
from server.scheduling.speculation.speculator import Speculator
from server.scheduling.step_builder import StepBuilder
from server.text.grammars.compiler import GrammarCompiler
from server.text.vocabulary import Vocabulary
from server.worker.cache_sizing import CacheWishes, free_memory, size_groups
from server.worker.worker import Worker

CPU_CHUNK_TOKENS = 512
"""Prompt tokens a step on a CPU, so that running answers are not held up by long prompts."""
SCORES_OF_PROMPTS = 1 << 25
"""Logits of a step for the log probabilities of prompts: 128 MiB in float32."""
MOST_SCORED = 512
"""Tokens of prompts that a step reports on: the HTTP process reads a report at once."""


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


def build_engine(config: ServerConfig, tokenizer: Any) -> BuiltEngine:
    """Load the model and make everything around it.

    Args:
        config: the server's configuration.
        tokenizer: transformers' tokenizer of the model, for stop strings and grammars.

    Raises:
        ModelError: the checkpoint cannot be served as configured.
    """
    loading = config.model_loading_config
    if loading.num_threads is not None:
        torch.set_num_threads(loading.num_threads)
    loaded = load(config)
    cache_dtype = str(loaded.cache_dtype).removeprefix("torch.")
    specs = cache_specs(loaded.config.spec.layers, cache_dtype)
    limits = _size_cache(config, loaded, specs)
    storage = build_storage(loaded, specs, limits)
    worker, sampling = build_worker(loaded, specs, storage, limits)
    overlap = worker.overlaps
    if overlap and config.speculation_config.prompt_lookup_num_tokens:
        raise ModelError(f"speculation_config.prompt_lookup_num_tokens is not supported: {NO_DRAFTS}")
    scheduler = _make_scheduler(config, limits, worker, loaded.backend)
    builder = StepBuilder(longest_first=overlap)
    vocabulary = Vocabulary(tokenizer, loaded.config.vocab_size)
    collector = Collector(scheduler.queues, builder.moves, vocabulary)
    with phase("fingerprint"):
        checkpoint = fingerprint(loading.model_name_or_path, loading.tokenizer_path)
    root = cache_root(checkpoint.encode(), loading.torch_dtype.encode(), cache_dtype.encode())
    compiler = GrammarCompiler(tokenizer, loaded.config.vocab_size, loaded.config.eos_token_ids)
    grammars = Grammars(compiler, loaded.config.vocab_size)
    engine = Engine(scheduler, builder, worker, collector, grammars, time.monotonic, cache_root=root)
    capabilities = {
        **loaded.describe(),
        "sampling": sampling,
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
        "speculation": {
            "name": "none" if overlap else "prompt lookup",
            "reason": NO_DRAFTS if overlap else "where a request or the configuration asks for it",
        },
    }
    return BuiltEngine(engine, loaded.config, capabilities, checkpoint)


def _make_scheduler(config: ServerConfig, limits: Limits, worker: Worker, backend: Backend) -> Scheduler:
    redecodes = not worker.chunks_like_decodes
    cache = CacheManager(
        limits.groups,
        limits.block_size,
        prefix_cache=config.cache_config.enable_prefix_cache,
        separates_decoded=redecodes and backend.same_bits,
    )
    cost = PreemptionCost(config.cache_config.swap_policy)
    speculator = None if worker.overlaps else Speculator()
    policy = POLICIES[config.batcher_config.policy]
    return Scheduler(limits, cache, cost, policy, speculator, redecodes=redecodes)


def _same_bits(backend: Backend, worker: Worker) -> dict[str, Any]:
    """Whether an answer is the same in any batch, for the operator."""
    if not backend.same_bits:
        reason = "roundings of products and attention depend on the rows that are computed together"
    elif worker.chunks_like_decodes:
        reason = "every sum has one order, in prompts and decodes, whatever is computed beside it"
    else:
        reason = "every sum has one order; what was decoded is decoded again, and cached apart from prompts"
    return {"promised": backend.same_bits, "reason": reason}


def _size_cache(config: ServerConfig, loaded: LoadedModel, specs: Sequence[CacheSpec]) -> Limits:
    """The budgets, for a model and the memory that is free.

    Raises:
        ModelError: more blocks are configured than there is memory for.
    """
    batcher, cache = config.batcher_config, config.cache_config
    device, max_length = loaded.device, loaded.max_length
    reserved = 0
    if cache.num_blocks is None and device.type == "cuda":
        reserved = table_bytes(batcher.batch_max_beams, loaded.config.vocab_size)
        reserved += SCORES_OF_PROMPTS * loaded.dtype.itemsize
        if reserved >= (free := free_memory(device)):
            raise ModelError(
                f"batcher_config.batch_max_beams: options of sampling can take {reserved / 2**30:.1f} "
                f"GiB, and {free / 2**30:.1f} GiB of memory are free beside the model"
            )
    wishes = CacheWishes(
        num_blocks=cache.num_blocks,
        num_window_blocks=cache.num_window_blocks,
        num_blocks_cpu=cache.num_blocks_cpu,
        block_size=cache.block_size,
        memory_fraction=cache.memory_fraction,
    )
    chunk = CPU_CHUNK_TOKENS if device.type == "cpu" else batcher.batch_max_tokens
    chunk = batcher.prefill_chunk_tokens or max(chunk, batcher.batch_max_beams)
    return Limits(
        max_tokens=batcher.batch_max_tokens,
        max_rows=batcher.batch_max_beams,
        max_waiting=batcher.max_waiting,
        chunk_tokens=min(chunk, batcher.batch_max_tokens),
        model_max_length=max_length,
        groups=size_groups(
            specs,
            wishes,
            device,
            max_rows=batcher.batch_max_beams,
            max_tokens=batcher.batch_max_tokens,
            max_length=max_length,
            reserved=reserved,
        ),
        block_size=cache.block_size,
        watermark=cache.watermark,
        scored_tokens=max(1, min(SCORES_OF_PROMPTS // loaded.config.vocab_size, MOST_SCORED)),
    )
