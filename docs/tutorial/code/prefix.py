"""Chapter 4: shared beginnings and copies on write, as this server's engine counts them.

.venv/bin/python -m docs.tutorial.code.prefix
"""

from __future__ import annotations

from docs.tutorial.code.common import CPU, DEMO, chat, table
from protocol.generation import GenerationConfig
from server.continuous_batching.llm import LLM

SYSTEM = [1, *range(300, 400)]
"""Stands for a long system prompt."""
QUESTIONS = ["17加25等于多少？", "法国的首都是哪里？", "What is the capital of Japan?", "你能做什么？"]


def main(argv: list[str] | None = None) -> None:
    prompts = [[*SYSTEM, *chat(question)] for question in QUESTIONS]
    rows, texts = [], []
    for shares in (False, True):
        llm = LLM(
            DEMO,
            model_loading_config=CPU,
            cache_config={"num_blocks": 256, "num_blocks_cpu": 0, "enable_prefix_cache": shares},
        )
        answers = [llm.generate([prompt], GenerationConfig(max_new_tokens=16))[0] for prompt in prompts]
        texts.append([answer.text for answer in answers])
        stats = llm.engine.stats()
        asked = sum(map(len, prompts))
        rows.append(
            [f"prefix cache {'on' if shares else 'off'}", asked, stats.prefix_hits, asked - stats.prefix_hits]
        )
    table(["", "prompt tokens", "found", "computed"], rows)
    print(f"same answers: {texts[0] == texts[1]}")
    before = llm.engine.stats().copies_on_write
    samples = GenerationConfig(n=4, do_sample=True, max_new_tokens=16, ignore_eos=True)
    (generation,) = llm.generate([prompts[0]], samples)
    copies = llm.engine.stats().copies_on_write - before
    length = len(prompts[0])
    print(
        f"{len(generation.answers)} samples of a prompt of {length} tokens: {length % 16} in its last block"
    )
    print(f"blocks copied on write: {copies}")


if __name__ == "__main__":
    main()
