"""What a grammar lets an answer be, the parser of the same format reads as it was meant."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from server.text.formats.grammar import AnswerForm, FormTool, GrammarWriter
from server.text.formats.parser import OutputParser
from server.text.formats.parts import Parsed
from server.text.formats.registry import FORMATS
from server.text.formats.syntax import CallWriting
from server.text.formats.tool_types import Tools
from server.text.grammars.compiler import GrammarCompiler, GrammarTokens
from server.text.grammars.source import GrammarError
from server.text.tokenizer import Tokenizer
from tests.checkpoints import tiny_tokenizer
from tests.text.test_grammars import END, sampled

TOOLS = [
    FormTool(
        "add",
        {
            "type": "object",
            "properties": {
                "a": {"type": "integer"},
                "unit": {"enum": ["m", "km"]},
                "note": {"type": "string", "maxLength": 6},
                "exact": {"type": "boolean"},
                "by": {
                    "anyOf": [
                        {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
                        {"type": "null"},
                    ]
                },
            },
            "required": ["a", "unit"],
            "additionalProperties": False,
        },
        strict=True,
    ),
    FormTool("now", {"type": "object", "properties": {}, "additionalProperties": False}),
]
SCHEMA = {
    "type": "object",
    "properties": {"q": {"type": "integer"}},
    "required": ["q"],
    "additionalProperties": False,
}
WRITINGS = [(name, writing) for name, chosen in FORMATS.items() for writing in chosen.writings]


@pytest.fixture(scope="module", params=[False, True], ids=["text", "special tokens"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One whose markers are text, and one that has tokens for them."""
    path: Path = tmp_path_factory.mktemp("tokenizer")
    fast = tiny_tokenizer(path)
    if request.param:
        marks = [mark for chosen in FORMATS.values() for mark in marks_of(chosen)]
        fast.add_special_tokens({"additional_special_tokens": sorted(set(marks))})
        fast.save_pretrained(path)
    return Tokenizer(path)


def marks_of(chosen: Any) -> list[str]:
    calls, thinking = chosen.calls, chosen.thinking
    found = [*chosen.inner]
    if calls is not None:
        found += [*calls.opens, *calls.closes, *calls.sections]
    if thinking is not None:
        found += [thinking.open, thinking.close]
    return [
        mark for mark in found if mark[0] in "<[" and mark[-1] in ">]" and mark.count("<") < 2 and mark != "]"
    ]


def answers(
    tokenizer: Tokenizer, name: str, form: AnswerForm, writing: CallWriting | None, begun: str = ""
) -> list[Parsed]:
    """What the parser makes of some answers that the grammar allows, which are `begun` so."""
    chosen = FORMATS[name]
    compiler = GrammarCompiler(GrammarTokens.of(tokenizer.hf), len(tokenizer.hf), [END])
    lark = GrammarWriter(chosen, tokenizer.added_tokens).write(form, writing)
    grammar, dice = compiler.compile({"grammar": lark}, [END]), random.Random(1)
    vocabulary = tokenizer.vocabulary
    tools = Tools({tool.name: tool.parameters for tool in form.tools})
    beginning, found = tokenizer.encode(begun, special=False), []
    for _ in range(200):
        tokens = sampled(grammar, dice, 150, beginning)
        if tokens is None:
            continue
        calls = chosen.calls if form.tools else None
        parser = OutputParser(
            chosen.thinking, calls, chosen.noise, tools, in_reasoning=form.in_reasoning, single=form.single
        )
        text = b"".join(vocabulary.spelled(token) for token in tokens).decode(errors="replace")
        found.append(Parsed.of([*parser.feed(text), *parser.finish()]))
        if len(found) == 12:
            break
    assert len(found) > 2
    return found


def check_calls(parsed: Parsed) -> None:
    for call in parsed.calls:
        (tool,) = (tool for tool in TOOLS if tool.name == call.name)
        jsonschema_rs.validate(without_lengths(tool.parameters), json.loads(call.arguments))


