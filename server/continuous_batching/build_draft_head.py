"""Puts a draft head together: a network beside its target, on the same device, with a cache of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from server.checkpoints.errors import ModelError
from server.continuous_batching.build_draft import draft_limits
from server.continuous_batching.build_worker import build_storage
from server.continuous_batching.config import ServerConfig
from server.continuous_batching.draft_head import HeadDrafter
from server.continuous_batching.loaded_model import LoadedModel
from server.continuous_batching.phases import phase
from server.layers.cache_spec import cache_specs
from server.layers.rotary import Rotary
from server.models.heads.head import DraftHead
from server.models.heads.load import HeadSource, load_head, output_of
from server.ops.attention import AttentionShape
from server.ops.backend import Backend, LayeredBackend
from server.ops.choose import choose_backend
from server.scheduling.limits import Limits
from server.worker.batch import BatchBuilder
from server.worker.head_runner import KEPT, HeadRunner
from server.worker.paged_batch import PagedBatchBuilder
from server.worker.shared_prefixes import prefix_finder

KEY = "speculation_config.draft_head"


def build_draft_head(config: ServerConfig, target: LoadedModel) -> HeadDrafter | None:
    """The draft head of a configuration that names one.

    Args:
        target: the model whose hidden states it reads, loaded already.

    Raises:
        ModelError: it cannot be loaded, or does not fit the model.
    """
    speculation, loading = config.speculation_config, config.model_loading_config
    if speculation.draft_head is None:
        return None
    source = HeadSource(Path(speculation.draft_head), target.model, Path(loading.model_name_or_path))
    with phase("weights of the draft head"):
        try:
            head, backend = _load(source, config, target)
        except ModelError as error:
            raise ModelError(f"{KEY}: {error}") from error
    limits, attention, builder = _cache(config, target, head, backend)
    runner = HeadRunner(head, backend.layer_ops, attention, builder, limits.max_rows)
    if target.device.type == "cuda" and isinstance(builder, PagedBatchBuilder):
        with phase("graphs of the draft head"):
            runner.capture(min(limits.max_tokens, limits.model_max_length))
    return HeadDrafter(runner, limits, speculation.draft_num_tokens, backend.describe())


def _load(source: HeadSource, config: ServerConfig, target: LoadedModel) -> tuple[DraftHead, LayeredBackend]:
    """The head, and what computes it."""
    dtype, device, loading = target.dtype, target.device, config.model_loading_config
    head, borrows = load_head(source, dtype, device)
    output, on_cpu = output_of(source, dtype) if borrows else None, device.type == "cpu"
    if on_cpu:
        head.share(output=output)
    backend = choose_backend(head, dtype, device, config.cache_config.block_size, loading.attention_backend)
    assert isinstance(backend, LayeredBackend)  # a head has a pass of its own
    backend.prepare(head, dtype)
    if not on_cpu:  # where the target's output layer is in the form that is multiplied with already
        head.share(output=output)
    return head, backend


def _cache(
    config: ServerConfig, target: LoadedModel, head: DraftHead, backend: Backend
) -> tuple[Limits, Any, BatchBuilder | PagedBatchBuilder]:
    """(budgets, attention over the memory of its cache, what makes the tensors of its steps)."""
    dtype, device, length = target.dtype, target.device, target.max_length
    specs = cache_specs(head.spec.layers, str(dtype).removeprefix("torch."))
    limits = draft_limits(config, specs, length, device)
    storage = build_storage(specs, limits, dtype, device)
    try:
        rotaries = tuple(Rotary(each, length, dtype=dtype, device=device) for each in head.spec.rotaries)
    except ValueError as error:
        raise ModelError(f"{KEY}: {error}") from error
    shape = AttentionShape(tuple(layer.attention for layer in head.spec.layers), limits.block_size, dtype)
    attention = backend.make_attention(shape, rotaries, storage.device[0])
    rows, size, blocks = limits.max_rows, limits.block_size, -(-length // limits.block_size)
    paged = backend.capabilities.overlaps
    # a step of a head brings its tokens along: what the builder would look up stands for nothing
    tokens = torch.zeros((rows + 1, length + 1), dtype=torch.int32, device=device if paged else "cpu")
    if not paged:
        return limits, attention, BatchBuilder(rows, blocks, size, tokens, device)
    most = max(limits.max_tokens, rows * KEPT)  # where all sequences have rested
    prefixes = prefix_finder(attention, limits, blocks)
    lines = limits.max_lines
    return limits, attention, PagedBatchBuilder(rows, lines, blocks, most, size, tokens, prefixes=prefixes)
