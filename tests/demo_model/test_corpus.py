"""The generated text: a function of its seed, rightly calculated, free of what is held out."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from random import Random

import jsonschema_rs
import pytest

from demo_model.corpus import (
    Problem,
    documents,
    held_out_problems,
    held_out_sums,
    records,
    result_in,
    stories,
)
from demo_model.corpus.arithmetic import LARGEST, ask, complete, is_held_out, spell, training_problem
from demo_model.corpus.calculator import Calculator, use
from demo_model.corpus.facts import all_facts

COUNT = 4000
PAIR = re.compile(r"(?<![\d.])(?=(\d+) ?(?:\+|-|plus|minus|加|减) ?(\d+))")
STATED = re.compile(r"(?<![\d.])(\d+) ?(\+|-|plus|minus|加|减) ?(\d+) ?(?:=|is|等于) ?(-?\d+)")


def test_a_seed_names_a_corpus() -> None:
    assert list(documents(7, 300)) == list(documents(7, 300))
    assert list(documents(7, 300)) != list(documents(8, 300))


def test_a_longer_corpus_begins_with_a_shorter_one() -> None:
    assert list(documents(7, 300))[:100] == list(documents(7, 100))


def test_no_held_out_pair_occurs_anywhere() -> None:
    held_out = {frozenset((problem.a, problem.b)) for problem in held_out_problems()}
    seen = [
        frozenset((int(match[1]), int(match[2])))
        for document in documents(0, COUNT)
        for segment in document
        for match in PAIR.finditer(segment.text)
    ]
    assert len(seen) > COUNT  # the search finds pairs at all
    assert not held_out.intersection(seen)


def test_spelled_and_reworded_problems_are_training_problems_too() -> None:
    rng = Random(0)
    for _ in range(2000):
        problem = training_problem(rng)
        assert not problem.held_out
        for question, answer in (ask(rng, problem), complete(rng, problem)):
            assert result_in(answer) == problem.result, (question, answer)


def test_every_stated_result_is_right() -> None:
    signs = {"+": 1, "plus": 1, "加": 1, "-": -1, "minus": -1, "减": -1}
    stated = 0
    for document in documents(1, COUNT):
        for segment in document:
            for a, operator, b, result in STATED.findall(segment.text):
                stated += 1
                assert int(a) + signs[operator] * int(b) == int(result), segment.text
    assert stated > COUNT / 2


def test_held_out_pairs_are_a_fifth_in_both_orders() -> None:
    problems = held_out_problems()
    assert 0.15 < len(problems) / (2 * (LARGEST + 1) ** 2) < 0.25
    assert all(Problem(p.b, "+", p.a).held_out and Problem(p.a, "-", p.b).held_out for p in problems)
    assert {p.a for p in problems} == set(range(LARGEST + 1))


def test_held_out_sums() -> None:
    sums = held_out_sums(200, seed=3)
    assert sums == held_out_sums(200, seed=3) != held_out_sums(200, seed=4)
    assert len(set(sums)) == 200
    for question, answer in sums:
        a, b = map(int, re.findall(r"\d+", question))
        assert a + b == int(answer)
        assert Problem(a, "+", b).held_out
    with pytest.raises(ValueError, match="held out"):
        held_out_sums(100_000, seed=0)


def test_numbers_in_words() -> None:
    assert [spell(n) for n in (0, 13, 20, 42)] == ["zero", "thirteen", "twenty", "forty-two"]


@pytest.mark.parametrize(
    ("reply", "result"),
    [("17 plus 25 is 42.", 42), (" 42", 42), ("21 - 60 = -39.", -39), ("No idea.", None), ("", None)],
)
def test_result_in(reply: str, result: int | None) -> None:
    assert result_in(reply) == result


def test_stories_are_of_readable_length_and_have_no_empty_slot() -> None:
    rng = Random(0)
    for _ in range(500):
        story = stories.story(rng)
        assert 70 <= len(story.split()) <= 150
        assert not re.search(r"[{}]|  | ,|\.\.", story), story


def test_a_story_is_about_whom_it_was_asked_for() -> None:
    rng = Random(0)
    for _ in range(500):
        request, story = stories.ask(rng)
        if wanted := re.search(r"about an? (\w+)(?: and an? (\w+))?(?: (?:named|called) (\w+))?", request):
            assert all(word in story for word in wanted.groups() if word), (request, story)


def test_no_question_has_two_answers() -> None:
    answers: dict[str, str] = {}
    for fact in all_facts():
        for question in fact.questions:
            assert answers.setdefault(question, fact.answer) == fact.answer


def test_calls_compute_what_is_asked() -> None:
    rng = Random(0)
    for _ in range(1000):
        calculator = Calculator(rng)
        used = use(rng, calculator, held_out=False)
        for call, result in zip(used.calls, used.results, strict=True):
            assert call.name in {definition["function"]["name"] for definition in calculator.definitions}
            stated = re.findall(r"-?\d[\d.e-]*", result)
            if calculator.takes_expressions and stated:
                (expression,) = call.arguments.values()
                assert float(stated[-1]) == pytest.approx(eval(expression), abs=1e-9), expression


def test_a_held_out_use_takes_held_out_numbers() -> None:
    rng = Random(0)
    for _ in range(300):
        calculator = Calculator(rng)
        for held_out in (True, False):
            for call in use(rng, calculator, held_out=held_out).calls:
                numbers = re.findall(r"\d+(?:\.\d+)?", " ".join(map(str, call.arguments.values())))
                pairs = pairwise(json.loads(number) for number in numbers)
                assert {is_held_out(a, b) for a, b in pairs if a is not None} <= {held_out}


def test_records_are_of_their_schema_and_stand_in_the_text() -> None:
    rng = Random(0)
    for _ in range(500):
        request = records.request(rng)
        jsonschema_rs.validate(request.schema, request.record)
        for value in request.record.values():
            for said in value if isinstance(value, list) else [value]:
                if request.kind not in ("calculation", "capital") and not isinstance(said, bool):
                    assert str(said) in request.text, request
        system, said = records.ask(rng, request, keys_told=True)
        assert all(key in f"{system} {said}" for key in request.record)
