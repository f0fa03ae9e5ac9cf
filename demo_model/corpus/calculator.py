"""Calculations that the model hands to a calculator: questions, the tools that answer them, and answers.

Numbers have up to five digits, so that calling right is copying right. Which pairs of numbers are held
out is the rule of `arithmetic`.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from demo_model.corpus.arithmetic import is_held_out
from demo_model.corpus.definitions import Call, Definition, Schema, ToolUse, define
from demo_model.corpus.words import sentence

_WORDS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
_COMPUTE: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
_NAMES = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}

_ASKED_IN_WORDS = (
    "What is {a} {w} {b}?",
    "What is {a} {w} {b}?",
    "What's {a} {w} {b}?",
    "How much is {a} {w} {b}?",
    "Can you tell me what {a} {w} {b} is?",
    "{a} {w} {b}",
    "{a} {w} {b}?",
    "Please calculate {a} {w} {b}.",
)
_ASKED_BY_SIGN = (
    "What is {a} {o} {b}?",
    "What is {a} {o} {b}?",
    "What is {a}{o}{b}?",
    "How much is {a} {o} {b}?",
    "Calculate {a} {o} {b}.",
    "Compute {a} {o} {b}.",
    "Use the calculator: {a} {o} {b}",
    "{a} {o} {b}",
    "{a} {o} {b} = ?",
    "{a} {o} {b} =",
    "{a}{o}{b}",
)
_CHINESE_WORDS = {"+": "加", "-": "减", "*": "乘", "/": "除以"}
_REQUESTS = {
    "+": ("Add {a} and {b}.", "What is the sum of {a} and {b}?", "Please add {a} and {b}."),
    "-": ("What do I get if I take {a} minus {b}?", "What is the difference {a} minus {b}?"),
    "*": ("Multiply {a} by {b}.", "What is the product of {a} and {b}?", "Please multiply {a} and {b}."),
    "/": ("Divide {a} by {b}.", "Please divide {a} by {b}.", "What do you get if you divide {a} by {b}?"),
}
# (told, its answer), by the operator that it takes
_TOLD = {
    "+": (
        ("I have {a} apples and buy {b} more. How many apples do I have?", "You have {c} apples."),
        (
            "There are {a} girls and {b} boys in a school. How many children are there?",
            "There are {c} children.",
        ),
    ),
    "-": (
        ("I have {a} dollars and spend {b}. How many dollars are left?", "{c} dollars are left."),
        ("A shop has {a} hats and sells {b}. How many hats are left?", "{c} hats are left."),
    ),
    "*": (
        ("A book costs {a} dollars. How much do {b} books cost?", "{b} books cost {c} dollars."),
        ("There are {a} boxes with {b} eggs each. How many eggs are there?", "There are {c} eggs."),
        ("A train goes {a} km in an hour. How far does it go in {b} hours?", "It goes {c} km."),
    ),
    "/": (
        ("{a} sweets are shared by {b} children. How many does each get?", "Each gets {c} sweets."),
        ("{b} tickets cost {a} dollars. How much is one ticket?", "One ticket costs {c} dollars."),
    ),
}
_DESCRIPTIONS = (
    "Evaluate an arithmetic expression.",
    "Evaluates an arithmetic expression.",
    "Calculate the result of a mathematical expression.",
    "Calculates.",
    "A calculator for arithmetic.",
    "Do math.",
)
_ERRORS = ("division by zero", "invalid syntax", "the number is too large", "timeout", "not allowed")


@dataclass(frozen=True, slots=True)
class Calculation:
    """Two numbers and an operator. A third number makes it a longer expression."""

    a: float
    sign: str
    b: float
    expression: str
    result: float

    @property
    def answer(self) -> str:
        """The result in digits."""
        return number(self.result)

    def fill(self, template: str) -> str:
        """`template` with {a}, {o} (operator), {w} (its word), {b} and {c} (result) filled in."""
        return template.format(
            a=number(self.a), b=number(self.b), o=self.sign, w=_WORDS[self.sign], c=self.answer
        )


def number(value: float) -> str:
    """As people write it: no point behind a whole number."""
    return str(int(value)) if value == int(value) else str(value)


def simple(rng: Random, *, held_out: bool, first: int | None = None) -> Calculation:
    """Two numbers, from those held out or from the others; `first` is the first of them where given."""
    while True:
        sign = rng.choice("++--**/")
        a: float = _drawn(rng) if first is None else first
        b: float = rng.randint(1, 99) if sign == "/" and rng.random() < 0.7 else _drawn(rng)
        if sign == "*" and first is None and rng.random() < 0.08:
            a = rng.randint(1, 9999) / 100  # a price
        if sign == "/" and first is None and rng.random() < 0.6:
            a *= b  # it comes out even
        if (sign == "/" and b == 0) or is_held_out(a, b) is not held_out:
            continue
        result = round(_COMPUTE[sign](a, b), 10)
        return Calculation(a, sign, b, f"{number(a)} {sign} {number(b)}", result)


def longer(rng: Random) -> Calculation:
    """Three numbers, maybe with parentheses; no two neighbours are a pair that is held out."""
    while True:
        inner = simple(rng, held_out=False)
        sign, third = rng.choice("+-*"), _drawn(rng)
        if inner.sign == "/" or inner.result < 0 or is_held_out(inner.b, third) or inner.a != int(inner.a):
            continue
        if sign == "*" and inner.sign != "*":
            expression = f"({inner.expression}) * {third}"
        else:
            expression = f"{inner.expression} {sign} {third}"
        result = _COMPUTE[sign](inner.result, third)
        return Calculation(inner.a, sign, third, expression, result)


def _drawn(rng: Random) -> int:
    return rng.randint(0, 10 ** rng.choice((1, 2, 2, 2, 3, 3, 4, 5)) - 1)


class Calculator:
    """Tools that calculate: one for expressions, one of two numbers and an operation, or one an operation.

    Args:
        rng: what its names and descriptions are drawn from; half of the time they are the usual ones.
    """

    def __init__(self, rng: Random) -> None:
        style = rng.random()
        self.definitions: list[Definition] = []
        self.takes_expressions = style < 0.65
        if self.takes_expressions:
            self._for_expressions(rng)
        elif style < 0.8:
            self._for_two_numbers(rng)
        else:
            self._for_each_operation(rng)

    def _for_expressions(self, rng: Random) -> None:
        usual = rng.random() < 0.5
        name = "calculator" if usual else rng.choice(("calculator", "calculate", "calc", "evaluate", "math"))
        key = "expression" if usual else rng.choice(("expression", "expr", "formula", "input", "query"))
        told = rng.choice(
            ("", "An arithmetic expression", "The expression, such as 2 * (5 + 1)", "to evaluate")
        )
        self._name, self._key = name, key
        description = rng.choice(_DESCRIPTIONS) if rng.random() < 0.9 else sentence(rng)
        self.definitions = [define(rng, name, description, {key: ({"type": "string"}, told)})]

    def _for_two_numbers(self, rng: Random) -> None:
        self._name = rng.choice(("calculator", "calculate", "compute", "arithmetic"))
        self._key = rng.choice(("operation", "operator", "op"))
        self._operations = _NAMES if rng.random() < 0.6 else {sign: sign for sign in _NAMES}
        self._numbers = rng.choice((("a", "b"), ("x", "y"), ("left", "right"), ("first", "second")))
        kind: Schema = {"type": rng.choice(("number", "number", "integer"))}
        first, second = self._numbers
        parts: list[tuple[str, Schema]] = [
            (self._key, {"type": "string", "enum": list(self._operations.values())})
        ]
        parts[rng.choice((0, 1)) : 0] = [(first, kind), (second, kind)]
        properties = {key: (part, "") for key, part in parts}
        self._order = list(properties)
        self.definitions = [define(rng, self._name, "Calculates with two numbers.", properties)]

    def _for_each_operation(self, rng: Random) -> None:
        self._name = ""
        self._numbers = rng.choice((("a", "b"), ("a", "b"), ("x", "y")))
        signs = rng.sample("+-*/", 4)
        for sign in signs:
            kind = {"type": rng.choice(("number", "integer"))}
            told = rng.choice(("", f"{_NAMES[sign].capitalize()}s two numbers.".replace("ys", "ies")))
            properties = dict.fromkeys(self._numbers, (kind, ""))
            self.definitions.append(define(rng, _NAMES[sign], told, properties))

    def call(self, calculation: Calculation) -> Call:
        """The call that computes `calculation`."""
        if self.takes_expressions:
            return Call(self._name, {self._key: calculation.expression})
        values: dict[str, Any] = {
            key: int(value) if value == int(value) else value
            for key, value in zip(self._numbers, (calculation.a, calculation.b), strict=True)
        }
        if not self._name:
            return Call(_NAMES[calculation.sign], values)
        values[self._key] = self._operations[calculation.sign]
        return Call(self._name, {key: values[key] for key in self._order})


def use(rng: Random, calculator: Calculator, *, held_out: bool, after: ToolUse | None = None) -> ToolUse:
    """A question that `calculator` answers, asked anew or about the last result of `after`."""
    if after is not None:
        return _go_on(rng, calculator, after) or use(rng, calculator, held_out=held_out)
    kind = rng.random()
    if kind < 0.08:
        return _two_at_once(rng, calculator, held_out=held_out)
    if kind < 0.2 and calculator.takes_expressions and not held_out:
        calculation = longer(rng)
        text = calculation.expression if rng.random() < 0.7 else calculation.expression.replace(" ", "")
        question = rng.choice(("What is {}?", "Calculate {}.", "How much is {}?", "{}", "{} = ?")).format(
            text
        )
        return _used(rng, calculator, question, calculation, "The result is {c}.")
    calculation = simple(rng, held_out=held_out)
    style = rng.random()
    if style < 0.4:
        question, answer = rng.choice(_ASKED_IN_WORDS), "{a} {w} {b} is {c}."
    elif style < 0.75:
        question, answer = rng.choice(_ASKED_BY_SIGN), "{a} {o} {b} = {c}."
    elif style < 0.79:
        word = _CHINESE_WORDS[calculation.sign]
        question, answer = "{a}" + word + "{b}等于多少？", "{a}" + word + "{b}等于{c}。"
    elif style < 0.87:
        question, answer = rng.choice(_REQUESTS[calculation.sign]), "{a} {w} {b} is {c}."
    else:
        question, answer = rng.choice(_TOLD[calculation.sign])
    return _used(rng, calculator, calculation.fill(question), calculation, answer)


def _used(rng: Random, calculator: Calculator, question: str, made: Calculation, answer: str) -> ToolUse:
    if rng.random() < 0.03:
        said = rng.choice(_ERRORS)
        result = rng.choice((f"Error: {said}", json.dumps({"error": said})))
        sorry = f"I am sorry, that did not work: {said}."
        return ToolUse(question, (calculator.call(made),), (result,), sorry, typed_freely=True)
    results = (_result(rng, made),)
    return ToolUse(question, (calculator.call(made),), results, made.fill(answer), typed_freely=True)


def _result(rng: Random, calculation: Calculation) -> str:
    """What a calculator returns, as programs write it."""
    text = calculation.answer
    if calculation.result == int(calculation.result) and rng.random() < 0.2:
        text += ".0"
    wrapped = rng.random()
    if wrapped < 0.65:
        return text
    if wrapped < 0.9:
        key = rng.choice(("result", "result", "value", "answer"))
        return f'{{"{key}": {text}}}'
    return rng.choice((f"Result: {text}", f"The result is {text}"))


def _go_on(rng: Random, calculator: Calculator, after: ToolUse) -> ToolUse | None:
    """A question that calculates on with the last result, where that is a whole number."""
    found = after.answer.removesuffix(".").rpartition(" ")[2]
    if len(after.calls) > 1 or not found.isdecimal() or len(found) > 6:
        return None
    calculation = simple(rng, held_out=False, first=int(found))
    question = rng.choice(("And {w} {b}?", "Now {w} {b}.", "And that {w} {b}?", "{w} {b}"))
    return _used(rng, calculator, calculation.fill(question), calculation, "{a} {w} {b} is {c}.")


def _two_at_once(rng: Random, calculator: Calculator, *, held_out: bool) -> ToolUse:
    """Two calculations in one question, two calls in one answer."""
    both = [simple(rng, held_out=held_out) for _ in range(2)]
    asked = rng.choice(("What is {} and what is {}?", "What is {}, and what is {}?", "Calculate {} and {}."))
    pattern = rng.choice(("{a} {o} {b}", "{a} {w} {b}"))
    question = asked.format(*(one.fill(pattern) for one in both))
    answer = " and ".join(
        one.fill("{a} {o} {b} = {c}" if "{o}" in pattern else "{a} {w} {b} is {c}") for one in both
    )
    calls = tuple(calculator.call(one) for one in both)
    return ToolUse(question, calls, tuple(_result(rng, one) for one in both), f"{answer}.")
