"""Decode steps as CUDA graphs: the launches of a whole step replayed in one call.

A graph is bound to its tensors' places and sizes, so there is one for each of some batch sizes, and
a step is padded to the next of them. Everything that grows (context lengths, block tables) is read by
the kernels from memory.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from functools import partial

import torch
from tqdm import tqdm

from server.device.captured_calls import CapturedCalls
from server.sampling.step_logits import StepLogits


def graph_sizes(max_rows: int) -> list[int]:
    """Batch sizes to capture: padding costs little, for weights are read once whatever the size."""
    sizes = [1, 2, 4, 8, *range(16, 256, 16), *range(256, max_rows, 32)]
    return [size for size in sizes if size < max_rows] + [max_rows]


class DecodeGraphs:
    """Steps of decodes only, captured once.

    Args:
        compute: runs the step of a given size on tensors that stay where they are, also those it returns.
        max_rows: largest size.
        device: where it runs.
    """

    def __init__(self, compute: Callable[[int], StepLogits], max_rows: int, device: torch.device) -> None:
        self._sizes = graph_sizes(max_rows)
        self._steps: CapturedCalls[StepLogits] = CapturedCalls(device)
        self._capture(compute)

    @torch.inference_mode()
    def _capture(self, compute: Callable[[int], StepLogits]) -> None:
        # the largest first: the others find room in its memory
        for size in tqdm(reversed(self._sizes), "capturing graphs", len(self._sizes), mininterval=1.0):
            compute(size)  # compiles kernels and lets libraries allocate
            self._steps.capture(size, partial(compute, size))

    def size_for(self, rows: int) -> int:
        """The captured size that a step of `rows` decodes is padded to."""
        return self._sizes[bisect_left(self._sizes, rows)]

    def replay(self, size: int) -> StepLogits:
        """Run the step of that size; what it returns stands until the next replay."""
        return self._steps.replay(size)
