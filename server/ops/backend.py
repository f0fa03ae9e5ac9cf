"""What computes a model on one device: layer arithmetic, attention, the whole pass, and what it can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from server.layers.rotary import Rotary
from server.layers.weights import DecoderWeights
from server.ops.attention import AttentionBackend, AttentionShape
from server.ops.capabilities import Capabilities
from server.ops.communication import Communication
from server.ops.hidden_states import HiddenStates, LayerInputs
from server.ops.layer_ops import LayerOps

Arithmetic = Literal["exact", "int8"]
"""Activations as they are, or rounded to 8 bits, and weights of floats with them."""
MakeAttention = Callable[[AttentionShape, Sequence[Rotary], Tensor], AttentionBackend[Any]]
"""Makes an attention backend for layers, angles and the cache."""


@dataclass(frozen=True, slots=True)
class AttentionChoice:
    """An attention backend that runs here, and why it was chosen.

    Attributes:
        make: makes it once there is a cache.
        capabilities: on this device.
        reason: for the operator.
    """

    name: str
    make: MakeAttention
    capabilities: Capabilities
    reason: str


class Backend(ABC):
    """Everything that computes a model on its device; chosen once (`server.ops.choose`).

    Args:
        attention: how it attends.
        name: of what computes the layers, for the operator.
        reason: why that.

    Attributes:
        same_bits: whether a token's bits depend on nothing but its own sequence, and which of it was decoded:
            neither on the rows beside it nor on how many threads there are.
        arithmetic: of products on a CPU.
    """

    same_bits = False
    arithmetic: Arithmetic = "exact"

    def __init__(self, attention: AttentionChoice, name: str, reason: str) -> None:
        self._attention = attention
        self.name = name
        self.reason = reason

    @property
    def capabilities(self) -> Capabilities:
        """What its attention can do."""
        return self._attention.capabilities

    def describe(self) -> dict[str, dict[str, str]]:
        """Names and reasons of attention and of what computes the layers, for the operator."""
        return {
            "attention": {"name": self._attention.name, "reason": self._attention.reason},
            "kernels": {"name": self.name, "reason": self.reason},
        }

    def make_attention(
        self, shape: AttentionShape, rotaries: Sequence[Rotary], cache: Tensor
    ) -> AttentionBackend[Any]:
        """Attention over that cache."""
        return self._attention.make(shape, rotaries, cache)

    @abstractmethod
    def prepare(self, model: DecoderWeights, dtype: torch.dtype) -> dict[str, str] | None:
        """As `LayerOps.prepare`; called once, before the first pass."""

    @abstractmethod
    def forward(
        self,
        model: DecoderWeights,
        token_ids: Tensor,
        logit_rows: Tensor | None,
        attention: AttentionBackend[Any],
        out: Tensor | None = None,
        states: HiddenStates | None = None,
        layer_inputs: LayerInputs | None = None,
        embedded: Tensor | None = None,
    ) -> Tensor:
        """A whole forward pass; arguments and result are those of ``Decoder.forward``."""


class LayeredBackend(Backend):
    """Runs a model layer by layer.

    Args:
        layer_ops: the arithmetic of the layers.
        comm: what ranks of a split model tell each other; None: the model is in one piece.
    """

    def __init__(
        self,
        attention: AttentionChoice,
        layer_ops: LayerOps,
        reason: str,
        comm: Communication | None = None,
    ) -> None:
        super().__init__(attention, layer_ops.name, reason)
        self.layer_ops = layer_ops
        self._comm = comm

    def prepare(self, model: DecoderWeights, dtype: torch.dtype) -> dict[str, str] | None:
        return self.layer_ops.prepare(model, dtype)

    def forward(
        self,
        model: DecoderWeights,
        token_ids: Tensor,
        logit_rows: Tensor | None,
        attention: AttentionBackend[Any],
        out: Tensor | None = None,
        states: HiddenStates | None = None,
        layer_inputs: LayerInputs | None = None,
        embedded: Tensor | None = None,
    ) -> Tensor:
        # only the generic decoder has these: no other has a head, or rows that can be looked up for it
        more = {"layer_inputs": layer_inputs, "embedded": embedded}
        given = {name: value for name, value in more.items() if value is not None}
        logits: Tensor = model(
            token_ids, logit_rows, attention, self.layer_ops, out, self._comm, states, **given
        )
        return logits
