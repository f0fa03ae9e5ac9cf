"""What draft heads have in common: one decoder layer that reads a target's hidden states beside tokens."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from server.layers.linear import LinearLayer, WeightMap
from server.layers.spec import ModelSpec
from server.layers.weights import DecoderWeights
from server.ops.attention import AttentionBackend
from server.ops.layer_ops import LayerOps


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """What a head is.

    Attributes:
        model: its layer, its hidden size, and the vocabulary that it guesses from.
        target_hidden, target_vocab: sizes of the model that it drafts for.
        read_layers: those of that model in front of which it reads the residual stream, ascending; the number
            of layers stands for what the last one gives.
        norm_before_residual: the stream that its layer adds to is normalised (EAGLE-3 of speculators).
    """

    model: ModelSpec
    target_hidden: int
    target_vocab: int
    read_layers: tuple[int, ...]
    norm_before_residual: bool = False

    @property
    def read_width(self) -> int:
        """Numbers that it reads of each token."""
        return len(self.read_layers) * self.target_hidden


class DraftHead(DecoderWeights):
    """Guesses the token at place p + 2 of a sequence from the target's states at p and the token at p + 1.

    What it computes for a place stands in for the target's states at the next one, so that it can go on from
    its own guesses.

    Attributes:
        label: for the operator.
        blanks_first: the token behind the first one of a sequence is not looked at; its id is given as -1.
        head_spec: what it is.
    """

    own_forward = True
    computed_by = None
    label: ClassVar[str]
    blanks_first: ClassVar[bool] = False

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.head_spec = spec
        self.spec = spec.model
        self.positions = None

    def share(self, embedding: nn.Parameter | None = None, output: LinearLayer | None = None) -> None:
        """Take the target's embedding, or its output layer, where the checkpoint of the head has none."""
        if embedding is not None:
            self.embedding = embedding
        if output is not None:
            self.head = output

    @abstractmethod
    def weights(self) -> WeightMap:
        """The tensors of its checkpoint, and where they go."""

    @abstractmethod
    def fuse(self, states: Tensor) -> Tensor:
        """What `forward` takes of the target's states: [tokens, read_width] → [tokens, hidden]."""

    @abstractmethod
    def forward(
        self, token_ids: Tensor, hidden: Tensor, attention: AttentionBackend[Any], ops: LayerOps
    ) -> Tensor:
        """Compute places of sequences.

        Args:
            token_ids: integers [tokens], of the target's vocabulary: the token behind each place.
            hidden: [tokens, hidden], of `fuse`, or what `forward` gave for the place before; may be reused.
            attention: was given the batch.
            ops: the arithmetic.

        Returns:
            [tokens, hidden], for `choose` and for the next places.
        """

    @abstractmethod
    def choose(self, x: Tensor, ops: LayerOps) -> Tensor:
        """The likeliest tokens, integers [rows], by what `forward` gave, [rows, hidden]."""
