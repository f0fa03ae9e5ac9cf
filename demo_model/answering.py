"""A checkpoint of the demo model as transformers loads it: prompts and greedy answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer


class Checkpoint:
    """The model and its tokenizer.

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
        return self.prompt(messages)

    def prompt(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
        """The prompt of a conversation in OpenAI's form."""
        prompt: str = self.tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=True
        )
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
