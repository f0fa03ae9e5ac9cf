"""Every format, fed whole, by characters and in random pieces: the same parts each time."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from server.text.formats.parser import OutputParser
from server.text.formats.parts import CallArguments, Called, Parsed, Part, join
from server.text.formats.registry import FORMATS
from server.text.formats.tool_types import Tools
from tests.text.formats.answers import ANSWERS, HERMES, SCHEMAS, WEATHER, read


@pytest.mark.parametrize(("name", "text", "parsed"), ANSWERS)
def test_an_answer_is_sorted(name: str, text: str, parsed: Parsed) -> None:
    assert read(name, [text]) == parsed
    assert read(name, text) == parsed
    for size in (2, 3, 5, 8):
        assert read(name, [text[i : i + size] for i in range(0, len(text), size)]) == parsed


def given_out(name: str, pieces: list[str]) -> list[list[Part]]:
    """All that was given out after each piece."""
    chosen = FORMATS[name]
    parser = OutputParser(chosen.thinking, chosen.calls, chosen.noise, Tools(SCHEMAS))
    so_far: list[Part] = []
    history = []
    for piece in pieces:
        join(so_far, [*parser.feed(piece)])
        history.append([type(part)(**{n: getattr(part, n) for n in part.__slots__}) for part in so_far])
    return history


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_what_was_given_out_follows_from_the_text_alone(data: st.DataObject) -> None:
    name, text, _ = data.draw(st.sampled_from(ANSWERS))
    # garbage in between: what is no call, or no end of one
    place = data.draw(st.integers(0, len(text)))
    text = text[:place] + data.draw(st.sampled_from(["", "x", "<", '"', "}", "\n", " ", "{"])) + text[place:]
    cuts = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text)), max_size=8))})
    pieces = [text[a:b] for a, b in pairwise(cuts)]
    by_character = given_out(name, list(text))
    in_pieces = given_out(name, pieces)
    for cut, parts in zip(cuts[1:], in_pieces, strict=True):
        assert parts == by_character[cut - 1]
    assert read(name, pieces) == read(name, text)


MARKERS = re.compile(r"[<\[{｜]")
"""What no marker is without."""


@given(text=st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_plain_text_stays_as_it_is(text: str) -> None:
    assume(not MARKERS.search(text))
    for name in ("hermes", "mistral", "deepseek", "llama3_json", "pythonic"):
        assert read(name, [text]) == Parsed(text, "", [])


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_text_breaks_the_parser(name: str, data: st.DataObject) -> None:
    chosen = FORMATS[name]
    calls = chosen.calls
    marks = [
        *chosen.noise,
        *chosen.inner,
        "get_weather",
        "now",
        '{"name": "now"',
        "{",
        "}",
        "(",
        ")",
        '"',
        "\n",
    ]
    if calls is not None:
        marks += [*calls.opens, *calls.closes, *calls.sections]
    if chosen.thinking is not None:
        marks += [chosen.thinking.open, chosen.thinking.close]
    text = "".join(data.draw(st.lists(st.sampled_from(marks), max_size=30)))
    assert read(name, [text]) == read(name, text)


def test_arguments_come_while_they_are_written() -> None:
    chosen = FORMATS["hermes"]
    parser = OutputParser(chosen.thinking, chosen.calls, (), Tools(SCHEMAS))
    pieces = ['<tool_call>{"name": "get_weather", "arguments": ', '{"city": "Pa', 'ris", "days": 2}', "}"]
    came = [parser.feed(piece) for piece in pieces]
    texts = [[part.text for part in parts if isinstance(part, CallArguments)] for parts in came]
    assert texts == [[], ['{"city": "Pa'], ['ris", "days": 2}'], []]


def test_a_prompt_may_have_begun_the_reasoning() -> None:
    assert read("hermes", "\nhm\n</think>\n\nyes", in_reasoning=True) == Parsed("yes", "hm", [])


def test_the_first_call_may_end_the_answer() -> None:
    assert read("hermes", f"{HERMES}\n{HERMES} more", single=True) == Parsed("", "", [WEATHER])


def test_a_call_that_breaks_after_its_beginning_is_cut_and_the_rest_is_text() -> None:
    broken = '<tool_call>{"name": "get_weather", "arguments": {"city": oops}}</tool_call>'
    parsed = read("hermes", broken)
    assert parsed == Parsed("oops}}</tool_call>", "", [Called("get_weather", '{"city": ')])


def test_hostile_arguments_are_bounded() -> None:
    deep = '<tool_call>{"name": "now", "arguments": ' + '{"a":' * 10_000
    parsed = read("hermes", [deep])
    assert len(parsed.calls) == 1 and parsed.calls[0].arguments.count("{") == 256
    brackets = "[now(a=" + "(" * 100_000
    assert read("pythonic", [brackets]) == Parsed(brackets, "", [])
    many = "<｜tool▁call▁begin｜>" + "a" * 100_000
    assert read("deepseek", [many]).content == many


@pytest.mark.parametrize(
    "value", ["-0", "1e5", '"\\ud83d\\ude00\\n"', "[]", "[1, 2]", "true", "null", '{"a": {}}']
)
def test_arguments_are_json(value: str) -> None:
    arguments = f'{{"x": {value}, "y": [{value}]}}'
    text = f'<tool_call>{{"name": "now", "arguments": {arguments}}}</tool_call>'
    (call,) = read("hermes", text).calls
    assert call.arguments == arguments and json.loads(arguments)


@pytest.mark.parametrize(
    "value", ["01", "1.", "+1", "nul", "'a'", '"\t"', '"\\x"', "[1,]", "{,}", '{"a" 1}', ".5"]
)
def test_what_is_no_json_ends_the_call(value: str) -> None:
    text = f'<tool_call>{{"name": "now", "arguments": {{"x": {value}}}}}</tool_call>'
    parsed = read("hermes", text)
    (call,) = parsed.calls
    assert text.endswith(parsed.content) and parsed.content
    with pytest.raises(ValueError, match=r".*"):
        json.loads(call.arguments)
