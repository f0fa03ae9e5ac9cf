"""A step that is under way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.scheduling.plan import Plan
from server.scheduling.request import Sequence

if TYPE_CHECKING:
    from server.sampling.chosen import ChosenTokens, PendingTokens


@dataclass(slots=True)
class Launched:
    """The plan, the sequences that get tokens, their choice, and when it was launched."""

    plan: Plan
    sequences: list[Sequence]
    choice: ChosenTokens | PendingTokens | None
    since: float
