"""What an answer consists of: text, reasoning and tool calls, in pieces as they come."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class Content:
    """Text for the reader."""

    text: str


@dataclass(slots=True)
class Reasoning:
    """Text that the model wrote for itself before it answered."""

    text: str


@dataclass(slots=True)
class CallBegin:
    """Call number `index` of the answer begins: a tool of the request by its name."""

    index: int
    name: str


@dataclass(slots=True)
class CallArguments:
    """More of the arguments of call `index`: a piece of one JSON object."""

    index: int
    text: str


Part = Content | Reasoning | CallBegin | CallArguments


def append(parts: list[Part], part: Part) -> None:
    """Add `part` to `parts`, joined to the last one where it continues it."""
    last = parts[-1] if parts else None
    if isinstance(part, CallBegin) or type(last) is not type(part):
        parts.append(part)
    elif isinstance(part, CallArguments) and isinstance(last, CallArguments):
        if last.index == part.index:
            last.text += part.text
        else:
            parts.append(part)
    elif isinstance(part, Content | Reasoning) and isinstance(last, Content | Reasoning):
        last.text += part.text


def join(parts: list[Part], more: Iterable[Part]) -> list[Part]:
    """`parts` with `more` behind them."""
    for part in more:
        append(parts, part)
    return parts


@dataclass(slots=True)
class Called:
    """A whole call."""

    name: str
    arguments: str = ""
    """A JSON object, cut where the answer was."""


@dataclass(slots=True)
class Parsed:
    """A whole answer, sorted."""

    content: str
    reasoning: str
    calls: list[Called]

    @classmethod
    def of(cls, parts: Iterable[Part]) -> Parsed:
        """The parts of an answer put together."""
        texts: dict[type[Part], list[str]] = {Content: [], Reasoning: []}
        calls: list[Called] = []
        for part in parts:
            if isinstance(part, CallBegin):
                calls.append(Called(part.name))
            elif isinstance(part, CallArguments):
                calls[part.index].arguments += part.text
            else:
                texts[type(part)].append(part.text)
        return cls("".join(texts[Content]), "".join(texts[Reasoning]), calls)
