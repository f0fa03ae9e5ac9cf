"""Log probabilities in the shapes of the two OpenAI routes."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from server.text.logprob import TokenLogprob
from server.text.tokenizer import Tokenizer
from server.text.vocabulary import Vocabulary

LOWEST = -9999.0
"""Stands for minus infinity, which JSON cannot write; OpenAI sends the same."""


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """How a token is shown: its text, its name where it is special, its bytes where it is less
    than a character (``bytes:\\xe4\\xbd``, as OpenAI writes it)."""
    vocabulary = tokenizer.vocabulary
    raw = vocabulary[token_id] or vocabulary.spelled(token_id)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _by_text(tokenizer: Tokenizer, entry: TokenLogprob, top: int | None = None) -> dict[str, float]:
    """Log probabilities of the chosen and the `top` likeliest tokens by their texts; None: of all reported.

    Several tokens can have one text. It stands for the chosen one, else for the likeliest; any other
    goes by its id (``token_id:17``, as vLLM writes it), so that no value is lost or another token's.
    """
    chosen = token_text(tokenizer, entry.token_id)
    reports = entry.top[:top]
    if all(token_id != entry.token_id for token_id, _ in reports):
        reports = [*reports, (entry.token_id, entry.logprob)]
    values: dict[str, float] = {}
    for token_id, logprob in reports:
        text = token_text(tokenizer, token_id)
        if token_id != entry.token_id and (text == chosen or text in values):
            text = f"token_id:{token_id}"
        values[text] = max(logprob, LOWEST)
    return values


class TextLogprobs:
    """``logprobs`` of ``/v1/completions`` and of the native route, piece by piece.

    Args:
        tokenizer: gives the text of tokens.
        vocabulary: what each of them adds to the answer.
        sent: for each answer, the token ids that an earlier server sent (their characters count
            in ``text_offset``).
        echo: the text that stands before each answer (its prompt), if any.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocabulary: Vocabulary,
        sent: Sequence[Sequence[int]],
        echo: Sequence[str] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._utf8 = [codecs.getincrementaldecoder("utf-8")(errors="replace") for _ in sent]
        self._offset = [0] * len(sent) if echo is None else list(map(len, echo))
        for index, token_ids in enumerate(sent):
            for token_id in token_ids:
                self._advance(index, token_id)

    def write(self, index: int, entries: Sequence[TokenLogprob] | None) -> dict[str, Any]:
        """The next tokens of answer `index`, as `protocol.completion.Logprobs`."""
        tokens, logprobs, tops, offsets = [], [], [], []
        for entry in entries or ():
            text = token_text(self._tokenizer, entry.token_id)
            tokens.append(text)
            logprobs.append(max(entry.logprob, LOWEST))
            tops.append(_by_text(self._tokenizer, entry))
            offsets.append(self._offset[index])
            self._advance(index, entry.token_id)
        return {
            "tokens": tokens,
            "token_logprobs": logprobs,
            "top_logprobs": tops,
            "text_offset": offsets,
        }

    def write_echo(self, text: str, first: int, entries: Sequence[TokenLogprob], top: int) -> dict[str, Any]:
        """The tokens of a prompt, as `protocol.completion.Logprobs`.

        Args:
            text: the prompt as it is echoed.
            first: its first token.
            entries: reports on the others.
            top: how many of the likeliest tokens to tell.
        """
        token_ids = [first, *(entry.token_id for entry in entries)]
        decoder, ends = codecs.getincrementaldecoder("utf-8")(errors="replace"), [0]
        for token_id in token_ids:
            ends.append(ends[-1] + len(decoder.decode(self._vocabulary[token_id])))
        # a tokenizer may put a space before the text, which is not echoed
        surplus = ends[-1] - len(text)
        return {
            "tokens": [token_text(self._tokenizer, token_id) for token_id in token_ids],
            "token_logprobs": [None, *(max(entry.logprob, LOWEST) for entry in entries)],
            "top_logprobs": [None, *(_by_text(self._tokenizer, entry, top) for entry in entries)],
            "text_offset": [min(max(end - surplus, 0), len(text)) for end in ends[:-1]],
        }

    def _advance(self, index: int, token_id: int) -> None:
        raw = self._vocabulary[token_id]
        self._offset[index] += len(self._utf8[index].decode(raw))


def prompt_logprobs(
    tokenizer: Tokenizer, entries: Sequence[TokenLogprob], top: int
) -> list[dict[str, Any] | None]:
    """`protocol.completion.PromptLogprobs`, with `top` of the likeliest tokens at each place."""

    def show(token_id: int, logprob: float, rank: int | None) -> dict[str, Any]:
        return {
            "logprob": max(logprob, LOWEST),
            "rank": rank,
            "decoded_token": token_text(tokenizer, token_id),
        }

    told: list[dict[str, Any] | None] = [None]
    for entry in entries:
        ranked = enumerate(entry.top[:top], start=1)
        line = {str(token_id): show(token_id, value, rank) for rank, (token_id, value) in ranked}
        own = show(entry.token_id, entry.logprob, entry.rank)
        told.append({str(entry.token_id): own} | line)
    return told


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprob] | None) -> dict[str, Any]:
    """The next tokens of an answer, as `protocol.openai_answers.ChatLogprobs`."""

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
