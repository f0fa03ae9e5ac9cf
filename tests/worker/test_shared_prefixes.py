"""Which decodes of a step begin with the same blocks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from server.scheduling.step import StepInput
from server.worker.shared_prefixes import PrefixFinder


def integers(values: Sequence[int]) -> np.ndarray:
    return np.array(values, np.int32)


def finder(tables: list[list[int]], most: int = 4) -> PrefixFinder:
    """Finder with blocks of 32 tokens, for the second of two groups of layers; it must ignore the first."""
    found = PrefixFinder(1, len(tables) + 1, 64, 32, most)
    for slot, blocks in enumerate(tables):
        for group in (0, 1):
            count = len(blocks)
            found.follow(
                StepInput(
                    table_groups=integers([group] * count),
                    table_slots=integers([slot] * count),
                    table_places=integers(range(count)),
                    table_blocks=integers(blocks if group else [7] * count),
                )
            )
    return found


def found(tables: list[list[int]], positions: list[int], most: int = 4) -> list[list[int]]:
    """[tokens, sharers]."""
    listed: list[list[int]] = finder(tables, most).find(np.arange(len(tables)), integers(positions)).tolist()
    return listed


_others = itertools.count(10_000)


def table(*runs: int) -> list[int]:
    """Twelve blocks: four for each of `runs`, then some that no other table has."""
    shared = [100 * run + place for run in runs for place in range(4)]
    return shared + list(itertools.islice(_others, 12 - len(shared)))


def test_beams_of_prompts() -> None:
    tables = [table(1, 2), *(table(3, 4) for _ in range(4)), table(5), table(5), table(5)]
    assert found(tables, [300] * 8) == [[0] + [256] * 4 + [128] * 3, [1, 4, -1, -2, -3, 3, -1, -2]]


def test_no_more_than_a_tile_has_room_for() -> None:
    tables = [table(1) for _ in range(7)]
    assert found(tables, [300] * 7, most=3) == [[128] * 6 + [0], [3, -1, -2, 3, -1, -2, 1]]


def test_the_new_token_and_what_is_behind_it_are_each_ones_own() -> None:
    """Blocks that are full before it alone: entries behind may be those of another sequence."""
    tables = [table(1, 2), table(1, 2), table(1, 2)]
    assert found(tables, [255, 256, 300]) == [[224] * 3, [3, -1, -2]]
    assert found(tables, [127, 256, 256]) == [[0, 256, 256], [1, 2, -1]]


def test_tokens_of_one_sequence() -> None:
    same = np.zeros(5, np.int64)
    assert finder([table(1, 2)]).find(same, integers([250, 251, 252, 253, 254])).tolist() == [
        [224] * 4 + [0],
        [4, -1, -2, -3, 1],
    ]


def test_those_with_much_in_common_are_not_held_to_little() -> None:
    """Three requests begin with the same instructions; two have beams."""
    tables = [table(1), *(table(1, 2, 3) for _ in range(3)), *(table(1, 4, 5) for _ in range(3))]
    tokens, sharers = found(tables, [383] * 7)
    assert tokens == [128, 128, 352, 352, 352, 352, 352]
    assert sharers == [2, -1, 2, -1, 3, -1, -2]


@pytest.mark.parametrize("positions", [[], [300], [300, 300]])
def test_nothing_is_shared(positions: list[int]) -> None:
    tables = [table(), table()][: len(positions)]
    assert found(tables, positions) == [[0] * len(positions), [1] * len(positions)]


def test_less_than_is_worth_it_is_not_shared() -> None:
    tables = [[1, 2, 3, 10, 11, 12], [1, 2, 3, 20, 21, 22]]
    assert found(tables, [180, 180]) == [[0, 0], [1, 1]]


def test_what_changes_is_followed() -> None:
    known = finder([table(1, 2), table(1, 2)])
    change = StepInput(
        table_groups=integers([1]),
        table_slots=integers([1]),
        table_places=integers([5]),
        table_blocks=integers([9]),
    )
    known.follow(change)
    assert known.find(np.arange(2), integers([300, 300])).tolist() == [[160, 160], [2, -1]]
