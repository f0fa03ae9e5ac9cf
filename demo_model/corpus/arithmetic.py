"""Sums and differences of numbers up to 99, in many phrasings.

About a fifth of all pairs of numbers never occurs in training, in either order and with either
operator: whoever answers them has learnt to calculate.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from random import Random
from typing import Literal

from demo_model.corpus.words import words

LARGEST = 99
Operator = Literal["+", "-"]
OPERATORS: tuple[Operator, ...] = ("+", "-")

_UNITS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = words("twenty thirty forty fifty sixty seventy eighty ninety")

# question → answer, by operator and by the way the answer is put
_WORDS = {
    "+": (
        "What is {a} plus {b}?",
        "What is {a} plus {b}?",
        "What's {a} plus {b}?",
        "How much is {a} plus {b}?",
        "What does {a} plus {b} equal?",
        "What does {a} plus {b} make?",
        "Can you tell me what {a} plus {b} is?",
        "{a} plus {b}",
        "{a} plus {b}?",
        "{a} plus {b} equals?",
        "Add {a} and {b}.",
        "Please add {a} and {b}.",
        "Can you add {a} and {b}?",
        "What is the sum of {a} and {b}?",
        "How much do {a} and {b} make together?",
        "What do you get if you add {a} and {b}?",
        "What is the result of {a} plus {b}?",
        "If I have {a} apples and get {b} more, how many do I have?",
    ),
    "-": (
        "What is {a} minus {b}?",
        "What is {a} minus {b}?",
        "What's {a} minus {b}?",
        "How much is {a} minus {b}?",
        "What does {a} minus {b} equal?",
        "Can you tell me what {a} minus {b} is?",
        "{a} minus {b}",
        "{a} minus {b}?",
        "{a} minus {b} equals?",
        "Subtract {b} from {a}.",
        "Please subtract {b} from {a}.",
        "Can you subtract {b} from {a}?",
        "Take {b} away from {a}.",
        "What is {a} take away {b}?",
        "What do you get if you subtract {b} from {a}?",
        "What is the result of {a} minus {b}?",
        "If I have {a} apples and eat {b}, how many are left?",
    ),
}
_SYMBOLS = (
    "What is {a} {o} {b}?",
    "What is {a} {o} {b}?",
    "What is {a}{o}{b}?",
    "What's {a} {o} {b}?",
    "How much is {a} {o} {b}?",
    "What does {a} {o} {b} equal?",
    "Calculate {a} {o} {b}.",
    "Compute {a} {o} {b}.",
    "Solve {a}{o}{b}.",
    "What is the result of {a} {o} {b}?",
    "{a} {o} {b}",
    "{a} {o} {b}?",
    "{a}{o}{b}",
    "{a}{o}{b}?",
    "{a} {o} {b} =",
    "{a} {o} {b} = ?",
    "{a}{o}{b}=",
    "{a}{o}{b}=?",
)
_CHINESE = (
    "{a}{o}{b}等于多少？",
    "{a}{o}{b}等于几？",
    "{a}{o}{b}是多少？",
    "请问{a}{o}{b}等于多少？",
)
# beginning of a sentence → its end
_STEMS = (
    ("{a} {o} {b} =", " {c}"),
    ("{a} {o} {b} =", " {c}"),
    ("{a}{o}{b}=", "{c}"),
    ("{a}{o}{b}=", "{c}"),
    ("{a}{o}{b} =", " {c}"),
    ("{a} {w} {b} is", " {c}."),
    ("{a} {w} {b} equals", " {c}."),
)
_SUM_STEMS = (*_STEMS, ("The sum of {a} and {b} is", " {c}."))


def is_held_out(a: float, b: float) -> bool:
    """Whether a calculation with these two numbers is kept out of training, in either order."""
    low, high = sorted((a, b))
    return zlib.crc32(f"{low}:{high}".encode()) % 5 == 0


@dataclass(frozen=True, slots=True)
class Problem:
    """One sum or difference of two numbers from 0 to 99."""

    a: int
    operator: Operator
    b: int

    @property
    def result(self) -> int:
        """What it comes to; a difference may be negative."""
        return self.a + self.b if self.operator == "+" else self.a - self.b

    @property
    def held_out(self) -> bool:
        """Whether this pair of numbers is kept out of training."""
        return is_held_out(self.a, self.b)

    def fill(self, template: str, *, spelled: bool = False) -> str:
        """`template` with {a}, {o} (operator), {w} (its word), {b} and {c} (result) filled in."""
        return template.format(
            a=spell(self.a) if spelled else self.a,
            b=spell(self.b) if spelled else self.b,
            o=self.operator,
            w="plus" if self.operator == "+" else "minus",
            c=self.result,
        )


def spell(number: int) -> str:
    """A number from 0 to 99 in English words."""
    if number < 20:
        return _UNITS[number]
    tens, unit = divmod(number, 10)
    return _TENS[tens - 2] + (f"-{_UNITS[unit]}" if unit else "")


def held_out_problems() -> list[Problem]:
    """Every problem that training never shows."""
    numbers = range(LARGEST + 1)
    problems = [Problem(a, operator, b) for operator in OPERATORS for a in numbers for b in numbers]
    return [problem for problem in problems if problem.held_out]


def held_out_sums(count: int, seed: int) -> list[tuple[str, str]]:
    """`count` different sums that training never shows, as (question, result in digits).

    Raises:
        ValueError: `count` is larger than the number of sums held out.
    """
    sums = [problem for problem in held_out_problems() if problem.operator == "+"]
    if count > len(sums):
        raise ValueError(f"{count} sums asked for, {len(sums)} are held out")
    chosen = Random(seed).sample(sums, count)
    return [(problem.fill("What is {a} plus {b}?"), str(problem.result)) for problem in chosen]


def result_in(reply: str) -> int | None:
    """The last number of a reply: the result that it states."""
    numbers = re.findall(r"-?\d+", reply)
    return int(numbers[-1]) if numbers else None


def training_problem(rng: Random) -> Problem:
    """A problem that is not held out; small numbers come more often than their share."""
    while True:
        highest = [9 if rng.random() < 0.15 else LARGEST for _ in "ab"]
        problem = Problem(rng.randint(0, highest[0]), rng.choice(OPERATORS), rng.randint(0, highest[1]))
        if not problem.held_out:
            return problem


def ask(rng: Random, problem: Problem) -> tuple[str, str]:
    """(question, answer), both whole sentences or formulas."""
    style = rng.random()
    if style < 0.06:
        word = "加" if problem.operator == "+" else "减"
        question = rng.choice(_CHINESE).replace("{o}", word)
        return problem.fill(question), problem.fill("{a}" + word + "{b}等于{c}。")
    if style < 0.53:
        question = problem.fill(rng.choice(_WORDS[problem.operator]), spelled=rng.random() < 0.12)
        if rng.random() < 0.3:
            question = question.replace("-", " ")  # "twenty five"
        return question, problem.fill("{a} {w} {b} is {c}.")
    return problem.fill(rng.choice(_SYMBOLS)), problem.fill("{a} {o} {b} = {c}.")


def go_on(rng: Random, answer: str) -> tuple[str, str] | None:
    """A question that calculates on with the result of `answer`, where that stays within what is trained."""
    result = result_in(answer)
    if result is None or not 0 <= result <= LARGEST:
        return None
    problem = Problem(result, rng.choice(OPERATORS), rng.randint(0, LARGEST))
    if problem.held_out:
        return None
    question = rng.choice(("And {w} {b}?", "Now {w} {b}.", "{w} {b}"))
    return problem.fill(question), problem.fill("{a} {w} {b} is {c}.")


def complete(rng: Random, problem: Problem) -> tuple[str, str]:
    """(beginning, end) of a sentence or formula."""
    beginning, end = rng.choice(_SUM_STEMS if problem.operator == "+" else _STEMS)
    return problem.fill(beginning), problem.fill(end)
