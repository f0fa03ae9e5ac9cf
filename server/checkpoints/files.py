"""Which files of a checkpoint directory hold its weights, and what their headers say.

The choice is transformers': ``model.safetensors``, else the files that ``model.safetensors.index.json``
names, else ``pytorch_model.bin`` or the files of its index. Whatever else lies in the directory
(``consolidated.safetensors``, adapters, variants) is not read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from server.checkpoints.errors import ModelError
from server.checkpoints.pickled import DTYPES, load_pickled

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
BASE_NAME = "model"
PICKLE_SUFFIX = ".bin"
PICKLE_INDEX_SUFFIX = ".bin.index.json"
PICKLE_BASE_NAME = "pytorch_model"
_FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of weights that are not quantized, in safetensors' names."""
_LFS = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as the header of its file describes it.

    Attributes:
        dtype: in safetensors' names, e.g. ``F32``.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors that transformers reads for the checkpoint in directory `path`.

    Raises:
        ModelError: files are missing, damaged, or contradict each other.
    """
    named = read_json(path / "config.json").get("transformers_weights")
    if named is not None:
        return read_headers(_named_weights(path, named))
    return read_headers(find_pickled(path) or find_weights(path))


def refuse_codes(tensors: Mapping[str, StoredTensor], quantized: Collection[str] = ()) -> None:
    """Refuse weights that would be read as floats and are none: codes without their scales.

    Args:
        quantized: layers whose weights are read as codes.

    Raises:
        ModelError: there are such weights.
    """
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        if part == "weight" and layer not in quantized and tensor.dtype not in _FLOATS:
            raise ModelError(
                f"{tensor.file}: {name} is of type {tensor.dtype}, but the file holds no scales of it"
            )


def find_pickled(path: Path) -> Path | None:
    """The file with pickled weights of directory `path`, or the index of such files; None: it holds none,
    or safetensors as well, which come first."""
    if any((path / f"{BASE_NAME}{suffix}").is_file() for suffix in (SUFFIX, INDEX_SUFFIX)):
        return None
    return pickled_entry(path)


def pickled_entry(path: Path) -> Path | None:
    """As `find_pickled`, whether there are safetensors or not."""
    files = (path / f"{PICKLE_BASE_NAME}{suffix}" for suffix in (PICKLE_SUFFIX, PICKLE_INDEX_SUFFIX))
    return next((file for file in files if file.is_file()), None)


def find_weights(path: Path, base_names: Iterable[str] = (BASE_NAME,)) -> Path:
    """The file with the weights of directory `path`, or the index of the files that hold them.

    Args:
        base_names: file names without extension; the first that there is counts.

    Raises:
        ModelError: there is no such file.
    """
    base_names = tuple(base_names)
    for name in base_names:
        for file in (path / f"{name}{SUFFIX}", path / f"{name}{INDEX_SUFFIX}"):
            if _inside(file, path) and file.is_file():
                return file
    wanted = " or ".join(f"{name}{SUFFIX}" for name in base_names)
    files = [*sorted(path.glob(f"*{SUFFIX}")), *sorted(path.glob(f"*{PICKLE_SUFFIX}"))]
    files += sorted(path.glob("*.gguf"))
    found = ", ".join(file.name if file.is_file() else f"a directory {file.name}" for file in files[:3])
    raise ModelError(f"{path} holds no {wanted} and no index of it (found: {found or 'no *' + SUFFIX})")


def read_headers(entry: Path) -> dict[str, StoredTensor]:
    """What is stored under which name in the file or the index that `find_weights` found.

    Raises:
        ModelError: a damaged file, or an index that contradicts the files.
    """
    if not entry.name.endswith((INDEX_SUFFIX, PICKLE_INDEX_SUFFIX)):
        return _header(entry)
    places = _read_index(entry)
    stored: dict[str, StoredTensor] = {}
    for file in sorted(set(places.values())):
        header = _header(file)
        for name in header.keys() & stored.keys():
            raise ModelError(f"the tensor {name!r} is in {stored[name].file} and in {file}")
        stored |= header
    for name, file in places.items():
        if name not in stored or stored[name].file != file:
            raise ModelError(f"{file} lacks the tensor {name!r}, which {entry} places there")
    return stored


def _named_weights(path: Path, name: Any) -> Path:
    """The file that ``transformers_weights`` in the ``config.json`` of directory `path` names."""
    source = f"{path / 'config.json'}: transformers_weights"
    if not isinstance(name, str) or not name.endswith((SUFFIX, INDEX_SUFFIX)):
        raise ModelError(f"{source} names {name!r}, which is neither *{SUFFIX} nor *{INDEX_SUFFIX}")
    file = path / name
    if not _inside(file, path):
        raise ModelError(f"{source} names {name!r}, outside of the directory")
    if not file.is_file():
        raise ModelError(f"{source} names {name!r}, and there is no such file")
    return file


def _read_index(entry: Path) -> dict[str, Path]:
    """Tensor name → file, from an index."""
    places = read_json(entry).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelError(f"{entry} has no weight_map")
    files: dict[str, Path] = {}
    for tensor, name in places.items():
        if not isinstance(name, str) or not name:
            raise ModelError(f"{entry}: weight_map: {tensor!r} has {name!r} for a file name")
        file = entry.parent / name
        if not _inside(file, entry.parent):
            raise ModelError(f"{entry} places {tensor!r} in {name!r}, outside of the directory")
        if not file.is_file():
            raise ModelError(f"{entry} places {tensor!r} in {name!r}, and there is no such file")
        files[tensor] = file
    return files


def _inside(file: Path, directory: Path) -> bool:
    """By name: links are followed, as directories of the hub's cache hold nothing else."""
    return Path(os.path.normpath(file)).is_relative_to(os.path.normpath(directory))


def _header(file: Path) -> dict[str, StoredTensor]:
    if _is_lfs_pointer(file):
        kind = "file of pickled weights" if file.suffix == PICKLE_SUFFIX else "safetensors file"
        raise ModelError(
            f"{file} is not a readable {kind}: it is a git-LFS pointer, and `git lfs pull` fetches the file"
        )
    if file.suffix == PICKLE_SUFFIX:
        return {
            name: StoredTensor(
                file, DTYPES.get(str(tensor.dtype)[6:], str(tensor.dtype)), tuple(tensor.shape)
            )
            for name, tensor in load_pickled(file).items()
        }
    try:
        with safe_open(file, framework="pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - not a mapping
            return {
                name: StoredTensor(file, part.get_dtype(), tuple(part.get_shape()))
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is not a readable safetensors file: {error}") from error


def _is_lfs_pointer(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(len(_LFS)) == _LFS
    except OSError:
        return False


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelError: no such file, or something else in it.
    """
    if _is_lfs_pointer(path):
        raise ModelError(f"{path} is a git-LFS pointer, and `git lfs pull` fetches the file")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise ModelError(f"{path} does not hold a JSON object")
    return fields
