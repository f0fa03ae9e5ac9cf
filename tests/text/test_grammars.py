"""What may be asked of an answer, and where an answer stands in it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest

from server.text.grammars.compiler import Grammar, GrammarCompiler, GrammarTokens
from server.text.grammars.source import MAX_BYTES, GrammarError, grammar_source
from server.text.tokenizer import Tokenizer
from tests.checkpoints import tiny_tokenizer

END = 1
VOCAB = 600
"""More columns of logits than the tokenizer has tokens."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path: Path = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(path)
    return Tokenizer(path)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(GrammarTokens.of(tokenizer.hf), VOCAB, [END])


def allowed(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def sampled(
    grammar: Grammar, dice: random.Random, most: int = 300, begun: Sequence[int] = ()
) -> list[int] | None:
    """Tokens of an answer that are drawn evenly of those allowed, behind what is `begun`; None where it does
    not come to an end."""
    state, mask, tokens = grammar.begin(), np.empty(grammar.mask_words, np.int32), list(begun)
    state.advance(tokens)
    for _ in range(most):
        state.fill(mask)
        ways = allowed(mask)
        assert ways, "nothing is allowed"
        token = END if END in ways and dice.random() < 0.5 else dice.choice(ways)
        if token == END:
            return tokens
        state.advance([token])
        tokens.append(token)
    return None


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMAS: list[Any] = [
    PERSON,
    {"type": "array", "items": {"enum": ["a", 1, None]}, "minItems": 1, "maxItems": 3},
    {"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": "^[ab]{2,4}$"}]},
    {"$defs": {"p": PERSON}, "type": "array", "items": {"$ref": "#/$defs/p"}, "maxItems": 2},
    {"type": "string", "format": "date"},
    {"type": "number", "multipleOf": 0.25, "exclusiveMinimum": 1, "maximum": 3},
    {"const": {"deep": [1, {"x": "é 你 😀"}]}},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS)
def test_answers_validate(tokenizer: Tokenizer, compiler: GrammarCompiler, schema: dict[str, Any]) -> None:
    grammar, dice = compiler.compile({"json": schema}, [END]), random.Random(3)
    answers = [tokens for _ in range(12) if (tokens := sampled(grammar, dice)) is not None]
    assert len(answers) > 5
    for tokens in answers:
        text = tokenizer.hf.decode(tokens)
        jsonschema_rs.validate(schema, json.loads(text), validate_formats=True)


@pytest.mark.parametrize(
    "pattern", [r"\d{3}-[A-F]+", r"\w\s/\x41", r"(yes|no)( indeed)?", r"[^a]{2}", r"(?i)hello|你好"]
)
def test_answers_match(tokenizer: Tokenizer, compiler: GrammarCompiler, pattern: str) -> None:
    grammar, dice = compiler.compile({"regex": pattern}, [END]), random.Random(4)
    answers = [tokens for _ in range(12) if (tokens := sampled(grammar, dice)) is not None]
    assert len(answers) > 3
    for tokens in answers:
        text = tokenizer.vocabulary
        raw = b"".join(text.spelled(token) for token in tokens).decode()
        assert re.fullmatch(pattern, raw), raw


@pytest.mark.parametrize("name", ["date", "time", "date-time", "email"])
def test_formats_are_what_python_reads(tokenizer: Tokenizer, compiler: GrammarCompiler, name: str) -> None:
    """No 30th of February, no leap second."""
    grammar, dice = compiler.compile({"json": {"type": "string", "format": name}}, [END]), random.Random(6)
    answers = [tokens for _ in range(30) if (tokens := sampled(grammar, dice)) is not None]
    assert len(answers) > 20
    read = {"date": date.fromisoformat, "time": time.fromisoformat, "date-time": datetime.fromisoformat}
    for tokens in answers:
        text = json.loads(tokenizer.hf.decode(tokens))
        if name in read:
            read[name](text)
        jsonschema_rs.validate({"type": "string", "format": name}, text, validate_formats=True)


def test_leap_days(tokenizer: Tokenizer, compiler: GrammarCompiler) -> None:
    grammar = compiler.compile({"json": {"format": "date", "type": "string"}}, [END])
    for year, is_leap in ((1999, False), (2000, True), (2024, True), (2100, False), (2400, True)):
        tokens = tokenizer.encode(f'"{year}-02-29"', special=False)
        assert (grammar.begin().accepted(tokens) == len(tokens)) == is_leap


def test_notes_of_openapi_and_whole_floats_are_taken(compiler: GrammarCompiler) -> None:
    schema = {"type": "array", "items": {"type": "integer", "format": "int64"}, "minItems": 2.0}
    compiler.compile({"json": schema}, [END])
    assert schema["minItems"] == 2.0, "the request's own"


