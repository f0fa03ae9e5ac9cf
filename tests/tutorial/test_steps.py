"""The teaching engine gives the tokens of transformers, step by step, however little room it has."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from docs.tutorial.steps.model import Llama
from docs.tutorial.steps.step2_static import generate
from docs.tutorial.steps.step3_iteration import Engine, Request
from docs.tutorial.steps.step4_paged import PagedEngine
from docs.tutorial.steps.step5_preemption import PreemptingEngine
from docs.tutorial.steps.step6_decoding import Ask, DecodingEngine, Options, gumbel
from protocol.generation import GenerationConfig
from tests.continuous_batching.reference import Reference

STEPS = Path(__file__).resolve().parents[2] / "docs" / "tutorial" / "steps"
DICE = random.Random(0)
SHARED = [0, *(DICE.randrange(3, 512) for _ in range(17))]
PROMPTS = [[*SHARED[: DICE.choice((1, 9, 18))], *DICE.choices(range(3, 512), k=5)] for _ in range(8)]
LIMITS = [DICE.randint(1, 30) for _ in PROMPTS]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Llama:
    return Llama(tiny_model)


@pytest.fixture(scope="module")
def expected(reference: Reference) -> list[list[int]]:
    configs = [GenerationConfig(max_new_tokens=limit) for limit in LIMITS]
    return [reference.answers(*work)[0] for work in zip(PROMPTS, configs, strict=True)]


def test_a_package(model: Llama, expected: list[list[int]]) -> None:
    answers, work = generate(model, PROMPTS, LIMITS)
    assert answers == expected
    assert work.useful == sum(map(len, expected))
    assert work.prompt + work.padding == len(PROMPTS) * max(map(len, PROMPTS))


@pytest.mark.parametrize(
    ("make", "happened"),
    [
        (lambda model: Engine(model, max_tokens=7, max_rows=3), None),
        (lambda model: PagedEngine(model, 40, block_size=4, max_tokens=20), "reused"),
        (lambda model: PreemptingEngine(model, 18, host_blocks=12, block_size=4), "swapped"),
        (lambda model: PreemptingEngine(model, 18, block_size=4), "recomputed"),
    ],
    ids=["iteration", "paged", "swap", "recompute"],
)
def test_greedy_answers(
    model: Llama, expected: list[list[int]], make: Callable[[Llama], Any], happened: str | None
) -> None:
    engine = make(model)
    requests = [Request(*work) for work in zip(PROMPTS, LIMITS, strict=True)]
    assert engine.run(*requests) == [[answer] for answer in expected]
    if happened is not None:
        assert engine.counts[happened] > 0
        assert not any(engine.pool.references)


@pytest.mark.parametrize("blocks", [200, 32])
def test_beams_beside_greedy_answers(model: Llama, reference: Reference, blocks: int) -> None:
    engine = DecodingEngine(model, blocks, host_blocks=16, block_size=4, max_rows=10)
    beams = [3 if i % 2 else 1 for i in range(len(PROMPTS))]
    asks = [
        Ask(prompt, limit, Options(beams=n, answers=min(n, 2)))
        for prompt, limit, n in zip(PROMPTS, LIMITS, beams, strict=True)
    ]
    answers = engine.run(*asks)
    for prompt, limit, n, answer in zip(PROMPTS, LIMITS, beams, answers, strict=True):
        config = GenerationConfig(max_new_tokens=limit, num_beams=n, num_return_sequences=min(n, 2))
        assert answer == reference.answers(prompt, config)
    assert engine.counts["copied"] > 0
    assert not any(engine.pool.references)


def test_samples_do_not_depend_on_the_batch(model: Llama) -> None:
    def ask(seed: int) -> Ask:
        return Ask(PROMPTS[seed], 20, Options(temperature=1.0, top_p=0.9, seed=seed, answers=2))

    alone = [DecodingEngine(model, 64).run(ask(seed))[0] for seed in range(4)]
    crowded = DecodingEngine(model, 28, block_size=4, max_tokens=9)
    assert crowded.run(*map(ask, range(4))) == alone
    assert alone[0][0] != alone[0][1]


def test_noise_is_that_of_the_gumbel_distribution() -> None:
    noise = torch.stack([gumbel(seed, 0, 3, 50) for seed in range(400)]).flatten()
    ordered = noise.sort().values
    expected = torch.exp(-torch.exp(-ordered))
    seen = (torch.arange(len(ordered)) + 0.5) / len(ordered)
    assert (expected - seen).abs().max() < 1.63 / len(ordered) ** 0.5  # Kolmogorov-Smirnov, 1 %


def test_a_constraint_is_kept(model: Llama) -> None:
    options = Options(temperature=2.0, allowed=lambda so_far: [7, 8] if len(so_far) % 2 else [5])
    ((answer,),) = DecodingEngine(model, 64).run(Ask(PROMPTS[0], 10, options))
    assert answer[::2] == [5] * 5 and set(answer[1::2]) <= {7, 8}


def test_what_never_fits_is_refused(model: Llama) -> None:
    for kind in (PagedEngine, PreemptingEngine):
        with pytest.raises(RuntimeError, match="too small"):
            kind(model, 3, block_size=4).run(Request([0] * 9, 8))


def test_a_prompt_that_the_cache_holds_to_its_last_token(model: Llama) -> None:
    engine = PagedEngine(model, 16, block_size=4)
    first = engine.run(Request(SHARED[:9], 3))
    assert engine.run(Request(SHARED[:9], 3)) == first
    assert engine.counts["reused"] == 8


def test_the_engine_has_at_most_400_lines_of_code() -> None:
    """Those of its last step: without blank lines, comments and docstrings."""
    assert sum(map(lines_of_code, set(STEPS.glob("*.py")) - {STEPS / "step2_static.py"})) <= 400


def lines_of_code(path: Path) -> int:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    lines = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt | ast.expr | ast.arg)}
    return len(lines)
