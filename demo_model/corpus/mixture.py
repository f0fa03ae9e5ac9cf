"""The mixture: what a training document looks like, and how often each kind comes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

from demo_model.corpus import arithmetic, facts, records, stories, talk, unknown
from demo_model.corpus.definitions import ToolUse, tool_lines
from demo_model.corpus.tools import Toolbox
from demo_model.corpus.words import capitalised

Role = Literal["tools", "system", "user", "assistant", "tool", "prompt", "text"]

_FACTS = facts.all_facts()
_CAPITALS = [facts.capital(country, city) for country, city in facts.CAPITALS.items()]


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a document.

    ``system``, ``user``, ``assistant`` and ``tool`` are turns of a conversation, before which ``tools``
    says what may be called; ``prompt`` and ``text`` are bare text, as on a completion route. Only
    ``assistant`` and ``text`` are what the model says, so only they are learnt.
    """

    role: Role
    text: str

    @property
    def learnt(self) -> bool:
        """Whether the model is trained to produce this."""
        return self.role in ("assistant", "text")


Document = list[Segment]


def documents(seed: int, count: int) -> Iterator[Document]:
    """`count` documents, the same for the same seed.

    Problems that `arithmetic.Problem.held_out` names occur in none of them.
    """
    rng = Random(seed)
    for _ in range(count):
        kind = rng.random()
        if kind < 0.42:
            yield _conversation(rng)
        elif kind < 0.56:
            yield _tool_conversation(rng)
        elif kind < 0.72:
            yield _record(rng)
        elif kind < 0.79:
            yield _bare_story(rng)
        elif kind < 0.9:
            yield _bare_sentence(rng)
        elif kind < 0.98:
            yield _bare_question(rng)
        else:
            yield _bare_list(rng)


def _exchange(rng: Random) -> tuple[str, str]:
    """A question of any kind and its answer."""
    kind = rng.random()
    if kind < 0.54:
        return arithmetic.ask(rng, arithmetic.training_problem(rng))
    if kind < 0.71:
        return facts.ask(rng, rng.choice(_FACTS))
    if kind < 0.79:
        return talk.small_talk(rng)
    if kind < 0.82:
        return talk.repeat(rng)
    if kind < 0.92:
        return unknown.ask(rng)
    if kind < 0.985:
        return stories.ask(rng)
    return talk.chinese_story(rng)


def _thread(rng: Random) -> list[tuple[str, str]]:
    """An exchange and a second one that makes sense only after it."""
    kind = rng.random()
    if kind < 0.5:
        first = arithmetic.ask(rng, arithmetic.training_problem(rng))
        second = arithmetic.go_on(rng, first[1])
        return [first, second] if second else [first]
    if kind < 0.75:
        return [facts.ask(rng, rng.choice(_CAPITALS)), facts.another_capital(rng)]
    return [stories.ask(rng), stories.another(rng)]


def _conversation(rng: Random) -> Document:
    """One to six exchanges, sometimes under a system message."""
    introduction = talk.introduction(rng) if rng.random() < 0.06 else ()
    exchanges = [*introduction[:1]]
    while not exchanges or (rng.random() < 0.5 and len(exchanges) < 6):
        exchanges += _thread(rng) if rng.random() < 0.08 else [_exchange(rng)]
    exchanges += introduction[1:]
    document = [Segment("system", talk.system_message(rng))] if rng.random() < 0.3 else []
    for question, answer in exchanges:
        document += [Segment("user", _as_typed(rng, question)), Segment("assistant", answer)]
    return document


def _tool_conversation(rng: Random) -> Document:
    """One to four exchanges with tools at hand, of which not all are needed."""
    box = Toolbox(rng)
    document = [Segment("tools", tool_lines(box.definitions))]
    if rng.random() < 0.35:
        document.append(Segment("system", talk.system_message_for_tools(rng)))
    used: ToolUse | None = None
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        if rng.random() < 0.72:
            used = box.use(rng, used)
            document += _use(rng, used)
        else:
            used = None
            question, answer = _answered_alone(rng, box)
            document += [Segment("user", _as_typed(rng, question)), Segment("assistant", answer)]
    return document


def _use(rng: Random, used: ToolUse) -> Document:
    """A question, calls, their results, the answer."""
    question = _as_typed(rng, used.question) if used.typed_freely else used.question
    results = [Segment("tool", result) for result in used.results]
    return [
        Segment("user", question),
        Segment("assistant", used.calling),
        *results,
        Segment("assistant", used.answer),
    ]


