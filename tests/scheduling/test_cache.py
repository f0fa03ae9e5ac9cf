"""The books of the cache always balance."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.scheduling.block_pool import BlockPool, CacheIntegrityError, OutOfBlocksError
from server.scheduling.cache_manager import CacheManager
from server.scheduling.history import TokenHistory
from server.scheduling.limits import GroupSize
from server.scheduling.params import SamplingParams
from server.scheduling.request import Phase, Request, Sequence

BLOCK = 4


class CacheMachine(RuleBasedStateMachine):
    """Random lives of requests: admitted, grown, forked, swapped out and in, freed in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []
        self.count = 0

    @initialize(prefix_cache=st.booleans(), host=st.integers(0, 20))
    def make(self, prefix_cache: bool, host: int) -> None:
        self.cache = CacheManager([GroupSize(24, host)], BLOCK, prefix_cache=prefix_cache)

    @property
    def pool(self) -> BlockPool:
        return self.cache.groups[0].device

    def _pick(self, data: st.DataObject, phase: Phase) -> Request:
        return data.draw(st.sampled_from([r for r in self.requests if r.phase is phase]))

    def _any(self, phase: Phase) -> bool:
        return any(r.phase is phase for r in self.requests)

    @rule(prompt=st.lists(st.integers(0, 1), min_size=1, max_size=30))
    def admit(self, prompt: list[int]) -> None:
        self.count += 1
        request = Request(str(self.count), prompt, SamplingParams(max_new_tokens=99), 0.0)
        (need,), before = self.cache.blocks_to_admit(request), self.pool.num_available
        if need > before:
            return
        request.phase = Phase.RUNNING
        self.cache.admit(request)
        assert before - self.pool.num_available == need
        sequence = request.sequences[0]
        assert len(sequence.tables[0].blocks) * BLOCK >= len(prompt) > sequence.num_computed
        self.cache.commit(sequence, len(prompt))
        sequence.num_computed = len(prompt)
        sequence.history.append(0)
        self.requests.append(request)

    @precondition(lambda self: self._any(Phase.RUNNING))
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), min_size=8, max_size=8))
    def grow(self, data: st.DataObject, tokens: list[int]) -> None:
        request = self._pick(data, Phase.RUNNING)
        (need,), before = self.cache.blocks_to_grow(request.sequences), self.pool.num_available
        if need > before:
            return
        self.cache.grow(request.sequences)
        for sequence, token in zip(request.sequences, tokens, strict=False):
            last = sequence.tables[0].blocks[sequence.num_computed // BLOCK]
            assert self.pool.references[last] == 1, "a shared block would be written"
            sequence.num_computed += 1
            self.cache.commit(sequence, sequence.num_computed)
            sequence.history.append(token)
        assert before - self.pool.num_available == need

    @precondition(lambda self: self._any(Phase.RUNNING))
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        request = self._pick(data, Phase.RUNNING)
        if len(request.sequences) < 8:
            parent = data.draw(st.sampled_from(request.sequences))
            child = parent.fork(0)
            self.cache.share(parent, child)
            request.sequences.append(child)

    @precondition(lambda self: self._any(Phase.RUNNING))
    @rule(data=st.data())
    def swap_out(self, data: st.DataObject) -> None:
        request = self._pick(data, Phase.RUNNING)
        if self.cache.can_swap_out(request):
            (held,) = self.cache.blocks_held(request)
            assert len(self.cache.swap_out(request)) == held
            request.phase = Phase.SWAPPED

    @precondition(lambda self: self._any(Phase.SWAPPED))
    @rule(data=st.data())
    def swap_in(self, data: st.DataObject) -> None:
        request = self._pick(data, Phase.SWAPPED)
        if self.cache.fits(self.cache.blocks_held(request)):
            self.cache.swap_in(request)
            request.phase = Phase.RUNNING

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.requests))
        sequence = data.draw(st.sampled_from(request.sequences))
        self.cache.free(sequence)
        request.sequences.remove(sequence)
        if not request.sequences:
            self.requests.remove(request)

    @invariant()
    def books_balance(self) -> None:
        if hasattr(self, "cache"):
            self.cache.check(self.requests)

    def teardown(self) -> None:
        for request in self.requests:
            for sequence in request.sequences:
                self.cache.free(sequence)
        if hasattr(self, "cache"):
            assert self.pool.num_used == self.cache.groups[0].host.num_used == 0


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def _sequence(tokens: list[int]) -> Sequence:
    request = Request("r", tokens, SamplingParams(max_new_tokens=9), 0.0)
    request.phase = Phase.RUNNING
    return request.sequences[0]


def test_check_notices_a_leak() -> None:
    pool = BlockPool(4)
    block = pool.allocate()
    pool.check([[block]])
    with pytest.raises(CacheIntegrityError, match="1 references but 0 owners"):
        pool.check([])
    with pytest.raises(CacheIntegrityError, match="1 references but 2 owners"):
        pool.check([[block], [block]])


def test_an_exhausted_pool_refuses() -> None:
    pool = BlockPool(2)
    pool.allocate(), pool.allocate()
    with pytest.raises(OutOfBlocksError):
        pool.allocate()


def test_oldest_cached_block_is_evicted_first() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(), pool.allocate()
    pool.register(first, b"first")
    pool.register(second, b"second")
    pool.release(first)
    pool.release(second)
    assert pool.num_available == pool.num_cached == 2
    assert pool.allocate() == first
    assert pool.lookup(b"first") is None and pool.lookup(b"second") == second


def test_prefix_is_found_by_content_not_by_place() -> None:
    cache = CacheManager([GroupSize(16)], BLOCK)
    first = _sequence([1, 2, 3, 4, 5, 6, 7, 8, 9])
    cache.admit(first.request)
    cache.commit(first, 9)
    same, shifted = _sequence([1, 2, 3, 4, 5, 6, 7, 8, 1]), _sequence([5, 6, 7, 8, 1])
    cache.admit(same.request)
    cache.admit(shifted.request)
    assert same.tables[0].blocks[:2] == first.tables[0].blocks[:2] and same.num_computed == 8
    assert shifted.num_computed == 0, "equal tokens at another place are another content"


def test_the_last_prompt_token_is_never_taken_from_the_cache() -> None:
    cache = CacheManager([GroupSize(16)], BLOCK)
    for _ in range(2):
        sequence = _sequence([1, 2, 3, 4, 5, 6, 7, 8])
        cache.admit(sequence.request)
        cache.commit(sequence, 8)
    assert sequence.num_computed == 4


def test_history_forks_share_and_diverge() -> None:
    stem = TokenHistory([1, 2, 3])
    left, right = stem.fork(), stem.fork()
    left.append(4)
    right.append(5)
    stem.append(6)
    again = left.fork().fork()
    assert (again.last, len(again)) == (4, 4)
    again.append(7)
    assert again.slice(0, 5) == [1, 2, 3, 4, 7] and again.slice(2, 4) == [3, 4]
    assert right.slice(0, 4) == [1, 2, 3, 5] and stem.slice(1, 4) == [2, 3, 6]
    empty = right.fork()
    right.append(8)
    assert empty.last == 5 and empty.fork().slice(0, 4) == [1, 2, 3, 5]
