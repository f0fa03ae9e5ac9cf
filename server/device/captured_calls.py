"""Work on tensors that stay where they are, recorded as CUDA graphs: many launches become one."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

import torch

Result = TypeVar("Result")


def padded_size(sizes: Sequence[int], count: int) -> int | None:
    """The smallest of `sizes`, which ascend, with room for `count`; None if there is none."""
    found = bisect_left(sizes, count)
    return sizes[found] if found < len(sizes) else None


class CapturedCalls(Generic[Result]):
    """Calls by key, each captured once and replayed from then on.

    The graphs share the memory of what they allocate: a result that is allocated in a call stands until the
    next replay of any of them.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._calls: dict[Hashable, tuple[torch.cuda.CUDAGraph, Result]] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._calls

    def __len__(self) -> int:
        return len(self._calls)

    def capture(self, key: Hashable, call: Callable[[], Result]) -> None:
        """Record the kernels that `call` launches, without running them; they are compiled already.

        Raises:
            RuntimeError: nothing was recorded.
        """
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                result = call()
            except BaseException:
                with suppress(RuntimeError):  # the first error tells more
                    graph.capture_end()
                raise
            graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        self._calls[key] = graph, result

    def replay(self, key: Hashable) -> Result:
        """Run what was captured under `key`."""
        graph, result = self._calls[key]
        graph.replay()
        return result