def _answered_alone(rng: Random, box: Toolbox) -> tuple[str, str]:
    """A question that takes none of the tools, and its answer."""
    kind = rng.random()
    if kind < 0.3 and box.calculator is None:
        return arithmetic.ask(rng, arithmetic.training_problem(rng))
    if kind < 0.5 and not box.others:
        return unknown.ask_no_calculation(rng)
    if kind < 0.75:
        return facts.ask(rng, rng.choice(_FACTS))
    if kind < 0.94:
        return talk.small_talk(rng)
    return stories.ask(rng)


def _record(rng: Random) -> Document:
    """A text and its JSON object: as the answer, or as the arguments of a call."""
    asked = records.request(rng)
    if rng.random() < 0.7:
        system, said = records.ask(rng, asked)
        document = [Segment("system", system)] if system else []
        return [*document, Segment("user", said), Segment("assistant", asked.answer)]
    definition, used = asked.by_tool(records.tool_name(rng, asked))
    document = [Segment("tools", tool_lines([definition]))]
    if rng.random() < 0.35:
        document.append(Segment("system", talk.system_message_for_tools(rng)))
    return document + _use(rng, used)


def _bare_story(rng: Random) -> Document:
    """A story, whole, from a later sentence on, or continued from any character."""
    text = stories.story(rng)
    kind = rng.random()
    if kind < 0.15:
        start = text.index(". ") + 2
        return [Segment("text", text[start:])]
    if kind < 0.4:
        cut = rng.randrange(1, len(text) // 2)
        return [Segment("prompt", text[:cut]), Segment("text", text[cut:])]
    return [Segment("text", text)]


def _bare_sentence(rng: Random) -> Document:
    """The beginning of a sentence or formula, and its end."""
    kind = rng.random()
    if kind < 0.7:
        beginning, end = arithmetic.complete(rng, arithmetic.training_problem(rng))
    elif kind < 0.93:
        beginning, end = facts.complete(rng.choice(_FACTS))
    else:
        beginning, end = talk.complete(rng)
    if end.startswith(" ") and rng.random() < 0.1:
        beginning, end = beginning + " ", end[1:]  # a space typed after the prompt
    return [Segment("prompt", beginning), Segment("text", end)]


def _bare_question(rng: Random) -> Document:
    """A question without a chat template around it, and its answer."""
    question, answer = _exchange(rng)
    if question.endswith("=") and " = " in answer:
        return _bare_sentence(rng)  # without a chat, only the result is missing
    question = _as_typed(rng, question)
    layout = rng.random()
    if layout < 0.6:
        prompt, answer = question, f" {answer}"
    elif layout < 0.75:
        prompt = f"{question}\n"
    elif layout < 0.8:
        prompt = f"{question} "
    elif layout < 0.9:
        prompt, answer = f"Q: {question}\nA:", f" {answer}"
    else:
        prompt, answer = f"Question: {question}\nAnswer:", f" {answer}"
    return [Segment("prompt", prompt), Segment("text", answer)]


def _bare_list(rng: Random) -> Document:
    """Solved problems line by line, the last of them to be solved: a few-shot prompt."""
    pattern = rng.choice((("{a} + {b} =", "{a} - {b} ="), ("{a} plus {b} is", "{a} minus {b} is")))
    problems = [arithmetic.training_problem(rng) for _ in range(rng.randint(2, 5))]
    lines = [problem.fill(pattern[problem.operator == "-"]) for problem in problems]
    solved = [f"{line} {problem.result}" for line, problem in zip(lines, problems, strict=True)]
    prompt = "\n".join([*solved[:-1], lines[-1]])
    return [Segment("prompt", prompt), Segment("text", f" {problems[-1].result}")]


def _as_typed(rng: Random, question: str) -> str:
    """`question` as people type: politely, carelessly, in small letters."""
    if rng.random() < 0.05:
        question = rng.choice(("Hello! ", "Hi! ", "Please tell me: ", "Next question: ")) + question
    elif rng.random() < 0.05:
        question = rng.choice(("Hi, ", "And ", "So ", "Now ")) + question[0].lower() + question[1:]
    typed = rng.random()
    if typed < 0.1:
        return question.lower()
    if typed < 0.2:
        return question.rstrip("?.!")
    if typed < 0.26:
        return question.lower().rstrip("?.!")
    if typed < 0.29:
        return capitalised(question.rstrip("?.")) + rng.choice((" please", ", please", " ?", "??", "!"))
    return question
