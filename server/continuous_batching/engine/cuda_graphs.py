"""Decode steps as CUDA graphs: the launches of a whole forward pass replayed in one call.

A graph is bound to its tensors' places and sizes, so there is one for each of some batch sizes, and
a step is padded to the next of them. Everything that grows (context lengths, block tables) is read by
the kernels from memory.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm


def graph_sizes(max_rows: int) -> list[int]:
    """Batch sizes to capture: padding costs little, for weights are read once whatever the size."""
    sizes = [1, 2, 4, 8, *range(16, 256, 16), *range(256, max_rows, 32)]
    return [size for size in sizes if size < max_rows] + [max_rows]


class DecodeGraphs:
    """Forward passes of decodes only, captured once.

    Args:
        compute: runs the pass of a given size on tensors that stay where they are; returns logits
            [size, vocab].
        max_rows: largest size.
        vocab: columns of the logits.
    """

    def __init__(
        self,
        compute: Callable[[int], Tensor],
        max_rows: int,
        vocab: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._sizes = graph_sizes(max_rows)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        # one place for the logits of all sizes: the graphs share the memory of their intermediates
        self._logits = torch.empty((max_rows, vocab), dtype=dtype, device=device)
        self._capture(compute)

    @torch.inference_mode()
    def _capture(self, compute: Callable[[int], Tensor]) -> None:
        pool = torch.cuda.graph_pool_handle()
        for size in tqdm(reversed(self._sizes), "capturing graphs", len(self._sizes), mininterval=1.0):
            compute(size)  # compiles kernels and lets libraries allocate
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._logits[:size].copy_(compute(size))
            self._graphs[size] = graph

    def size_for(self, rows: int) -> int:
        """The captured size that a step of `rows` decodes is padded to."""
        return self._sizes[bisect_left(self._sizes, rows)]

    def replay(self, size: int) -> Tensor:
        """Run the pass of that size; the logits stand until the next replay."""
        self._graphs[size].replay()
        return self._logits[:size]
