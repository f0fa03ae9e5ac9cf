"""What fails in a step for one request is nothing to the others, and nothing to the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.continuous_batching import LLM
from server.sampling.chosen import ChosenTokens
from server.scheduling.request import Request
from server.scheduling.step import StepResult
from server.worker.cache_storage import CacheStorage
from tests.continuous_batching.driver import Driver
from tests.continuous_batching.engines import small_llm

OPTIONS = {"max_new_tokens": 90, "ignore_eos": True}
PAIR = OPTIONS | {"do_sample": True, "n": 2, "seed": 3}


def swapping_llm(path: Path) -> LLM:
    """Two requests of `OPTIONS` do not fit at once: one is swapped out and back in, none of it by reuse."""
    cache = {"watermark": 0.0, "swap_policy": "swap", "enable_prefix_cache": False}
    return small_llm(path, num_blocks=14, num_blocks_cpu=40, beams=4, **cache)


def run(llm: LLM, options: dict[str, Any]) -> Driver:
    driver = Driver(llm)
    for name in ("good", "bad"):
        driver.add(name, [5, 6, 7], options)
    driver.finish()
    return driver


def break_moves(llm: LLM, monkeypatch: pytest.MonkeyPatch, kind: str, *, once: bool) -> list[int]:
    """Let every copy of `kind` to blocks of the request "bad" fail, or only the first; counts them."""
    failed = [0]

    def check(wanted: str, moves: Any) -> None:
        bad = [r for r in llm.engine.scheduler.queues.requests() if r.id == "bad"]
        blocks = {block for r in bad for s in r.sequences for block in s.held()}
        if (
            wanted == kind
            and any((move[0], move[2]) in blocks for move in moves)
            and not (once and failed[0])
        ):
            failed[0] += 1
            raise RuntimeError("cannot copy this")

    copy, swap = CacheStorage.copy, CacheStorage.swap

    def copies(self: CacheStorage, pairs: Any) -> None:
        check("copy", pairs)
        copy(self, pairs)

    def swaps(self: CacheStorage, swap_out: Any, swap_in: Any, *rest: Any) -> None:
        check("swap in", swap_in)
        swap(self, swap_out, swap_in, *rest)
        check("swap out", swap_out)  # when part of it is done

    monkeypatch.setattr(CacheStorage, "copy", copies)
    monkeypatch.setattr(CacheStorage, "swap", swaps)
    return failed


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("kind", ["copy", "swap out", "swap in"])
def test_blocks_that_cannot_be_moved_fail_their_request_only(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, kind: str, once: bool
) -> None:
    """A fault that does not come again costs nothing at all."""
    make, options = (small_llm, PAIR) if kind == "copy" else (swapping_llm, OPTIONS)
    undisturbed = run(make(tiny_model), options)
    llm = make(tiny_model)
    failed = break_moves(llm, monkeypatch, kind, once=once)
    driver = run(llm, options)
    assert failed[0] == (1 if once else 2)
    assert driver.answers("good") == undisturbed.answers("good")
    if once:
        assert not driver.failures and driver.answers("bad") == undisturbed.answers("bad")
    else:
        assert set(driver.failures) == {"bad"} and driver.failures["bad"].status == 422
        assert "cannot copy this" in driver.failures["bad"].message


def test_blocks_that_cannot_be_registered_fail_their_request_only(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = run(small_llm(tiny_model), OPTIONS)
    llm = small_llm(tiny_model)
    healthy = llm.engine.cache.commit

    def commit(sequence: Any, tokens: int) -> None:
        if sequence.request.id == "bad" and sequence.num_generated > 10:
            raise OverflowError("cannot hash this")
        healthy(sequence, tokens)

    monkeypatch.setattr(llm.engine.cache, "commit", commit)
    driver = run(llm, OPTIONS)
    assert set(driver.failures) == {"bad"} and "cannot hash this" in driver.failures["bad"].message
    assert driver.answers("good") == undisturbed.answers("good")


def test_tokens_that_cannot_be_read_may_be_asked_for_again(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose fault it is cannot be known: the requests of the step end, those that wait go on."""
    undisturbed = run(small_llm(tiny_model), OPTIONS)
    llm = small_llm(tiny_model, beams=1)
    driver = Driver(llm)
    for name in ("lost", "good"):
        driver.add(name, [5, 6, 7], OPTIONS)
    driver.step()

    def read(_: ChosenTokens) -> StepResult:
        monkeypatch.undo()
        raise RuntimeError("cannot read this")

    monkeypatch.setattr(ChosenTokens, "read", read)
    driver.finish()
    assert {name: failure.status for name, failure in driver.failures.items()} == {"lost": 503}
    assert driver.answers("good") == undisturbed.answers("good")


def test_a_request_that_cannot_be_set_up_is_refused(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = small_llm(tiny_model)
    driver = Driver(llm)
    driver.add("good", [5, 6, 7], OPTIONS)
    params = llm.engine.scheduler.queues.requests()[0].params

    def watch(_: Request) -> None:
        raise OverflowError("cannot match this")

    monkeypatch.setattr(llm.engine._collector, "watch", watch)
    refusal = llm.engine.add(Request("bad", [5, 6], params, 0.0))
    assert refusal is not None and refusal.status == 422 and "cannot match this" in refusal.message
    llm.engine.check()
    driver.finish()
    assert driver.done == {"good"}


def test_a_device_that_can_compute_no_more_ends_the_loop(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every request would fail from now on; a new process can compute again."""
    llm = small_llm(tiny_model)
    driver = Driver(llm)
    driver.add("good", [5, 6, 7], OPTIONS)

    def broken(*_: Any) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(llm.engine.worker.runner, "forward", broken)
    monkeypatch.setattr(llm.engine.worker.runner, "check_device", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        driver.step()
