"""What a family's file says of a checkpoint: what the model is, and how its tensors are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from server.layers.spec import ModelSpec
from server.models.decoder import Decoder
from server.models.names import Names


@dataclass(frozen=True, slots=True)
class LengthLimit:
    """Why sequences may not be longer.

    Attributes:
        tokens: of prompt and answer together.
        reason: for the operator, to stand before "is not supported".
    """

    tokens: int
    reason: str


@dataclass(frozen=True, slots=True)
class Architecture:
    """A checkpoint's model, as its family's file has read it.

    Attributes:
        spec: what it is.
        names: of its tensors.
        decoder: the class that runs it, the generic one or one with a forward pass of its own.
        load: makes the decoder of the checkpoint in a directory, weights included, by another way than
            `names` and `decoder`.
        limit: of the length of sequences; None: there is none but the configuration's.
    """

    spec: ModelSpec
    names: Names = field(default_factory=Names)
    decoder: type[Decoder] = Decoder
    limit: LengthLimit | None = None
    load: Callable[[Path, ModelSpec, torch.dtype, torch.device], Decoder] | None = None
