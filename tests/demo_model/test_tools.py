"""The shipped checkpoint calls tools, says what they returned, and fills records."""

from __future__ import annotations

import json
from random import Random

import pytest

from demo_model.answering import Checkpoint
from demo_model.corpus import records
from demo_model.corpus.calculator import Calculator, use
from demo_model.corpus.definitions import Call
from demo_model.evaluate_tools import calls_in, report_records, report_tools, round_trip

CALCULATOR = {
    "name": "calculator",
    "description": "Evaluate an arithmetic expression.",
    "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}},
}
TOOLS = [{"type": "function", "function": CALCULATOR}]


def test_held_out_calculations_are_called_for_and_answered(checkpoint: Checkpoint) -> None:
    rng = Random(5)
    asked = [(calculator, use(rng, calculator, held_out=True)) for calculator in map(Calculator, [rng] * 24)]
    prompts = [checkpoint.prompt(round_trip(used)[:1], made.definitions) for made, used in asked]
    prompts += [checkpoint.prompt(round_trip(used), made.definitions) for made, used in asked]
    said = checkpoint.answers(prompts, special=False, max_new_tokens=120)
    called = [calls_in(text) == list(used.calls) for text, (_, used) in zip(said, asked, strict=False)]
    answered = [text == used.answer for text, (_, used) in zip(said[24:], asked, strict=True)]
    assert sum(called) >= 23 and sum(answered) >= 23


def test_what_needs_no_tool_is_answered_at_once(checkpoint: Checkpoint) -> None:
    questions = ("What is the capital of Italy?", "Hello!", "What is 4321 times 1234?")
    prompts = [checkpoint.prompt([{"role": "user", "content": question}], TOOLS) for question in questions]
    fact, greeting, call = checkpoint.answers(prompts, special=False)
    assert fact == "The capital of Italy is Rome."
    assert "tool_call" not in greeting
    assert calls_in(call) == [Call("calculator", {"expression": "4321 * 1234"})]


def test_held_out_records_are_filled(checkpoint: Checkpoint) -> None:
    rng = Random(5)
    asked = [records.request(rng, held_out=True) for _ in range(24)]
    asked = [one for one in asked if one.kind != "calculation"]  # these take thinking, too
    told = [records.ask(rng, one, keys_told=True) for one in asked]
    prompts = [checkpoint.chat_prompt([said], system) for system, said in told]
    filled = checkpoint.answers(prompts, special=False, max_new_tokens=96)
    right = [text == json.dumps(one.record) for text, one in zip(filled, asked, strict=True)]
    assert sum(right) >= len(right) - 1


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', [Call("f", {"a": 1})]),
        ("17 plus 25 is 42.", None),
        ("<tool_call>\n{\n</tool_call>", None),
        ('<tool_call>\n{"name": "f"}\n</tool_call>', None),
        ("", []),
    ],
)
def test_calls_in(text: str, calls: list[Call] | None) -> None:
    assert calls_in(text) == calls


def test_the_reports_count(checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    report_tools(checkpoint, 2)
    report_records(checkpoint, 2)
    printed = capsys.readouterr().out
    assert printed.count("% of 2\n") >= 5
