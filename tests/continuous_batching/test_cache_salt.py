"""Requests with unequal salts do not reuse each other's blocks, and answer the same."""

from __future__ import annotations

from pathlib import Path

from server.checkpoints.fingerprint import fingerprint
from server.scheduling.block_hash import cache_root
from tests.continuous_batching.driver import Driver
from tests.continuous_batching.engines import small_llm

OPTIONS = {"max_new_tokens": 6, "ignore_eos": True}


def test_prefixes_are_shared_within_a_salt_only(tiny_model: Path) -> None:
    driver = Driver(small_llm(tiny_model))
    prompt = [(7 * i) % 500 + 3 for i in range(41)]
    hits = []
    for name, salt in (("a", b""), ("b", b""), ("c", b"tenant"), ("d", b"tenant"), ("e", b"another")):
        driver.add(name, prompt, OPTIONS, cache_salt=salt)
        driver.finish()
        hits.append(driver.engine.stats().prefix_hits)
    assert hits == [0, 40, 40, 80, 80]
    assert len({tuple(driver.answers(name)[0]) for name in "abcde"}) == 1


def test_the_chain_starts_from_the_weights(tiny_model: Path) -> None:
    driver = Driver(small_llm(tiny_model))
    driver.add("a", [5, 6, 7], OPTIONS)
    (request,) = driver.engine.scheduler.queues.requests()
    weights = cache_root(fingerprint(tiny_model).encode(), b"float32", b"float32")
    assert request.cache_root == cache_root(weights, b"")
