"""Chapter 13: how far figures of one and the same server lie apart, and what a bootstrap says about one run.

.venv/bin/python -m docs.tutorial.code.intervals
"""

from __future__ import annotations

import numpy as np

from docs.tutorial.code.common import table


def latencies(random: np.random.Generator, count: int) -> np.ndarray:
    """Seconds: log-normal, median 1, a heavy tail."""
    return random.lognormal(0.0, 0.8, count)


def bootstrap(values: np.ndarray, percentile: float, random: np.random.Generator) -> tuple[float, float]:
    """A 95 % interval of a percentile, from resamples of `values` (Efron, 1979)."""
    resamples = random.choice(values, (400, len(values)))
    low, high = np.percentile(np.percentile(resamples, percentile, axis=1), [2.5, 97.5])
    return float(low), float(high)


def main(argv: list[str] | None = None) -> None:
    truth = {50: 1.0, 99: float(np.exp(0.8 * 2.3263))}
    rows = []
    for count in (20, 200, 2000):
        random = np.random.default_rng(count)
        runs = [latencies(random, count) for _ in range(200)]
        for percentile, true in truth.items():
            figures = [np.percentile(run, percentile) for run in runs]
            low, high = np.percentile(figures, [2.5, 97.5])
            intervals = [bootstrap(run, percentile, random) for run in runs[:50]]
            covered = np.mean([a <= true <= b for a, b in intervals])
            rows.append([
                f"{count} requests, p{percentile}", f"{true:.2f}", f"{low:.2f}–{high:.2f}", f"{covered:.0%}",
            ])  # fmt: skip
    table(["", "true", "95 % of runs show", "bootstrap intervals that hold the truth"], rows)
    random = np.random.default_rng(7)
    for count in (20, 200, 2000):
        pairs = [
            (np.median(latencies(random, count)), np.median(latencies(random, count))) for _ in range(1000)
        ]
        better = np.mean([abs(a - b) / min(a, b) > 0.05 for a, b in pairs])
        print(
            f"two runs of {count}: in {better:.0%} of pairs one median is more than 5 % better, for no reason"
        )


if __name__ == "__main__":
    main()
