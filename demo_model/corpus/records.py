"""Small records: a text about a person, an order, an animal or a meeting, and its JSON object.

Which fields are wanted, in which order and under which names changes from request to request, and often
the prompt does not tell: under a grammar the model has to fill whatever key stands there.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from random import Random
from typing import Any

from demo_model.corpus import arithmetic, facts
from demo_model.corpus.definitions import Call, Definition, ToolUse, object_schema
from demo_model.corpus.words import ANIMALS, BOYS, GIRLS, a, capitalised, invented, words

_JOBS = words(
    "teacher doctor baker farmer sailor painter writer pilot nurse singer cook gardener driver engineer"
)
_HOBBIES = words("chess music football painting dancing reading swimming cooking singing hiking")
_PRODUCTS = words("hats books lamps chairs apples cups shirts shoes balls bags pens tables clocks kites")
_COLOURS = words("red blue green yellow black white brown orange grey pink")
_SIZES = words("small medium large")
_DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

_INTEGER, _TEXT, _TRUTH = {"type": "integer"}, {"type": "string"}, {"type": "boolean"}
_LIST = {"type": "array", "items": {"type": "string"}}


@dataclass(frozen=True, slots=True)
class Field:
    """A value of a record."""

    keys: tuple[str, ...]
    """Names that it goes by; the first one most often."""
    schema: dict[str, Any]
    value: Any


@dataclass(frozen=True, slots=True)
class Request:
    """A text, the fields that are wanted of it, and what they are."""

    kind: str
    text: str
    schema: dict[str, Any]
    record: dict[str, Any]

    @property
    def answer(self) -> str:
        """The record as JSON."""
        return json.dumps(self.record, ensure_ascii=False)

    def by_tool(self, name: str) -> tuple[Definition, ToolUse]:
        """A tool that takes the record as its arguments, and its use."""
        function = {"name": name, "parameters": self.schema}
        call = Call(name, self.record)
        return {"type": "function", "function": function}, ToolUse(self.text, (call,), ("ok",), "Done.")


def _person(rng: Random) -> tuple[str, list[Field]]:
    girl = rng.random() < 0.5
    name = capitalised(invented(rng)) if rng.random() < 0.4 else rng.choice(GIRLS if girl else BOYS)
    she = "She" if girl else "He"
    age, city, job = rng.randint(1, 99), _city(rng), rng.choice(_JOBS)
    hobbies = rng.sample(_HOBBIES, rng.randint(1, 3))
    dog = rng.random() < 0.5
    first = rng.choice(
        (
            f"{name} is {age} years old and lives in {city}.",
            f"{name}, {age}, lives in {city}.",
            f"{name} from {city} is {age}.",
            f"My name is {name}, I am {age} years old and I live in {city}.",
            f"{name} lives in {city}. {she} is {age} years old.",
        )
    )
    rest = [
        (f"{she} is {a(job)}.", Field(("job", "profession", "occupation"), _TEXT, job)),
        (f"{she} likes {_listed(hobbies)}.", Field(("hobbies", "likes", "interests"), _LIST, hobbies)),
        (f"{she} has {'a' if dog else 'no'} dog.", Field(("has_dog", "dog", "owns_dog"), _TRUTH, dog)),
    ]
    told = rng.sample(rest, rng.choice((0, 0, 1, 1, 2)))
    fields = [
        Field(("name", "full_name", "person"), _TEXT, name),
        Field(("age", "years", "age_in_years"), _INTEGER, age),
        Field(("city", "town", "location", "lives_in"), _TEXT, city),
    ]
    return " ".join([first, *(text for text, _ in told)]), fields + [field for _, field in told]


def _order(rng: Random) -> tuple[str, list[Field]]:
    name, count, thing = _name(rng), rng.randint(2, 99), rng.choice(_PRODUCTS)
    colour, size, price = rng.choice(_COLOURS), rng.choice(_SIZES), rng.randint(1, 500)
    text = rng.choice(
        (
            f"{name} orders {count} {size} {colour} {thing} for {price} dollars.",
            f"{name} buys {count} {thing}. They are {size} and {colour}. The price is {price} dollars.",
            f"Please send {count} {size} {colour} {thing} to {name}, {price} dollars in all.",
            f"I need {count} {thing}, {size} and {colour}, for {price} dollars. My name is {name}.",
        )
    )
    return text, [
        Field(("product", "item", "article"), _TEXT, thing),
        Field(("quantity", "count", "amount"), _INTEGER, count),
        Field(
            ("colour", "color"),
            {"type": "string", "enum": list(_COLOURS)} if rng.random() < 0.2 else _TEXT,
            colour,
        ),
        Field(("size",), {"type": "string", "enum": list(_SIZES)}, size),
        Field(("price", "total", "cost"), _INTEGER, price),
        Field(("customer", "buyer", "name"), _TEXT, name),
    ]


def _animal(rng: Random) -> tuple[str, list[Field]]:
    name, kind, colour, age = _name(rng), rng.choice(ANIMALS), rng.choice(_COLOURS), rng.randint(2, 30)
    text = rng.choice(
        (
            f"{name} is {a(colour)} {kind} and {age} years old.",
            f"My {kind} is called {name}. It is {colour} and {age} years old.",
            f"The {colour} {kind} {name} is {age} years old.",
        )
    )
    return text, [
        Field(("name", "called"), _TEXT, name),
        Field(("animal", "species", "kind"), _TEXT, kind),
        Field(("colour", "color"), _TEXT, colour),
        Field(("age", "years"), _INTEGER, age),
    ]


def _meeting(rng: Random) -> tuple[str, list[Field]]:
    first, second = rng.sample(GIRLS + BOYS, 2)
    people = [first, second][: rng.randint(1, 2)]
    day, hour, city = rng.choice(_DAYS), rng.randint(1, 12), _city(rng)
    text = rng.choice(
        (
            f"I meet {_listed(people)} on {day} at {hour} in {city}.",
            f"On {day} at {hour} there is a meeting in {city} with {_listed(people)}.",
            f"{_listed(people)} and I meet in {city} on {day} at {hour}.",
        )
    )
    return text, [
        Field(
            ("day", "weekday"), {"type": "string", "enum": list(_DAYS)} if rng.random() < 0.3 else _TEXT, day
        ),
        Field(("hour", "time"), _INTEGER, hour),
        Field(("city", "place", "location"), _TEXT, city),
        Field(("people", "with", "participants"), _LIST, people),
    ]


def _calculation(rng: Random) -> tuple[str, list[Field]]:
    problem = arithmetic.training_problem(rng)
    text = problem.fill(rng.choice(("What is {a} {w} {b}?", "What is {a} {o} {b}?")))
    return text, [Field(("answer", "result", "value", "number"), _INTEGER, problem.result)]


def _capital(rng: Random) -> tuple[str, list[Field]]:
    country = rng.choice(tuple(facts.CAPITALS))
    keys = ("capital", "city", "answer", "name")
    fields = [Field(keys, _TEXT, facts.CAPITALS[country])]
    if rng.random() < 0.4:
        fields.append(Field(("country", "nation"), _TEXT, country))
    return f"What is the capital of {country}?", fields


_RECORDS = {
    "person": (_person, 0.42),
    "order": (_order, 0.2),
    "animal": (_animal, 0.13),
    "meeting": (_meeting, 0.13),
    "calculation": (_calculation, 0.06),
    "capital": (_capital, 0.06),
}


def request(rng: Random, *, held_out: bool = False) -> Request:
    """A request whose values are held out from training, or not."""
    kind = rng.choices(list(_RECORDS), [share for _, share in _RECORDS.values()])[0]
    while True:
        text, fields = _RECORDS[kind][0](rng)
        if kind in ("calculation", "capital") or _is_held_out(fields) is held_out:
            break
    wanted = rng.sample(fields, rng.randint(1, min(len(fields), 4)))
    if rng.random() < 0.6:
        wanted.sort(key=fields.index)  # the order that people write
    keys = [field.keys[0] if rng.random() < 0.6 else rng.choice(field.keys) for field in wanted]
    record = {key: field.value for key, field in zip(keys, wanted, strict=True)}
    parts = {key: field.schema for key, field in zip(keys, wanted, strict=True)}
    return Request(kind, text, object_schema(rng, kind.capitalize(), parts), record)


def _is_held_out(fields: list[Field]) -> bool:
    values = sorted(str(field.value) for field in fields[:3])
    return zlib.crc32(":".join(values).encode()) % 5 == 0


def ask(rng: Random, asked: Request, *, keys_told: bool | None = None) -> tuple[str | None, str]:
    """(system message or None, what the user says).

    Args:
        rng: what the wording is drawn from.
        asked: the request.
        keys_told: whether the prompt names the keys that are wanted; None: in two of three.
    """
    if keys_told is None:
        keys_told = rng.random() < 0.66
    told = _telling(rng, asked) if keys_told else _hint(rng, asked)
    if asked.text.endswith("?") and "JSON" not in told:
        told = "Answer in JSON."  # without a word of it the answer is a sentence
    if told and rng.random() < 0.2:
        return told, asked.text
    if not told:
        return None, asked.text
    if rng.random() < 0.5:
        return None, f"{asked.text} {told}" if rng.random() < 0.7 else f"{asked.text}\n{told}"
    if asked.text.endswith("?"):
        return None, f"{asked.text} {told}"
    return None, f"{told} {asked.text}" if rng.random() < 0.6 else f"{told[:-1]}: {asked.text}"


def _telling(rng: Random, asked: Request) -> str:
    """An instruction that names the keys."""
    if rng.random() < 0.35:
        schema = json.dumps(asked.schema, ensure_ascii=False)
        return rng.choice(
            (
                f"Answer in JSON with this schema: {schema}.",
                f"Extract the {asked.kind} as JSON with this schema: {schema}.",
                f"Return JSON that follows this schema: {schema}.",
            )
        )
    keys = _listed(list(asked.record))
    return rng.choice(
        (
            f"Extract {keys} as JSON.",
            f"Answer in JSON with the keys {keys}.",
            f"Give me {keys} as JSON.",
            f"Return a JSON object with {keys}.",
        )
    )


def _hint(rng: Random, asked: Request) -> str:
    """An instruction that does not name the keys, or none."""
    return rng.choice(
        (
            "",
            "Answer in JSON.",
            "Answer as JSON.",
            "Return JSON.",
            f"Extract the {asked.kind}.",
            f"Extract the {asked.kind} as JSON.",
            "Extract the data as JSON.",
            "Extract the information.",
        )
    )


def tool_name(rng: Random, asked: Request) -> str:
    """What a client may call the tool that takes the record."""
    name = asked.kind
    return rng.choice((name.capitalize(), name, f"save_{name}", f"extract_{name}", f"{name}_info", "answer"))


def _name(rng: Random) -> str:
    return capitalised(invented(rng)) if rng.random() < 0.4 else rng.choice(GIRLS + BOYS)


def _city(rng: Random) -> str:
    return capitalised(invented(rng)) if rng.random() < 0.3 else rng.choice(tuple(facts.CAPITALS.values()))


def _listed(parts: list[str]) -> str:
    """``a, b and c``."""
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last
