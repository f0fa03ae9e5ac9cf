"""The products of a model, as they are measured one by one."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.checkpoints import LlamaShape


@dataclass(frozen=True, slots=True)
class Product:
    """One of a layer's products, or the head's."""

    name: str
    outputs: int
    inputs: int
    norm: bool = False
    gated: bool = False

    @property
    def size(self) -> int:
        """Rows of the weight."""
        return self.outputs * (2 if self.gated else 1)


def products(shape: LlamaShape) -> list[Product]:
    """Those of a model, the head's at last."""
    head = shape.hidden // shape.heads
    return [
        Product("qkv", (shape.heads + 2 * shape.kv_heads) * head, shape.hidden, norm=True),
        Product("output", shape.hidden, shape.heads * head),
        Product("gate-up", shape.inner, shape.hidden, norm=True, gated=True),
        Product("down", shape.hidden, shape.inner),
        Product("head", shape.vocab, shape.hidden, norm=True),
    ]
