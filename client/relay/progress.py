"""How far an answer of an engine that is not ours has come, in tokens and in text."""

from __future__ import annotations

import orjson

from client.upstream.classify import Diverged


class Progress:
    """The token ids up to the last place where text and tokens agree, and the text that is beyond it.

    Args:
        movable: whether the answer goes on from any such place; else only from its beginning.
    """

    __slots__ = ("_ids", "_later", "_movable", "_overlap", "_sent")

    def __init__(self, *, movable: bool) -> None:
        self._movable = movable
        self._ids: list[bytes] = []  # as the engine wrote them, comma-separated
        self._later: list[bytes] = []
        self._sent: list[str] = []
        self._overlap = ""

    @property
    def token_ids(self) -> list[int]:
        """Those up to the place from which the answer would go on."""
        ids: list[int] = orjson.loads(b"[" + b",".join(self._ids) + b"]")
        return ids

    def agree(self, ids: bytes) -> bool:
        """After `ids` text and tokens agree, if that is of use."""
        if not self._movable or not ids:
            return False
        self._ids += self._later
        self._ids.append(ids)
        self._later = []
        self._sent = [self._overlap] if self._overlap else []
        return True

    def beyond(self, ids: bytes, text: str) -> None:
        """`ids` came with `text`, which may lag behind them."""
        if ids:
            self._later.append(ids)
        if text:
            self._sent.append(text)

    def go_on(self) -> None:
        """Another server begins at the place of `token_ids`: it says again what is beyond."""
        self._overlap = "".join(self._sent)
        self._sent = [self._overlap]
        self._later = []

    @property
    def overlap(self) -> bool:
        """Whether there is still text that is to be said again."""
        return bool(self._overlap)

    def new_text(self, text: str) -> str:
        """What of `text` the client has not had.

        Raises:
            Diverged: it is another text than the first server's.
        """
        if not self._overlap:
            return text
        again = min(len(text), len(self._overlap))
        if text[:again] != self._overlap[:again]:
            raise Diverged
        self._overlap = self._overlap[again:]
        return text[again:]