def without_lengths(schema: dict[str, Any]) -> dict[str, Any]:
    """Between tags text has no bounds."""
    note = {"note": {"type": "string"}} if "note" in schema["properties"] else {}
    return schema | {"properties": schema["properties"] | note}


@pytest.mark.parametrize(("name", "writing"), WRITINGS)
def test_an_answer_that_must_call_does(tokenizer: Tokenizer, name: str, writing: CallWriting) -> None:
    for single in (True, False):
        for parsed in answers(tokenizer, name, AnswerForm(TOOLS, must_call=True, single=single), writing):
            assert not parsed.content.strip() and parsed.calls
            assert len(parsed.calls) == 1 or not single
            check_calls(parsed)


@pytest.mark.parametrize(("name", "writing"), WRITINGS)
def test_calls_among_text_are_strict(tokenizer: Tokenizer, name: str, writing: CallWriting) -> None:
    """Once an answer has begun a call, that is what it is."""
    begun = (writing.begin + writing.before).partition("{name}")[0]
    if name in ("llama3_json", "pythonic"):  # calls need no marker, so that they are not looked for in text
        spoken = answers(tokenizer, name, AnswerForm(TOOLS), writing, "Well, ")
        assert not any(parsed.calls for parsed in spoken)
    elif name != "harmony":
        begun = f"Let me see. {begun}"
    for parsed in answers(tokenizer, name, AnswerForm(TOOLS), writing, begun):
        assert parsed.calls
        check_calls(parsed)


@pytest.mark.parametrize("name", FORMATS)
def test_text_follows_its_schema(tokenizer: Tokenizer, name: str) -> None:
    writings = FORMATS[name].writings
    for form in (AnswerForm(schema=SCHEMA), AnswerForm(TOOLS if writings else (), schema=SCHEMA)):
        for parsed in answers(tokenizer, name, form, writings[0] if writings and form.tools else None):
            if parsed.calls:
                check_calls(parsed)
            else:
                jsonschema_rs.validate(SCHEMA, json.loads(parsed.content))


def test_reasoning_comes_first(tokenizer: Tokenizer) -> None:
    form = AnswerForm(schema={"type": "integer"}, in_reasoning=True)
    for name in ("hermes", "think"):
        for parsed in answers(tokenizer, name, form, None, "Hm.</think>"):
            assert parsed.reasoning == "Hm."
            json.loads(parsed.content)


def test_python_takes_no_name_that_it_cannot_call() -> None:
    (writing,) = FORMATS["pythonic"].writings[1:]
    schema = {"type": "object", "properties": {"a-b": {"type": "integer"}}}
    for tool in (FormTool("get-it", {}), FormTool("f", schema), FormTool("class", {})):
        with pytest.raises(GrammarError, match=r"Python"):
            GrammarWriter(FORMATS["pythonic"], {}).write(AnswerForm([tool], must_call=True), writing)


def test_optional_arguments_may_be_left_out_wherever_they_stand(tokenizer: Tokenizer) -> None:
    number = {"type": "integer", "minimum": 0, "maximum": 9}
    tool = FormTool("f", {"properties": {"a": number, "b": number, "c": number}, "required": ["b"]})
    (writing,) = FORMATS["pythonic"].writings[1:]
    lark = GrammarWriter(FORMATS["pythonic"], {}).write(AnswerForm([tool], must_call=True), writing)
    compiler = GrammarCompiler(GrammarTokens.of(tokenizer.hf), len(tokenizer.hf), [END])

    def allows(text: str) -> bool:
        state = compiler.compile({"grammar": lark}, [END]).begin()
        tokens = tokenizer.encode(text, special=False)
        if state.accepted(tokens) < len(tokens):
            return False
        state.advance(tokens)
        return state.may_end

    for text in ("[f(b=1)]", "[f(a=1, b=1)]", "[f(b=1, c=1)]", "[f(a=1, b=1, c=1)]", "[f(b=1), f(b=2)]"):
        assert allows(text), text
    for text in ("[f()]", "[f(a=1)]", "[f(, b=1)]", "[f(b=1, a=1)]", "[f(b=1,)]", "[]"):
        assert not allows(text), text
