"""Finds the parts of a GPTQ checkpoint directory, and what is quantized in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from server.checkpoints.errors import ModelError
from server.checkpoints.files import (
    BASE_NAME,
    StoredTensor,
    find_weights,
    read_headers,
    read_json,
)
from server.quantization.gptq.checks import check_headers, check_same_config
from server.quantization.gptq.config import GPTQConfig

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_CODES = ".qweight"


@dataclass(frozen=True, slots=True)
class GPTQCheckpoint:
    """A checkpoint directory that was quantized.

    Attributes:
        config: how.
        entry: the file with the weights, or the index of the files that hold them.
        tensors: what its files hold.
        scales_dtype: in which scales are stored.
    """

    path: Path
    config: GPTQConfig
    entry: Path
    tensors: Mapping[str, StoredTensor]
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
            ModelError: not a GPTQ checkpoint, or one that is not supported.
        """
        config = _read_config(path, config_base_name)
        entry = _entry(path, config, model_base_name)
        tensors = read_headers(entry)
        if not any(name.endswith(_CODES) for name in tensors):
            raise ModelError(f"{path}: no tensor is quantized, though its configuration says so")
        if f"lm_head{_CODES}" in tensors:
            raise ModelError(f"{path}: a quantized lm_head is not supported")
        checkpoint = cls(path, config, entry, tensors, scales_dtype(tensors))
        for layer in checkpoint.layers:
            check_headers(config, layer, tensors)
        return checkpoint

    @property
    def files(self) -> list[Path]:
        """Its safetensors files."""
        return sorted({tensor.file for tensor in self.tensors.values()})

    @property
    def layers(self) -> list[str]:
        """Names of the quantized layers."""
        return sorted(name.removesuffix(_CODES) for name in self.tensors if name.endswith(_CODES))

    def has(self, names: Iterable[str], part: str) -> tuple[bool, ...]:
        """For each layer, whether the file holds its tensor `part`."""
        return tuple(f"{name}.{part}" in self.tensors for name in names)


def _read_config(path: Path, base_name: str | None) -> GPTQConfig:
    model, source = path / "config.json", path / f"{base_name or 'quantize_config'}.json"
    within = read_json(model).get("quantization_config") if model.is_file() else None
    if base_name is not None:
        return GPTQConfig.parse(read_json(source), source)
    if source.is_file():
        fields = read_json(source)
        if isinstance(within, dict):
            check_same_config(fields, source, within, model)
        return GPTQConfig.parse(fields, source)
    if not isinstance(within, dict):
        raise ModelError(
            f"{path} is not a GPTQ checkpoint: it holds neither quantize_config.json "
            "nor a quantization_config in config.json"
        )
    return GPTQConfig.parse(within, model)


def scales_dtype(tensors: Mapping[str, StoredTensor]) -> torch.dtype:
    """Of all scales, which have one type."""
    scales = {name: tensor for name, tensor in tensors.items() if name.endswith(".scales")}
    dtypes = {tensor.dtype for tensor in scales.values()}
    if len(dtypes) > 1 or not dtypes <= set(_DTYPES):
        file = scales[min(scales)].file
        raise ModelError(f"{file}: scales of type {', '.join(sorted(dtypes))} are not supported")
    return _DTYPES[dtypes.pop()] if dtypes else torch.float16


def _entry(path: Path, config: GPTQConfig, base_name: str | None) -> Path:
    """The weights called `base_name`; else by transformers' name, by AutoGPTQ's, or the only ones."""
    if base_name is not None:
        try:
            return find_weights(path, (base_name,))
        except ModelError as error:
            raise ModelError(f"{error} (gptq_model_base_name)") from error
    try:
        return find_weights(
            path, (BASE_NAME, f"gptq_model-{config.bits}bit-{config.group_size}g", "gptq_model")
        )
    except ModelError:
        found = sorted(path.glob("*.safetensors"))
        if not found:
            raise ModelError(f"{path} holds no *.safetensors file; other formats are not supported") from None
        if len(found) > 1:
            raise ModelError(
                f"{path} holds several *.safetensors files: name one by gptq_model_base_name"
            ) from None
        return found[0]
