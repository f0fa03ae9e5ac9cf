from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from server.static_batching.batcher import Batcher, QueuedRequest


def queued(
    name: str, *, at: float = 0.0, beams: int = 1, length: int = 5, key: str = "k", priority: int = 0
) -> QueuedRequest[str]:
    return QueuedRequest(key, beams, length, at, name, priority)


def batcher(
    queued_requests: Iterable[QueuedRequest[str]], *, workload: int = 4, interval: float = 2.0
) -> Batcher[str]:
    made: Batcher[str] = Batcher(workload, interval)
    for item in queued_requests:
        made.add(item)
    return made


def names(package: list[QueuedRequest[str]]) -> list[str]:
    return [queued.item for queued in package]


def test_waits_for_company_counted_from_the_first() -> None:
    waiting = batcher([queued("a", at=1.0), queued("b", at=2.5)])
    assert waiting.ready_at() == 3.0
    assert waiting.take(2.9) == []
    assert names(waiting.take(3.0)) == ["a", "b"]
    assert len(waiting) == 0 and waiting.ready_at() is None


def test_a_full_package_does_not_wait() -> None:
    waiting = batcher([queued(name) for name in "abcd"])
    assert waiting.ready_at() == float("-inf")
    assert names(waiting.take(0.0)) == ["a", "b", "c", "d"]


def test_equal_keys_only() -> None:
    waiting = batcher([queued("a", key="x"), queued("b", key="y", at=0.5), queued("c", key="x", at=1.0)])
    assert names(waiting.take(10.0)) == ["a", "c"]
    assert names(waiting.take(10.0)) == ["b"]


def test_workload_counts_beams() -> None:
    waiting = batcher([queued("a", beams=3), queued("b", beams=2), queued("c", beams=1)])
    assert names(waiting.take(0.0)) == ["a", "c"]  # b does not fit beside a
    assert names(waiting.take(10.0)) == ["b"]


def test_larger_than_a_package_runs_alone() -> None:
    waiting = batcher([queued("a", beams=9), queued("b")])
    assert names(waiting.take(0.0)) == ["a"]


def test_of_many_the_nearest_in_length_to_the_oldest() -> None:
    lengths = {"a": 50, "b": 1, "c": 48, "d": 100, "e": 53, "f": 49}
    waiting = batcher([queued(name, at=i, length=n) for i, (name, n) in enumerate(lengths.items())])
    assert names(waiting.take(0.0)) == ["c", "f", "a", "e"]  # in order of length
    assert names(waiting.take(10.0)) == ["b", "d"]


def test_priority_first() -> None:
    items = [queued("a"), queued("b", at=1.0, priority=5), queued("c", key="other", at=0.5, priority=1)]
    waiting = batcher(items, workload=1)
    assert [names(waiting.take(10.0)) for _ in range(3)] == [["b"], ["c"], ["a"]]


def test_priority_within_a_package_goes_before_length() -> None:
    items = [queued("a", length=5), queued("b", length=5), queued("c", length=500, priority=1)]
    assert set(names(batcher(items, workload=2).take(0.0))) == {"c", "a"}


def test_remove() -> None:
    first, second = queued("a"), queued("b", at=1.0)
    waiting = batcher([first, second])
    assert waiting.remove(first)
    assert not waiting.remove(first)
    assert waiting.ready_at() == 3.0
    assert names(waiting.take(3.0)) == ["b"]
    assert not waiting.remove(second)


queued_requests = st.builds(
    queued,
    st.uuids().map(str),
    at=st.floats(0, 100),
    beams=st.integers(1, 12),
    length=st.integers(1, 50),
    key=st.sampled_from("xyz"),
    priority=st.integers(-1, 1),
)


@given(st.lists(queued_requests, max_size=40), st.integers(1, 10), st.floats(0, 10), st.data())
def test_packages_hold_the_rules_and_nothing_is_lost(
    items: list[QueuedRequest[str]], workload: int, interval: float, data: st.DataObject
) -> None:
    waiting = batcher(items, workload=workload, interval=interval)
    gone = {item.item for item in items if data.draw(st.booleans()) and waiting.remove(item)}
    left = {item.item: item for item in items if item.item not in gone}
    while left:
        now = waiting.ready_at()
        assert now is not None
        package = waiting.take(now)
        assert package, "what is ready at a time can be taken at that time"
        assert len({item.key for item in package}) == 1
        assert len(package) == 1 or sum(item.beams for item in package) <= workload
        assert [item.prompt_tokens for item in package] == sorted(item.prompt_tokens for item in package)
        group = [item for item in left.values() if item.key == package[0].key]
        full = sum(item.beams for item in group) >= workload
        assert full or min(item.arrived for item in group) + interval <= now
        oldest = min(group, key=lambda item: (-item.priority, item.arrived))
        assert oldest in package
        for item in package:
            del left[item.item]
    assert len(waiting) == 0
