"""FP8: weights in float8 with a scale for a matrix, each output, or each block of 128 × 128 (DeepSeek)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.checkpoints.errors import ModelError
from server.checkpoints.files import find_weights, read_headers, read_json
from server.quantization.formats.base import OpenFormat, WeightFormat, declared_method
from server.quantization.formats.scaled import open_scaled
from server.quantization.fp8.scheme import Activations

_FBGEMM = "fbgemm_fp8"
_CEILING = 1200.0
"""FBGEMM's default of `activation_scale_ub`."""


class FP8(WeightFormat):
    """Checkpoints of transformers' fine-grained FP8, of AutoFP8, and of FBGEMM."""

    name = "fp8"
    needs_consent = False

    def detect(self, path: Path, config_fields: Mapping[str, Any]) -> bool:
        return declared_method(config_fields) in (self.name, _FBGEMM)

    def open(self, path: Path, options: Mapping[str, str]) -> OpenFormat:
        entry, source = find_weights(path), path / "config.json"
        fields = read_json(source).get("quantization_config") or {}
        return open_scaled(
            path, entry, read_headers(entry), source,
            block=fields.get("weight_block_size"), activations=_activations(fields, source),
        )  # fmt: skip


def _activations(fields: Mapping[str, Any], source: Path) -> Activations:
    if fields.get("quant_method") == _FBGEMM:
        return Activations(ceiling=float(fields.get("activation_scale_ub") or _CEILING))
    scheme = fields.get("activation_scheme", "dynamic")
    if scheme not in ("dynamic", "static"):
        raise ModelError(f"{source}: activation_scheme is {scheme!r}, supported: dynamic, static")
    return Activations(static=scheme == "static")
