"""Decode steps as CUDA graphs: the launches of a whole step replayed in one call.

A graph is bound to its tensors' places and sizes, so there is one for each of some batch sizes, and
a step is padded to the next of them. Everything that grows (context lengths, block tables) is read by
the kernels from memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from tqdm import tqdm

from server.device.captured_calls import CapturedCalls, padded_size
from server.sampling.step_logits import StepLogits
from server.scheduling.limits import DRAFTED_LINES

DRAFTED_SIZES = (4, 16, 32, 64, DRAFTED_LINES)
"""Lines of steps with drafts to capture: few sizes, for arithmetic is cheap where drafts pay. On an H200 a
step of 2 lines of an 8b takes as long as one of 16, 5.5 ms."""


ROWS_APART = 16
"""Rows between two captured batch sizes, from as many on to 256."""


def graph_sizes(max_rows: int) -> list[int]:
    """Batch sizes to capture: padding costs little, for weights are read once whatever the size."""
    sizes = [1, 2, 4, 8, *range(ROWS_APART, 256, ROWS_APART), *range(256, max_rows, 32)]
    return [size for size in sizes if size < max_rows] + [max_rows]


class Size(NamedTuple):
    """What a captured step has room for.

    Attributes:
        lines: decodes and drafted tokens.
        drafted: some of the lines follow drafted tokens, or are computed again.
    """

    lines: int
    drafted: bool = False


class DecodeGraphs:
    """Steps of decodes, or of decodes and drafted tokens, captured once.

    Args:
        compute: runs the step of a given size on tensors that stay where they are, also those it returns.
        max_rows: most decodes of a step.
        device: where it runs.
    """

    def __init__(
        self,
        compute: Callable[[Size], StepLogits],
        max_rows: int,
        device: torch.device,
    ) -> None:
        self._lines = {False: graph_sizes(max_rows), True: list(DRAFTED_SIZES)}
        self._steps: CapturedCalls[StepLogits] = CapturedCalls(device)
        self._capture(compute)

    @torch.inference_mode()
    def _capture(self, compute: Callable[[Size], StepLogits]) -> None:
        sizes = [Size(lines, drafted) for drafted, some in self._lines.items() for lines in some]
        sizes.sort(reverse=True)  # the largest first: the others find room in its memory
        for size in tqdm(sizes, "capturing graphs", mininterval=1.0):
            compute(size)  # compiles kernels and lets libraries allocate
            self._steps.capture(size, partial(compute, size))

    def size_for(self, lines: int, *, drafted: bool = False) -> Size | None:
        """The smallest captured size with room for `lines`; None if there is none."""
        size = padded_size(self._lines[drafted], lines)
        return None if size is None else Size(size, drafted)

    def replay(self, size: Size) -> StepLogits:
        """Run the step of that size; what it returns stands until the next replay."""
        return self._steps.replay(size)
