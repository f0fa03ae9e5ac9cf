"""Compares answers in every setting with those that each prompt got alone."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from benchmarks.same_bits.answers import BLOCK_SIZE, Answerer, Asked, Told
from benchmarks.same_bits.record import Record
from benchmarks.same_bits.settings import ENGINES, KINDS, TOGETHER, Counts, Setting, settings


@dataclass(frozen=True, slots=True)
class Portion:
    """A part of the work of a setting, after which the rest can wait for another call."""

    setting: Setting
    kind: str
    asked: Sequence[Asked]


class Check:
    """The work of one call.

    Args:
        options: of the command.
        record: what is done already, and where the rest goes.
    """

    def __init__(self, options: argparse.Namespace, record: Record) -> None:
        self._options = options
        self._record = record
        self._deadline = time.monotonic() + options.seconds
        self._threads = torch.get_num_threads()
        self._engine: tuple[str, Answerer] | None = None
        self.complete = False

    def run(self) -> None:
        """Everything that is not done, as long as there is time."""
        asked = self._ask()
        for kind in asked:
            for one in asked[kind]:
                if one.name not in self._record.alone:
                    if time.monotonic() > self._deadline:
                        return
                    self._record.alone |= self._made("roomy", []).answer([one], 1)
                    self._record.write()
        wanted = self._options.settings
        for setting in settings():
            if wanted is None or setting.name in wanted:
                for kind in asked:
                    if not self._compare(setting, kind, asked[kind]):
                        return
        self.complete = True

    def _ask(self) -> dict[str, list[Asked]]:
        """The requests of each kind."""
        engine, asked = self._made("roomy", []), {}
        self._record.capabilities = engine.llm.capabilities
        first = self._options.first
        for kind in self._options.kinds:
            options = KINDS[kind] | {"max_new_tokens": self._options.tokens}
            asked[kind] = [
                Asked(f"{kind} {i}", engine.prompt(i), options | ({"seed": i} if KINDS[kind] else {}))
                for i in range(first, first + self._options.prompts)
            ]
        return asked

    def _made(self, kind: str, asked: Sequence[Asked]) -> Answerer:
        """An engine of a kind; there is one at a time."""
        if self._engine is None or self._engine[0] != kind:
            self._engine = None
            gc.collect()
            torch.set_num_threads(self._threads)
            needs = [-(-(len(one.prompt) + self._options.tokens) // BLOCK_SIZE) for one in asked]
            self._engine = kind, Answerer(ENGINES[kind](self._options, needs))
        return self._engine[1]

    def _compare(self, setting: Setting, kind: str, asked: list[Asked]) -> bool:
        """Whether there was time for all of it."""
        finding = self._record.finding(setting.name, kind)
        portions = list(self._portions(setting, kind, asked))
        for portion in portions[finding.portions :]:
            if time.monotonic() > self._deadline:
                return False
            engine = self._made(setting.engine, asked)
            setting.prepare(engine)
            begin, before = time.perf_counter(), Counts.of(engine)
            told = self._answer(portion, engine)
            counts = Counts.of(engine).since(before)
            for one in portion.asked:
                alone = self._record.alone[one.name.partition(" from ")[0]]
                place = told[one.name].part_from(alone)
                if place is not None:
                    finding.parted[one.name] = place
            finding.compared += len(portion.asked)
            finding.drafted += counts.drafted
            finding.hits += counts.hits
            finding.preempted += counts.preempted
            finding.portions += 1
            finding.seconds += round(time.perf_counter() - begin, 1)
            self._record.write()
            print(f"{setting.name}, {kind}: {finding}", file=sys.stderr, flush=True)
        return True

    def _answer(self, portion: Portion, engine: Answerer) -> dict[str, Told]:
        """Answers in the portion's setting, others between them where they are too few."""
        setting, asked = portion.setting, portion.asked
        others = [
            Asked(f"other {i}", asked[i % len(asked)].prompt, asked[0].options | {"seed": 1000 + i})
            for i in range(setting.fill - len(asked))
        ]
        if setting.again:
            engine.answer(asked, setting.at_once)
        everything = [*others[::2], *asked, *others[1::2]]
        return engine.answer(everything, setting.at_once, setting.lookup)

    def _portions(self, setting: Setting, kind: str, asked: list[Asked]) -> Iterator[Portion]:
        if not setting.resumed:
            yield Portion(setting, kind, asked)
            return
        resumed = [part for one in asked for part in self._resumed(one)]
        for begin in range(0, len(resumed), TOGETHER):
            yield Portion(setting, kind, resumed[begin : begin + TOGETHER])

    def _resumed(self, one: Asked) -> Iterator[Asked]:
        """The request from each place of its answer."""
        tokens, places = self._record.alone[one.name].tokens, self._options.places
        for cut in sorted({1 + i * (len(tokens) - 2) // max(places - 1, 1) for i in range(places)}):
            yield Asked(f"{one.name} from {cut}", one.prompt, one.options, tokens[:cut])
