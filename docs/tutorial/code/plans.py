"""Chapter 3: what this server's scheduler plans, step by step, while a long prompt arrives.

.venv/bin/python -m docs.tutorial.code.plans --policy prefill_first
"""

from __future__ import annotations

import argparse

from docs.tutorial.code.common import CPU, DEMO, table
from protocol.generation import GenerationConfig
from server.continuous_batching.llm import LLM
from server.scheduling.plan import Plan
from server.scheduling.policies import POLICIES


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--policy", choices=POLICIES, default="first_come")
    parser.add_argument("--chunk", type=int, default=64, help="prompt tokens of a step")
    args = parser.parse_args(argv)
    llm = LLM(
        DEMO,
        model_loading_config=CPU,
        batcher_config={"policy": args.policy, "prefill_chunk_tokens": args.chunk, "batch_max_beams": 4},
        cache_config={"num_blocks": 64, "num_blocks_cpu": 0},
    )
    short, long = [1, *range(100, 115)], [1, *range(100, 299)]
    waiting = [llm._request(short, _options(12)) for _ in range(3)]
    for request in waiting:
        llm.engine.add(request)
    plans: list[Plan] = []
    schedule = llm.engine.scheduler.schedule

    def record(now: float, **options: float) -> Plan:
        plans.append(schedule(now, **options))
        return plans[-1]

    llm.engine.scheduler.schedule = record  # type: ignore[method-assign]
    while llm.engine.has_work:
        if len(plans) == 4:
            llm.engine.add(llm._request(long, _options(4)))
        llm.engine.step()
    rows = [
        [i, len(plan.decodes), plan.num_prompt_tokens] for i, plan in enumerate(plans) if not plan.is_empty
    ]
    table(["step", "decodes", "prompt tokens"], rows)


def _options(tokens: int) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=tokens, ignore_eos=True)


if __name__ == "__main__":
    main()
