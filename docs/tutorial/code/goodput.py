"""Chapter 13: throughput, goodput and latency as the load rises. This server's scheduler in virtual time.

.venv/bin/python -m docs.tutorial.code.goodput
"""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks.loadgen.lengths import parse_lengths
from benchmarks.loadgen.measures import parse_objective, summarise
from docs.tutorial.code.common import table
from docs.tutorial.code.simulate import simulate
from server.scheduling.policies import POLICIES


def poisson(rate: float, count: int, seed: int) -> list[tuple[float, int, int]]:
    """(arrival, prompt, answer) of chats at `rate` a second."""
    random = np.random.default_rng(seed)
    at = np.cumsum(random.exponential(1 / rate, count))
    prompts = parse_lengths("sharegpt-prompt:1:1024")(random, count)
    answers = parse_lengths("sharegpt-answer:0.5:512")(random, count)
    return list(zip(at.tolist(), prompts.tolist(), answers.tolist(), strict=True))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--slo", default="ttft=1,tpot=0.02", help="as for benchmarks.loadgen")
    parser.add_argument("--requests", type=int, default=600)
    args = parser.parse_args(argv)
    objective = parse_objective(args.slo)
    rows = []
    for rate in (4, 8, 12, 14, 16, 20):
        records, _ = simulate(POLICIES["first_come"], poisson(rate, args.requests, seed=rate))
        figures = summarise(records, objective)
        rows.append([
            f"{rate}/s", f"{figures.requests_per_second:.1f}", f"{figures.goodput_requests:.1f}",
            f"{figures.goodput_share:.0%}", f"{figures.ttft['p50']:.2f}", f"{figures.ttft['p99']:.2f}",
            f"{figures.tpot['p50'] * 1e3:.1f}",
        ])  # fmt: skip
    print(f"objective: {objective}")
    table(["arrivals", "answered/s", "good/s", "good", "ttft p50 s", "p99 s", "tpot p50 ms"], rows)


if __name__ == "__main__":
    main()
