"""Chapter 5: is it quicker to swap a request out and in, or to compute it again?

.venv/bin/python -m docs.tutorial.code.break_even --shape 8b --link 25e9 --compute 300e12
"""

from __future__ import annotations

import argparse

from docs.tutorial.code.common import table
from docs.tutorial.code.cost import SHAPES


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--link", type=float, default=25e9, help="bytes a second between device and host")
    parser.add_argument("--compute", type=float, default=300e12, help="flop a second that prompts reach")
    args = parser.parse_args(argv)
    shape = SHAPES[args.shape]
    rows = []
    for tokens in (256, 1024, 4096, 16384, 65536):
        swap = 2 * tokens * shape.cache_bytes / args.link  # out and in again
        compute = shape.flops(tokens, tokens // 2) / args.compute
        cheaper = "swap" if swap < compute else "compute"
        rows.append([tokens, f"{swap * 1e3:.1f}", f"{compute * 1e3:.1f}", cheaper])
    table(["tokens", "swap ms", "compute ms", "cheaper"], rows)


if __name__ == "__main__":
    main()
