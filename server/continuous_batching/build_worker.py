"""Puts a worker together: the cache's memory, attention over it, and how tokens are chosen."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from server.checkpoints.errors import ModelError
from server.continuous_batching.loaded_model import LoadedModel
from server.continuous_batching.phases import phase
from server.layers.cache_spec import CacheSpec, cache_places
from server.ops.attention import AttentionBackend, AttentionShape
from server.ops.grouped_attention import GroupedAttention
from server.sampling.choice import choose_function
from server.sampling.decoder import Decoder
from server.sampling.gpu_sampler import GpuSampler
from server.sampling.sampling_state import SamplingState
from server.sampling.token_table import TokenTable
from server.scheduling.limits import Limits
from server.worker.batch import BatchBuilder
from server.worker.cache_storage import CacheStorage, GroupMemory
from server.worker.paged_batch import PagedBatchBuilder
from server.worker.runner import ModelRunner, PagedModelRunner
from server.worker.shared_prefixes import prefix_finder
from server.worker.worker import Worker
from utils.messages import one_line

logger = logging.getLogger(__name__)

_PROMPT_GRAPHS = "batcher_config.prompt_graphs"


def build_storage(
    specs: Sequence[CacheSpec], limits: Limits, dtype: torch.dtype, device: torch.device
) -> CacheStorage:
    """Memory for the keys and values, of that type, of all groups of layers."""
    with phase("cache memory"):
        return CacheStorage([*_memory(limits, specs, dtype)], device)


def _memory(limits: Limits, specs: Sequence[CacheSpec], dtype: torch.dtype) -> Iterator[GroupMemory]:
    """What each group of layers needs; refused where its keys and values cannot be kept."""
    for group, spec in zip(limits.groups, specs, strict=True):
        try:
            shape = spec.block_shape(limits.block_size)
        except ValueError as error:
            raise ModelError(str(error)) from error
        yield GroupMemory(group.num_blocks, group.num_host_blocks, shape, dtype)


def build_worker(
    loaded: LoadedModel,
    specs: Sequence[CacheSpec],
    storage: CacheStorage,
    limits: Limits,
    *,
    prompt_graphs: bool | None = None,
    read_layers: tuple[int, ...] = (),
) -> tuple[Worker, dict[str, str]]:
    """(worker that suits the backend, how it chooses tokens and why).

    Tokens stay on the device where the backend walks block tables itself.

    Args:
        prompt_graphs: replay short prompts, too; None: where it can be done.
        read_layers: those in front of which a draft head reads the residual stream.

    Raises:
        ModelError: they cannot be replayed here.
    """
    model, backend, device = loaded.model, loaded.backend, loaded.device
    problem = _against_prompt_graphs(loaded)
    if prompt_graphs and problem is not None:
        raise ModelError(f"{_PROMPT_GRAPHS} is not supported: {problem}")
    if prompt_graphs is False:
        problem = f"{_PROMPT_GRAPHS} is false"
    with phase("attention kernels"):
        attention = _make_attention(loaded, specs, storage, limits.block_size)
    rows, vocab, groups = limits.max_rows, model.spec.vocab_size, len(limits.groups)
    max_blocks = -(-limits.model_max_length // limits.block_size)
    if not backend.capabilities.overlaps:
        tokens = TokenTable(rows, limits.model_max_length, torch.device("cpu"))
        builder = BatchBuilder(rows, max_blocks, limits.block_size, tokens.tokens, device, groups)
        runner = ModelRunner(model, storage, attention, backend, builder, read_layers)
        choose, reason = choose_function(device)
        decoder = Decoder(SamplingState(rows, vocab, device, tokens), choose)
        return Worker(runner, decoder, overlaps=False), reason
    tokens = TokenTable(rows, limits.model_max_length, device)
    lines, size = limits.max_lines, limits.block_size
    prefixes = prefix_finder(attention, limits, max_blocks)
    sizes = rows, lines, max_blocks, limits.max_tokens, size
    paged = PagedBatchBuilder(*sizes, tokens.tokens, groups, prefixes, model.embedding_rows)
    state = SamplingState(rows, vocab, device, tokens, num_lines=lines)
    sampler = GpuSampler(state)
    paged_runner = PagedModelRunner(model, storage, attention, backend, paged, sampler, read_layers)
    decoder = Decoder(state, sampler=sampler)
    if device.type == "cuda":
        with phase("graphs of decode steps"):
            paged_runner.capture()
        with phase("a first prompt"):
            longest = min(limits.chunk_tokens, limits.model_max_length)
            decoder.warm_up(paged_runner.warm_up(longest))
        if problem is None:
            problem = _capture_prompts(paged_runner, limits.max_tokens, required=prompt_graphs is not None)
    if problem is not None:
        paged_runner.short_prompts = {"name": "launched", "reason": problem}
    return Worker(paged_runner, decoder, overlaps=True), {
        "name": "triton",
        "reason": "tokens stay on the device",
    }


def _capture_prompts(runner: PagedModelRunner, longest: int, *, required: bool) -> str | None:
    """Capture short prompts; returns the reason if that failed and is not `required`."""
    with phase("graphs of short prompts"):
        try:
            runner.capture_prompts(longest)
        except RuntimeError as error:
            if required:
                raise ModelError(
                    f"{_PROMPT_GRAPHS}: prompts cannot be captured: {one_line(error)}"
                ) from error
            logger.exception("short prompts cannot be captured: they are launched kernel by kernel")
            return "they could not be captured; see the log"
    return None


def _against_prompt_graphs(loaded: LoadedModel) -> str | None:
    """Why steps with prompts cannot be replayed; None: they can."""
    if loaded.device.type != "cuda":
        return "there is no GPU"
    if loaded.model.shard.ranks > 1:
        return "the model is split over ranks (parallel_config.tensor_parallel_size)"
    if loaded.backend.same_bits:
        return "model_loading_config.deterministic promises bits that padding may change"
    return None


def _make_attention(
    loaded: LoadedModel, specs: Sequence[CacheSpec], storage: CacheStorage, block_size: int
) -> AttentionBackend[Any]:
    """Attention over the caches of all groups of layers."""
    layers = loaded.config.spec.layers
    backends = []
    for spec, cache in zip(specs, storage.device, strict=True):
        own = tuple(layers[index].attention for index in spec.layers)
        scales = loaded.cache_scales
        factors = None if scales is None else scales.of(spec.layers, spec.num_kv_heads).to(loaded.device)
        shape = AttentionShape(own, block_size, loaded.dtype, factors)
        backends.append(loaded.backend.make_attention(shape, loaded.rotaries, cache))
    if len(backends) == 1 and len(specs[0].layers) == len(layers):
        return backends[0]
    return GroupedAttention(backends, cache_places(layers, specs))
