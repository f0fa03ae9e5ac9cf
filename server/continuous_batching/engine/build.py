"""Puts an engine together from a configuration."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from server.continuous_batching.attention.base import AttentionBackend, AttentionShape
from server.continuous_batching.attention.paged import PagedAttention
from server.continuous_batching.attention.select import choose_attention
from server.continuous_batching.cache.manager import CacheManager
from server.continuous_batching.cache.sizing import all_memory, blocks_that_fit, free_memory
from server.continuous_batching.cache.storage import CacheStorage
from server.continuous_batching.config import ServerConfig
from server.continuous_batching.decoding.decoder import Decoder
from server.continuous_batching.decoding.device_choice import table_bytes
from server.continuous_batching.decoding.device_rows import DeviceRows
from server.continuous_batching.engine.batch import BatchBuilder
from server.continuous_batching.engine.collector import Collector
from server.continuous_batching.engine.engine import NO_DRAFTS, Engine
from server.continuous_batching.engine.paged_batch import PagedBatchBuilder
from server.continuous_batching.engine.phases import phase
from server.continuous_batching.engine.runner import ModelRunner, PagedModelRunner
from server.continuous_batching.kernels.base import Kernels
from server.continuous_batching.kernels.select import choose_kernels
from server.continuous_batching.layers.rotary import Rotary
from server.continuous_batching.models.config import DecoderConfig, ModelError
from server.continuous_batching.models.decoder import Decoder as DecoderModel
from server.continuous_batching.models.load import load_model
from server.continuous_batching.scheduler.cost import PreemptionCost
from server.continuous_batching.scheduler.limits import Limits
from server.continuous_batching.scheduler.scheduler import Scheduler
from server.continuous_batching.speculation.speculator import Speculator
from server.gptq.config import GPTQError
from server.text.vocabulary import Vocabulary

CPU_CHUNK_TOKENS = 512
"""Prompt tokens a step on a CPU, so that running answers are not held up by long prompts."""


@dataclass(slots=True)
class BuiltEngine:
    """An engine, and what there is to know of it."""

    engine: Engine
    model: DecoderConfig
    capabilities: dict[str, Any]


def choose_device(wanted: str) -> torch.device:
    """`auto` is CUDA where there is one.

    Raises:
        ModelError: CUDA was asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelError("device 'cuda' was asked for, but torch finds no CUDA device")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def build_engine(config: ServerConfig, tokenizer: Any) -> BuiltEngine:
    """Load the model and make everything around it.

    Args:
        config: the server's configuration.
        tokenizer: transformers' tokenizer of the model, for stop strings.

    Raises:
        ModelError: the checkpoint cannot be served as configured.
    """
    loading = config.model_loading_config
    if loading.num_threads is not None:
        torch.set_num_threads(loading.num_threads)
    path = Path(loading.model_name_or_path)
    with phase("model configuration, device"):
        device, dtype = choose_device(loading.device), getattr(torch, loading.torch_dtype)
        shape = DecoderConfig.load(path, trust_remote_code=loading.trust_remote_code)
    max_length = loading.model_max_length or shape.max_position_embeddings
    with phase("weights"):
        model = load_model(loading, shape, dtype, device)
        kernels, kernels_reason = choose_kernels(device, dtype, model)
        weights = _prepare(kernels, model, dtype)
    limits, num_host_blocks, block_shape = _size_cache(config, shape, max_length, dtype, device)
    cache = CacheManager(
        limits.num_blocks,
        num_host_blocks,
        limits.block_size,
        prefix_cache=config.cache_config.enable_prefix_cache,
    )
    cost = PreemptionCost(config.cache_config.swap_policy)
    with phase("cache memory"):
        storage = CacheStorage(limits.num_blocks, num_host_blocks, block_shape, dtype, device)
    attention_shape = AttentionShape(
        shape.num_heads, shape.num_kv_heads, shape.head_dim, limits.block_size, dtype
    )
    rotary = Rotary(shape.hf, max_length, dtype=dtype, device=device)
    with phase("attention kernels"):
        backend, attention_reason = choose_attention(attention_shape, device, loading.attention_backend)
        attention = backend(attention_shape, rotary, storage.device)
    runner, device_rows = _make_runner(model, storage, attention, kernels, limits, cost)
    overlap = device_rows is not None
    if overlap and config.speculation_config.prompt_lookup_num_tokens:
        raise ModelError(f"speculation_config.prompt_lookup_num_tokens cannot be honoured: {NO_DRAFTS}")
    scheduler = Scheduler(limits, cache, cost, None if overlap else Speculator())
    decoder = Decoder(limits.max_rows, shape.vocab_size, device, device_rows)
    if device.type == "cuda" and isinstance(runner, PagedModelRunner):
        with phase("a first prompt"):
            decoder.warm_up(runner.warm_up(min(limits.chunk_tokens, max_length)))
    collector = Collector(scheduler, decoder, Vocabulary(tokenizer, shape.vocab_size))
    engine = Engine(scheduler, runner, decoder, collector, time.monotonic, overlap=overlap)
    capabilities = {
        "device": str(device),
        "dtype": loading.torch_dtype,
        "num_threads": torch.get_num_threads(),
        "weights": weights,
        "attention": {"name": attention.name, "reason": attention_reason},
        "kernels": {"name": kernels.name, "reason": kernels_reason},
        "num_blocks": limits.num_blocks,
        "num_host_blocks": num_host_blocks,
        "block_size": limits.block_size,
        "prefix_cache": config.cache_config.enable_prefix_cache,
        "swap_policy": config.cache_config.swap_policy,
        "block_copies": storage.block_copies.name,
        "speculation": {
            "name": "none" if overlap else "prompt lookup",
            "reason": NO_DRAFTS if overlap else "where a request or the configuration asks for it",
        },
    }
    return BuiltEngine(engine, shape, capabilities)


