"""Groups of layers: room in all or in none, windows that slide, and books that balance in each."""

from __future__ import annotations

import pytest

from server.scheduling.block_hash import block_hash, cache_root
from server.scheduling.block_pool import CacheIntegrityError
from server.scheduling.block_table import NO_BLOCK
from server.scheduling.cache_manager import CacheManager
from server.scheduling.limits import GroupSize, most_held
from server.scheduling.params import SamplingParams
from server.scheduling.request import Phase, Request, Sequence

BLOCK = 4


def lone(tokens: list[int], **options: bytes) -> Sequence:
    request = Request("r", tokens, SamplingParams(max_new_tokens=99), 0.0, **options)  # type: ignore[arg-type]
    request.phase = Phase.RUNNING
    return request.sequences[0]


def compute(cache: CacheManager, sequence: Sequence) -> Sequence:
    """Admit and compute all known tokens in one chunk."""
    cache.admit(sequence.request)
    assert cache.extend(sequence, sequence.prefill_end - sequence.num_computed)
    cache.commit(sequence, sequence.prefill_end)
    sequence.num_computed = sequence.prefill_end
    cache.slide(sequence)
    return sequence


@pytest.mark.parametrize(("window", "block"), [(8, 4), (8, 16), (1, 4), (5, 4), (4, 4)])
def test_a_long_sequence_holds_a_few_blocks_of_a_window(window: int, block: int) -> None:
    cache = CacheManager([GroupSize(1000), GroupSize(9, 0, window)], block)
    sequence = compute(cache, lone([1] * 7))
    most = 0
    for _ in range(1000):
        sequence.history.append(1)
        if sequence.num_computed % block == 0:
            cache.slide(sequence)
            cache.grow([sequence])
        most = max(most, cache.groups[1].device.num_used)
        sequence.num_computed += 1
    assert most == most_held(1007, block, window) == -(-(window - 1) // block) + 1
    assert cache.groups[0].device.num_used == -(-1007 // block)


def test_blocks_behind_the_window_are_found_as_long_as_they_are_there() -> None:
    prompt = list(range(1, 34))
    cache = CacheManager([GroupSize(100), GroupSize(20, 0, 8)], BLOCK)
    cache.free(compute(cache, lone(prompt)))
    assert compute(cache, lone(prompt)).request is not None
    assert cache.counters.prefix_hits == 32
    same = lone([*prompt[:20], 99, 98])
    cache.admit(same.request)
    assert same.num_computed == 20, "the window before the end of what is equal is still there"
    assert [block == NO_BLOCK for block in same.tables[1].blocks] == [True] * 3 + [False] * 2


def test_the_longest_prefix_of_which_every_group_has_what_is_seen() -> None:
    prompt = list(range(1, 42))
    cache = CacheManager([GroupSize(100), GroupSize(30, 0, 8)], BLOCK)
    first = compute(cache, lone(prompt))
    window = cache.groups[1].device
    for place in (8, 6):  # of blocks 0 to 9 two are gone from the window's pool
        window.forget(window.lookup(first.hashes[place]) or 0)
    cache.free(first)
    assert cache.groups[1].longest_match(first.hashes, [window.contents], 10) == 6
    again = lone(prompt)
    cache.admit(again.request)
    assert again.num_computed == 6 * BLOCK
    assert again.tables[1].first == 4, "blocks before the window are not needed"


def test_what_a_sequence_shares_with_one_that_is_still_to_be_computed_is_kept_for_it() -> None:
    """Two answers of a preempted request: the second starts where they part, far behind the first's end."""
    prompt, answers = list(range(1, 22)), [[100 + i for i in range(40)], [200 + i for i in range(3)]]
    params = SamplingParams(max_new_tokens=99, num_choices=2)
    request = Request("r", prompt, params, 0.0, emitted=answers)
    request.phase = Phase.RUNNING
    cache = CacheManager([GroupSize(100), GroupSize(14, 0, 8)], BLOCK, prefix_cache=False)
    cache.admit(request)
    first, second = request.sequences
    assert (first.num_computed, second.num_computed) == (0, 20)
    kept = second.tables[1].blocks[3:5]
    assert NO_BLOCK not in kept and first.tables[1].blocks == [NO_BLOCK] * 3 + kept
    for end in range(4, 60, 4):
        first.num_computed = end
        cache.slide(first)
        assert cache.extend(first, 4) == 4
    assert second.tables[1].blocks[3:5] == kept and set(first.tables[1].blocks[3:5]) == {NO_BLOCK}
    cache.check([request])


@pytest.mark.parametrize(("blocks", "fits"), [(3, False), (4, True)])
def test_a_shared_block_that_leaves_the_window_before_the_end_saves_none(blocks: int, fits: bool) -> None:
    cache = CacheManager([GroupSize(blocks, 0, 3)], BLOCK)
    compute(cache, lone([1] * 5))
    later = lone([1] * 4 + [2] * 6)
    assert cache.blocks_to_admit(later.request) == [2], "it ends with two blocks that no other has"
    assert cache.fits([2]) is fits
    cache.admit(later.request)
    assert later.num_computed == BLOCK and later.tables[0].blocks == [0], "the first is shared"
    while later.num_computed < 10 and cache.extend(later, 1):
        later.num_computed += 1
        cache.slide(later)
    assert later.num_computed == (10 if fits else 8)


def test_a_block_that_is_shared_until_the_end_need_not_be_taken() -> None:
    cache = CacheManager([GroupSize(4, 0, 5)], BLOCK)
    compute(cache, lone([1] * 9))
    later = lone([1] * 8 + [2])
    assert cache.blocks_to_admit(later.request) == [1]
    assert compute(cache, later).tables[0].blocks[1:] == [1, 3]


def test_what_one_answer_takes_is_nothing_that_a_later_one_was_to_share() -> None:
    """Of two answers that were begun the second shares a block that was oldest among those to be evicted, and
    one behind it that is in use: it has to find both, whatever the first takes."""
    cache = CacheManager([GroupSize(8)], BLOCK)
    first, second = lone([1] * 5), lone([1] * 8 + [2])
    cache.admit(first.request)
    cache.admit(second.request)
    for sequence in (first, second):
        cache.commit(sequence, sequence.prefill_end)
    filler = compute(cache, lone([3] * 9))
    cache.free(first)
    cache.free(filler)
    params = SamplingParams(max_new_tokens=99, num_choices=2)
    request = Request("r", [1], params, 0.0, emitted=[[4] * 12, [1] * 7 + [5, 6]])
    request.phase = Phase.RUNNING
    needs = cache.blocks_to_admit(request)
    assert needs == [5] and cache.fits(needs) and not cache.fits([6])
    cache.admit(request)
    assert request.sequences[1].num_computed == 2 * BLOCK
    assert cache.groups[0].device.num_available == 0
    cache.check([request, second.request])


def test_salts_and_keys_of_blocks_keep_contents_apart() -> None:
    cache = CacheManager([GroupSize(100)], BLOCK)
    tokens = list(range(1, 20))
    compute(cache, lone(tokens))
    assert compute(cache, lone(tokens, cache_salt=b"other")).hashes
    assert cache.counters.prefix_hits == 0
    pictured = lone(tokens)
    pictured.request.block_keys = {2: b"an image"}
    cache.admit(pictured.request)
    assert pictured.num_computed == 2 * BLOCK, "what comes before the image is the same"
    assert block_hash(b"", b"12") != block_hash(b"", b"12", b"key")
    assert len({cache_root(), cache_root(b""), cache_root(b"ab", b"c"), cache_root(b"a", b"bc")}) == 4


def test_a_damaged_group_is_named() -> None:
    cache = CacheManager([GroupSize(9), GroupSize(9, 0, 8, name="window_8")], BLOCK)
    sequence = compute(cache, lone([1, 2, 3]))
    cache.check([sequence.request])
    cache.groups[1].device.allocate()
    with pytest.raises(CacheIntegrityError, match=r"'window_8'.*1 references but 0 owners"):
        cache.check([sequence.request])
