"""Chapter 6: greedy answers, samples and beams in one batch of this server, and what each costs.

.venv/bin/python -m docs.tutorial.code.mixed
"""

from __future__ import annotations

from docs.tutorial.code.common import CPU, DEMO, chat, table
from protocol.generation import GenerationConfig
from server.continuous_batching.llm import LLM

ASKED = (
    ("greedy", "17加25等于多少？", GenerationConfig(max_new_tokens=24)),
    ("4 samples", "你好", GenerationConfig(max_new_tokens=24, do_sample=True, n=4, top_p=0.9)),
    ("4 beams", "What is the capital of Italy?", GenerationConfig(max_new_tokens=24, num_beams=4)),
    (
        "4 beams, 2 answers",
        "讲个故事",
        GenerationConfig(max_new_tokens=24, num_beams=4, num_return_sequences=2),
    ),
)


def main(argv: list[str] | None = None) -> None:
    def llm() -> LLM:
        cache = {"num_blocks": 256, "num_blocks_cpu": 0, "enable_prefix_cache": False}
        return LLM(DEMO, model_loading_config=CPU, cache_config=cache)

    together = llm()
    generations = together.generate([chat(question) for _, question, _ in ASKED], [c for *_, c in ASKED])
    rows, same = [], True
    for (name, question, config), generation in zip(ASKED, generations, strict=True):
        alone = llm()
        (again,) = alone.generate([chat(question)], config)
        same = same and [a.token_ids for a in again.answers] == [a.token_ids for a in generation.answers]
        stats = alone.engine.stats()
        rows.append([name, config.num_rows, stats.steps, stats.copies_on_write])
        print(f"{name}: {generation.answers[0].text}")
    stats = together.engine.stats()
    rows.append(["all together", sum(c.num_rows for *_, c in ASKED), stats.steps, stats.copies_on_write])
    table(["", "rows", "steps", "copies on write"], rows)
    print(f"the same answers alone and together: {same}")


if __name__ == "__main__":
    main()
