"""A short name for what is in a checkpoint, by which servers with the same weights know each other.

It covers, of every file below the directory that can decide about an answer: its path in the directory, its
size, and

- of configurations, tokenizers and templates every byte;
- of safetensors files the header (name, type, shape and place of each tensor) and up to a page of bytes from
  the middle of each tensor;
- of GGUF files the metadata, tokenizer and template included, and the place of each tensor;
- of these and of other weight files pages that lie evenly over the file.

So it is equal for copies of a checkpoint, wherever they are, and different for another training of the same
model, another format, or another cut into files. It does not see weights that differ between the sampled
bytes alone, nor how a server computes: types, kernels and limits are not part of it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from server.checkpoints.errors import ModelError
from server.checkpoints.gguf.header import GGUFHeader, parts_of

TEXTS = frozenset([".json", ".jinja", ".txt", ".model", ".tiktoken", ".py"])
"""Endings of configurations, tokenizers, templates, and code of a checkpoint's own."""
WEIGHTS = frozenset([".safetensors", ".bin", ".pt", ".pth", ".gguf"])
PAGE = 4096
"""Bytes of a sample: what is read of a disk at once."""
SAMPLES = 256
"""Pages of a file whose format is not known here."""
_LONGEST_HEADER = 100 * 2**20
"""Bytes; as safetensors has it."""


def fingerprint(*places: str | Path) -> str:
    """The fingerprint of the checkpoint in `places`.

    Args:
        places: directory or GGUF file of the model and, where that is another one, of the tokenizer.

    Returns:
        32 hexadecimal digits.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for place in dict.fromkeys(Path(place).resolve() for place in places):
        for name, file in _parts_of_gguf(place) if place.is_file() else _files(place):
            digest.update(f"{name}\0{file.stat().st_size}\0".encode("utf-8", "surrogateescape"))
            for part in _parts(file):
                digest.update(part)
    return digest.hexdigest()[:32]


def _parts_of_gguf(file: Path) -> list[tuple[str, Path]]:
    """(number of the part, file), whatever the files are called."""
    return [(str(number), part) for number, part in enumerate(parts_of(file))]


def _files(directory: Path) -> list[tuple[str, Path]]:
    """(path in `directory`, file), in an order that is the same everywhere; hidden ones are left out."""
    found = []
    for place, directories, names in os.walk(directory):
        directories[:] = [name for name in directories if not name.startswith(".")]
        for name in names:
            file = Path(place, name)
            if file.suffix in TEXTS | WEIGHTS and not name.startswith(".") and file.is_file():
                found.append((file.relative_to(directory).as_posix(), file))
    return sorted(found)


def _parts(file: Path) -> Iterator[bytes]:
    if file.suffix in TEXTS:
        yield file.read_bytes()
        return
    size = file.stat().st_size
    with file.open("rb", buffering=0) as opened:
        header = _header(opened, size) if file.suffix == ".safetensors" else None
        if header is None:
            if file.suffix == ".gguf":
                opened.seek(0)
                yield opened.read(_metadata_size(file))
            places = [(size * i // SAMPLES, size * (i + 1) // SAMPLES) for i in range(SAMPLES)]
        else:
            yield header
            places = _tensors(header)
        for begin, end in places:
            opened.seek(max(begin, (begin + end - PAGE) // 2))
            yield opened.read(min(PAGE, end - begin))


def _header(opened: FileIO, size: int) -> bytes | None:
    """The header of a safetensors file; None where it is none."""
    length = int.from_bytes(opened.read(8), "little")
    return opened.read(length) if length <= min(size - 8, _LONGEST_HEADER) else None


def _metadata_size(file: Path) -> int:
    """Bytes of a GGUF file before the first tensor; 0 where it is none, which who loads it says."""
    try:
        tensors = GGUFHeader.read(file).tensors.values()
        return min((tensor.offset for tensor in tensors if tensor.file == file), default=0)
    except ModelError:
        return 0


def _tensors(header: bytes) -> list[tuple[int, int]]:
    """Where each tensor begins and ends in the file, in the order of the names."""
    first = 8 + len(header)
    try:
        tensors = {name: place for name, place in json.loads(header).items() if name != "__metadata__"}
        offsets = [tensors[name]["data_offsets"] for name in sorted(tensors)]
        places = [(first + int(begin), first + int(end)) for begin, end in offsets]
        return places if all(first <= begin <= end for begin, end in places) else []
    except (ValueError, KeyError, TypeError, AttributeError):  # who loads it says what is wrong with it
        return []
