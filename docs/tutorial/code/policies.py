"""Chapter 14: scheduling policies under different traffics. This server's scheduler in virtual time.

.venv/bin/python -m docs.tutorial.code.policies
"""

from __future__ import annotations

import argparse
from itertools import pairwise

import numpy as np

from benchmarks.loadgen.measures import Summary, parse_objective, summarise
from benchmarks.loadgen.traffic import BUILT_IN
from docs.tutorial.code.common import table
from docs.tutorial.code.simulate import simulate
from server.scheduling.policies import POLICIES, SchedulingPolicy

OBJECTIVE = parse_objective("ttft=2,tpot=0.02")


def work(traffic: str, rate: float, count: int) -> list[tuple[float, int, int]]:
    """Requests of a built-in traffic, or of a mix of chats and long documents, at `rate` a second."""
    random = np.random.default_rng(1)
    at = np.cumsum(random.exponential(1 / rate, count)).tolist()
    if traffic == "documents":  # one request in ten brings a long text
        long = random.random(count) < 0.1
        prompts = np.where(long, 4096, random.integers(16, 128, count)).tolist()
        return list(zip(at, prompts, random.integers(32, 128, count).tolist(), strict=True))
    requests = BUILT_IN[traffic].requests(count, seed=1)
    return [(a, len(r.prompt), r.new_tokens) for a, r in zip(at, requests, strict=True)]


def measure(policy: SchedulingPolicy, requests: list[tuple[float, int, int]]) -> tuple[Summary, float]:
    """The figures of a run, and the 99th percentile of all gaps between tokens in seconds."""
    records, _ = simulate(policy, requests)
    gaps = [b - a for record in records for a, b in pairwise([record.first, *record.pieces])]
    return summarise(records, OBJECTIVE), float(np.percentile(gaps, 99))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--traffic", nargs="+", default=["equal", "exponential", "documents"])
    parser.add_argument("--rate", type=float, default=25.0)
    parser.add_argument("--requests", type=int, default=400)
    args = parser.parse_args(argv)
    for traffic in args.traffic:
        rows = []
        for name, policy in POLICIES.items():
            figures, gap = measure(policy, work(traffic, args.rate, args.requests))
            ttft, share = figures.ttft, f"{figures.goodput_share:.0%}"
            first = f"{ttft['p50']:.2f}", f"{ttft['p99']:.2f}"
            rows.append([name, f"{figures.tokens_per_second:.0f}", *first, f"{gap * 1e3:.0f}", share])
        table([traffic, "tokens/s", "ttft p50 s", "p99 s", "gap p99 ms", "good"], rows)


if __name__ == "__main__":
    main()
