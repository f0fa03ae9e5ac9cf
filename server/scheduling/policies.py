"""Scheduling policies: in which order requests are served, and what a step is made of.

A policy is a name and three pure functions of plain data; `Scheduler` does the rest. To add one, write a
class here and name it in `POLICIES`: `batcher_config.policy` and `benchmarks.compare` know it by that name.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence as Seq

from server.scheduling.request import Request

PRIORITY_HEAD_START_SECONDS = 10.0
"""A request of priority p is served as if it had arrived p times this earlier, so that none starves."""

PROMPT_TOKENS_PER_SECOND = 1000.0
"""How `ShortestPromptFirst` weighs length against waiting: a prompt with this many tokens more is served
after those that arrive up to one second later."""


class Mix(enum.Enum):
    """What a step computes."""

    TOGETHER = "decodes, and beside them chunks of prompts as far as the budget goes"
    PROMPTS_FIRST = "whole prompts alone, as long as any can be admitted; otherwise decodes"
    NO_ADMISSION = "decodes and prompts under way; no request is admitted"


class SchedulingPolicy:
    """First come, first served; decodes never wait for prompts (Sarathi: Agrawal et al., 2023)."""

    name = "first_come"
    mixes = True
    """Whether steps have prompts beside decodes."""

    def order(self, request: Request) -> float:
        """What requests are sorted by, the least first; constant over a request's life.

        The order must not let a request wait without end: it has to grow with the time of arrival.
        """
        return request.arrival - request.priority * PRIORITY_HEAD_START_SECONDS

    def victim(self, candidates: Seq[Request]) -> Request:
        """Which of `candidates` leaves the batch when blocks run out.

        They are sorted by `order`; the first needs the blocks. The first of all that run must never be
        chosen beside another, so that it comes to its end.
        """
        return candidates[-1]

    def mix(self, running: Seq[Request]) -> Mix:
        """What the next step computes, if `running` is in the batch."""
        return Mix.TOGETHER


class ShortestPromptFirst(SchedulingPolicy):
    """Short prompts overtake long ones, which lowers the mean time to first token; waiting counts, too."""

    name = "shortest_prompt_first"

    def order(self, request: Request) -> float:
        return super().order(request) + request.prompt_length / PROMPT_TOKENS_PER_SECOND


class PrefillFirst(SchedulingPolicy):
    """New prompts interrupt all decodes and are computed whole (Orca: Yu et al., 2022; vLLM before chunks).

    First tokens come early, and gaps between the others are as long as prompts take.
    """

    name = "prefill_first"
    mixes = False

    def mix(self, running: Seq[Request]) -> Mix:
        return Mix.PROMPTS_FIRST


class DecodeFirst(SchedulingPolicy):
    """Requests enter together and the batch is decoded to its end before others enter, as in request-level
    batching (FasterTransformer): no gap between tokens, and a long wait for the first."""

    name = "decode_first"
    mixes = False

    def mix(self, running: Seq[Request]) -> Mix:
        has_begun = any(s.num_computed > s.prefill_end for request in running for s in request.sequences)
        return Mix.NO_ADMISSION if has_begun else Mix.PROMPTS_FIRST


POLICIES: dict[str, SchedulingPolicy] = {
    policy.name: policy
    for policy in (SchedulingPolicy(), ShortestPromptFirst(), PrefillFirst(), DecodeFirst())
}
