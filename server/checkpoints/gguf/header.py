"""The header of a GGUF file: its metadata, and where each tensor lies. No weight is read.

The `gguf` package reads the same, but makes an array of every string: seconds for a vocabulary.
"""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from server.checkpoints.errors import ModelError

SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_FIRST_PART = re.compile(r"-00001-of-(\d{5})\.gguf$")
"""Of a file that llama-gguf-split has cut; the others count on."""
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Type of a value → its format for `struct`."""
_STRING, _ARRAY = 8, 9
_DAMAGE = (OSError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError, struct.error)
"""What reading raises where the bytes are not those of a header; ValueError also for an empty file."""


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """A tensor of the file, or of one of its parts.

    Attributes:
        file: that holds it.
        kind: how it is quantized, by ggml's name, e.g. ``Q4_K``.
        shape: outputs first, as torch has it.
        offset, size: bytes in the file.
    """

    file: Path
    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """The header of a file.

    Attributes:
        fields: its metadata.
        tensors: by ggml's names.
    """

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, GGUFTensor]

    @classmethod
    def read(cls, path: Path) -> GGUFHeader:
        """Read the header of the file at `path`, and those of its other parts where it was cut.

        Raises:
            ModelError: the file cannot be read, is damaged, or is a part but not the first.
        """
        header = cls._read(path)
        count = header.fields.get("split.count", 1)
        if count == 1:
            return header
        files = parts_of(path)
        if len(files) != count or header.fields.get("split.no") != 0:
            raise ModelError(f"{path} is one of {count} parts: name the first, *-00001-of-{count:05}.gguf")
        tensors = dict(header.tensors)
        for file in files[1:]:
            tensors |= cls._read(file).tensors
        if len(tensors) != header.fields.get("split.tensors.count"):
            raise ModelError(
                f"{path} and its other parts hold {len(tensors)} tensors, not as many as it says"
            )
        return replace(header, tensors=tensors)

    @classmethod
    def _read(cls, path: Path) -> GGUFHeader:
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(data, path).header()
        except _DAMAGE as error:
            raise ModelError(f"{path} is not a readable GGUF file: {error}") from error

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the model family."""
        return str(self.fields["general.architecture"])

    def get(self, key: str, default: Any = None) -> Any:
        """The field `key` of the architecture, e.g. ``block_count``."""
        return self.fields.get(f"{self.architecture}.{key}", default)


def parts_of(path: Path) -> list[Path]:
    """The files that the one at `path` is the first part of; itself where it is none."""
    found = _FIRST_PART.search(path.name)
    if found is None:
        return [path]
    stem, count = path.name[: found.start()], int(found[1])
    return [path.with_name(f"{stem}-{part:05}-of-{count:05}.gguf") for part in range(1, count + 1)]


class _Reader:
    """Walks through the bytes of a header; raises ValueError or struct.error where they make no sense."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data = data
        self._path = path
        self._at = 0

    def header(self) -> GGUFHeader:
        if self._data[:4] != _MAGIC:
            raise ValueError("it does not begin with 'GGUF'")
        self._at = 4
        version, tensors, pairs = self._numbers("IQQ")
        if version not in _VERSIONS:
            raise ValueError(f"version {version} is not supported (supported: 2, 3)")
        fields = {}
        for _ in range(pairs):
            key = self._string()
            fields[key] = self._value(*self._numbers("I"))
        if not isinstance(fields.get("general.architecture"), str) and not fields.get("split.no"):
            raise ValueError("it has no general.architecture")
        entries = [self._entry() for _ in range(tensors)]
        alignment = fields.get("general.alignment", _ALIGNMENT)
        start = -(-self._at // alignment) * alignment
        return GGUFHeader(self._path, fields, {entry[0]: self._tensor(entry, start) for entry in entries})

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        (dims,) = self._numbers("I")
        shape = tuple(reversed(self._numbers(f"{dims}Q")))
        kind, offset = self._numbers("IQ")
        return name, shape, kind, offset

    def _tensor(self, entry: tuple[str, tuple[int, ...], int, int], start: int) -> GGUFTensor:
        name, shape, kind, offset = entry
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            known = GGMLQuantizationType(kind)
        except ValueError:
            raise ValueError(f"{name} has ggml type {kind}, which is not known") from None
        block, block_bytes = GGML_QUANT_SIZES[known]
        if not shape or shape[-1] % block:
            raise ValueError(f"{name} of shape {list(shape)} cannot be stored as {known.name}")
        size = prod(shape) // block * block_bytes
        if start + offset + size > len(self._data):
            raise ValueError(f"it ends within {name}")
        return GGUFTensor(self._path, name, known.name, shape, start + offset, size)

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            element, count = self._numbers("IQ")
            if element == _STRING:
                return [self._string() for _ in range(count)]
            if element == _ARRAY:
                return [self._value(element) for _ in range(count)]
            return list(self._numbers(f"{count}{_format(element)}"))
        return self._numbers(_format(kind))[0]

    def _numbers(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{form}", self._data, self._at)
        self._at += struct.calcsize(f"<{form}")
        return values

    def _string(self) -> str:
        (length,) = self._numbers("Q")
        end = self._at + length
        if end > len(self._data):
            raise ValueError("it ends within its header")
        text = self._data[self._at : end].decode("utf-8", "replace")
        self._at = end
        return text


def _format(kind: int) -> str:
    if kind not in _NUMBERS:
        raise ValueError(f"a field has type {kind}, which is not known")
    return _NUMBERS[kind]
