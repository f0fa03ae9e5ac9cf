"""FP8: weights in float8 with a scale for a matrix, each output, or each block of 128 × 128 (DeepSeek)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.checkpoints.files import find_weights, read_headers, read_json
from server.quantization.formats.base import OpenFormat, WeightFormat, declared_method
from server.quantization.formats.scaled import open_scaled


class FP8(WeightFormat):
    """Checkpoints of transformers' fine-grained FP8, of AutoFP8, and of FBGEMM."""

    name = "fp8"
    needs_consent = False

    def detect(self, path: Path, config_fields: Mapping[str, Any]) -> bool:
        return declared_method(config_fields) in (self.name, "fbgemm_fp8")

    def open(self, path: Path, options: Mapping[str, str]) -> OpenFormat:
        entry, source = find_weights(path), path / "config.json"
        fields = read_json(source).get("quantization_config") or {}
        return open_scaled(path, entry, read_headers(entry), fields.get("weight_block_size"), source)
