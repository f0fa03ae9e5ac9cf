"""Hidden states that a forward pass is asked for, beside its logits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class HiddenStates:
    """What stands behind the last norm, in front of the output layer, for some tokens of a pass.

    Attributes:
        rows: int64 [wanted], places among the tokens of the pass.
        values: [wanted, hidden], in the model's type or float32; None until the pass has run.
    """

    rows: Tensor
    values: Tensor | None = None


@dataclass(slots=True)
class LayerInputs:
    """The residual stream in front of some layers, for all tokens of a pass: what a draft head reads.

    Attributes:
        layers: indices, ascending; the number of layers stands for what the last one gives.
        values: [tokens, layers × hidden], one layer beside the other, in the model's type or float32. The
            pass fills it where it is given, and makes it otherwise.
    """

    layers: tuple[int, ...]
    values: Tensor | None = None
