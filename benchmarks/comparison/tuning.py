"""Finds the package size and interval at which the static-batching server is fastest, before it is compared.

Whoever compares with an untuned baseline compares with nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop
from tqdm import tqdm

from benchmarks.comparison.servers import MODEL_ID, Server, started
from benchmarks.loadgen.arrivals import parse_arrivals
from benchmarks.loadgen.endpoint import Endpoint
from benchmarks.loadgen.measures import Objective
from benchmarks.loadgen.repeats import WARM_UP_SEED, Result
from benchmarks.loadgen.run import run
from benchmarks.loadgen.traffic import Traffic

INTERVALS = (0.0, 0.02, 0.1)


@dataclass(slots=True, frozen=True)
class Trial:
    """The static-batching server with one package size and interval."""

    size: int
    """`package_max_workload`"""
    interval: float
    """`packaging_interval_seconds`"""
    result: Result


def grid(beams: int, *, quick: bool) -> list[tuple[int, float]]:
    """Sizes and intervals that are tried: packages no larger than the other server's batch, so that both have
    the same memory. A quick comparison tries sizes alone."""
    shares = (2, 1) if quick else (4, 2, 1)
    intervals = INTERVALS[1:2] if quick else INTERVALS
    sizes = sorted({max(1, beams // share) for share in shares})
    return [(size, interval) for size in sizes for interval in intervals]


def tune(
    servers: Sequence[tuple[int, float, Server]],
    directory: Path,
    traffic: Traffic,
    *,
    clients: int,
    requests: int,
    seeds: int,
    timeout: float,
) -> list[Trial]:
    """A trial of each server, one after the other, under `traffic` with `clients` in a closed loop.

    Args:
        servers: size, interval and the server that has them.
        directory: for configuration files and logs.
        requests: of a run.
        seeds: runs of each.
        timeout: seconds of a request.
    """
    trials = []
    for size, interval, server in tqdm(servers, unit="trial", desc="tuning static batching"):
        with started(server, directory) as url:
            endpoint = Endpoint(server.name, url, MODEL_ID, server.api, server.streams)
            result = uvloop.run(_measure(endpoint, traffic, clients, requests, seeds, timeout))
        trials.append(Trial(size, interval, result))
    return trials


def best(trials: Sequence[Trial]) -> Trial:
    """The trial with the most tokens a second; where several have the most, the first."""
    return max(trials, key=lambda trial: trial.result.mean("tokens_per_second"))


async def _measure(
    endpoint: Endpoint, traffic: Traffic, clients: int, requests: int, seeds: int, timeout: float
) -> Result:
    arrivals = parse_arrivals(f"closed:{clients}")
    await run(endpoint, traffic.requests(clients, WARM_UP_SEED), arrivals, timeout=timeout)
    result = Result(endpoint.name, traffic.name, arrivals.text)
    for seed in range(seeds):
        records = await run(endpoint, traffic.requests(requests, seed), arrivals, seed=seed, timeout=timeout)
        result.add(records, Objective())
    return result
