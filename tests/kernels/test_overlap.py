"""The engine that plans ahead of its tokens, on the CPU: block tables and tokens kept on the "device",
a step launched before the last one's tokens are read.  Attention is torch's, told what a GPU's kernels
are told (in one test it is theirs); tokens are chosen by the Triton kernel in its interpreter.
"""

from __future__ import annotations

from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from server.continuous_batching.attention.base import AttentionBatch, ChunkSpan
from server.continuous_batching.attention.paged import PagedAttention, PagedBatch
from server.continuous_batching.attention.torch_backend import TorchAttention
from server.continuous_batching.attention.triton_backend import TritonAttention
from server.continuous_batching.decoding import continuations
from server.continuous_batching.decoding.step_logits import StepLogits
from server.continuous_batching.engine import build
from server.continuous_batching.engine.runner import PagedModelRunner
from server.continuous_batching.kernels.base import Kernels
from server.continuous_batching.kernels.triton_backend import TritonKernels
from server.continuous_batching.llm import GenerationError
from server.continuous_batching.models.config import ModelError
from server.continuous_batching.scheduler.request import Sequence
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.reference import Reference, mixed_requests, reporting_beams
from tests.kernels.draws import worst_miss
from tests.models import tiny_llama

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the real thing")


class PagedTorchAttention(PagedAttention):
    """`TorchAttention` behind the interface of kernels that walk block tables."""

    name = "paged torch"

    def prepare(self, batch: PagedBatch) -> None:
        self._inner = TorchAttention(self.shape, self.rotary, self.cache)
        count, size = batch.num_decodes, self.shape.block_size
        positions, tables, rows = batch.positions.long(), batch.tables.long(), batch.rows.long()
        spans = []
        if batch.chunks is not None:
            for index, (begin, end) in enumerate(pairwise(batch.chunks.bounds.tolist())):
                length = int(batch.chunks.lengths[index])
                blocks = tables[int(batch.chunks.rows[index]), : -(-length // size)]
                spans.append(ChunkSpan(count + begin, count + end, length - (end - begin), blocks))
        self._inner.prepare(
            AttentionBatch(
                positions=positions,
                slot_blocks=tables[rows, positions // size],
                slot_offsets=positions % size,
                decode_lengths=(positions[:count] + 1).numpy(),
                decode_tables=tables[rows[:count]],
                chunks=spans,
            )
        )

    def forward(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self._inner.forward(layer, query, key, value)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def reference(model: Path) -> Reference:
    return Reference(model)


def overlapped_llm(model: Path, monkeypatch: pytest.MonkeyPatch, *, num_blocks: int) -> LLM:
    monkeypatch.setattr(build, "choose_attention", lambda *_: (PagedTorchAttention, "a test"))
    monkeypatch.setattr(build, "choose_kernels", lambda *_: (Kernels(), "a test"))
    llm = small_llm(model, num_blocks=num_blocks, num_blocks_cpu=50)
    assert isinstance(llm.engine.runner, PagedModelRunner)
    return llm


@pytest.mark.parametrize("beams", [False, True])
@pytest.mark.parametrize("num_blocks", [400, 60])
def test_tokens_are_those_of_transformers(
    model: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch, num_blocks: int, beams: bool
) -> None:
    """Ends by token, string and length, found out one step late; preemption of sequences whose newest
    token nobody has read; with beams, steps that wait and steps that do not, by turns."""
    requests = mixed_requests(reference, 24, seed=5, longest=100)
    if not beams:
        single = {"num_beams": 1, "num_return_sequences": 1}
        requests = [(prompt, config.model_copy(update=single)) for prompt, config in requests]
    llm = overlapped_llm(model, monkeypatch, num_blocks=num_blocks)
    generations = llm.generate([p for p, _ in requests], [c for _, c in requests])
    assert not reference.contradicted(requests, generations)
    llm.engine.check()
    stats = llm.engine.stats()
    assert stats.step_failures == 0
    assert stats.cache_usage == 0.0
    assert (stats.preempted_by_swap + stats.preempted_by_recompute > 0) == (num_blocks == 60)


def test_decodes_stand_longest_context_first(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And those of a request together, as beams must; what they answer is tested above."""
    llm = overlapped_llm(model, monkeypatch, num_blocks=400)
    steps: list[list[tuple[int, str]]] = []
    choose = llm.engine._decoder.choose

    def note(forward: StepLogits, sequences: list[Sequence], *rest: Any) -> Any:
        steps.append([(s.num_computed, s.request.id) for s in sequences])
        return choose(forward, sequences, *rest)

    monkeypatch.setattr(llm.engine._decoder, "choose", note)
    configs = [GenerationConfig(max_new_tokens=12, ignore_eos=True, num_beams=n) for n in (1, 3, 1, 1)]
    llm.generate([[5] * 4, [6] * 9, [7] * 9, [8] * 20], configs)
    full = [step for step in steps if len(step) == 6]
    assert len(full) > 5
    for step in full:
        lengths = [length for length, _ in step]
        assert lengths == sorted(lengths, reverse=True) and len(set(lengths)) > 2
        assert len(list(groupby(step, key=itemgetter(1)))) == 4


def test_options_are_applied_on_the_device(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Filters, penalties, biases and reports of steps that do not wait are those of steps that do."""
    options: list[dict[str, object]] = [
        {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.05}, {"typical_p": 0.7}, {"top_k": 20, "top_p": 0.9},
        {"top_k": 30, "top_p": 0.9, "min_p": 0.02, "temperature": 1.4}, {"typical_p": 0.8, "top_p": 0.9},
        {"top_p": 0.7, "repetition_penalty": 1.5}, {"do_sample": False, "top_k": 2, "top_p": 0.5},
        {"repetition_penalty": 1.5}, {"frequency_penalty": 0.7, "presence_penalty": 0.4}, {},
        {"do_sample": False, "frequency_penalty": 1.0, "logprobs": 2},
        {"logit_bias": {7: 4.0, 9: -100.0}, "logprobs": 0},
        {"min_new_tokens": 20, "eos_token_id": list(range(3, 40)), "logprobs": 3},
    ]  # fmt: skip
    configs = [
        GenerationConfig(**{"max_new_tokens": 30, "do_sample": True, "seed": seed, **chosen})
        for seed, chosen in enumerate(options)
    ]
    prompts = [[5 + index, 7, 9] * (1 + index % 5) for index in range(len(configs))]
    waiting = small_llm(model).generate(prompts, configs)
    llm = overlapped_llm(model, monkeypatch, num_blocks=400)
    overlapped = llm.generate(prompts, configs)
    assert not llm.engine._dependent and llm.engine.stats().step_failures == 0
    for expected, generation in zip(waiting, overlapped, strict=True):
        (answer,), (reference,) = generation.answers, expected.answers
        assert answer.token_ids == reference.token_ids
        assert (answer.logprobs is None) == (reference.logprobs is None)
        for report, other in zip(answer.logprobs or [], reference.logprobs or [], strict=True):
            assert (report.token_id, [i for i, _ in report.top]) == (
                other.token_id,
                [i for i, _ in other.top],
            )
            assert report.logprob == pytest.approx(other.logprob, abs=1e-5)


@pytest.mark.parametrize("most_in_turn", [0, 1000])
def test_beams_alone(
    model: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch, most_in_turn: int
) -> None:
    """Continuations and reports of steps in which there are beams only, found by torch and by the kernel."""
    monkeypatch.setattr(continuations, "MOST_IN_TURN", most_in_turn)
    requests = reporting_beams(reference, 4)
    llm = overlapped_llm(model, monkeypatch, num_blocks=400)
    generations = llm.generate([prompt for prompt, _ in requests], [config for _, config in requests])
    assert not reference.contradicted(requests, generations)
    assert not reference.misreported(requests, generations)


def test_beams_among_others(model: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beams whose scores nothing changes do not take the choice of other tokens to the host."""
    options: list[dict[str, object]] = [
        {"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "top_p": 0.8, "seed": 3},
        {"repetition_penalty": 1.5, "logprobs": 2}, {"num_beams": 2, "logprobs": 1},
        {"do_sample": True, "temperature": 0.7, "frequency_penalty": 0.5, "seed": 4},
    ]  # fmt: skip
    configs = [GenerationConfig(**{"max_new_tokens": 25, "ignore_eos": True, **chosen}) for chosen in options]
    prompts = [[5 + index, 7, 9] * (1 + index) for index in range(len(configs))]
    waiting = small_llm(model).generate(prompts, configs)
    llm = overlapped_llm(model, monkeypatch, num_blocks=400)
    monkeypatch.setattr(llm.engine._decoder, "decode", None)
    assert [
        [(answer.token_ids, answer.logprobs is None) for answer in generation.answers]
        for generation in llm.generate(prompts, configs)
    ] == [[(answer.token_ids, answer.logprobs is None) for answer in g.answers] for g in waiting]
    requests = list(zip(prompts, configs, strict=True))
    assert not reference.contradicted([requests[0], requests[3]], [waiting[0], waiting[3]])


def test_samples_are_drawn_at_their_own_numbers(
    model: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers of different lengths, so that rows change hands between requests of other seeds."""
    configs = [
        GenerationConfig(max_new_tokens=6 + 5 * (s % 4), do_sample=True, temperature=0.8, seed=s)
        for s in range(40)
    ]
    prompts = [[5 + s, 7, 9] * (1 + s % 5) for s in range(40)]
    generations = overlapped_llm(model, monkeypatch, num_blocks=60).generate(prompts, configs)
    answers = [generation.answers[0].token_ids for generation in generations]
    assert worst_miss(reference.model, prompts, configs, answers) < 1e-3
    assert worst_miss(reference.model, prompts, configs[1:] + configs[:1], answers) > 0.1, (
        "a check that checks"
    )


def test_the_kernels_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them in Triton's interpreter: prompts, decodes of several rows and of one, beams, samples."""
    model = tiny_llama(tmp_path, hidden=128, heads=2, kv_heads=1)
    monkeypatch.setattr(build, "choose_attention", lambda *_: (TritonAttention, "a test"))
    monkeypatch.setattr(build, "choose_kernels", lambda *_: (TritonKernels(), "a test"))
    llm, reference = small_llm(model, num_blocks=60, block_size=16), Reference(model)
    assert isinstance(llm.engine.runner, PagedModelRunner)
    llm.engine.runner.warm_up(20)
    assert llm.engine.scheduler.cost.seconds_per_token.value is None, "compiling is no cost of prompts"
    configs = [
        GenerationConfig(max_new_tokens=4, num_beams=2, num_return_sequences=2),
        GenerationConfig(max_new_tokens=6, repetition_penalty=1.3),
        GenerationConfig(max_new_tokens=4),
    ]
    requests = [([5 + i, 7, 9] * (1 + 3 * i), config) for i, config in enumerate(configs)]
    for together in (requests, requests[:1]):  # beams among others, and alone
        generations = llm.generate([prompt for prompt, _ in together], [c for _, c in together])
        assert not reference.contradicted(together, generations)
    config = GenerationConfig(max_new_tokens=2, do_sample=True, temperature=0.8, seed=5)
    (alone,) = llm.generate([[5, 7, 9]], [config])
    assert worst_miss(reference.model, [[5, 7, 9]], [config], [alone.answers[0].token_ids]) < 1e-3
    llm.engine.check()


def test_drafts_are_refused_by_name(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens of the last step are not known when the next one is planned."""
    llm = overlapped_llm(model, monkeypatch, num_blocks=100)
    assert llm.capabilities["speculation"]["name"] == "none"
    with pytest.raises(GenerationError, match="prompt_lookup_num_tokens"):
        llm.generate([[5, 6]], GenerationConfig(prompt_lookup_num_tokens=4))
    assert len(llm.generate([[5, 6]], GenerationConfig(ignore_eos=True))[0].answers[0].token_ids) == 32
    with pytest.raises(ModelError, match=r"speculation_config\.prompt_lookup_num_tokens"):
        LLM(
            model,
            model_loading_config={"torch_dtype": "float32", "device": "cpu"},
            cache_config={"num_blocks": 50},
            speculation_config={"prompt_lookup_num_tokens": 4},
        )


def test_the_next_step_is_launched_before_the_last_ones_tokens_are_read(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = overlapped_llm(model, monkeypatch, num_blocks=100)
    events: list[str] = []
    forward, collect = llm.engine.runner.forward, llm.engine._collector.collect
    monkeypatch.setattr(llm.engine.runner, "forward", lambda plan: events.append("launch") or forward(plan))
    monkeypatch.setattr(
        llm.engine._collector, "collect", lambda *args: events.append("read") or collect(*args)
    )
    llm.generate([[5, 6, 7]], GenerationConfig(max_new_tokens=4, ignore_eos=True))
    assert events == ["launch", "launch", "read", "launch", "read", "launch", "read", "read"]
