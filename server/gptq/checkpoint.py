"""Finds the parts of a GPTQ checkpoint directory, and what is quantised in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from server.gptq.config import GPTQConfig, GPTQError, read_json

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_CODES = ".qweight"
_INDEX = ".safetensors.index.json"


@dataclass(frozen=True, slots=True)
class GPTQCheckpoint:
    """A checkpoint directory that was quantised.

    Attributes:
        config: how.
        entry: the file with the weights, or the index of the files that hold them.
        files: its safetensors files.
        tensors: names of all tensors in them.
        scales_dtype: in which scales are stored.
    """

    path: Path
    config: GPTQConfig
    entry: Path
    files: tuple[Path, ...]
    tensors: frozenset[str]
    scales_dtype: torch.dtype

    @classmethod
    def open(
        cls, path: Path, *, model_base_name: str | None = None, config_base_name: str | None = None
    ) -> GPTQCheckpoint:
        """Read the configuration and the headers of the weights in directory `path`.

        Args:
            model_base_name: file name of the weights without extension; None: the usual ones.
            config_base_name: file name of the configuration without extension; None: likewise.

        Raises:
            GPTQError: not a GPTQ checkpoint, or one that is not supported.
        """
        config = _read_config(path, config_base_name)
        entry = _entry(path, config, model_base_name)
        files = _files_of(entry)
        tensors, scales_dtype = _read_headers(files)
        if not any(name.endswith(_CODES) for name in tensors):
            raise GPTQError(f"{path}: no tensor is quantised, though its configuration says so")
        if f"lm_head{_CODES}" in tensors:
            raise GPTQError(f"{path}: a quantised lm_head is not supported")
        return cls(path, config, entry, files, tensors, scales_dtype)

    @property
    def layers(self) -> list[str]:
        """Names of the quantised layers."""
        return sorted(name.removesuffix(_CODES) for name in self.tensors if name.endswith(_CODES))

    def quantised(self, names: Sequence[str]) -> bool:
        """Whether the layers `names`, which share one input, are quantised.

        Raises:
            GPTQError: some are and some are not.
        """
        flags = [f"{name}{_CODES}" in self.tensors for name in names]
        if any(flags) and not all(flags):
            raise GPTQError(f"{self.path}: only some of {', '.join(names)} are quantised, not supported")
        return all(flags)

    def has(self, names: Iterable[str], part: str) -> tuple[bool, ...]:
        """For each layer, whether the file holds its tensor `part`."""
        return tuple(f"{name}.{part}" in self.tensors for name in names)


def is_gptq(path: Path) -> bool:
    """Whether `path` is the directory of a GPTQ checkpoint."""
    if (path / "quantize_config.json").is_file():
        return True
    if not (path / "config.json").is_file():
        return False
    fields = read_json(path / "config.json").get("quantization_config")
    return isinstance(fields, dict) and fields.get("quant_method") == "gptq"


def _read_config(path: Path, base_name: str | None) -> GPTQConfig:
    source = path / f"{base_name or 'quantize_config'}.json"
    if base_name is not None or source.is_file():
        return GPTQConfig.parse(read_json(source), source)
    model = path / "config.json"
    fields = read_json(model).get("quantization_config")
    if not isinstance(fields, dict):
        raise GPTQError(
            f"{path} is not a GPTQ checkpoint: it holds neither quantize_config.json "
            "nor a quantization_config in config.json"
        )
    return GPTQConfig.parse(fields, model)


def _entry(path: Path, config: GPTQConfig, base_name: str | None) -> Path:
    """The weights called `base_name`; else by transformers' name, by AutoGPTQ's, or the only ones."""
    usual = ("model", f"gptq_model-{config.bits}bit-{config.group_size}g", "gptq_model")
    for name in (base_name,) if base_name is not None else usual:
        for file in (path / f"{name}{_INDEX}", path / f"{name}.safetensors"):
            if file.is_file():
                return file
    if base_name is not None:
        raise GPTQError(f"{path} holds no {base_name}.safetensors and no index of it (gptq_model_base_name)")
    found = sorted(path.glob("*.safetensors"))
    if not found:
        raise GPTQError(f"{path} holds no *.safetensors file; other formats are not supported")
    if len(found) > 1:
        raise GPTQError(f"{path} holds several *.safetensors files: name one by gptq_model_base_name")
    return found[0]


def _files_of(entry: Path) -> tuple[Path, ...]:
    if not entry.name.endswith(_INDEX):
        return (entry,)
    places = read_json(entry).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise GPTQError(f"{entry} has no weight_map")
    return tuple(entry.parent / name for name in sorted(set(places.values())))


def _read_headers(files: tuple[Path, ...]) -> tuple[frozenset[str], torch.dtype]:
    names: set[str] = set()
    dtypes: set[str] = set()
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                keys = set(tensors.keys())
                dtypes |= {tensors.get_slice(key).get_dtype() for key in keys if key.endswith(".scales")}
        except (SafetensorError, OSError) as error:
            raise GPTQError(f"{file} is not a readable safetensors file: {error}") from error
        names |= keys
    if len(dtypes) > 1 or not dtypes <= set(_DTYPES):
        raise GPTQError(f"{files[0]}: scales of type {', '.join(sorted(dtypes))} are not supported")
    return frozenset(names), _DTYPES[dtypes.pop()] if dtypes else torch.float16
