"""Chapter 1: what a forward pass costs, counted: floating-point operations and bytes.

.venv/bin/python -m docs.tutorial.code.cost --shape 8b
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from docs.tutorial.code.common import table


@dataclass(frozen=True)
class Shape:
    """A decoder of the Llama family, and the bytes of a number in it."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    dim: int
    inner: int
    vocab: int
    bytes: int = 2

    @property
    def weights(self) -> int:
        """Numbers that every forward pass reads: all but the embedding, of which it reads a few rows."""
        attention = self.hidden * self.dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.inner) + self.hidden * self.vocab

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.dim * self.bytes

    def flops(self, tokens: int, context: int) -> int:
        """Of `tokens` tokens that see `context` tokens each; a multiplication and an addition are two."""
        return tokens * (2 * self.weights + 4 * self.layers * self.heads * self.dim * context)

    def traffic(self, tokens: int, read: int) -> int:
        """Bytes: all weights once, keys and values of `read` tokens, and those of `tokens` new ones."""
        return self.weights * self.bytes + (read + tokens) * self.cache_bytes


SHAPES = {
    "demo": Shape(256, 6, 4, 2, 64, 768, 1536),
    "8b": Shape(4096, 32, 32, 8, 128, 14336, 128256),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="demo")
    parser.add_argument("--context", type=int, default=1024, help="tokens that each decode sees")
    args = parser.parse_args(argv)
    shape, context = SHAPES[args.shape], args.context
    print(f"{args.shape}: {shape.weights:,} weights, {shape.cache_bytes:,} bytes of cache a token")
    rows = []
    for batch in (1, 4, 16, 64, 256):
        flops, moved = shape.flops(batch, context), shape.traffic(batch, batch * context)
        name = f"decode, {batch} rows" if batch > 1 else "decode, 1 row"
        rows.append([name, *map(_si, (flops, moved)), f"{flops / moved:.1f}"])
    for length in (128, 512, 2048):
        flops, moved = shape.flops(length, length // 2), shape.traffic(length, length)
        rows.append([f"prompt, {length} tokens", *map(_si, (flops, moved)), f"{flops / moved:.1f}"])
    table(["forward pass", "flop", "bytes", "flop/byte"], rows)


def _si(value: float) -> str:
    for unit in " kMGT":
        if value < 1000:
            return f"{value:.1f} {unit}".rstrip()
        value /= 1000
    return f"{value:.1f} P"


if __name__ == "__main__":
    main()
