"""Log probabilities in the shapes of the two OpenAI routes."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from server.text.logprob import TokenLogprob
from server.text.tokenizer import Tokenizer

LOWEST = -9999.0
"""Stands for minus infinity, which JSON cannot write; OpenAI sends the same."""


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """How a token is shown: its text, its name where it is special, its bytes where it is less
    than a character (``bytes:\\xe4\\xbd``, as OpenAI writes it)."""
    raw = tokenizer.vocabulary[token_id]
    if not raw:
        return str(tokenizer.hf.convert_ids_to_tokens(token_id) or "")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


class TextLogprobs:
    """``logprobs`` of ``/v1/completions`` and of the native route, piece by piece.

    Args:
        tokenizer: gives the text of tokens.
        sent: for each answer, the token ids that an earlier server sent (their characters count
            in ``text_offset``).
    """

    def __init__(self, tokenizer: Tokenizer, sent: Sequence[Sequence[int]]) -> None:
        self._tokenizer = tokenizer
        self._utf8 = [codecs.getincrementaldecoder("utf-8")(errors="replace") for _ in sent]
        self._offset = [0] * len(sent)
        for index, token_ids in enumerate(sent):
            for token_id in token_ids:
                self._advance(index, token_id)

    def write(self, index: int, entries: Sequence[TokenLogprob] | None) -> dict[str, Any]:
        """The next tokens of answer `index`, as `protocol.completion.Logprobs`."""
        tokens, logprobs, tops, offsets = [], [], [], []
        for entry in entries or ():
            text = token_text(self._tokenizer, entry.token_id)
            top = {token_text(self._tokenizer, i): max(value, LOWEST) for i, value in entry.top}
            top.setdefault(text, max(entry.logprob, LOWEST))
            tokens.append(text)
            logprobs.append(max(entry.logprob, LOWEST))
            tops.append(top)
            offsets.append(self._offset[index])
            self._advance(index, entry.token_id)
        return {
            "tokens": tokens,
            "token_logprobs": logprobs,
            "top_logprobs": tops,
            "text_offset": offsets,
        }

    def _advance(self, index: int, token_id: int) -> None:
        raw = self._tokenizer.vocabulary[token_id]
        self._offset[index] += len(self._utf8[index].decode(raw))


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprob] | None) -> dict[str, Any]:
    """The next tokens of an answer, as `protocol.openai.ChatLogprobs`."""

    def show(token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": token_text(tokenizer, token_id),
            "logprob": max(logprob, LOWEST),
            "bytes": list(tokenizer.vocabulary[token_id]),
        }

    content = [
        show(entry.token_id, entry.logprob) | {"top_logprobs": [show(i, value) for i, value in entry.top]}
        for entry in entries or ()
    ]
    return {"content": content, "refusal": None}
