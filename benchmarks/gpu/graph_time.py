"""Times on the GPU, of launches in a row or within CUDA graphs, so that the host's part is not in them."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch


def captured(launch: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A graph of what `launch` does, which is done once before."""
    torch.cuda.synchronize()  # what `launch` reads may still be under way
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        launch()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            launch()
    return graph


def mean_ms(launch: Callable[[], object], count: int) -> float:
    """Milliseconds of each of `count` launches in a row."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(count):
        launch()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / count


def replay_us(graph: torch.cuda.CUDAGraph, launches: int, replays: int = 10) -> float:
    """Microseconds of each of the `launches` in `graph`, the mean of some replays."""
    return 1e3 * mean_ms(graph.replay, replays) / launches


def graph_us(launch: Callable[[], object], launches: int, replays: int = 10) -> float:
    """Median microseconds of a launch, within a graph of `launches` of them."""
    graph = captured(launch)
    return statistics.median(replay_us(graph, launches, replays) for _ in range(4))
