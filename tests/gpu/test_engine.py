"""The engine on CUDA gives the tokens that transformers gives on the CPU, in float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from tests.checkpoints import tiny_llama
from tests.continuous_batching.reference import Reference, mixed_requests
from tests.sampling.draws import worst_miss


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # heads of 64: a size that the kernels are made for
    return tiny_llama(tmp_path_factory.mktemp("tiny"), hidden=256, heads=4, kv_heads=2)


@pytest.fixture(scope="module")
def reference(model: Path) -> Reference:
    return Reference(model)


def cuda_llm(path: Path, *, dtype: str = "float32", **cache: Any) -> LLM:
    return LLM(
        path,
        model_loading_config={"torch_dtype": dtype, "model_max_length": 1024, "device": "cuda"},
        batcher_config={"batch_max_tokens": 256, "batch_max_beams": 96},
        cache_config={"num_blocks": 2000, "num_blocks_cpu": 250, "block_size": 16, **cache},
    )


@pytest.mark.parametrize("pressure", [False, True])
def test_mixed_requests(model: Path, reference: Reference, pressure: bool) -> None:
    requests = mixed_requests(reference, 60, seed=3, longest=200)
    needs = [c.num_rows * (len(p) + c.max_new_tokens) // 16 + c.num_rows for p, c in requests]
    llm = cuda_llm(model, num_blocks=max(needs) if pressure else 2000)
    assert llm.capabilities["attention"]["name"] == "triton"
    generations = llm.generate([p for p, _ in requests], [c for _, c in requests])
    assert not reference.contradicted(requests, generations)
    llm.engine.check()
    assert (llm.engine.stats().preempted_by_swap > 0) == pressure


def test_beams_alone(model: Path, reference: Reference) -> None:
    """Their scores are found in one look at the logits, where no other request is in the batch."""
    llm = cuda_llm(model)
    requests = [
        ([5 + i, 7, 9] * (1 + 2 * i), GenerationConfig(max_new_tokens=10 + i, num_beams=2 + i % 5))
        for i in range(12)
    ]
    generations = llm.generate([prompt for prompt, _ in requests], [config for _, config in requests])
    assert not reference.contradicted(requests, generations)
    llm.engine.check()


def test_overlapped_steps_give_the_same_samples_as_steps_that_wait(model: Path) -> None:
    """The batches are the same, so the tokens are equal to the last bit of every score."""
    llm = cuda_llm(model)
    configs = [
        GenerationConfig(max_new_tokens=40, do_sample=True, temperature=0.8, seed=s) for s in range(40)
    ]
    prompts = [[5 + s, 7, 9] * (1 + s % 9) for s in range(40)]
    overlapped = [g.answers[0].token_ids for g in llm.generate(prompts, configs)]
    llm.engine._overlap = False
    waiting = [g.answers[0].token_ids for g in llm.generate(prompts, configs)]
    assert overlapped == waiting


def test_options_of_replayed_steps_are_those_of_launched_ones(model: Path, reference: Reference) -> None:
    """Each set of options is captured at the first step that has it, with and without padding, but for those
    whose steps are launched; the greedy answers are those of transformers."""
    llm = cuda_llm(model)
    choice = llm.engine.worker.decoder.sampler
    assert choice is not None and choice._captured is not None
    options: list[dict[str, Any]] = [
        {"typical_p": 0.7}, {"min_new_tokens": 20, "eos_token_id": list(range(3, 40)), "top_k": 50},
        {"top_p": 0.8}, {"top_k": 5}, {"min_p": 0.05, "temperature": 1.3}, {"top_k": 9, "top_p": 0.7},
        {"repetition_penalty": 1.4}, {"frequency_penalty": 0.7, "presence_penalty": 0.4, "top_p": 0.9},
        {"logit_bias": {7: 4.0, 9: -100.0}}, {"logit_bias": {7: 2.0}, "repetition_penalty": 1.2, "top_k": 3},
        {"do_sample": False, "repetition_penalty": 1.3}, {"do_sample": False}, {},
        {"do_sample": False, "bad_words_ids": [[5], *([token] for token in range(100, 300)), [7, 9, 310]]},
        {"allowed_token_ids": [*range(3, 512, 7)], "top_k": 9},
        {"bad_words_ids": [[7]], "logit_bias": {7: 9.0}},
    ]  # fmt: skip
    configs = [
        GenerationConfig(**{"max_new_tokens": 20 + 3 * i, "do_sample": True, "seed": i, **chosen})
        for i, chosen in enumerate(options)
    ]
    prompts = [[5 + i, 7, 9] * (1 + i % 5) for i in range(len(options))]

    def answers() -> list[list[int]]:
        together = llm.generate(prompts, configs)
        alone = [llm.generate([p], [c])[0] for p, c in zip(prompts, configs, strict=True)]
        greedy = [i for i, config in enumerate(configs) if not config.do_sample]
        requests = [(prompts[i], configs[i]) for i in greedy]
        assert not reference.contradicted(requests, [together[i] for i in greedy])
        return [generation.answers[0].token_ids for generation in (*together, *alone)]

    replayed = answers()
    assert len(choice._captured) > 5
    choice._captured = None
    assert answers() == replayed
    assert llm.engine.stats().step_failures == 0


def test_samples_are_drawn_at_their_own_numbers(model: Path, reference: Reference) -> None:
    """Alone and in a batch: the arithmetic of a batch of one is another, so a number within rounding of
    the border between two tokens may fall to either, but to no other."""
    llm = cuda_llm(model)
    configs = [
        GenerationConfig(max_new_tokens=30, do_sample=True, temperature=0.8, seed=s) for s in range(20)
    ]
    prompts = [[5 + s, 7, 9] * (1 + s % 9) for s in range(20)]
    together = llm.generate(prompts, configs)
    alone = [llm.generate([p], [c])[0] for p, c in zip(prompts, configs, strict=True)]
    for generations in (together, alone):
        answers = [generation.answers[0].token_ids for generation in generations]
        assert worst_miss(reference.model, prompts, configs, answers) < 1e-3


@pytest.mark.parametrize("blocks", [60, 2000])
def test_prompts_are_scored(model: Path, reference: Reference, blocks: int) -> None:
    """In pieces, beside decodes, and computed again where blocks run out."""
    llm = cuda_llm(model, num_blocks=blocks, num_blocks_cpu=0)
    llm.engine.scheduler.limits = replace(llm.engine.limits, scored_tokens=40)
    prompts = [[3 + (7 * i + k) % 500 for i in range(20 + 11 * k)] for k in range(12)]
    config = GenerationConfig(max_new_tokens=30, prompt_logprobs=2, ignore_eos=True)
    for prompt, generation in zip(prompts, llm.generate(prompts, config), strict=True):
        with torch.inference_mode():
            logs = reference.model(torch.tensor([prompt])).logits[0, :-1].log_softmax(dim=-1)
        told = generation.answers[0].prompt_logprobs
        assert told is not None and [entry.token_id for entry in told] == prompt[1:]
        own = logs.gather(1, torch.tensor(prompt[1:]).unsqueeze(1)).squeeze(1)
        assert [entry.logprob for entry in told] == pytest.approx(own.tolist(), abs=1e-3)
    assert llm.engine.stats().step_failures == 0


def test_bfloat16_is_close(model: Path, reference: Reference) -> None:
    """Log probabilities of the first tokens differ by rounding only."""
    llm = cuda_llm(model, dtype="bfloat16")
    prompts = [list(range(3 + i, 60 + 2 * i)) for i in range(8)]
    config = GenerationConfig(max_new_tokens=1, logprobs=1)
    for prompt, generation in zip(prompts, llm.generate(prompts, config), strict=True):
        with torch.inference_mode():
            logits = reference.model(torch.tensor([prompt])).logits[0, -1]
        expected = torch.log_softmax(logits, -1)
        (report,) = generation.answers[0].logprobs or []
        assert abs(report.logprob - expected[report.token_id].item()) < 0.25
