"""Chapter 10: eight GPUs of one host as servers side by side, as ranks of one server, and in between.

.venv/bin/python -m docs.tutorial.code.replicas
"""

from __future__ import annotations

from docs.tutorial.code.common import table
from docs.tutorial.code.cost import SHAPES, Shape

MEMORY, BANDWIDTH, PEAK = 80e9, 3.09e12, 780e12  # of an H100: bytes; bytes and flop a second as in chapter 1
SUM_SECONDS, LINK = 10e-6, 4e11  # supposed: what a sum takes at least, and bytes a second between two GPUs
GPUS, CONTEXT, PROMPT = 8, 1024, 2048
MODELS = {"8b": SHAPES["8b"], "70b": Shape(8192, 80, 64, 8, 128, 28672, 128256)}


def sums(shape: Shape, tokens: int, ranks: int, link: float) -> float:
    """Seconds of two sums a layer; in a ring each rank moves nearly twice what is summed."""
    moved = 2 * (ranks - 1) / ranks * tokens * shape.hidden * shape.bytes
    return 2 * shape.layers * (SUM_SECONDS + moved / link) if ranks > 1 else 0.0


def decode(shape: Shape, rows: int, ranks: int, link: float = LINK) -> float:
    """Seconds of a step of decodes on so many ranks, each of which reads its part."""
    return shape.traffic(rows, rows * CONTEXT) / ranks / BANDWIDTH + sums(shape, rows, ranks, link)


def prompt(shape: Shape, ranks: int, link: float = LINK) -> float:
    """Seconds of a prompt."""
    return shape.flops(PROMPT, PROMPT // 2) / ranks / PEAK + sums(shape, PROMPT, ranks, link)


def cache_tokens(shape: Shape, ranks: int) -> float:
    """Tokens that fit beside the weights in nine tenths of the memory of so many GPUs."""
    return (0.9 * MEMORY * ranks - shape.weights * shape.bytes) / shape.cache_bytes


def main(argv: list[str] | None = None) -> None:
    rows: list[list[object]] = []
    for name, shape in MODELS.items():
        for ranks in (1, 2, 4, 8):
            servers, fits = GPUS // ranks, cache_tokens(shape, ranks)
            what = [f"{name}, {servers} × {ranks}"]
            if fits <= 0:
                rows.append([*what, "–", "–", "–", "–"])
                continue
            alone, busy = decode(shape, 1, ranks), decode(shape, 512 // servers, ranks)
            prompts = servers * PROMPT / prompt(shape, ranks)
            figures = f"{alone * 1e3:.1f}", f"{512 / busy:,.0f}", f"{prompts:,.0f}", f"{servers * fits:,.0f}"
            rows.append([*what, *figures])
    head = "servers × ranks", "ms a token, alone", "tokens/s of 512", "of prompts", "tokens of cache"
    table(head, rows)


if __name__ == "__main__":
    main()
