"""Steps with short prompts as CUDA graphs: all but attention is replayed, piece by piece.

A prompt of some hundred tokens is computed faster than its kernels are launched one by one. What attention is
given differs from step to step (contexts, tiles, decodes beside chunks), so it is launched as ever; what lies
between two layers' attention depends on the number of tokens alone. That is captured for some sizes, and a
step is padded to the next of them (piecewise graphs, as in vLLM since 2025).
"""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from server.device.captured_calls import borrowed, padded_size
from server.layers.weights import DecoderWeights
from server.ops.attention import AttentionBackend
from server.ops.backend import Backend
from server.ops.hidden_states import LayerInputs
from server.worker.batch import ForwardBatch

SIZES: tuple[int, ...] = (*range(64, 1281, 64), *range(1408, 2049, 128))
"""Tokens of the steps that are captured. On an H200, a token of padding costs 23 µs with an 8b model. Kernel
by kernel, a step takes the host 24 ms to launch, in which it reads no tokens."""

MOST_LINES = 256
"""Logits of such a step at most; on an H200, those of 256 lines take 0.15 ms more than those of 64."""


@dataclass(slots=True)
class Cut:
    """Where a pass is cut: attention of a layer, with the places of what it takes and gives.

    Attributes:
        layer: index of the layer.
        query, key, value: [tokens, heads, head_dim], `borrowed`: the piece in front writes them, and what
            follows may write to their memory.
        sinks: of the layer.
        attended: [tokens, heads × head_dim].
    """

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    sinks: Tensor | None
    attended: Tensor


