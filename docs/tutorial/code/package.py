"""Chapter 2: one package through the teaching engine, and through this server's pipeline.

.venv/bin/python -m docs.tutorial.code.package
"""

from __future__ import annotations

from docs.tutorial.code.common import DEMO, chat, table, tokenizer
from docs.tutorial.steps.model import Llama
from docs.tutorial.steps.step2_static import generate

PROMPTS = ["17加25等于多少？", "你好", "What is the capital of Italy?", "Tell me a story about a fox."]
LIMITS = [24, 24, 16, 128]


def main(argv: list[str] | None = None) -> None:
    from protocol.generation import GenerationConfig
    from server.static_batching.generate import generate as serve
    from server.static_batching.pipeline import StaticPipeline
    from server.static_batching.prompts import Prompt

    texts = tokenizer()
    prompts = [chat(text) for text in PROMPTS]
    answers, work = generate(Llama(DEMO), prompts, LIMITS)
    for text, answer in zip(PROMPTS, answers, strict=True):
        print(f"{text} → {texts.decode(answer)[:40]!r}")
    pipeline = StaticPipeline(DEMO, worker_config={"torch_dtype": "float32"})
    configs = [GenerationConfig(max_new_tokens=limit) for limit in LIMITS]
    batch = serve(pipeline._model, [Prompt(p, c) for p, c in zip(prompts, configs, strict=True)])
    same = [group[0].token_ids for group in batch.answers]
    stripped = [answer[:-1] if answer[-1] == 2 else answer for answer in answers]
    print(f"the server's answers are the same: {same in (answers, stripped)}")
    rows = [
        ["step 2", work.prompt, work.padding, work.decoded, work.useful, f"{work.useful / work.decoded:.0%}"],
        ["server", work.prompt, batch.padding, batch.rows * batch.steps, batch.useful,
         f"{batch.useful / (batch.rows * batch.steps):.0%}"],
    ]  # fmt: skip
    table(["", "prompt tokens", "padding", "row-steps", "useful", "share"], rows)


if __name__ == "__main__":
    main()
