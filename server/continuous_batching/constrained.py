"""Where a live request and its answers stand in their grammar."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from server.scheduling.request import Request
from server.scheduling.request import Sequence as Row
from server.text.grammars.compiler import Grammar
from server.text.grammars.state import GrammarState


@dataclass(slots=True)
class Answer:
    """One answer's place in its grammar.

    Attributes:
        mask: int32 [words], made by a thread.
        made_for: tokens of the answer that `mask` is for; -1: it is for none.
        job: makes the next `mask`; yields the seconds that it took.
        quick: its last mask took next to nothing.
        problem: why the answer cannot go on.
    """

    grammar: Grammar
    state: GrammarState
    mask: np.ndarray
    made_for: int = -1
    job: Future[float] | None = None
    quick: bool = False
    problem: Exception | None = None


@dataclass(slots=True)
class Constrained:
    """A live request with a grammar.

    Attributes:
        grammar: None until it is compiled.
        settled: all masks are made between two steps, so that there is nothing to wait for. Until then
            threads make them all, even those that are quick: the answers of a request share their grammar.
    """

    request: Request
    compiling: Future[Grammar]
    grammar: Grammar | None = None
    settled: bool = False
    answers: dict[Row, Answer] = field(default_factory=dict)
