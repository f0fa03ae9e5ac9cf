"""Chapter 8: the demo model with fewer and fewer bits a weight: what is lost, and what GPTQ saves of it.

.venv/bin/python -m docs.tutorial.code.bits
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from demo_model.corpus import documents
from docs.tutorial.code.common import DEMO, table, tokenizer
from docs.tutorial.code.gptq import GROUP, made_up, rounded
from docs.tutorial.steps.model import Llama, attention


class Watched(Llama):
    """Keeps what its linear layers see."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.seen: dict[str, list[Tensor]] = {}

    def _linear(self, x: Tensor, name: str) -> Tensor:
        self.seen.setdefault(f"{name}.weight", []).append(x)
        return super()._linear(x, name)

    def loss(self, texts: list[Tensor]) -> float:
        """Mean of -log p over the tokens."""
        losses = []
        for tokens in texts:
            places = torch.arange(len(tokens) - 1)
            mask = places[:, None] >= places
            logits = self.forward(tokens[:-1], places, lambda _, *qkv, m=mask: attention(*qkv, m), places)
            losses.append(cross_entropy(logits, tokens[1:], reduction="none"))
        return torch.cat(losses).mean().item()


def main(argv: list[str] | None = None) -> None:
    stories = [document[0].text for document in documents(5, 400) if len(document) == 1]
    texts = [torch.tensor(tokenizer().encode(story).ids[:100]) for story in stories[:24]]
    model = Watched(DEMO)
    plain = {name: w for name, w in model.weights.items() if name.endswith("_proj.weight")}
    model.loss(texts[:12])  # the calibration: other stories than those below
    seen = {name: torch.cat(model.seen[name]) for name in plain}
    spreads = {name: made_up(inputs) for name, inputs in seen.items()}
    loss = f"{model.loss(texts[12:]):.2f}"
    rows = [["float32", "32.00", "", "", loss, loss]]
    for bits in (4, 3, 2):
        errors, losses = [], []
        for spread in ({}, spreads):
            model.weights |= {name: rounded(w, bits, spread.get(name)) for name, w in plain.items()}
            off = [
                (seen[n] @ (model.weights[n] - w).T).norm() / (seen[n] @ w.T).norm() for n, w in plain.items()
            ]
            errors.append(f"{torch.stack(off).mean():.1%}")
            losses.append(f"{model.loss(texts[12:]):.2f}")
        rows.append([f"{bits} bits", f"{bits + 16 / GROUP:.2f}", *errors, *losses])
    table(["weights", "bits each", "error, nearest", "GPTQ", "loss, nearest", "GPTQ"], rows)


if __name__ == "__main__":
    main()
