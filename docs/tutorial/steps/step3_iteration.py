"""Step 3: iteration-level scheduling. Who runs is decided anew before every forward pass."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from docs.tutorial.steps.model import Llama, attention


class Sequence:
    """Tokens, of which the first `computed` have keys and values in `cache`."""

    def __init__(self, request: Request, tokens: list[int], index: int = 0) -> None:
        self.request, self.tokens, self.index, self.computed = request, tokens, index, 0
        self.cache: Tensor | None = None  # [layers, 2, longest, kv_heads, dim]
        self.blocks: list[int] = []  # used from step 4 on


class Request:
    """A prompt and the answers that it gets: one, until step 6."""

    def __init__(self, prompt: list[int], limit: int, width: int = 1) -> None:
        self.prompt, self.limit, self.width = prompt, limit, width
        self.sequences = [Sequence(self, list(prompt))]
        self.answers: dict[int, list[int]] = {}

    @property
    def decodes(self) -> bool:
        """Whether every sequence has just its newest token to compute."""
        return all(len(s.tokens) - s.computed == 1 for s in self.sequences)


class Engine:
    """At most `max_tokens` tokens a step and `max_rows` sequences at a time."""

    def __init__(self, model: Llama, max_tokens: int = 64, max_rows: int = 8) -> None:
        self.model, self.max_tokens, self.max_rows = model, max_tokens, max_rows
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.trace: list[list[int]] = []  # for each step, the tokens computed of each sequence

    def run(self, *requests: Request) -> list[list[list[int]]]:
        """The answers of all `requests`."""
        self.waiting.extend(requests)
        while self.waiting or self.running:
            self.step()
        return [[request.answers[i] for i in sorted(request.answers)] for request in requests]

    def schedule(self) -> list[tuple[Sequence, int]]:
        """(sequence, how many of its tokens to compute): decodes, prompts under way, new requests."""
        plan: list[tuple[Sequence, int]] = []
        for request in list(self.running):
            if request in self.running and request.decodes and self.make_room(request):
                plan += [(sequence, 1) for sequence in request.sequences]
        begun = [request for request in self.running if not request.decodes]
        for request in begun:
            self._plan_prompt(request, plan)
        rows = sum(request.width for request in self.running)
        while self.waiting and rows + self.waiting[0].width <= self.max_rows and self._left(plan):
            if not self.admit(self.waiting[0]):
                break
            self.running.append(request := self.waiting.popleft())
            rows += request.width
            if not request.decodes:  # one that was swapped in decodes from the next step on
                self._plan_prompt(request, plan)
        return plan

    def _left(self, plan: list[tuple[Sequence, int]]) -> int:
        return self.max_tokens - sum(count for _, count in plan)

    def _plan_prompt(self, request: Request, plan: list[tuple[Sequence, int]]) -> None:
        """The next chunk; several sequences stop one token early, so that they decode in step."""
        for sequence in request.sequences:
            length = len(sequence.tokens) - (len(request.sequences) > 1)
            if count := min(length - sequence.computed, self._left(plan)):
                plan.append((sequence, count))

    def step(self) -> None:
        """One forward pass over all that `schedule` chose."""
        plan = self.schedule()
        if not plan and not self.running:
            raise RuntimeError("the cache is too small for the next request")
        if not plan:
            return  # who has just come in decodes from the next step on
        spans = [(s, s.computed, s.computed + count) for s, count in plan]
        tokens = torch.tensor([token for s, start, end in spans for token in s.tokens[start:end]])
        positions = torch.cat([torch.arange(start, end) for _, start, end in spans])
        ends = torch.tensor([count for _, count in plan]).cumsum(0) - 1

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            out, at = torch.empty_like(query), 0
            for sequence, start, end in spans:
                part = slice(at, at := at + end - start)
                self.store(sequence, layer, start, torch.stack((key[part], value[part])))
                mask = torch.ones(end - start, end, dtype=torch.bool).tril(start)
                out[part] = attention(query[part], *self.load(sequence, layer, end), mask)
            return out

        logits = self.model.forward(tokens, positions, attend, ends)
        self.trace.append([count for _, count in plan])
        ready: dict[Request, list[Tensor]] = {}
        for (sequence, _, end), row in zip(spans, logits, strict=True):
            sequence.computed = end
            if end == len(sequence.tokens):
                ready.setdefault(sequence.request, []).append(row)
        for request, rows in ready.items():
            self.choose(request, rows)

    def choose(self, request: Request, rows: list[Tensor]) -> None:
        """Give the sequences of `request` their next tokens; `rows` are their logits."""
        self.extend(request.sequences[0], int(rows[0].argmax()))

    def extend(self, sequence: Sequence, token: int) -> None:
        """Add a token; the last one ends the sequence, and its place is free at once."""
        request = sequence.request
        sequence.tokens.append(token)
        answer = sequence.tokens[len(request.prompt) :]
        if token == self.model.eos or len(answer) == request.limit:
            request.answers[sequence.index] = answer
            self.release(sequence)
            request.sequences.remove(sequence)
            if not request.sequences:
                self.running.remove(request)

    # the cache: one reserved piece a sequence; steps 4 and 5 put others in the place of these
    def admit(self, request: Request) -> bool:
        for sequence in request.sequences:
            shape = 2, len(request.prompt) + request.limit, self.model.kv_heads, self.model.dim
            sequence.cache = torch.zeros(self.model.layers, *shape)
        return True

    def make_room(self, request: Request) -> bool:
        return True

    def release(self, sequence: Sequence) -> None:
        sequence.cache = None

    def store(self, sequence: Sequence, layer: int, start: int, new: Tensor) -> None:
        sequence.cache[layer, :, start : start + new.shape[1]] = new

    def load(self, sequence: Sequence, layer: int, end: int) -> Tensor:
        return sequence.cache[layer, :, :end]
