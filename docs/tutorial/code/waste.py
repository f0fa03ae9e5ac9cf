"""Chapter 2: how much of a static batch's work was of use.

.venv/bin/python -m docs.tutorial.code.waste
"""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks.loadgen.lengths import parse_lengths
from docs.tutorial.code.common import table

ANSWERS = ("fixed:64", "uniform:16:128", "exponential:64:256", "sharegpt-answer:0.25:256")


def useful(lengths: np.ndarray, size: int) -> float:
    """Share of row-steps that belong to an answer, in packages of `size` in order of arrival."""
    packages = lengths[: len(lengths) // size * size].reshape(-1, size)
    return float(packages.sum() / (packages.max(axis=1) * size).sum())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--answers", nargs="+", default=ANSWERS, help="distributions of benchmarks.loadgen")
    args = parser.parse_args(argv)
    sizes = (1, 4, 16, 64)
    rows = []
    for text in args.answers:
        lengths = parse_lengths(text)(np.random.default_rng(0), 6400)
        rows.append([text, *(f"{useful(lengths, size):.0%}" for size in sizes)])
        together = np.sort(lengths)  # if the lengths were known before
        rows.append(["  packed by length", *(f"{useful(together, size):.0%}" for size in sizes)])
    table(["answer lengths", *(f"package {size}" for size in sizes)], rows)


if __name__ == "__main__":
    main()