def _prepare(kernels: Kernels, model: DecoderModel, dtype: torch.dtype) -> dict[str, str]:
    """Let `kernels` have the weights; returns in what form they are and why, for the operator."""
    try:
        quantised = kernels.prepare(model, dtype)
    except GPTQError as error:
        raise ModelError(str(error)) from error
    return quantised or {"name": str(dtype).removeprefix("torch."), "reason": "quantize_method is null"}


def _make_runner(
    model: DecoderModel,
    storage: CacheStorage,
    attention: AttentionBackend[Any],
    kernels: Kernels,
    limits: Limits,
    cost: PreemptionCost,
) -> tuple[ModelRunner, DeviceRows | None]:
    """The runner that suits the backend, and the tokens that stay on the device, if they do."""
    device = storage.device.device
    max_blocks = -(-limits.model_max_length // limits.block_size)
    if not isinstance(attention, PagedAttention):
        builder = BatchBuilder(limits.max_rows, max_blocks, limits.block_size, device)
        return ModelRunner(model, storage, attention, kernels, builder, cost), None
    rows = DeviceRows(limits.max_rows, device)
    paged = PagedBatchBuilder(
        limits.max_rows, max_blocks, limits.max_tokens, limits.block_size, rows.last_tokens
    )
    runner = PagedModelRunner(model, storage, attention, kernels, paged, cost, rows)
    if device.type == "cuda":
        with phase("graphs of decode steps"):
            runner.capture()
    return runner, rows


def _size_cache(
    config: ServerConfig, shape: DecoderConfig, max_length: int, dtype: torch.dtype, device: torch.device
) -> tuple[Limits, int, tuple[int, ...]]:
    """(limits, host blocks, shape of a block) for a model and the memory that is free.

    Raises:
        ModelError: more blocks are configured than there is memory for.
    """
    batcher, cache = config.batcher_config, config.cache_config
    block_shape = (shape.num_layers, 2, cache.block_size, shape.num_kv_heads, shape.head_dim)
    size = CacheStorage.bytes_per_block(block_shape, dtype)
    num_blocks = cache.num_blocks
    if num_blocks is None:
        useful = batcher.batch_max_beams * -(-max_length // cache.block_size)
        tables = table_bytes(batcher.batch_max_beams, shape.vocab_size) if device.type == "cuda" else 0
        if tables and tables >= (free := free_memory(device)):
            raise ModelError(
                f"batcher_config.batch_max_beams: options of so many rows can take {tables / 2**30:.1f} GiB, "
                f"and {free / 2**30:.1f} GiB of memory are free beside the model"
            )
        num_blocks = blocks_that_fit(device, size, cache.memory_fraction, useful, tables)
    num_host_blocks, host = cache.num_blocks_cpu, torch.device("cpu")
    if num_host_blocks is None:
        num_host_blocks = blocks_that_fit(host, size, cache.memory_fraction, num_blocks // 4)
    _check_memory("num_blocks", num_blocks, size, device)
    _check_memory("num_blocks_cpu", num_host_blocks, size, host)
    chunk = CPU_CHUNK_TOKENS if device.type == "cpu" else batcher.batch_max_tokens
    chunk = batcher.prefill_chunk_tokens or max(chunk, batcher.batch_max_beams)
    limits = Limits(
        max_tokens=batcher.batch_max_tokens,
        max_rows=batcher.batch_max_beams,
        max_waiting=batcher.max_waiting,
        chunk_tokens=min(chunk, batcher.batch_max_tokens),
        model_max_length=max_length,
        num_blocks=num_blocks,
        block_size=cache.block_size,
        watermark=cache.watermark,
    )
    return limits, num_host_blocks, block_shape


def _check_memory(key: str, blocks: int, bytes_per_block: int, device: torch.device) -> None:
    """Raise ModelError where `device` can never hold so many blocks."""
    needed, there_is = blocks * bytes_per_block, all_memory(device)
    if needed > there_is:
        raise ModelError(
            f"cache_config.{key}: {blocks} blocks take {needed / 2**30:.1f} GiB, "
            f"more than the {there_is / 2**30:.1f} GiB of memory that this {device.type} has"
        )
