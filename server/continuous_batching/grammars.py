"""The grammars of live requests: compiled and followed beside the step loop.

A request waits (`Request.held`) until its grammar is compiled, on a thread. From then on its masks are made
between two steps, those of all answers together, as long as that takes next to nothing. An answer whose mask
takes longer gets it from a thread as well, and sits out of the steps meanwhile: no other waits for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from server.continuous_batching.constrained import Answer, Constrained
from server.scheduling.plan import Draft
from server.scheduling.request import Request
from server.scheduling.request import Sequence as Row
from server.scheduling.step import SampleInput
from server.text.grammars.compiler import GrammarCompiler
from server.text.grammars.source import GrammarError
from server.text.grammars.state import GrammarState, mask_words
from utils.threads import give_way

if TYPE_CHECKING:
    from llguidance import LLExecutor

OPTION = "structured_outputs"

QUICK_SECONDS = 0.001
"""A mask that takes less is made between two steps."""
PATIENCE_SECONDS = 0.005
"""How long a step that is under way waits for masks made by threads."""
EXPECTED_SECONDS = 5e-5
"""Of a mask that is made between two steps."""
REST_SECONDS = 0.002
"""How long messages may be left unread while there is nothing to do but to wait for threads."""


class Grammars:
    """Masks for the tokens of every answer that is held to a grammar.

    Args:
        compiler: for the model's tokens.
        vocab_size: columns of the logits.
    """

    def __init__(self, compiler: GrammarCompiler, vocab_size: int) -> None:
        self._compiler = compiler
        self._words = mask_words(vocab_size)
        self._compiling = ThreadPoolExecutor(2, "grammar", initializer=give_way)
        self._filling = ThreadPoolExecutor(max(1, min(8, (os.cpu_count() or 1) // 2)), "mask")
        self._live: dict[str, Constrained] = {}
        self._compiling.submit(compiler.prepare)

    @cached_property
    def _executor(self) -> LLExecutor:
        from llguidance import LLExecutor

        return LLExecutor(min(8, os.cpu_count() or 1))  # nothing else of the engine runs meanwhile

    # -- requests come and go --------------------------------------------------------------------

    def watch(self, request: Request) -> None:
        """Compile the grammar of a new request, if it has one; the request waits for that."""
        if request.params.is_constrained:
            asked = request.params.options[OPTION]
            compiling = self._compiling.submit(self._compiler.compile, asked, request.params.eos_token_ids)
            self._live[request.id] = Constrained(request, compiling)
            request.held = True

    @property
    def is_idle(self) -> bool:
        """Whether no live request has a grammar."""
        return not self._live

    def constrains(self, rows: Iterable[Row]) -> bool:
        """Whether any of `rows` is held to a grammar."""
        return not self.is_idle and any(row.request.id in self._live for row in rows)

    def forget(self, request_id: str) -> None:
        live = self._live.pop(request_id, None)
        if live is not None:
            live.compiling.cancel()

    # -- before a step is scheduled ----------------------------------------------------------------

    def hold(self, fail: Callable[[Request, Exception], None]) -> None:
        """Let requests wait whose next masks are not there; `fail` those that cannot go on."""
        self._hold([*self._live.values()], fail)
        if jobs := self._jobs():  # most are done in no time
            wait(jobs, QUICK_SECONDS + len(jobs) * EXPECTED_SECONDS)
            self._hold([live for live in self._live.values() if live.request.held], fail)

    def _hold(self, requests: Iterable[Constrained], fail: Callable[[Request, Exception], None]) -> None:
        for live in requests:
            if live.settled:
                continue
            try:
                live.request.held = not self._is_ready(live)
            except Exception as error:
                fail(live.request, error)

    def _is_ready(self, live: Constrained) -> bool:
        if live.grammar is None:
            if not live.compiling.done():
                return False
            live.grammar = live.compiling.result()
        ready = True
        for row in live.request.sequences:
            answer = self._answer_of(live, row)
            if answer.problem is not None:
                raise answer.problem
            if not row.pending and not live.settled:  # what is pending is not known yet
                ready &= self._is_made(answer, row)
        answers = [live.answers[row] for row in live.request.sequences]
        live.settled = all(answer.quick and answer.job is None for answer in answers)
        return ready

    def _answer_of(self, live: Constrained, row: Row) -> Answer:
        answer = live.answers.get(row)
        if answer is None:
            assert live.grammar is not None
            mask = np.zeros(live.grammar.mask_words, np.int32)
            answer = Answer(live.grammar, live.grammar.begin(), mask)
            live.answers[row], live.settled = answer, False
        return answer

    def _is_made(self, answer: Answer, row: Row) -> bool:
        """Whether the next mask is there; a thread makes it otherwise."""
        if answer.job is not None and answer.job.done():
            seconds, answer.job = answer.job.result(), None
            answer.quick = seconds < QUICK_SECONDS and not row.request.params.uses_beams
        if answer.job is not None:
            return False
        if answer.made_for == row.num_generated:
            return True
        make = self._make_of_beam if row.request.params.uses_beams else self._make
        answer.job = self._filling.submit(make, answer, row.generated())
        return False

    @staticmethod
    def _make(answer: Answer, tokens: list[int]) -> float:
        """Make the mask behind `tokens`, on a thread; returns the seconds of its processor that it took."""
        with answer.grammar.lock:
            begin = time.thread_time()
            answer.state.follow(tokens)
            answer.state.fill(answer.mask)
            answer.made_for = len(tokens)
            return time.thread_time() - begin

    def _make_of_beam(self, answer: Answer, tokens: list[int]) -> float:
        """The same; a beam goes on without any chance where there are fewer ways on than beams."""
        try:
            return self._make(answer, tokens)
        except GrammarError:
            answer.mask.fill(0)
            answer.state, answer.made_for = answer.grammar.begin(), len(tokens)
            return QUICK_SECONDS

    def rest(self) -> None:
        """Wait a moment for threads: there is nothing else to do."""
        jobs: list[Future[Any]] = [live.compiling for live in self._live.values() if live.grammar is None]
        wait([*jobs, *self._jobs()], REST_SECONDS, FIRST_COMPLETED)

    def _jobs(self) -> list[Future[float]]:
        """What makes masks just now."""
        waited_for = [live for live in self._live.values() if not live.settled]
        answers = [answer for live in waited_for for answer in live.answers.values()]
        return [answer.job for answer in answers if answer.job is not None]

    def accepted(self, row: Row, tokens: Sequence[int]) -> int:
        """How many of the drafted `tokens` may follow what is known of `row`."""
        live = self._live.get(row.request.id)
        if live is None:
            return len(tokens)
        answer = self._answer_of(live, row)
        if not live.settled:
            return 0
        return answer.state.accepted(tokens) if self._advance_all({row: answer}) else 0

    # -- the masks of a step -----------------------------------------------------------------------

    def masks(self, rows: Sequence[Row], drafts: Sequence[Draft]) -> tuple[SampleInput, frozenset[Row]]:
        """What the choice of a step's tokens needs; all tokens before these are known.

        Args:
            rows: that get tokens.
            drafts: for some of them.

        Returns:
            The masks; and the rows that sit the step out, for which nothing may be chosen: their masks are
            not there yet, or they have ended.
        """
        found = {
            row: self._answer_of(self._live[row.request.id], row)
            for row in rows
            if row.slot >= 0 and row.request.id in self._live
        }
        quick = {row: answer for row, answer in found.items() if self._live[row.request.id].settled}
        made = self._made_by_threads({row: answer for row, answer in found.items() if row not in quick})
        quick = self._advance_all(quick)
        drafted = {draft.sequence: draft.tokens for draft in drafts if draft.sequence in quick}
        made |= self._make_at_once({row: a for row, a in quick.items() if row not in drafted})
        for row, tokens in drafted.items():
            made[row] = self._make_ahead(quick[row], tokens)
        lines = [(row, ahead) for row, masks in made.items() for ahead in range(len(masks))]
        sample = SampleInput(
            mask_slots=np.array([row.slot for row, _ in lines], np.int32),
            mask_positions=np.array([len(row.history) - 1 + ahead for row, ahead in lines], np.int32),
        )
        if made:
            sample.masks = np.concatenate([*made.values()])[:, : self._words]
        absent = frozenset(row for row in rows if row.slot < 0 or (row in found and row not in made))
        return sample, absent

    def _made_by_threads(self, answers: dict[Row, Answer]) -> dict[Row, np.ndarray]:
        """The masks of `answers`, int32 [1, words], that are there in time."""
        deadline, ready = time.monotonic() + PATIENCE_SECONDS, {}
        for row, answer in answers.items():
            try:
                if not self._is_made(answer, row) and answer.job is not None:
                    wait([answer.job], max(0.0, deadline - time.monotonic()))
                if self._is_made(answer, row) and answer.made_for == row.num_generated:
                    ready[row] = answer.mask[None]
            except Exception as error:
                answer.problem = error
        return ready

    def _advance_all(self, answers: dict[Row, Answer]) -> dict[Row, Answer]:
        """Let the states of answers know all of their tokens; yields those whose grammars allow them."""
        if not answers:
            return {}
        states = [answer.state for answer in answers.values()]
        new = [
            row.history.slice(row.request.prompt_length + len(state), row.history.length)
            for row, state in zip(answers, states, strict=True)
        ]
        return self._without(answers, GrammarState.advance_all(states, new, self._executor))

    def _make_at_once(self, answers: dict[Row, Answer]) -> dict[Row, np.ndarray]:
        """The masks of `answers`, int32 [1, words], which are quick: no longer so if this takes long."""
        if not answers:
            return {}
        words = {answer.grammar.mask_words for answer in answers.values()}
        masks = np.empty((len(answers), *words), np.int32)
        begin = time.perf_counter()
        failed = GrammarState.fill_all([a.state for a in answers.values()], masks, self._executor)
        if time.perf_counter() - begin > PATIENCE_SECONDS + len(answers) * EXPECTED_SECONDS:
            for row, answer in answers.items():  # the next masks tell whose it was
                answer.quick = self._live[row.request.id].settled = False
        good = self._without(answers, failed)
        return {row: masks[index : index + 1] for index, row in enumerate(answers) if row in good}

    def _without(self, answers: dict[Row, Answer], failed: dict[int, GrammarError]) -> dict[Row, Answer]:
        """Those of `answers` that have not `failed`; the others have a problem from now on."""
        if not failed:
            return answers
        good = {}
        for index, (row, answer) in enumerate(answers.items()):
            if index in failed:
                answer.problem, self._live[row.request.id].settled = failed[index], False
            else:
                good[row] = answer
        return good

    def _make_ahead(self, answer: Answer, tokens: Sequence[int]) -> np.ndarray:
        """int32 [1 + tokens, words]: what may follow an answer, and each of `tokens`, which it allows."""
        masks = np.empty((1 + len(tokens), answer.grammar.mask_words), np.int32)
        answer.state.fill_ahead(tokens, masks)
        return masks