class Cutter(AttentionBackend[Any]):
    """Stands for attention while a pass is captured: each call ends a graph and begins the next one.

    Args:
        positions: [tokens], where those of a step will be.
        buffers: places of what attention gives, by shape; all layers and sizes share them.
        stream: where it is captured; None: the pass is run to compile its kernels, and nothing is captured.
        pool: memory of all graphs.
    """

    name = "cutter"

    def __init__(
        self,
        positions: Tensor,
        buffers: dict[Hashable, Tensor],
        stream: torch.cuda.Stream | None = None,
        pool: Any = None,
    ) -> None:
        self.positions = positions
        self._buffers = buffers
        self._captures = stream is not None
        self._pool = pool
        self.graphs: list[torch.cuda.CUDAGraph] = []
        self.cuts: list[Cut] = []

    def prepare(self, batch: Any) -> None:
        """Nothing: there is no batch."""

    def begin(self) -> None:
        """Begin a graph."""
        if self._captures:
            self.graphs.append(torch.cuda.CUDAGraph())
            self.graphs[-1].capture_begin(pool=self._pool, capture_error_mode="thread_local")

    def end(self) -> None:
        """End the graph that was begun last."""
        if self._captures:
            self.graphs[-1].capture_end()

    def forward(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        assert out is None
        self.end()
        taken = borrowed(query), borrowed(key), borrowed(value)
        self.cuts.append(Cut(layer, *taken, sinks, self._buffer(query)))
        self.begin()
        return self.cuts[-1].attended

    def _buffer(self, query: Tensor) -> Tensor:
        """[tokens, heads × head_dim] for what `query` gets; the largest size comes first and makes it."""
        key = query.shape[1:], query.dtype
        if key not in self._buffers:
            self._buffers[key] = query.new_zeros(query.shape).flatten(1)
        return self._buffers[key][: len(query)]


class PromptGraphs:
    """Passes of some sizes, captured once.

    Args:
        model: weights loaded.
        backend: computes it, in ways that suit being captured.
        attention: is given each step's batch before it is run.
        vocab_size: of the logits.
        longest: tokens of the largest step that there may be.
        lines: most logits of a step that there may be.
        read_layers: those in front of which a draft head reads the residual stream.
    """

    def __init__(
        self,
        model: DecoderWeights,
        backend: Backend,
        attention: AttentionBackend[Any],
        *,
        vocab_size: int,
        longest: int,
        lines: int,
        read_layers: tuple[int, ...] = (),
    ) -> None:
        self._model = model
        self._backend = backend
        self._attention = attention
        weight = model.embedding
        self._sizes = [size for size in SIZES if size < longest] + [longest] * (longest <= SIZES[-1])
        most, self._lines = self.longest, min(lines, MOST_LINES)
        self._token_ids = torch.zeros(most, dtype=torch.int32, device=weight.device)
        self._positions = torch.zeros(most, dtype=torch.int32, device=weight.device)
        self._rows = torch.zeros(self._lines, dtype=torch.int32, device=weight.device)
        self._logits = torch.empty((self._lines, vocab_size), dtype=weight.dtype, device=weight.device)
        self._read_layers = read_layers
        self._read = self._logits.new_empty((most, len(read_layers) * model.spec.hidden_size))
        self._buffers: dict[Hashable, Tensor] = {}
        self._passes: dict[int, Cutter] = {}

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture all sizes; on CUDA, when everything else is in its place."""
        stream = torch.cuda.Stream(self._token_ids.device)  # type: ignore[no-untyped-call]
        pool = torch.cuda.graph_pool_handle()
        for size in reversed(self._sizes):  # the others find room in the memory of the largest
            self._compute(Cutter(self._positions[:size], self._buffers), size)  # compiles kernels
            cutter = Cutter(self._positions[:size], self._buffers, stream, pool)
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                cutter.begin()
                try:
                    self._compute(cutter, size)
                except BaseException:
                    with suppress(RuntimeError):  # the first error tells more
                        cutter.end()
                    raise
                cutter.end()
            torch.cuda.current_stream().wait_stream(stream)
            self._passes[size] = cutter

    def _compute(self, attention: AttentionBackend[Any], size: int) -> None:
        inputs = LayerInputs(self._read_layers, self._read[:size]) if self._read_layers else None
        ids, rows = self._token_ids[:size], self._rows
        self._backend.forward(self._model, ids, rows, attention, self._logits, layer_inputs=inputs)

    @property
    def longest(self) -> int:
        """Tokens of the largest step."""
        return self._sizes[-1]

    def fits(self, tokens: int, lines: int) -> bool:
        """Whether a step of so many tokens and logits can be run so."""
        return bool(self._passes) and tokens <= self.longest and lines <= self._lines

    @torch.inference_mode()
    def run(self, batch: ForwardBatch, inputs: LayerInputs | None = None) -> Tensor:
        """Compute a step that `fits`, and that attention was given.

        Args:
            inputs: filled with the residual stream in front of `read_layers`.

        Returns:
            [lines, vocab], those of `batch.logit_rows`; all of this stands until the next step.
        """
        assert batch.logit_rows is not None
        count, lines = len(batch.token_ids), len(batch.logit_rows)
        size = padded_size(self._sizes, count)
        assert size is not None
        self._token_ids[:count].copy_(batch.token_ids)
        self._positions[:count].copy_(self._attention.positions)
        self._rows.zero_()  # rows of an earlier, larger step may not exist in this one
        self._rows[:lines].copy_(batch.logit_rows)
        self._replay(size, count)
        if inputs is not None:
            inputs.values = self._read[:count]
        return self._logits[:lines]

    def _replay(self, size: int, count: int) -> None:
        """Run the pieces of a size, and attention of `count` tokens between them."""
        found = self._passes[size]
        *before, last = found.graphs
        for graph, cut in zip(before, found.cuts, strict=True):
            graph.replay()
            attend(self._attention, cut, count)
        last.replay()


def attend(attention: AttentionBackend[Any], cut: Cut, count: int) -> None:
    """Attend for the first `count` tokens at a cut; the others are padding."""
    query, key, value = cut.query[:count], cut.key[:count], cut.value[:count]
    attention.forward(cut.layer, query, key, value, cut.sinks, cut.attended[:count])
