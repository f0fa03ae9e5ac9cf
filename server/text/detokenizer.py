"""Token ids to text as they come, never half a character, never past a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from server.text.vocabulary import Vocabulary


class Detokenizer:
    """Turns the tokens of one answer into text, piece by piece.

    Text is held back while it may still be the beginning of a stop string or of a character; the
    joined pieces never contain a stop string. What is given out depends on the tokens alone, not
    on how they were grouped into calls, so that a peer that is fed the same tokens has given out
    the same text.

    Args:
        vocabulary: the bytes of each token.
        stop: stop strings, none empty.
    """

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str] = ()) -> None:
        self._vocabulary = vocabulary
        self._stop = tuple(stop)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False

    def feed(self, token_ids: Sequence[int]) -> str:
        """The text that can be shown after these further tokens (possibly empty)."""
        if self.stopped:
            return ""
        vocabulary = self._vocabulary
        text = self._utf8.decode(b"".join([vocabulary[i] for i in token_ids]))
        return text if not self._stop else self._search(text)

    def finish(self) -> str:
        """The text still held back, at the end of an answer."""
        if self.stopped:
            return ""
        text = self._utf8.decode(b"", final=True)
        shown = text if not self._stop else self._search(text)
        held, self._held = self._held, ""
        return shown if self.stopped else shown + held

    def _search(self, text: str) -> str:
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stop)
        shown = text[: len(text) - keep]
        self._held = text[len(text) - keep :]
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


class StopMatcher:
    """Finds out which token completes a stop string; used where tokens are chosen.

    The state of an answer is the end of its bytes (`tail`), an immutable value, so that beams
    share it freely.
    """

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str]) -> None:
        self._vocabulary = vocabulary
        self._stop = tuple(text.encode() for text in stop)
        self.keep = max(map(len, self._stop)) - 1
        """Bytes before a token that decide whether it completes a stop string."""

    def step(self, tail: bytes, token_id: int) -> tuple[bytes, bool]:
        """(new tail, whether `token_id` completes a stop string) after `tail`."""
        text = tail + self._vocabulary.spelled(token_id)
        hit = any(stop in text for stop in self._stop)
        return (text[-self.keep :] if self.keep else b""), hit
