"""Why a model cannot be served."""

from __future__ import annotations


class ModelError(Exception):
    """A model that cannot be served as configured; the message is one line for the operator."""


def computes_nan(path: str) -> ModelError:
    """The error for a model whose logits are no numbers, tried out when it was loaded."""
    return ModelError(f"{path}: the model computes NaN: try another torch_dtype")
