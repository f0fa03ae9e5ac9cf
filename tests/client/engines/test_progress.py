"""How far an answer has come: places from which it goes on, and text that is said again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.relay.progress import Progress
from client.upstream.classify import Diverged
from tests.client.engines.fakes import answer_ids, texts_of

PROMPT = [1, 2, 3]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 4)), max_size=6), st.booleans())
def test_the_client_gets_each_character_once(cuts: list[tuple[int, int]], movable: bool) -> None:
    """Wherever connections are cut, and however many tokens an event has."""
    count = 60
    progress, got = Progress(movable=movable), ""
    for length, size in [*cuts, (count, 1)]:
        begun = progress.token_ids
        ids = answer_ids(PROMPT + begun, count - len(begun))
        texts = texts_of(ids)
        for at in range(0, len(ids), size)[:length] if length < count else range(0, len(ids), size):
            piece, text = ids[at : at + size], "".join(texts[at : at + size])
            told = ",".join(map(str, piece)).encode()
            new = progress.new_text(text)
            got += new
            if not (size == 1 and text and progress.agree(told)):
                progress.beyond(told, new)
        progress.go_on()
    assert got == "".join(texts_of(answer_ids(PROMPT, count)))


def test_another_text_is_noticed() -> None:
    progress = Progress(movable=False)
    progress.beyond(b"1", " one")
    progress.go_on()
    assert progress.new_text(" o") == "" and progress.overlap
    with pytest.raises(Diverged):
        progress.new_text("nly")
