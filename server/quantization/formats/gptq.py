"""GPTQ (Frantar et al., 2022): codes of 4 or 8 bits, a scale and a zero point for each group of inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from server.quantization.formats.base import OpenFormat, WeightFormat, declared_method
from server.quantization.gptq.checkpoint import GPTQCheckpoint
from server.quantization.gptq.linear import GPTQLinear
from server.quantization.gptq.stack import GroupedStack


@dataclass(frozen=True)
class OpenGPTQ(OpenFormat):
    """A GPTQ checkpoint."""

    checkpoint: GPTQCheckpoint

    @classmethod
    def of(cls, checkpoint: GPTQCheckpoint) -> OpenGPTQ:
        return cls(
            checkpoint.path, checkpoint.entry, checkpoint.tensors, frozenset(checkpoint.layers), checkpoint
        )

    def linear(
        self,
        names: Sequence[str],
        inputs: int,
        outputs: Sequence[int],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> GPTQLinear:
        return GPTQLinear(self.checkpoint, names, inputs, outputs, dtype=dtype, device=device)

    def stack(
        self,
        names: Sequence[str],
        shape: tuple[int, int, int],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> GroupedStack | None:
        if not self.quantizes(names):
            return None
        return GroupedStack(self.checkpoint, names, shape, dtype=dtype, device=device)

    def objection_to_split(self) -> str | None:
        config = self.checkpoint.config
        if config.desc_act and config.group_size != -1:
            return "desc_act spreads the inputs of a group over all ranks"
        return None

    def default_dtype(self, device: torch.device) -> torch.dtype:
        """On a CPU bfloat16, for which there is a fast kernel, else that of the checkpoint's scales."""
        return torch.bfloat16 if device.type == "cpu" else self.checkpoint.scales_dtype


class GPTQ(WeightFormat):
    """Checkpoints of gptqmodel, AutoGPTQ and `tools/quantize.py`."""

    name = "gptq"
    options = ("gptq_model_base_name", "gptq_config_base_name")

    def detect(self, path: Path, config_fields: Mapping[str, Any]) -> bool:
        method = declared_method(config_fields)
        return (path / "quantize_config.json").is_file() if method is None else method == self.name

    def open(self, path: Path, options: Mapping[str, str]) -> OpenGPTQ:
        model, config = (options.get(key) for key in self.options)
        return OpenGPTQ.of(GPTQCheckpoint.open(path, model_base_name=model, config_base_name=config))
