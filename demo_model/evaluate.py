"""Measures a checkpoint of the demo model with transformers: held-out arithmetic, facts, samples.

Usage: ``.venv/bin/python -m demo_model.evaluate demo_model/checkpoint``
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo_model.corpus import held_out_problems, result_in
from demo_model.corpus.arithmetic import Problem
from demo_model.corpus.facts import all_facts

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


class Checkpoint:
    """A checkpoint as transformers loads it.

    Args:
        path: its directory.
        dtype: what it computes in; the stored weights are bfloat16.
        device: where it computes.
    """

    def __init__(self, path: Path, dtype: torch.dtype, device: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device).eval()

    def chat_prompt(self, turns: Sequence[str], system: str | None = None) -> str:
        """The prompt after `turns`, user and assistant in alternation, beginning with the user."""
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
        prompt: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return prompt

    def answers(self, prompts: Sequence[str], *, special: bool, max_new_tokens: int = 48) -> list[str]:
        """Greedy answers, in the order of `prompts`.

        Args:
            prompts: texts; chat prompts already hold their special tokens.
            special: add the special tokens that a bare prompt begins with.
            max_new_tokens: where an answer is cut off at the latest.
        """
        texts: list[str] = []
        for start in tqdm(range(0, len(prompts), 256), "generating", leave=False, disable=len(prompts) < 256):
            some = list(prompts[start : start + 256])
            batch = self.tokenizer(some, add_special_tokens=special, padding=True, return_tensors="pt")
            batch = batch.to(self.model.device)
            with torch.inference_mode():
                tokens = self.model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
            new = tokens[:, batch["input_ids"].shape[1] :]
            texts += self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return texts

    def share_right(self, problems: Sequence[Problem], phrasing: str, *, chat: bool) -> float:
        """Share of `problems` whose answer ends with the right number, as a percentage."""
        questions = [problem.fill(phrasing) for problem in problems]
        prompts = [self.chat_prompt([question]) for question in questions] if chat else questions
        replies = self.answers(prompts, special=not chat)
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
            checkpoint.share_right(problems[o], phrasing, chat=chat) for o in "+-" for chat in (True, False)
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
    options = parser.parse_args()
    checkpoint = Checkpoint(options.checkpoint, getattr(torch, options.dtype), options.device)
    report_arithmetic(checkpoint, options.count)
    report_facts(checkpoint)
    report_samples(checkpoint)


if __name__ == "__main__":
    main()
