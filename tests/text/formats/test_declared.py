"""Checkpoints that describe their answers themselves, by transformers' ``response_template``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.text.formats.chosen import AnswerTools, choose_format
from server.text.formats.parts import Called, Parsed
from server.text.tokenizer import Tokenizer
from tests.checkpoints import tiny_tokenizer

TEMPLATE: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "reasoning_content": {"open": "<r>", "close": "</r>"},
        "tool_calls": {
            "open_pattern": r"<call:(?P<name>\w+)>",
            "close": "</call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {},
    },
}
TOOLS = AnswerTools([{"type": "function", "function": {"name": "now", "parameters": {}}}])

CASES = [
    (
        '<r>hm</r>Let me see. <call:now>{"a": 1}</call>',
        Parsed("Let me see.", "hm", [Called("now", '{"a": 1}')]),
    ),
    ("plain\n", Parsed("plain\n", "", [])),
    ("<call:now>oops</call> x", Parsed("oops", "", [])),
    ("<call:other>{}</call>x", Parsed("{}x", "", [])),
]


def read(text: str, prompt: str = "<|assistant|>", size: int = 1) -> Parsed:
    chosen = choose_format({}, TEMPLATE, "auto")
    parser = chosen.parser(prompt, TOOLS)
    assert parser is not None
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    parts = [part for piece in pieces for part in parser.feed(piece)]
    return Parsed.of([*parts, *parser.finish()])


@pytest.mark.parametrize(("text", "parsed"), CASES[:2])
def test_the_template_is_used(text: str, parsed: Parsed) -> None:
    assert read(text) == read(text, size=3) == read(text, size=1000) == parsed


@pytest.mark.parametrize("text", [text for text, _ in CASES[2:]])
def test_what_is_no_call_is_text(text: str) -> None:
    parsed = read(text)
    assert parsed == read(text, size=4) == read(text, size=1000)
    assert parsed.calls == [] and parsed.content


def test_the_prompt_may_have_begun_the_answer() -> None:
    assert read("hm</r>yes", prompt="<|assistant|><r>") == Parsed("yes", "hm", [])


def test_a_tokenizer_brings_it(tmp_path: Path) -> None:
    fast = tiny_tokenizer(tmp_path)
    fast.response_template = TEMPLATE
    fast.save_pretrained(tmp_path)
    chosen = Tokenizer(tmp_path).answer_format
    assert chosen.told == {"name": "response_template", "reason": "the checkpoint's own"}
    assert Tokenizer(tmp_path, chat_format="hermes").answer_format.name == "hermes"
    assert Tokenizer(tmp_path, chat_format="none").answer_format.parser("x", TOOLS) is None
