"""Weights from files straight to their place, without a second copy of the model in memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from server.checkpoints.cache_scales import is_cache_scale
from server.checkpoints.errors import ModelError
from server.checkpoints.files import StoredTensor, refuse_codes, stored_tensors
from server.checkpoints.tensors import Part, read_tensors
from server.layers.linear import Target, WeightMap
from server.layers.shard import Shard
from server.models.decoder import Decoder
from server.models.names import Names
from server.quantization.formats.base import OpenFormat

_TEXT_PART = re.compile(r"(model\.|)language_model\.")
"""Prefix of the text model in a checkpoint that has other parts as well (vision), which are not read."""

Read = Callable[[Iterable[str], Mapping[str, Part]], Iterator[tuple[str, Tensor]]]
"""From names of stored tensors, and the parts that are wanted of some, to (name, tensor or part) of each."""
Sources = dict[str, tuple[str, StoredTensor]]
"""The model's name of a tensor → its name in the file, and what the file says of it."""


def load_weights(path: Path, model: Decoder, quantized: OpenFormat | None) -> None:
    """Fill the weights of `model`, or of a rank's part of it, from the checkpoint at `path`.

    Args:
        quantized: the checkpoint, if it is a quantized one.

    Raises:
        ModelError: files that are missing, damaged or contradict each other, or tensors that are
            missing, unknown, of another shape, or no floats.
    """
    embedding, head = f"{model.names.embedding}.weight", f"{model.names.head}.weight"
    known = model.weights().keys() | {head}
    stored, read = _open(path, quantized, known, model.embedding.dtype)
    sources = sources_of(stored, known, model.names)
    tied = model.tied
    if tied and embedding in sources and head in sources:
        model.untie()  # the configuration does not count where the two differ
    targets = model.weights()
    if tied and head in sources and embedding not in sources:
        targets[head] = targets.pop(embedding)
    _check(path, targets, sources, model.shard.ranks)
    _copy(targets, sources, read, model.shard)
    if tied and not model.tied and torch.equal(model.embedding, model.head.weight):
        model.tie()


def _open(
    path: Path, quantized: OpenFormat | None, known: Collection[str], dtype: torch.dtype
) -> tuple[Mapping[str, StoredTensor], Read]:
    """What is stored, and how it is read."""
    if quantized is not None:
        checkpoint = quantized.for_model(known)
        stored = checkpoint.tensors
        if not checkpoint.as_stored:
            return stored, lambda names, parts: _cut(checkpoint.read(names, dtype), parts)
    else:
        stored = stored_tensors(path)
        refuse_codes(stored)
    return stored, lambda names, parts: read_tensors(stored, names, parts)


def _cut(tensors: Iterable[tuple[str, Tensor]], parts: Mapping[str, Part]) -> Iterator[tuple[str, Tensor]]:
    """The parts of tensors that can only be read as a whole."""
    for name, tensor in tensors:
        part = parts.get(name)
        yield name, tensor if part is None else part.of(tensor)


def sources_of(stored: Mapping[str, StoredTensor], known: Collection[str], names: Names) -> Sources:
    """Where each tensor of the model is, named as transformers maps names.

    Raises:
        ModelError: a tensor is stored twice.
    """
    found: Sources = {}
    wrapped = any(_TEXT_PART.match(name) for name in stored)
    for name, tensor in stored.items():
        now = part = _TEXT_PART.sub(r"\1", name)
        for old, new in names.renamed:
            now = now.replace(old, new)
        own = next((n for n in (now, names.base + now, now.removeprefix(names.base)) if n in known), name)
        if (
            name.endswith(names.derived)
            or name.startswith(names.apart)
            or is_cache_scale(name)
            or (wrapped and own not in known and part == name)
        ):
            continue
        if own in found:
            raise ModelError(f"{tensor.file} holds the tensor {name!r}, which is {found[own][0]!r} once more")
        found[own] = (name, tensor)
    return found


def _check(path: Path, targets: WeightMap, sources: Sources, ranks: int) -> None:
    """Raise ModelError unless exactly `targets` are stored."""
    for own, (name, tensor) in sources.items():
        target = targets.get(own)
        if target is None:
            raise ModelError(f"{tensor.file} holds the tensor {name!r}, which this model does not have")
        expected = target.stored_shape(ranks)
        if tensor.shape != expected:
            raise ModelError(
                f"{tensor.file}: {name!r} has shape {list(tensor.shape)}, expected {list(expected)}"
            )
    missing = targets.keys() - sources.keys()
    if missing:
        raise ModelError(f"{path} lacks {len(missing)} tensors, the first is {min(missing)!r}")


def _copy(targets: WeightMap, sources: Sources, read: Read, shard: Shard) -> None:
    owners = {name: own for own, (name, _) in sources.items()}
    parts = {name: part for name, own in owners.items() if (part := targets[own].part(shard)) is not None}
    with tqdm(total=len(targets), desc="loading weights", unit="tensor", mininterval=1.0) as progress:
        for name, tensor in read(owners, parts):
            target = targets[owners[name]]
            with torch.no_grad():
                fill(target, target.arrange(tensor, shard))
            progress.update()


def fill(target: Target, stored: Tensor) -> None:
    """Put a tensor of the checkpoint, or a rank's part of it (`Target.shard`), in its place."""
    tensor = target.tensor
    if target.total is not None and target.axis is not None:  # a last rank's part may be shorter
        filled, size = stored.shape[target.axis], tensor.shape[target.axis]
        tensor.narrow(target.axis, filled, size - filled).zero_()
        tensor = tensor.narrow(target.axis, 0, filled)
    tensor.copy_(stored)
    if target.offset:
        target.tensor.add_(target.offset)
