"""Token ids to text as they come, never half a character, never past a stop string.

Stop strings are searched in the bytes of the tokens, in which special tokens, though they are not
shown, stand for their names: a stop string can name one, and none spans one unnoticed. An answer ends
with the token in which the first stop string ends; of several that end at the same byte the longest
counts. `StopMatcher` finds that token where tokens are chosen, `Detokenizer` the place in the text.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from itertools import compress

from server.text.vocabulary import Vocabulary


class Detokenizer:
    """Turns the tokens of one answer into text, piece by piece.

    Text is held back while it may still be the beginning of a stop string or of a character. What is
    given out depends on the tokens alone, not on how they were grouped into calls, so that a peer that
    is fed the same tokens has given out the same text.

    Args:
        vocabulary: the bytes of each token.
        stop: stop strings, none empty.
    """

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str] = ()) -> None:
        self._vocabulary = vocabulary
        self._stop = tuple(text.encode() for text in stop)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = bytearray()  # as spelled
        self._visible = bytearray()  # for each byte of it: 1 if it is shown
        self.stopped = False
        self.stop: str | None = None
        """The stop string that ended the answer."""

    def feed(self, token_ids: Sequence[int]) -> str:
        """The text that can be shown after these further tokens (possibly empty)."""
        if self.stopped:
            return ""
        vocabulary = self._vocabulary
        if not self._stop:
            return self._utf8.decode(b"".join([vocabulary[i] for i in token_ids]))
        for token_id in token_ids:
            spelled = vocabulary.spelled(token_id)
            self._held += spelled
            self._visible += bytes([bool(vocabulary[token_id])]) * len(spelled)
        # (end, beginning, string): the first to end, and of these the longest
        found = [(at + len(stop), at, stop) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            _, begin, stop = min(found)
            self.stopped, self.stop = True, stop.decode()
            return self._utf8.decode(self._release(begin), final=True)
        keep = max(_overlap(self._held, stop) for stop in self._stop)
        return self._utf8.decode(self._release(len(self._held) - keep))

    def finish(self) -> str:
        """The text still held back, at the end of an answer."""
        return "" if self.stopped else self._utf8.decode(self._release(len(self._held)), final=True)

    def _release(self, size: int) -> bytes:
        """What is shown of the first `size` bytes held; they are held no longer."""
        shown = bytes(compress(self._held[:size], self._visible))
        del self._held[:size], self._visible[:size]
        return shown


def _overlap(text: bytearray, stop: bytes) -> int:
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
