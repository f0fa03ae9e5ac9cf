"""The decoder of every family that layer specifications express.

Tokens of all sequences of a step stand in one dimension; only attention knows which belong together.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from server.layers.linear import Linear, LinearLayer, Target, WeightMap
from server.layers.norm import build_norm
from server.layers.shard import WHOLE, Shard
from server.layers.spec import ModelSpec
from server.layers.weights import DecoderWeights, EmbeddingRows
from server.models.builder import Builder
from server.models.layer import Layer
from server.models.linears import Linears
from server.models.names import Names
from server.ops.attention import AttentionBackend
from server.ops.communication import Communication
from server.ops.hidden_states import HiddenStates, LayerInputs
from server.ops.layer_ops import LayerOps


class Decoder(DecoderWeights):
    """Token ids in, logits out.

    Args:
        spec: what the model is.
        dtype: of weights, activations and cache.
        device: where all of it lives.
        names: of the checkpoint's tensors.
        linears: makes the linear layers of the decoder layers; None: plain ones.
        shard: the rank that this is of a split model, whose `spec` says what a rank computes.
    """

    own_forward = False
    computed_by: str | None = None
    shard = WHOLE

    def __init__(
        self,
        spec: ModelSpec,
        dtype: torch.dtype,
        device: torch.device,
        names: Names | None = None,
        linears: Linears | None = None,
        shard: Shard = WHOLE,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.shard = shard
        self.names = names or Names()
        build = Builder(dtype, device, linears)
        rows = shard.rows(spec.vocab_size)
        self.embedding = build.parameter(rows, spec.hidden_size)
        self.positions = None
        if spec.learned_positions is not None:
            self.positions = build.parameter(spec.learned_positions, spec.hidden_size)
        self.layers = nn.ModuleList(Layer(spec, i, self.names, build) for i in range(len(spec.layers)))
        self.norm = build_norm(spec.hidden_size, spec.norm, dtype=dtype, device=device)
        self.head: LinearLayer = Linear(
            spec.hidden_size, rows, bias=spec.head_bias, dtype=dtype, device=device
        )
        # rounded to the type of the weights before it multiplies, as transformers does
        self._embedding_scale = torch.tensor(spec.embedding_scale).to(dtype).item()
        if spec.tied:
            self.tie()

    @property
    def tied(self) -> bool:
        """Whether the output layer is the embedding."""
        return self.head.weight is self.embedding

    def tie(self) -> None:
        """Let the output layer be the embedding."""
        self.head.weight = self.embedding

    def untie(self) -> None:
        """Give the output layer a weight of its own, not filled yet."""
        self.head.weight = nn.Parameter(torch.empty_like(self.embedding), requires_grad=False)

    def weights(self) -> WeightMap:
        """Every tensor of the checkpoint, where it goes, and which part of it is a rank's."""
        vocab = self.spec.vocab_size
        found: WeightMap = {
            f"{self.names.embedding}.weight": Target(self.embedding.data, axis=0, total=vocab)
        }
        if self.positions is not None:
            found[f"{self.names.positions}.weight"] = Target(self.positions.data)
        found |= self.norm.weights(self.names.norm)
        for layer in self.layers:
            found |= layer.weights()  # type: ignore[operator]  # torch's stubs know no child's class
        head = self.head.targets("outputs", self.names.head)
        head = {name: replace(target, total=vocab) for name, target in head.items()}
        if self.tied:
            del head[f"{self.names.head}.weight"]
        return found | head

    @property
    def embedding_rows(self) -> EmbeddingRows | None:
        """All that `embed` does; None: it does more, or the forward pass is not the one below."""
        if self.own_forward or self.positions is not None or self.shard.ranks > 1:
            return None
        return EmbeddingRows(self.embedding, self._embedding_scale)

    def embed(self, token_ids: Tensor, positions: Tensor, comm: Communication | None = None) -> Tensor:
        """The residual stream [tokens, hidden] before the first layer."""
        if comm is None:
            x = functional.embedding(token_ids, self.embedding)
        else:  # each rank knows some of the tokens, and has zeros for the others
            rows = len(self.embedding)
            own = token_ids - self.shard.rank * rows
            known = (own >= 0) & (own < rows)
            found = functional.embedding(own.clamp(0, rows - 1), self.embedding)
            x = comm.reduce(found.masked_fill_(~known[:, None], 0))
        if self._embedding_scale != 1.0:
            x = x * self._embedding_scale
        if self.positions is not None:
            x = x + functional.embedding(positions.clamp(min=0), self.positions)
        return x

    def logits(
        self, x: Tensor, ops: LayerOps, out: Tensor | None, comm: Communication | None = None
    ) -> Tensor:
        """[rows, hidden] after the last layer → [rows, vocab], in `out` where it is given."""
        if comm is None:
            logits = ops.norm_linear(x, self.norm, self.head, out)
        else:
            part = ops.norm_linear(x, self.norm, self.head)
            if out is None:
                out = part.new_empty(len(x), self.spec.vocab_size)
            logits = comm.gather(part, out)
        scale, softcap = self.spec.logit_scale, self.spec.logit_softcap
        if scale != 1.0:
            logits.mul_(scale)
        if softcap is not None:
            logits.div_(softcap).tanh_().mul_(softcap)
        return logits

    def forward(
        self,
        token_ids: Tensor,
        logit_rows: Tensor | None,
        attention: AttentionBackend[Any],
        ops: LayerOps,
        out: Tensor | None = None,
        comm: Communication | None = None,
        states: HiddenStates | None = None,
        layer_inputs: LayerInputs | None = None,
        embedded: Tensor | None = None,
    ) -> Tensor:
        """Compute a step's tokens.

        Args:
            token_ids: integers [tokens].
            logit_rows: integers [rows], the tokens whose successors are wanted; None: all.
            attention: was given the batch.
            ops: the arithmetic.
            out: takes the result instead of new memory.
            comm: adds up what the ranks of a split model have computed; None: the model is in one piece.
            states: gets the hidden states that are wanted.
            layer_inputs: gets the residual stream in front of the layers that it names.
            embedded: [tokens, hidden], the residual stream before the first layer (`embedding_rows`), which
                is overwritten; None: it is looked up here.

        Returns:
            [rows, vocab]: logits, in the weights' type or float32.
        """
        x = self.embed(token_ids, attention.positions, comm) if embedded is None else embedded
        for index, layer in enumerate(self.layers):
            if layer_inputs is not None:
                _keep(layer_inputs, index, x)
            x = layer(x, attention, ops, comm)
        if layer_inputs is not None:
            _keep(layer_inputs, len(self.layers), x)
        if states is not None:
            states.values = ops.norm(x.index_select(0, states.rows), self.norm)
        if logit_rows is not None:
            x = x.index_select(0, logit_rows)
        return self.logits(x, ops, out, comm)


def _keep(wanted: LayerInputs, index: int, x: Tensor) -> None:
    """Copy the residual stream [tokens, hidden] in front of layer `index`, which may be added to in place."""
    if index in wanted.layers:
        hidden = x.shape[1]
        if wanted.values is None:
            wanted.values = x.new_empty(len(x), len(wanted.layers) * hidden)
        wanted.values.narrow(1, wanted.layers.index(index) * hidden, hidden).copy_(x)
