"""How much memory each group of layers gets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from server.checkpoints.errors import ModelError
from server.layers.cache_spec import CacheSpec
from server.scheduling.limits import GroupSize
from server.worker import cache_sizing as sizing
from server.worker.cache_sizing import CacheWishes, GroupNeed, blocks_that_fit, size_groups

GPU = torch.device("cuda")
FULL = CacheSpec("paged", (5,), 1, 8, 8, "float16")
WINDOW = CacheSpec("window", (0, 1, 2, 3, 4), 1, 8, 8, "float16", window=64)


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "free_memory", lambda device: 10_000_000)
    monkeypatch.setattr(sizing, "all_memory", lambda device: 20_000_000)


def sized(*specs: CacheSpec, wishes: dict[str, Any] | None = None, **batch: Any) -> tuple[GroupSize, ...]:
    given: dict[str, Any] = {
        "num_blocks": None, "num_window_blocks": None, "num_blocks_cpu": 0,
        "block_size": 16, "memory_fraction": 1.0,
    }  # fmt: skip
    sizes = {"max_rows": 4, "max_tokens": 256, "max_length": 16_000} | batch
    return size_groups(specs, CacheWishes(**(given | (wishes or {}))), GPU, **sizes)


def test_room_is_left_for_what_is_reserved() -> None:
    def fitting(most: int, fraction: float = 0.9, reserved: int = 0) -> int:
        return blocks_that_fit(GPU, [GroupNeed(100_000, most)], fraction, reserved)

    assert fitting(1000) == 90
    assert fitting(1000, reserved=4_000_000) == 54
    assert fitting(20, reserved=4_000_000) == 20
    assert fitting(1000, reserved=20_000_000) == 1


def test_groups_share_memory_until_one_has_all_it_can_use() -> None:
    small, large = GroupNeed(300_000, 5), GroupNeed(100_000, 1000)
    for groups in ([small, large], [large, small]):
        count = blocks_that_fit(GPU, groups, 1.0)
        assert count == 85 and 5 * 300_000 + count * 100_000 == 10_000_000
    assert blocks_that_fit(GPU, [small, GroupNeed(700_000, 1000)], 1.0) == 12
    assert blocks_that_fit(GPU, [small, GroupNeed(100_000, 3)], 1.0) == 5


def test_a_window_gets_what_all_rows_and_a_step_can_use() -> None:
    """Each row five blocks that it sees and one more that a chunk begins in; 16 that a step computes."""
    full, window = sized(FULL, WINDOW)
    assert window.num_blocks == 4 * (5 + 1) + 16 == 40
    assert (full.block_bytes, window.block_bytes) == (512, 2560)
    assert full.num_blocks == 4 * 1000, "all that four rows can use"
    full, window = sized(FULL, WINDOW, max_rows=1000)
    spent = full.num_blocks * full.block_bytes + window.num_blocks * window.block_bytes
    assert spent <= 10_000_000 < spent + full.block_bytes + window.block_bytes
    assert (full.window, window.window, full.name, window.name) == (None, 64, "full", "window_64")


def test_a_window_gets_no_more_than_what_sees_everything() -> None:
    assert [group.num_blocks for group in sized(FULL, WINDOW, wishes={"num_blocks": 30})] == [30, 30]
    assert [group.num_blocks for group in sized(FULL, WINDOW, wishes={"num_blocks": 50})] == [50, 40]


def test_the_configuration_has_the_last_word() -> None:
    wishes = {"num_blocks": 50, "num_window_blocks": 70, "num_blocks_cpu": 60}
    assert [(g.num_blocks, g.num_host_blocks) for g in sized(FULL, WINDOW, wishes=wishes)] == [
        (50, 60), (70, 60),
    ]  # fmt: skip
    full, _ = sized(FULL, WINDOW, wishes={"num_window_blocks": 3000}, max_rows=1000)
    assert full.num_blocks == (10_000_000 - 3000 * 2560) // 512
    with pytest.raises(ModelError, match=r"num_window_blocks: this model has no layers with a window"):
        sized(WINDOW, wishes={"num_window_blocks": 3000})
    with pytest.raises(ModelError, match=r"cache_config\.num_blocks: 50 \+ 9000 blocks take"):
        sized(FULL, WINDOW, wishes={"num_blocks": 50, "num_window_blocks": 9000})


def test_a_model_of_windows_alone_has_one_group() -> None:
    (only,) = sized(WINDOW)
    assert only.num_blocks == 40
    (only,) = sized(WINDOW, wishes={"num_blocks": 500})
    assert only.num_blocks == 500


def test_the_host_gets_a_quarter() -> None:
    full, window = sized(FULL, WINDOW, wishes={"num_blocks": 100, "num_blocks_cpu": None})
    assert (full.num_host_blocks, window.num_host_blocks) == (25, 25)
