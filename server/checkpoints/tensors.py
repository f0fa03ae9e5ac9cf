"""Reads tensors from the files of a checkpoint, whatever the files are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from server.checkpoints.errors import ModelError
from server.checkpoints.files import PICKLE_SUFFIX, StoredTensor
from server.checkpoints.pickled import load_pickled

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Part:
    """Some of a tensor: `ranges` [(first, end)] along dimension `axis`, one behind the other."""

    axis: int
    ranges: Sequence[tuple[int, int]]

    def of(self, tensor: Any) -> Tensor:
        """That part of a tensor, or of what safetensors has of one that is still in its file."""
        before = (slice(None),) * self.axis
        pieces: list[Tensor] = [tensor[(*before, slice(first, end))] for first, end in self.ranges]
        if len(pieces) == 1:
            return pieces[0]
        import torch

        return torch.cat(pieces, self.axis)


WHOLE: Mapping[str, Part] = {}
"""No tensor is read in part."""


def read_tensors(
    stored: Mapping[str, StoredTensor], names: Iterable[str], parts: Mapping[str, Part] = WHOLE
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of each of `names`, file by file.

    Args:
        parts: of tensors of which not all is wanted; what is not wanted of safetensors is not read.

    Raises:
        ModelError: a file cannot be read.
    """
    by_file: dict[Path, list[str]] = defaultdict(list)
    for name in names:
        by_file[stored[name].file].append(name)
    for file, wanted in by_file.items():
        if file.suffix == PICKLE_SUFFIX:
            tensors = load_pickled(file)
            for name in wanted:
                part = parts.get(name)
                yield name, tensors[name] if part is None else part.of(tensors[name])
        else:
            yield from _read_safetensors(file, wanted, parts)


def _read_safetensors(
    file: Path, names: Iterable[str], parts: Mapping[str, Part]
) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in names:
                part = parts.get(name)
                yield name, tensors.get_tensor(name) if part is None else part.of(tensors.get_slice(name))
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is not a readable safetensors file: {error}") from error
