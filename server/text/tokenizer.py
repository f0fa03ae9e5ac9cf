"""The tokenizer of a model, with its chat template."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from server.text.vocabulary import Vocabulary


class Tokenizer:
    """What the servers need of a transformers tokenizer.

    Args:
        path: directory (or hub name) with the tokenizer files.
        use_fast: ask transformers for its Rust tokenizer.
        trust_remote_code: run tokenizer code that ships with the model.
        revision: branch or commit, where `path` is a hub name.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        use_fast: bool = True,
        trust_remote_code: bool = False,
        revision: str | None = None,
    ) -> None:
        from transformers import AutoTokenizer  # slow to import: only where a tokenizer is made

        options: dict[str, Any] = {"revision": revision} if revision else {}
        self.hf = AutoTokenizer.from_pretrained(
            str(path), use_fast=use_fast, trust_remote_code=trust_remote_code, **options
        )

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of `text`, with the special tokens the model expects around a prompt."""
        ids: list[int] = self.hf.encode(text, add_special_tokens=special)
        return ids

    def render_chat(self, messages: list[dict[str, str]]) -> str:
        """A conversation as text, ready for the assistant's turn; it has its special tokens already.

        Raises:
            ValueError: the model has no chat template, or the template refuses the conversation.
        """
        from jinja2 import TemplateError

        if not self.hf.chat_template:
            raise ValueError("this model has no chat template: use the completion routes")
        try:
            return str(self.hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            raise ValueError(f"the chat template refuses these messages: {error}") from error

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The bytes of each token; takes some time to make."""
        return Vocabulary(self.hf)
