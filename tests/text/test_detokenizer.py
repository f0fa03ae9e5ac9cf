"""Stop strings against a plain search of the whole answer, wherever they are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from protocol.generation import GenerationConfig
from server.static_batching.prompts import PaddedPrompts, Prompt
from server.static_batching.stopping import RowStopping, cut
from server.text.detokenizer import Detokenizer, StopMatcher
from server.text.tokenizer import Tokenizer
from server.text.vocabulary import Vocabulary
from tests.checkpoints import tiny_tokenizer

SPECIAL = {0: b"<s>", 1: b"</s>", 2: b"<pad>"}
EXAMPLES = settings(max_examples=300, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path: Path = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(path)
    return Tokenizer(path)


def spell(vocabulary: Vocabulary, ids: list[int]) -> list[tuple[int, bool]]:
    """Each byte of the answer, and whether it is shown."""
    return [(byte, i not in SPECIAL) for i in ids for byte in SPECIAL.get(i, vocabulary[i])]


def search(vocabulary: Vocabulary, ids: list[int], stops: list[str]) -> tuple[int, str, bool]:
    """(tokens of the answer, its text, whether it was stopped), by looking at every end in turn."""
    for count in range(1, len(ids) + 1):
        spelled = spell(vocabulary, ids[:count])
        whole = bytes(byte for byte, _ in spelled)
        for end in range(len(whole) + 1):
            ending = [len(stop.encode()) for stop in stops if whole[:end].endswith(stop.encode())]
            if ending:
                return count, show(spelled[: end - max(ending)]), True
    return len(ids), show(spell(vocabulary, ids)), False


def show(spelled: list[tuple[int, bool]]) -> str:
    return bytes(byte for byte, is_shown in spelled if is_shown).decode(errors="replace")


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids, many of them special or less than a character, and slices to make stop strings of."""
    token = st.one_of(st.integers(0, 2), st.integers(0, 511), st.integers(3, 12), st.integers(200, 258))
    ids = draw(st.lists(token, min_size=1, max_size=12))
    cuts = draw(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)), min_size=1, max_size=3))
    return ids, cuts


def stops_within(vocabulary: Vocabulary, ids: list[int], cuts: list[tuple[int, int]]) -> list[str]:
    """Stop strings from the middle of the answer, as it is spelled and as it is shown."""
    spelled = spell(vocabulary, ids)
    texts = [bytes(byte for byte, _ in spelled).decode(errors="replace"), show(spelled)]
    return [stop for at, size in cuts for text in texts if (stop := text[at : at + size])]


@EXAMPLES
@given(answer=answers(), data=st.data())
@example(answer=([180] * 12, [(0, 1)]), data=None)  # a stop string that only replaced bytes would spell
def test_every_search_is_the_plain_one(
    tokenizer: Tokenizer, answer: tuple[list[int], list[tuple[int, int]]], data: st.DataObject | None
) -> None:
    vocabulary = tokenizer.vocabulary
    ids, cuts = answer
    stops = stops_within(vocabulary, ids, cuts)
    assume(stops)
    count, text, stopped = search(vocabulary, ids, stops)

    matcher, tail, hits = StopMatcher(vocabulary, stops), b"", []
    for token in ids:
        tail, hit = matcher.step(tail, token)
        hits.append(hit)
    assert hits.index(True) + 1 == count if stopped else not any(hits)

    sizes = [1] * len(ids) if data is None else data.draw(st.lists(st.integers(1, 5), min_size=len(ids)))
    writer, shown, fed = Detokenizer(vocabulary, stops), "", 0
    for size in sizes:
        shown += writer.feed(ids[fed : fed + size])
        fed += size
    assert shown + writer.finish() == text and writer.stopped == stopped


@EXAMPLES
@given(answer=answers(), data=st.data())
def test_what_is_given_out_depends_on_the_tokens_alone(
    tokenizer: Tokenizer, answer: tuple[list[int], list[tuple[int, int]]], data: st.DataObject
) -> None:
    """A peer that goes on with a stream is fed at once what the first was fed token by token."""
    ids, cuts = answer
    stops = stops_within(tokenizer.vocabulary, ids, cuts)[:1]
    upto = data.draw(st.integers(0, len(ids)))
    one, other = (Detokenizer(tokenizer.vocabulary, stops) for _ in range(2))
    assert "".join(one.feed([token]) for token in ids[:upto]) == other.feed(ids[:upto])
    assert one.feed(ids[upto:]) + one.finish() == other.feed(ids[upto:]) + other.finish()


@EXAMPLES
@given(answer=answers())
def test_rows_of_a_package_stop_where_the_plain_search_does(
    tokenizer: Tokenizer, answer: tuple[list[int], list[tuple[int, int]]]
) -> None:
    vocabulary = tokenizer.vocabulary
    ids, cuts = answer
    stops = stops_within(vocabulary, ids, cuts)
    assume(stops)
    count, _, stopped = search(vocabulary, ids, stops)
    prompt = Prompt([5, 6], GenerationConfig(max_new_tokens=len(ids) + 1, stop=stops))
    stopping = RowStopping(PaddedPrompts([prompt], 2, torch.device("cpu")), vocabulary)
    done = [bool(stopping(torch.tensor([[5, 6, *ids[:end]]]), torch.empty(0))) for end in range(1, count + 1)]
    assert done == [False] * (count - 1) + [stopped]
    assert cut(ids, prompt, [], vocabulary) == (ids[:count], "stop" if stopped else "length")


@EXAMPLES
@given(ids=st.lists(st.integers(0, 511), max_size=20))
def test_without_stops_the_text_is_that_of_transformers(tokenizer: Tokenizer, ids: list[int]) -> None:
    writer = Detokenizer(tokenizer.vocabulary)
    text = "".join(writer.feed([token]) for token in ids) + writer.finish()
    assert text == tokenizer.hf.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
