"""Measures a checkpoint of the demo model with transformers: arithmetic, facts, tools, records, samples.

Usage: ``.venv/bin/python -m demo_model.evaluate demo_model/checkpoint``
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch

from demo_model.answering import Checkpoint
from demo_model.corpus import held_out_problems, result_in
from demo_model.corpus.arithmetic import Problem
from demo_model.corpus.facts import all_facts
from demo_model.evaluate_tools import report_records, report_tools

# phrasings of a held-out problem: {w} is "plus" or "minus", {o} its sign
PHRASINGS = (
    "What is {a} {w} {b}?",
    "How much is {a} {w} {b}?",
    "What is {a} {o} {b}?",
    "{a} {o} {b} =",
    "{a}{o}{b}=",
)
CHATS: tuple[tuple[str, ...], ...] = (
    ("Hello!", "Who are you?", "What can you do?"),
    ("What is 17 plus 25?", "And minus 12?", "What is the capital of France?", "And of Italy?", "Thank you!"),
    ("My name is Zoltan.", "What is 3 + 4?", "What is my name?"),
    ("What is 12 times 12?", "What is 345 plus 12?", "Who wrote War and Peace?"),
    ("你好", "17加25等于多少？", "给我讲一个关于狐狸的故事。"),
    ("Tell me a story about a fox.", "Another one, please."),
    ("Tell me a story about a robot named Max.",),
)
PROMPTS = (
    "What is 17 plus 25?",
    "17 + 25 = ",
    "Once upon a time",
    "The capital of France is",
    "Hello, my name is",
    "Tell me a story about a dragon.",
    "1 + 1 = 2\n5 + 6 = 11\n17 + 25 =",
)


def share_right(checkpoint: Checkpoint, problems: Sequence[Problem], phrasing: str, *, chat: bool) -> float:
    """Share of `problems` whose answer ends with the right number, as a percentage."""
    questions = [problem.fill(phrasing) for problem in problems]
    prompts = [checkpoint.chat_prompt([question]) for question in questions] if chat else questions
    replies = checkpoint.answers(prompts, special=not chat)
    right = sum(result_in(reply) == p.result for reply, p in zip(replies, problems, strict=True))
    return 100 * right / len(problems)


def report_arithmetic(checkpoint: Checkpoint, count: int | None) -> None:
    """Prints a table: phrasings × (sums, differences) × (chat, bare prompt)."""
    held_out = held_out_problems()
    problems = {o: [problem for problem in held_out if problem.operator == o] for o in "+-"}
    if count:
        problems = {o: Random(0).sample(some, count) for o, some in problems.items()}
    print("| phrasing | sums, chat | sums, bare | differences, chat | differences, bare |")
    print("|---|---|---|---|---|")
    for phrasing in PHRASINGS:
        shares = [
            share_right(checkpoint, problems[o], phrasing, chat=chat) for o in "+-" for chat in (True, False)
        ]
        print(f"| `{phrasing}` | " + " | ".join(f"{share:.2f} %" for share in shares) + " |", flush=True)
    print(f"({len(problems['+']):,} sums and {len(problems['-']):,} differences, none seen in training)\n")


def report_facts(checkpoint: Checkpoint) -> None:
    """Prints how many facts are answered rightly, in every phrasing."""
    asked = [(question, fact.answer) for fact in all_facts() for question in fact.questions]
    replies = checkpoint.answers([checkpoint.chat_prompt([q]) for q, _ in asked], special=False)
    wrong = [(q, reply) for (q, answer), reply in zip(asked, replies, strict=True) if reply != answer]
    print(f"facts: {len(asked) - len(wrong)} of {len(asked)} questions right", *wrong[:10], sep="\n  ")


def report_samples(checkpoint: Checkpoint) -> None:
    """Prints conversations and continuations, for a person to read."""
    for system in (None, "You are a helpful assistant."):
        for questions in CHATS:
            turns: list[str] = []
            for question in questions:
                turns.append(question)
                prompt = checkpoint.chat_prompt(turns, system)
                turns += checkpoint.answers([prompt], special=False, max_new_tokens=400)
                print(f"> {question}\n{turns[-1]}")
            print()
    for prompt in PROMPTS:
        print(f"[{prompt}]{checkpoint.answers([prompt], special=True, max_new_tokens=300)[0]}\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measures a checkpoint of the demo model.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--count", type=int, help="held-out problems for each phrasing (default: all)")
    parser.add_argument("--forms", type=int, default=1000, help="prompts with tools, and records to fill")
    options = parser.parse_args()
    checkpoint = Checkpoint(options.checkpoint, getattr(torch, options.dtype), options.device)
    report_arithmetic(checkpoint, options.count)
    report_facts(checkpoint)
    report_tools(checkpoint, options.forms)
    report_records(checkpoint, options.forms)
    report_samples(checkpoint)


if __name__ == "__main__":
    main()
