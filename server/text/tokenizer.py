"""The tokenizer of a model, with its chat template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError

from server.text.conversation import Conversation
from server.text.formats.chosen import ChosenFormat, choose_format
from server.text.formats.registry import AUTO
from server.text.vocabulary import Vocabulary
from utils.messages import one_line


class Tokenizer:
    """What the servers need of a transformers tokenizer.

    Args:
        source: it, or the directory that holds its files.
        chat_format: how answers hold tool calls and reasoning; a name of `formats.registry.NAMES`.
        sanitize_control_tokens: encode control tokens that stand in a conversation as ordinary text.
    """

    def __init__(
        self, source: Any, *, chat_format: str = AUTO, sanitize_control_tokens: bool = False
    ) -> None:
        self.hf = source
        if isinstance(source, str | Path):
            from transformers import AutoTokenizer  # slow to import: only where a tokenizer is made

            self.hf = AutoTokenizer.from_pretrained(str(source))
        self._chat_format = chat_format
        self._sanitize = sanitize_control_tokens

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of `text`, with the special tokens the model expects around a prompt.

        Raises:
            ValueError: the tokenizer cannot take this text.
        """
        try:
            if self._fast is not None:
                return list(self._fast.encode_batch_fast([text], add_special_tokens=special)[0].ids)
            ids: list[int] = self.hf.encode(text, add_special_tokens=special)
        except (MemoryError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of Rust code is no Exception
            raise ValueError(f"the text cannot be tokenised: {one_line(error)}") from error
        return ids

    @cached_property
    def _fast(self) -> Any | None:
        """The tokenizer in Rust, where transformers' does nothing but to call it.

        Asked without offsets and for a batch it takes half the time, and leaves the interpreter to other
        threads: a prompt of 100,000 characters would hold up every stream for a tenth of a second.
        """
        from transformers import PreTrainedTokenizerFast

        known = PreTrainedTokenizerFast
        own = type(self.hf) if isinstance(self.hf, known) else None
        if own is None or (own._encode_plus, own.encode) != (known._encode_plus, known.encode):
            return None  # it has a way of its own
        fast = self.hf.backend_tokenizer
        fast.no_truncation()
        fast.no_padding()
        fast.encode_special_tokens = self.hf.split_special_tokens
        return fast

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a prompt, without special tokens; ids past the tokenizer's show nothing."""
        known = [token_id for token_id in token_ids if token_id < len(self.hf)]
        return str(self.hf.decode(known, skip_special_tokens=True))

    @cached_property
    def chat_templates(self) -> dict[str, str]:
        """The chat templates by name; most tokenizers have one, ``default``, or none."""
        templates = self.hf.chat_template or {}
        return dict(templates) if isinstance(templates, dict) else {"default": str(templates)}

    @cached_property
    def added_tokens(self) -> dict[str, int]:
        """The tokens that were added to the vocabulary by name: special ones, and markers that are text."""
        return {str(token.content): token_id for token_id, token in self.hf.added_tokens_decoder.items()}

    @cached_property
    def answer_format(self) -> ChosenFormat:
        """How tool calls and reasoning stand in the answers of this checkpoint."""
        return choose_format(
            self.chat_templates, getattr(self.hf, "response_template", None), self._chat_format
        )

    def template_has(self, name: str) -> bool:
        """Whether the chat template looks at a variable of this `name`."""
        pattern = re.compile(rf"\b{re.escape(name)}\b")
        return any(pattern.search(template) for template in self.chat_templates.values())

    def template_shows(self, mark: str) -> bool:
        """Whether the text `mark` stands in the chat template."""
        return any(mark in template for template in self.chat_templates.values())

    def render_chat(self, conversation: Conversation) -> str:
        """A conversation as text, by the checkpoint's own template; it has its special tokens already.

        Raises:
            ValueError: the model has no chat template, or the template refuses the conversation or fails.
            TimeoutError: raised in this thread from outside (`deadline`).
        """
        return str(self._apply_template(conversation, tokenize=False))

    def encode_chat(self, conversation: Conversation, text: str) -> list[int]:
        """The tokens of a conversation.

        Where `sanitize_control_tokens` is set, only the template itself writes control tokens: those
        that stand in messages, tools or variables are encoded as ordinary text.

        Args:
            text: what `render_chat` made of it.

        Raises:
            ValueError, TimeoutError: as `render_chat` and `encode`.
        """
        if not self._sanitize:
            return self.encode(text, special=False)
        ids = self._apply_template(
            conversation, tokenize=True, return_dict=False, sanitize_control_tokens=True
        )
        return [int(token_id) for token_id in ids]

    def _apply_template(self, conversation: Conversation, **options: Any) -> Any:
        if not self.chat_templates:
            raise ValueError("this model has no chat template: use the completion routes")
        tools = [tool.definition() for tool in conversation.tools] or None
        messages = conversation.template_messages(
            "\n".join(self.chat_templates.values()),
            arguments_as_text=self.answer_format.format.arguments_as_text,
        )
        try:
            return self.hf.apply_chat_template(
                messages,
                tools=tools,
                add_generation_prompt=conversation.add_generation_prompt,
                continue_final_message=conversation.continue_final_message,
                **options,
                **conversation.variables,
            )
        except (MemoryError, TimeoutError):
            raise
        except TemplateSyntaxError as error:
            message = f"this model's chat template cannot be read (line {error.lineno}): {one_line(error)}"
            raise ValueError(message) from error
        except Exception as error:  # a template can do what it likes: divide by zero, recur without end
            raise ValueError(f"the chat template refuses these messages: {one_line(error)}") from error

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The bytes of each token; takes some time to make."""
        return Vocabulary(self.hf)
