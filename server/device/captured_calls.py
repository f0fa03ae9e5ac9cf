"""Work on tensors that stay where they are, recorded as CUDA graphs: many launches become one."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def padded_size(sizes: Sequence[int], count: int) -> int | None:
    """The smallest of `sizes`, which ascend, with room for `count`; None if there is none."""
    found = bisect_left(sizes, count)
    return sizes[found] if found < len(sizes) else None


class _Memory:
    """Bytes on a GPU that someone else owns."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3,
        }  # fmt: skip


def borrowed(tensor: Tensor) -> Tensor:
    """The same elements; on CUDA they do not keep their memory allocated.

    While graphs are captured, what is allocated later may take the place of a tensor that nothing refers to
    any more. Replays write to that place in the same order, so whoever reads there between two of them finds
    the right elements, without a place for each layer and graph.
    """
    if not tensor.is_cuda:
        return tensor
    storage = tensor.untyped_storage()
    memory = torch.as_tensor(_Memory(storage.data_ptr(), storage.nbytes()), device=tensor.device)
    return memory.view(tensor.dtype).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


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