def test_a_choice_is_taken_as_it_is(tokenizer: Tokenizer, compiler: GrammarCompiler) -> None:
    choice = ["yes", 'no "really"\n', "/x/ | y", "你"]
    grammar, dice = compiler.compile({"choice": choice}, [END]), random.Random(5)
    answers = {tokenizer.hf.decode(sampled(grammar, dice) or []) for _ in range(40)}
    assert answers == set(choice)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"json": {"not": {}}}, 'keywords that are not supported: "not"'),
    ({"json": {"$ref": "https://example.com/schema"}}, "example.com"),
    ({"json": {"type": "nothing"}}, "Invalid type: nothing"),
    ({"json": False}, "false"),
    ({"json": {"multipleOf": 1000003}}, "multipleOf"),
    ({"json": {"type": "object", "properties": {f"p{i}": {} for i in range(1001)}}}, "1001 properties"),
    ({"json": {"enum": [f"value {i}" for i in range(50_000)]}}, "bytes exceed"),
    ({"json": {"const": "\ud800"}}, "surrogate"),
    ({"regex": "a(?=b)"}, "look-ahead"),
    ({"regex": "("}, "unclosed group"),
    ({"regex": "a" * (MAX_BYTES + 1)}, "bytes exceed"),
    ({"regex": "(" * 5000 + ")" * 5000}, "regex"),
    ({"grammar": "start: missing"}, 'unknown name: "missing"'),
    ({"grammar": "start: " + "(" * 20_000}, "nested"),
    ({"grammar": 'begin: "x"'}, "start"),
]


@pytest.mark.parametrize(("asked", "problem"), REFUSED)
def test_what_cannot_be_honoured_is_refused(
    compiler: GrammarCompiler, asked: dict[str, Any], problem: str
) -> None:
    with pytest.raises(GrammarError, match=problem) as told:
        compiler.compile(asked, [END])
    assert "\n" not in str(told.value) and len(str(told.value)) <= 500


def test_deep_schemas_are_refused_before_they_are_compiled() -> None:
    schema: dict[str, Any] = {}
    for _ in range(100_000):
        schema = {"items": schema}
    with pytest.raises(GrammarError, match="nested deeper"):
        grammar_source({"json": schema})


def test_an_answer_needs_an_end(compiler: GrammarCompiler) -> None:
    with pytest.raises(GrammarError, match="need a token that ends an answer"):
        compiler.compile({"regex": "a"}, [])


def test_ends_are_those_of_the_request(tokenizer: Tokenizer, compiler: GrammarCompiler) -> None:
    """The model's own end is no token of a text; the request's is allowed where the answer may end."""
    own, a = tokenizer.hf.convert_tokens_to_ids(["x", "a"])
    state = compiler.compile({"regex": "a+"}, [own]).begin()
    mask = np.empty(-(-VOCAB // 32), np.int32)
    state.fill(mask)
    assert a in allowed(mask) and own not in allowed(mask)
    state.advance([a])
    state.fill(mask)
    assert {a, own} <= set(allowed(mask)) and END not in allowed(mask)
    assert max(allowed(mask)) < len(tokenizer.hf)


def test_states_go_forth_and_back(compiler: GrammarCompiler) -> None:
    """As beams do, and drafts: the mask depends on the tokens alone."""
    grammar, dice = compiler.compile({"json": PERSON}, [END]), random.Random(6)
    answers = [tokens for _ in range(8) if (tokens := sampled(grammar, dice)) is not None]
    walker, mask, expected = grammar.begin(), np.empty(grammar.mask_words, np.int32), None
    for _ in range(60):
        tokens = dice.choice(answers)
        tokens = tokens[: dice.randint(0, len(tokens))]
        walker.follow(tokens)
        assert len(walker) == len(tokens)
        walker.fill(mask)
        fresh = grammar.begin()
        fresh.advance(tokens)
        fresh.fill(expected := np.empty_like(mask))
        assert np.array_equal(mask, expected)


def test_masks_behind_drafted_tokens(compiler: GrammarCompiler) -> None:
    grammar, dice = compiler.compile({"json": PERSON}, [END]), random.Random(7)
    answer = next(tokens for _ in range(50) if (tokens := sampled(grammar, dice)) is not None)
    known, draft = answer[:4], answer[4:9]
    state = grammar.begin()
    state.advance(known)
    assert state.accepted([*draft, 0]) == len(draft) and state.accepted([END, *draft]) == 0
    masks = np.empty((1 + len(draft), grammar.mask_words), np.int32)
    state.fill_ahead(draft, masks)
    for ahead in range(1 + len(draft)):
        fresh = grammar.begin()
        fresh.advance(known + draft[:ahead])
        fresh.fill(expected := np.empty(grammar.mask_words, np.int32))
        assert np.array_equal(masks[ahead], expected)
    assert len(state) == len(known)


def test_tokens_that_do_not_follow_are_told(compiler: GrammarCompiler) -> None:
    state = compiler.compile({"regex": "a"}, [END]).begin()
    with pytest.raises(GrammarError, match="do not follow"):
        state.advance([5, 6, 7])
