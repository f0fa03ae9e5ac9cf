"""Chapter 6: sampling by Gumbel-max is softmax sampling, and depends on nothing but its arguments.

.venv/bin/python -m docs.tutorial.code.gumbel
"""

from __future__ import annotations

import torch

from docs.tutorial.code.common import DEMO, chat, table, tokenizer
from docs.tutorial.steps.model import Llama
from docs.tutorial.steps.step6_decoding import Ask, DecodingEngine, Options, gumbel

DRAWS = 20_000


def main(argv: list[str] | None = None) -> None:
    scores, temperature = torch.tensor([2.0, 1.0, 0.0, -1.0]), 0.8
    expected = (scores / temperature).softmax(-1)
    drawn = torch.zeros(4)
    for seed in range(DRAWS):
        drawn[(scores / temperature + gumbel(seed, 0, 7, 4)).argmax()] += 1
    table(
        ["token", "softmax", f"share of {DRAWS:,} draws"],
        [[i, f"{expected[i]:.3f}", f"{drawn[i] / DRAWS:.3f}"] for i in range(4)],
    )
    model, texts = Llama(DEMO), tokenizer()

    def ask() -> Ask:
        return Ask(chat("Tell me a story about a fox."), 12, Options(temperature=1.0, seed=3, answers=2))

    others = [Ask(chat("讲个故事"), 40, Options(temperature=1.0, seed=seed)) for seed in range(6)]
    alone = DecodingEngine(model, 64).run(ask())[0]
    crowded = DecodingEngine(model, 14, block_size=8, max_tokens=16)
    *_, beside = crowded.run(*others, ask())
    print(texts.decode(alone[0]))
    print(texts.decode(alone[1]))
    print(f"the same beside six others: {alone == beside}; preemptions there: {crowded.counts['recomputed']}")


if __name__ == "__main__":
    main()
