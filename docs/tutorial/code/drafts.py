"""Chapter 9: how many steps prompt lookup saves, on answers of the demo model.

.venv/bin/python -m docs.tutorial.code.drafts
"""

from __future__ import annotations

from docs.tutorial.code.common import CPU, DEMO, chat, table, tokenizer
from protocol.generation import GenerationConfig
from server.continuous_batching.llm import LLM
from server.scheduling.speculation.ngrams import NgramIndex

STORY = (
    "Once upon a time there was a cheerful hen named Toby who lived under an old oak tree. She sang a lot."
)
ASKED = {
    "a sum": chat("What is 17 plus 25?"),
    "a story": chat("Tell me a story about a fox."),
    "counting": chat("Count from 1 to 20."),
}


def replay(prompt: list[int], answer: list[int], most: int) -> tuple[int, int, int]:
    """(steps, drafted tokens, accepted ones) if each step drafts up to `most` tokens.

    The answer is the one without drafts: drafts change when its tokens come, not what they are.
    """
    index, place = NgramIndex(3), 0
    index.extend(prompt)
    steps = drafted = accepted = 0
    while place < len(answer):
        begin, size = index.find()
        draft = index.copy(begin, most) if size and most else []
        right = 0
        while right < min(len(draft), len(answer) - place - 1) and draft[right] == answer[place + right]:
            right += 1
        steps, drafted, accepted = steps + 1, drafted + len(draft), accepted + right
        index.extend(answer[place : place + right + 1])  # what was accepted, and the token behind it
        place += right + 1
    return steps, drafted, accepted


def main(argv: list[str] | None = None) -> None:
    llm = LLM(DEMO, model_loading_config=CPU, cache_config={"num_blocks": 128, "num_blocks_cpu": 0})
    answers = llm.generate(list(ASKED.values()), GenerationConfig(max_new_tokens=80))
    work = [
        (name, prompt, list(generation.answers[0].token_ids))
        for (name, prompt), generation in zip(ASKED.items(), answers, strict=True)
    ]
    edited = STORY.replace("Toby", "Maya").replace("oak", "apple")
    work.append(("an edit", *(list(tokenizer().encode(text).ids) for text in (STORY, edited))))
    rows = []
    for name, prompt, tokens in work:
        steps = [replay(prompt, tokens, most)[0] for most in (0, 2, 4, 8)]
        _, drafted, accepted = replay(prompt, tokens, 4)
        rows.append([name, *steps, f"{accepted} of {drafted}"])
    table(["answer", "steps", "drafts of 2", "of 4", "of 8", "accepted, of 4"], rows)


if __name__ == "__main__":
    main()
