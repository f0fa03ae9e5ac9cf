"""Chapter 5: the same requests with enough blocks, with too few and a swap space, and with too few alone.

.venv/bin/python -m docs.tutorial.code.pressure
"""

from __future__ import annotations

from docs.tutorial.code.common import CPU, DEMO, chat, table
from protocol.generation import GenerationConfig
from server.continuous_batching.llm import LLM

QUESTIONS = ["讲个故事", "Tell me a story about a fox.", "Tell me a story about a robot.", "从前"] * 3


def main(argv: list[str] | None = None) -> None:
    prompts = [chat(question) for question in QUESTIONS]
    options = GenerationConfig(max_new_tokens=120, ignore_eos=True)
    rows, answers = [], []
    for name, cache in (
        ("256 blocks", {"num_blocks": 256, "num_blocks_cpu": 0}),
        ("40 blocks, swap", {"num_blocks": 40, "num_blocks_cpu": 64, "swap_policy": "swap"}),
        ("40 blocks, recompute", {"num_blocks": 40, "num_blocks_cpu": 0, "swap_policy": "recompute"}),
    ):
        llm = LLM(
            DEMO,
            model_loading_config=CPU,
            cache_config={"enable_prefix_cache": False, **cache},
        )
        answers.append([g.answers[0].token_ids for g in llm.generate(prompts, options)])
        stats = llm.engine.stats()
        rows.append([
            name, stats.steps, stats.preempted_by_swap, stats.preempted_by_recompute,
            stats.swapped_out_blocks + stats.swapped_in_blocks, stats.computed_prompt_tokens,
        ])  # fmt: skip
    head = ["", "steps", "swapped out", "dropped", "blocks moved", "prompt tokens computed"]
    table(head, rows)
    print(f"same answers: {answers[0] == answers[1] == answers[2]}")


if __name__ == "__main__":
    main()
