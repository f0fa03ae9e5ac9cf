"""Chapter 10: the engine of chapters 1 to 6 in two processes, each with its part of the model.

.venv/bin/python -m docs.tutorial.code.ranks
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from docs.tutorial.code.common import DEMO, chat, table
from docs.tutorial.steps.model import Llama
from docs.tutorial.steps.step6_decoding import Ask, DecodingEngine, Options
from server.device.collectives import Group

AXES = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1, "gate_proj": 0, "up_proj": 0, "down_proj": 1}
"""Which side of a matrix [outputs, inputs] is split."""
ASKED = Options(), Options(temperature=1.0, seed=7), Options(beams=3)


class Part(Llama):
    def __init__(self, path: str, group: Group) -> None:
        self.group, self.sums = group, 0
        super().__init__(path)
        self.heads, self.kv_heads = self.heads // group.size, self.kv_heads // group.size
        self.head = self.head.chunk(group.size)[group.rank]  # some rows of the vocabulary

    def _read(self, file: Path) -> dict[str, Tensor]:
        with safe_open(file, "pt") as stored:
            return {name: self._part(name, stored.get_slice(name)) for name in stored.keys()}  # noqa: SIM118

    def _part(self, name: str, stored: Any) -> Tensor:
        if (axis := AXES.get(name.split(".")[-2])) is None:
            return stored[:]
        size, rank = stored.get_shape()[axis] // self.group.size, self.group.rank
        own = slice(rank * size, (rank + 1) * size)  # nothing else is read of the file
        return stored[own] if axis == 0 else stored[:, own]

    def _linear(self, x: Tensor, name: str) -> Tensor:
        y = super()._linear(x, name)
        if AXES[name.rpartition(".")[2]] == 0:
            return y  # some outputs
        self.sums += 1
        return self.group.reduce(y)  # some inputs: every rank has a part of each sum

    def forward(self, *step: Any) -> Tensor:
        return self.group.gather(super().forward(*step))  # logits of the whole vocabulary


def report(model: Llama) -> list[Any]:
    """What is counted of a model, and its answers to one question, asked in three ways."""
    engine = DecodingEngine(model, 128)
    answers = engine.run(*(Ask(chat("Tell me a story about a fox."), 24, options) for options in ASKED))
    held = sum(weight.numel() for weight in model.weights.values())
    cache, sums = 2 * model.layers * model.kv_heads * model.dim, getattr(model, "sums", 0)
    return [model.heads, model.kv_heads, f"{held:,}", f"{cache:,}", sums // len(engine.trace), answers]


def rank(number: int, place: str) -> list[Any]:  # in a process of its own
    torch.set_num_threads(1)
    return report(Part(DEMO, Group(Path(place), number, 2, torch.device("cpu"))))


def main(argv: list[str] | None = None) -> None:
    with tempfile.TemporaryDirectory() as place, ProcessPoolExecutor(2, get_context("spawn")) as pool:
        *rows, answers = zip(report(Llama(DEMO)), *pool.map(rank, (0, 1), (place, place)), strict=True)
    names = "query heads", "heads of keys", "weights", "cache, numbers a token", "sums a step"
    table(["", "whole", "rank 0", "rank 1"], [[name, *row] for name, row in zip(names, rows, strict=True)])
    print("the same three answers:", all(each == answers[0] for each in answers))


if __name__ == "__main__":
    main()
