"""The bytes that each token stands for.

Detokenising and stop-string search work on bytes: a token may hold half a character, or half a
stop string, and bytes can be joined without looking back.
"""

from __future__ import annotations

import copy
import re
from typing import Any

_BYTE_TOKEN = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in of every byte, as character → byte."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    alphabet = {chr(byte): byte for byte in printable}
    hidden = [byte for byte in range(256) if byte not in alphabet.values()]
    alphabet |= {chr(256 + i): byte for i, byte in enumerate(hidden)}
    return alphabet


class Vocabulary:
    """Token id → bytes, for a tokenizer of transformers.

    Byte-level BPE (GPT-2, Llama 3, Qwen) and SentencePiece with byte fallback (Llama 1/2,
    Mistral) are read from the tokens themselves; any other tokenizer is asked what each token
    adds after an ordinary one. Special tokens show nothing.

    Args:
        tokenizer: a ``PreTrainedTokenizerBase``; ids past its last one show nothing.
    """

    def __init__(self, tokenizer: Any) -> None:
        count = len(tokenizer)
        tokens: list[str | None] = tokenizer.convert_ids_to_tokens(list(range(count)))
        # a special token may be named that the tokenizer does not have
        special = {token_id for token_id in tokenizer.all_special_ids if token_id is not None}
        added = {i: str(t.content) for i, t in getattr(tokenizer, "added_tokens_decoder", {}).items()}
        special |= {i for i, t in getattr(tokenizer, "added_tokens_decoder", {}).items() if t.special}
        spell = _speller(tokenizer, tokens)
        table = [b""] * count
        for token_id, token in enumerate(tokens):
            if token is not None:
                table[token_id] = added[token_id].encode() if token_id in added else spell(token_id, token)
        self._spelled = table
        self._special = special
        self._views: dict[str | None, Vocabulary] = {}
        self._shown = [b"" if token_id in special else text for token_id, text in enumerate(table)]
        self.longest = max(len(text.decode(errors="replace")) for text in table)
        """Characters that one token can stand for."""

    def __len__(self) -> int:
        return len(self._shown)

    def __getitem__(self, token_id: int) -> bytes:
        """What the token adds to the text that is shown."""
        return self._shown[token_id] if token_id < len(self._shown) else b""

    def spelled(self, token_id: int) -> bytes:
        """The same, but a special token stands for its name, so that a stop string can name it."""
        return self._spelled[token_id] if token_id < len(self._spelled) else b""

    def showing(self, markers: str | None) -> Vocabulary:
        """The same, where special tokens that stand in the text `markers` are shown, too; None: all.

        A view is kept: there are as many as formats of answers.
        """
        if markers not in self._views:
            self._views[markers] = self._view(markers)
        return self._views[markers]

    def _view(self, markers: str | None) -> Vocabulary:
        shown = [
            token_id
            for token_id in self._special
            if token_id < len(self._spelled)
            and (text := self._spelled[token_id])
            and (markers is None or text.decode(errors="replace") in markers)
        ]
        view = copy.copy(self)
        view._shown = self._shown.copy()
        for token_id in shown:
            view._shown[token_id] = self._spelled[token_id]
        return view


def _speller(tokenizer: Any, tokens: list[str | None]) -> Any:
    """A function (token id, token) → bytes for the family that `tokenizer` belongs to."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = "" if backend is None else str(backend.decoder)
    if "ByteLevel" in decoder:
        alphabet = _byte_level_alphabet()

        def byte_level(_: int, token: str) -> bytes:
            if all(char in alphabet for char in token):
                return bytes(alphabet[char] for char in token)
            return token.encode()

        return byte_level
    if "▁" in decoder or any(token and token.startswith("▁") for token in tokens[:1000]):

        def sentencepiece(_: int, token: str) -> bytes:
            byte = _BYTE_TOKEN.match(token)
            return bytes([int(byte.group(1), 16)]) if byte else token.replace("▁", " ").encode()

        return sentencepiece
    anchor = next(i for i, token in enumerate(tokens) if token and token.isalpha())
    prefix = tokenizer.decode([anchor])

    def by_decoding(token_id: int, _: str) -> bytes:
        return str(tokenizer.decode([anchor, token_id])).removeprefix(prefix).encode()

    return by_decoding
