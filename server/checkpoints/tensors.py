"""Reads tensors from the files of a checkpoint, whatever the files are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from server.checkpoints.errors import ModelError
from server.checkpoints.files import PICKLE_SUFFIX, StoredTensor
from server.checkpoints.pickled import load_pickled

if TYPE_CHECKING:
    from torch import Tensor


def read_tensors(stored: Mapping[str, StoredTensor], names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of each of `names`, file by file.

    Raises:
        ModelError: a file cannot be read.
    """
    by_file: dict[Path, list[str]] = defaultdict(list)
    for name in names:
        by_file[stored[name].file].append(name)
    for file, wanted in by_file.items():
        if file.suffix == PICKLE_SUFFIX:
            tensors = load_pickled(file)
            yield from ((name, tensors[name]) for name in wanted)
        else:
            yield from _read_safetensors(file, wanted)


def _read_safetensors(file: Path, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in names:
                yield name, tensors.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is not a readable safetensors file: {error}") from error
