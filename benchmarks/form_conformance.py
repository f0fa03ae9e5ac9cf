"""Do answers have the form that was asked for?

    git clone https://github.com/json-schema-org/JSON-Schema-Test-Suite
    .venv/bin/python -m benchmarks.form_conformance JSON-Schema-Test-Suite

A small model with random weights answers, at temperature 1, under each schema of the suite (draft 2020-12,
the required part), 500 schemas as function calls have them, and 100 regular expressions. Every answer that
comes to its end by itself is checked by another implementation (`jsonschema_rs`, Python's `re`). Instances of
the suite are tried as answers, too: an invalid one must not have the form. Refused schemas are counted by the
reason.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema_rs

from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from server.text.grammars.compiler import Grammar, GrammarCompiler, GrammarTokens
from server.text.grammars.source import GrammarError
from tests.checkpoints import tiny_llama

END = 1
MOST_TOKENS = 300
MOST_DIGITS = 15


@dataclass(slots=True)
class Tally:
    """What became of one set of forms."""

    forms: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    ended: int = 0
    cut_off: int = 0
    wrong: list[str] = field(default_factory=list)
    not_comparable: int = 0
    valid_rejected: int = 0
    instances: int = 0

    def line(self, name: str) -> str:
        return (
            f"{name}: {self.forms} forms, {sum(self.refused.values())} refused; "
            f"{self.ended} answers ended, {self.cut_off} were cut off, {self.not_comparable} beyond "
            f"floats; {self.instances} instances tried, "
            f"{self.valid_rejected} valid ones not allowed; {len(self.wrong)} wrong"
        )


@dataclass(frozen=True, slots=True)
class Form:
    """A form, and instances that have it or have not."""

    asked: dict[str, Any]
    instances: tuple[tuple[Any, bool], ...] = ()


def suite_forms(directory: Path) -> Iterator[Form]:
    for path in sorted((directory / "tests" / "draft2020-12").glob("*.json")):
        for group in json.loads(path.read_text(encoding="utf-8")):
            cases = tuple((case["data"], case["valid"]) for case in group["tests"])
            yield Form({"json": group["schema"]}, cases)


def call_forms(count: int) -> Iterator[Form]:
    """Schemas as function calls have them: objects of described fields, some nested, some optional."""
    dice = random.Random(1)
    for _ in range(count):
        yield Form({"json": _object(dice, 3)})


def _object(dice: random.Random, depth: int) -> dict[str, Any]:
    names = dice.sample(["city", "date", "unit", "limit", "query", "user_id", "tags", "options", "café"], 4)
    names = names[: dice.randint(1, 4)]
    return {
        "type": "object",
        "properties": {name: _value(dice, depth - 1) for name in names},
        "required": dice.sample(names, dice.randint(0, len(names))),
        "additionalProperties": False,
    }


def _value(dice: random.Random, depth: int) -> dict[str, Any]:
    kinds: list[dict[str, Any]] = [
        {"type": "string", "maxLength": dice.randint(1, 20), "description": "A text."},
        {"type": "string", "enum": dice.sample(["celsius", "fahrenheit", "asc", "desc", "é"], 3)},
        {"type": "string", "format": dice.choice(["date", "date-time", "email", "uuid", "ipv4", "time"])},
        {"type": "string", "pattern": "^[A-Z]{2}[0-9]{1,4}$"},
        {"type": "integer", "minimum": dice.randint(-5, 0), "maximum": dice.randint(1, 500)},
        {"type": "number", "exclusiveMinimum": 0, "maximum": 10},
        {"type": "boolean", "default": True},
        {"type": ["string", "null"], "maxLength": 5},
        {"anyOf": [{"type": "integer", "maximum": 9, "minimum": 0}, {"const": "auto"}]},
    ]
    if depth > 0:
        kinds.append(_object(dice, depth))
        kinds.append({"type": "array", "items": _value(dice, depth - 1), "maxItems": dice.randint(1, 3)})
    return dice.choice(kinds)


def regex_forms() -> Iterator[Form]:
    parts = [
        r"\d{4}-\d{2}-\d{2}", "[a-f0-9]{8}", r"(yes|no|maybe)", r"[A-Z][a-z]{1,8}",
        r"\w{1,6}@\w{1,6}\.(com|org)", r"-?\d+(\.\d{1,3})?", "(a|bc)*d?", r"[^\s,]{1,5}",
        r"(?i:ok|fine)", r"\(\d{3}\) \d{3}",
    ]  # fmt: skip
    for first in parts:
        for second in parts:
            yield Form({"regex": f"{first}[ ,]{second}"})


def has_form(asked: dict[str, Any], text: str) -> bool:
    """What the other implementation says."""
    if "regex" in asked:  # letters of any case are those of Unicode in both, digits those of ASCII
        ascii_only = "(?i" not in asked["regex"]
        return re.fullmatch(asked["regex"], text, re.ASCII if ascii_only else 0) is not None
    try:
        value = json.loads(text, parse_float=_exact, parse_int=_exact)
    except ValueError:
        return False
    validator = jsonschema_rs.Draft202012Validator(asked["json"], validate_formats=True)
    return bool(validator.is_valid(value))


def _exact(text: str) -> int | float:
    """A number that the checker takes as it is; others are too large or too long for its arithmetic."""
    if len(text) > MOST_DIGITS or math.isinf(float(text)):
        raise NotComparableError(text)
    return float(text) if set(text) & set(".eE") else int(text)


class NotComparableError(Exception):
    """The checker cannot tell."""


def try_instances(form: Form, grammar: Grammar, llm: LLM, tally: Tally) -> None:
    for value, valid in form.instances:
        tokens = llm.tokenizer.encode(json.dumps(value, ensure_ascii=False), special=False)
        state = grammar.begin()
        allowed = state.accepted(tokens) == len(tokens)
        if allowed:
            state.advance(tokens)
            allowed = state.may_end
        tally.instances += 1
        tally.valid_rejected += valid and not allowed
        if allowed and not valid:
            tally.wrong.append(f"{json.dumps(form.asked)} allows {json.dumps(value)}")


def check(forms: list[Form], llm: LLM, answers: int) -> Tally:
    """Let the model answer under each of `forms`, `answers` times."""
    tally, asked = Tally(forms=len(forms)), list[Form]()
    vocab_size = llm.engine.worker.vocab_size
    compiler = GrammarCompiler(GrammarTokens.of(llm.tokenizer.hf), vocab_size, [END])
    for form in forms:
        try:
            grammar = compiler.compile(form.asked, [END])
        except GrammarError as error:
            tally.refused[re.sub(r"'[^']*'", "…", str(error))[:60]] += 1
            continue
        try_instances(form, grammar, llm, tally)
        asked.append(form)
    configs = [
        GenerationConfig.model_validate(
            {
                "structured_outputs": form.asked,
                "do_sample": True,
                "seed": index,
                "n": answers,
                "max_new_tokens": MOST_TOKENS,
            }
        )
        for index, form in enumerate(asked)
    ]
    for form, generation in zip(asked, llm.generate([[5, 6, 7]] * len(asked), configs), strict=True):
        for answer in generation.answers:
            if answer.finish_reason != "stop":
                tally.cut_off += 1
                continue
            tally.ended += 1
            vocabulary = llm.tokenizer.vocabulary
            raw = b"".join(vocabulary.spelled(token) for token in answer.token_ids if token != END)
            try:
                if not has_form(form.asked, raw.decode(errors="replace")):
                    tally.wrong.append(f"{json.dumps(form.asked)} was answered by {raw!r}")
            except NotComparableError:
                tally.not_comparable += 1
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", type=Path, help="checkout of the JSON Schema Test Suite")
    parser.add_argument("--answers", type=int, default=4, help="to each form")
    parser.add_argument("--sets", nargs="+", type=int, default=[0, 1, 2], help="which of the three")
    arguments = parser.parse_args()
    sets = {
        "JSON Schema Test Suite": list(suite_forms(arguments.suite)),
        "function calls": list(call_forms(500)),
        "regular expressions": list(regex_forms()),
    }
    wrong = 0
    with tempfile.TemporaryDirectory() as path:
        llm = LLM(
            tiny_llama(Path(path)),
            model_loading_config={"device": "cpu", "torch_dtype": "float32"},
            cache_config={"num_blocks": 2000},
        )
        for name, forms in [[*sets.items()][index] for index in arguments.sets]:
            tally = check(forms, llm, arguments.answers)
            print(tally.line(name), flush=True)
            for reason, count in tally.refused.most_common():
                print(f"    refused {count}: {reason}")
            for text in tally.wrong[:20]:
                print(f"    WRONG {text[:300]}")
            wrong += len(tally.wrong)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
