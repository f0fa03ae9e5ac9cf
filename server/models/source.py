"""Which checkpoint a model is loaded from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from server.quantization.formats.registry import Quantization


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Which checkpoint is wanted, and what it must be.

    Attributes:
        path: its directory, or a GGUF file.
        model_type: what it must be; None: whatever it says it is.
        quantization: what the configuration says of its weights.
    """

    path: Path
    model_type: str | None = None
    quantization: Quantization = field(default_factory=Quantization)
