"""What was generated is computed again as it was generated: an answer that is resumed, or computed anew after
it had to leave, is the undisturbed one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import pytest
from torch import Tensor

from server.continuous_batching import LLM
from server.ops.backend import LayeredBackend
from server.ops.layer_ops import LayerOps
from server.ops.torch.attention import TorchAttention
from tests.continuous_batching import overlapped
from tests.continuous_batching.driver import Driver
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.overlapped import overlapped_llm

PROMPT = [(13 * i) % 500 + 3 for i in range(24)]  # three whole blocks
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"do_sample": True, "temperature": 0.9, "seed": 7},
    "several": {"do_sample": True, "seed": 8, "n": 3},
    "drafted": {"do_sample": True, "temperature": 0.7, "seed": 9, "prompt_lookup_num_tokens": 5},
}
TOKENS = 26
SKEW = 1.2


class SkewedAttention(TorchAttention):
    """Chunks are attended to quite unlike decodes: a token that is computed in the other way shows."""

    def _chunk(self, *args: Any) -> Tensor:
        return super()._chunk(*args) * SKEW


class SameBits(LayeredBackend):
    same_bits = True


def skew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let engines attend so, and promise bits."""
    monkeypatch.setattr(overlapped, "LayeredBackend", SameBits)
    overlapped.compute_with(monkeypatch, SkewedAttention, LayerOps())


class Make(Protocol):
    def __call__(self, num_blocks: int = 200) -> LLM: ...


@pytest.fixture(params=["native", "torch", "overlapped"])
def make(request: pytest.FixtureRequest, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes engines of one kind."""

    def native(num_blocks: int = 200) -> LLM:
        return small_llm(tiny_model, dtype="bfloat16", num_blocks=num_blocks)

    def skewed(num_blocks: int = 200) -> LLM:
        skew(monkeypatch)
        return small_llm(tiny_model, num_blocks=num_blocks)

    def ahead(num_blocks: int = 200) -> LLM:
        monkeypatch.setattr(overlapped, "TorchAttention", SkewedAttention)
        monkeypatch.setattr(overlapped, "LayeredBackend", SameBits)
        return overlapped_llm(tiny_model, monkeypatch, num_blocks=num_blocks)

    kinds: dict[str, Make] = {"native": native, "torch": skewed, "overlapped": ahead}
    return kinds[request.param]


def options(kind: str) -> dict[str, Any]:
    return {"max_new_tokens": TOKENS, "ignore_eos": True, **KINDS[kind]}


def answers(llm: LLM, kind: str) -> list[list[int]]:
    driver = Driver(llm)
    driver.add("whole", PROMPT, options(kind))
    driver.finish()
    return driver.answers("whole")


def test_resumed_at_many_places(make: Make) -> None:
    llm = make()
    whole = {kind: answers(llm, kind) for kind in KINDS}
    driver, left = Driver(make()), {}
    for kind, (first, *others) in whole.items():
        for cut in (1, 7, 8, 9, 17, TOKENS - 1):
            name = f"{kind}, {cut}"
            emitted = [first[:cut], *others[:1], *(answer[: cut // 2] for answer in others[1:])]
            finished = frozenset({1} if others else ())
            driver.add(name, PROMPT, options(kind), emitted=emitted, finished_answers=finished, stream=True)
            left[name] = {0: first[cut:]} | {2 + i: answer[cut // 2 :] for i, answer in enumerate(others[1:])}
    driver.finish()
    assert driver.tokens == left


def test_computed_anew_where_blocks_run_out(make: Make) -> None:
    llm = make()
    whole = {kind: answers(llm, kind) for kind in KINDS}
    for num_blocks in (17, 20):
        llm = make(num_blocks)
        llm.engine.scheduler.cost.policy = "recompute"
        driver = Driver(llm)
        for kind in whole:
            driver.add(kind, PROMPT, options(kind))
            driver.step()
        driver.finish()
        assert llm.engine.stats().preempted_by_recompute > 0
        assert {kind: driver.answers(kind) for kind in whole} == whole


def test_an_answer_that_comes_back_in_a_prompt_is_one(make: Make) -> None:
    """Its blocks were decoded: where that is other content, they are not reused for it."""
    llm = make()
    (answer,) = answers(llm, "greedy")
    following = [*PROMPT, *answer, 5, 6]
    results = []
    for engine in (llm, make()):
        hits = engine.engine.stats().prefix_hits
        driver = Driver(engine)
        driver.add("turn", following, {"max_new_tokens": 20, "ignore_eos": True})
        driver.finish()
        results.append(driver.answers("turn"))
        hits = engine.engine.stats().prefix_hits - hits
        if engine is llm:
            same = llm.engine.worker.runner.attention.chunks_like_decodes
            promised = llm.engine.worker.runner.backend.same_bits
            whole_blocks = (len(PROMPT) + TOKENS - 1) // 8 * 8
            assert hits == (len(PROMPT) if promised and not same else whole_blocks)
            if not promised:
                return
    assert results[0] == results[1]


def test_the_step_says_which_tokens_were_decoded(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skew(monkeypatch)
    llm = small_llm(tiny_model, beams=8, tokens=40, chunk=40)
    (answer,) = answers(llm, "greedy")
    driver = Driver(llm)
    runs: list[tuple[list[tuple[int, int]], list[tuple[int, int]]]] = []
    compute = llm.engine.worker.runner.forward

    def noting(step: Any) -> Any:
        redone = list(zip(step.redone_starts.tolist(), step.redone_ends.tolist(), strict=True))
        runs.append((redone, list(zip(step.chunk_starts.tolist(), step.chunk_ends.tolist(), strict=True))))
        return compute(step)

    monkeypatch.setattr(llm.engine.worker.runner, "forward", noting)
    other = [token + 1 for token in PROMPT]
    driver.add("rest", other, options("greedy"), emitted=[answer[:20]], stream=True)
    driver.finish()
    assert runs[:4] == [([], [(0, 24)]), ([(24, 32)], []), ([(32, 40)], []), ([(40, 43)], [])]
