"""Random lives of requests in groups of layers: whatever a token sees is there, and the books balance."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.scheduling.block_pool import OutOfBlocksError
from server.scheduling.block_table import NO_BLOCK
from server.scheduling.cache_manager import CacheManager
from server.scheduling.limits import GroupSize
from server.scheduling.params import SamplingParams
from server.scheduling.request import Phase, Request, Sequence

BLOCK = 4


class GroupsMachine(RuleBasedStateMachine):
    """Random lives of requests in up to three groups: chunks, forks, drafts, swaps, ends in any order.

    `contents` is what a worker's memory would hold: for each (group, device block) and host block the tokens
    of the sequence up to the block's end. Whatever a token sees must be there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []
        self.count = 0
        self.contents: dict[tuple[str, int, int], list[tuple[int, ...]]] = {}

    @initialize(
        windows=st.lists(st.sampled_from([None, 1, 3, 4, 5, 8, 9]), min_size=1, max_size=3),
        blocks=st.integers(14, 40),
        host=st.integers(0, 20),
        prefix_cache=st.booleans(),
    )
    def make(self, windows: list[int | None], blocks: int, host: int, prefix_cache: bool) -> None:
        sizes = [GroupSize(blocks - 3 * index, host, window) for index, window in enumerate(windows)]
        self.cache = CacheManager(sizes, BLOCK, prefix_cache=prefix_cache)

    # -- a worker's memory -------------------------------------------------------------------

    def _write(self, sequence: Sequence, start: int, end: int) -> None:
        """Compute positions `start` to `end`: all that they see must be there, then they are, too."""
        tokens = tuple(sequence.history.slice(0, end))
        for index, (group, table) in enumerate(zip(self.cache.groups, sequence.tables, strict=True)):
            window = group.size.window
            for position in range(start, end):
                place = position // BLOCK
                block = table.blocks[place]
                assert block != NO_BLOCK and group.device.references[block] >= 1
                slots = self.contents.setdefault(("device", index, block), [()] * BLOCK)
                slots[position % BLOCK] = tokens[: position + 1]
            for position in range(start, end):
                first = 0 if window is None else max(position + 1 - window, 0)
                for seen in range(first, position + 1):
                    block = table.blocks[seen // BLOCK]
                    held = self.contents[("device", index, block)][seen % BLOCK]
                    assert held == tokens[: seen + 1], "a token sees what is not its own past"

    def _copy(self, moves: list[tuple[int, int, int]], source: str, target: str) -> None:
        taken = [list(self.contents.get((source, group, block), [()] * BLOCK)) for group, block, _ in moves]
        for (group, _, block), content in zip(moves, taken, strict=True):
            self.contents[(target, group, block)] = content

    def _available(self) -> list[int]:
        return [group.device.num_available for group in self.cache.groups]

    def _pick(self, data: st.DataObject, *phases: Phase) -> Request:
        return data.draw(st.sampled_from([r for r in self.requests if r.phase in phases]))

    def _any(self, phase: Phase) -> bool:
        return any(r.phase is phase for r in self.requests)

    # -- what happens to requests --------------------------------------------------------------

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=40),
        answers=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=9), min_size=1, max_size=3),
        salt=st.sampled_from([b"", b"another tenant"]),
        chunk=st.integers(1, 24),
    )
    def admit(self, prompt: list[int], answers: list[list[int]], salt: bytes, chunk: int) -> None:
        """Admit a request, perhaps one of several answers that were begun, and compute it in chunks."""
        self.count += 1
        params = SamplingParams(max_new_tokens=99, num_choices=len(answers))
        emitted = answers if len(answers) > 1 else None
        name = str(self.count)
        request = Request(name, prompt, params, 0.0, emitted=emitted, cache_salt=salt)
        request.phase = Phase.RUNNING
        before, needs = self._available(), self.cache.blocks_to_admit(request)
        assert self._available() == before, "a question changes nothing"
        fitted = self.cache.fits(needs)
        try:
            self.cache.admit(request)
        except OutOfBlocksError:
            assert not self.cache.fits(needs)
            assert self._available() == before, "half an admission is left"
            return
        self.requests.append(request)
        for group, was, need in zip(self.cache.groups, before, needs, strict=True):
            taken = was - group.device.num_available
            assert taken <= need if group.slides else taken == need
        for sequence in list(request.sequences):
            while sequence.num_computed < sequence.prefill_end:
                self.cache.slide(sequence)
                wanted = min(chunk, sequence.prefill_end - sequence.num_computed)
                length = self.cache.extend(sequence, wanted)
                assert 0 <= length <= wanted
                if not length:
                    assert not fitted, "it was said to fit"
                    self._finish(request)  # a scheduler would let it wait, or others leave
                    return
                end = sequence.num_computed + length
                self.cache.commit(sequence, end)
                self._write(sequence, sequence.num_computed, end)
                sequence.num_computed = end
            self.cache.slide(sequence)
        for sequence in request.sequences:
            sequence.history.append(0) if sequence.num_computed == len(sequence.history) else None

    @precondition(lambda self: self._any(Phase.RUNNING))
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), min_size=8, max_size=8))
    def grow(self, data: st.DataObject, tokens: list[int]) -> None:
        request = self._pick(data, Phase.RUNNING)
        for sequence in request.sequences:
            self.cache.slide(sequence)
        before, needs = self._available(), self.cache.blocks_to_grow(request.sequences)
        if not self.cache.fits(needs):
            with pytest.raises(OutOfBlocksError):
                self.cache.grow(request.sequences)
            assert self._available() == before, "some sequences grew, or in some groups only"
            return
        self._copy(self.cache.grow(request.sequences), "device", "device")
        for sequence in request.sequences:
            for group, table in zip(self.cache.groups, sequence.tables, strict=True):
                block = table.blocks[sequence.num_computed // BLOCK]
                assert group.device.references[block] == 1, "a shared block would be written"
        taken = [was - now for was, now in zip(before, self._available(), strict=True)]
        assert taken == needs
        for sequence, token in zip(request.sequences, tokens, strict=False):
            self._write(sequence, sequence.num_computed, sequence.num_computed + 1)
            sequence.num_computed += 1
            self.cache.commit(sequence, sequence.num_computed)
            sequence.history.append(token)

    @precondition(lambda self: self._any(Phase.RUNNING))
    @rule(data=st.data(), drafted=st.integers(1, 9), accepted=st.integers(0, 9))
    def draft(self, data: st.DataObject, drafted: int, accepted: int) -> None:
        """Grow a lone sequence by one token and some guesses, of which the first `accepted` were right."""
        request = self._pick(data, Phase.RUNNING)
        sequence = request.sequences[0]
        self.cache.slide(sequence)
        if len(request.sequences) > 1 or not self.cache.fits(self.cache.blocks_to_grow([sequence])):
            return
        self._copy(self.cache.grow([sequence]), "device", "device")
        room = self.cache.extend(sequence, 1 + drafted) - 1
        assert room >= 0
        for token in [1] * room:
            sequence.history.append(token)
        self._write(sequence, sequence.num_computed, sequence.num_computed + 1 + room)
        sequence.num_computed += 1 + min(accepted, room)
        wrong = len(sequence.history) - sequence.num_computed
        if wrong:
            kept = sequence.history.slice(0, sequence.num_computed)
            sequence.history = type(sequence.history)([*kept, 0])
        else:
            sequence.history.append(0)
        self.cache.commit(sequence, sequence.num_computed)
        self.cache.shrink(sequence, sequence.num_computed)

    @precondition(lambda self: self._any(Phase.RUNNING))
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        """Another beam, or a beam that takes the place of one without children."""
        request = self._pick(data, Phase.RUNNING)
        if len({s.num_computed for s in request.sequences}) > 1:
            return  # beams are of one length
        for sequence in request.sequences:
            self.cache.slide(sequence)
        parent = data.draw(st.sampled_from(request.sequences))
        others = [s for s in request.sequences if s is not parent]
        if others and data.draw(st.booleans()):
            child = data.draw(st.sampled_from(others))
            child.follow(parent)
        elif len(request.sequences) < 6:
            child = parent.fork(0)
            request.sequences.append(child)
        else:
            return
        self.cache.share(parent, child)

    @precondition(lambda self: self._any(Phase.RUNNING))
    @rule(data=st.data())
    def swap_out(self, data: st.DataObject) -> None:
        request = self._pick(data, Phase.RUNNING)
        held = self.cache.blocks_held(request)
        if self.cache.can_swap_out(request):
            moves = self.cache.swap_out(request)
            assert [sum(move[0] == g for move in moves) for g in range(len(held))] == held
            self._copy(moves, "device", "host")
            request.phase = Phase.SWAPPED
        else:
            with pytest.raises(OutOfBlocksError):
                self.cache.swap_out(request)

    @precondition(lambda self: self._any(Phase.SWAPPED))
    @rule(data=st.data())
    def swap_in(self, data: st.DataObject) -> None:
        request = self._pick(data, Phase.SWAPPED)
        if self.cache.fits(self.cache.blocks_held(request)):
            self._copy(self.cache.swap_in(request), "host", "device")
            request.phase = Phase.RUNNING

    @precondition(lambda self: self._any(Phase.RUNNING))
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self._pick(data, Phase.RUNNING).sequences))
        first = data.draw(st.integers(0, 3))
        self.cache.forget(sequence, first)
        for group, table in zip(self.cache.groups, sequence.tables, strict=True):
            known = {group.device.lookup(content) for content in sequence.hashes}
            assert not known.intersection(table.held_in(first, len(table.blocks)))

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        """A sequence ends, or all of a request: it was cancelled."""
        request = data.draw(st.sampled_from(self.requests))
        if data.draw(st.booleans()):
            self._finish(request)
            return
        sequence = data.draw(st.sampled_from(request.sequences))
        self.cache.free(sequence)
        request.sequences.remove(sequence)
        if not request.sequences:
            self.requests.remove(request)

    def _finish(self, request: Request) -> None:
        for sequence in request.sequences:
            self.cache.free(sequence)
        request.sequences = []
        self.requests.remove(request)

    @invariant()
    def books_balance(self) -> None:
        if hasattr(self, "cache"):
            self.cache.check(self.requests)
            for request in self.requests:
                for sequence in request.sequences:
                    for group, table in zip(self.cache.groups, sequence.tables, strict=True):
                        assert set(table.blocks[: table.first]) <= {NO_BLOCK}
                        needed = range(group.first_seen(sequence.num_computed), len(table.blocks))
                        assert NO_BLOCK not in [table.blocks[place] for place in needed]

    def teardown(self) -> None:
        for request in list(self.requests):
            self._finish(request)
        if hasattr(self, "cache"):
            assert all(group.device.num_used == group.host.num_used == 0 for group in self.cache.groups)


TestGroupsMachine = GroupsMachine.TestCase
TestGroupsMachine.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)
