"""Turns the deltas of a stream into its events; a stream that another server began goes on exactly.

What the events of a token are follows from the prompt and the tokens up to it: half a tool call, the number
of an event. So a stream is resumed by writing it anew up to where it was cut, without sending any of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from protocol import sse
from server.api.deltas import Coalescer
from server.api.jobs import Call
from server.api.service import Delta
from server.api.shapes import Shape, TokenCounts
from server.text.detokenizer import Detokenizer
from server.text.vocabulary import Vocabulary


class EventWriter:
    """Writes one stream.

    Args:
        call: what is answered.
        shape: how.
        vocabulary: the bytes of each token.
        checkpoints: tell a gateway how far the stream has come.
    """

    def __init__(self, call: Call, shape: Shape, vocabulary: Vocabulary, *, checkpoints: bool) -> None:
        self._call = call
        self._shape = shape
        self._checkpoints = checkpoints
        self._size = call.config.num_choices
        self._prompt_tokens = call.prompt_tokens
        self._coalescer = Coalescer()
        self._begun: set[int] = set()
        self._tokens = 0
        """Of all answers, as far as the stream has dealt with them."""
        self._cached = 0
        """Of the prompts in `_told`, what the server that began with each had in its cache."""
        self._told: set[int] = set()
        self._go_on(vocabulary)

    def _go_on(self, vocabulary: Vocabulary) -> None:
        """Come to the state in which the server before was."""
        call, sent = self._call, already_sent(self._call)
        if call.resume is not None:
            self._cached = call.resume.cached_tokens
            self._told = {
                index // call.config.num_choices
                for index, choice in enumerate(call.resume.choices)
                if choice.token_ids or choice.finished
            }
        if call.reader is not None or self._shape.counts_events:
            for delta in _sent_deltas(call, vocabulary.showing(call.shown_markers)):
                self.write(delta)
        self._tokens = sum(map(len, sent))
        self._begun = {index for index, token_ids in enumerate(sent) if token_ids}

    def write(self, piece: Delta) -> bytes | None:
        """The events for the next delta, or None where there is nothing to show yet."""
        if self._call.reader is not None:
            self._call.reader.read(piece)
        delta = self._coalescer.feed(piece)
        if delta is None:
            return None
        self._tokens += len(delta.token_ids)
        first = delta.index not in self._begun
        self._begun.add(delta.index)
        cached = 0
        if (prompt := delta.index // self._size) not in self._told:
            self._told.add(prompt)
            cached = delta.cached_tokens
            self._cached += cached
        comments = self._comments(delta, cached) if self._checkpoints else None
        return sse.group(self._shape.event(delta, first, self._counts), comments=comments)

    def _comments(self, delta: Delta, cached: int) -> bytes:
        """Those of the last event for `delta`, for a gateway."""
        finished = delta.finish_reason is not None
        comments = sse.checkpoint(delta.index, delta.token_ids, finished)
        if cached:
            comments = sse.cached(cached) + comments
        return sse.END + comments if finished and not self._shape.has_done else comments

    @property
    def _counts(self) -> TokenCounts:
        return TokenCounts(self._prompt_tokens, self._cached, self._tokens)

    def end(self) -> bytes:
        """What follows all answers."""
        if not self._shape.has_done:
            return b""
        last = self._shape.last_event(self._counts)
        if last is None:
            return sse.DONE
        # with the end, so that a stream that is cut between the two has neither
        more = sse.MORE if self._checkpoints else b""
        return sse.event(last, comments=more) + sse.DONE


def already_sent(call: Call) -> Sequence[Sequence[int]]:
    """The tokens of each answer that an earlier server sent."""
    if call.resume is None:
        return [[]] * call.choices
    return [choice.token_ids for choice in call.resume.choices]


def _sent_deltas(call: Call, vocabulary: Vocabulary) -> Iterator[Delta]:
    """The tokens that an earlier server sent, as they came there: one by one."""
    for index, choice in enumerate(call.resume.choices if call.resume else ()):
        if choice.finished:  # nothing more comes of it
            continue
        writer = Detokenizer(vocabulary, call.config.stop)
        for token_id in choice.token_ids:
            yield Delta(index, writer.feed([token_id]), [token_id])
