"""Answers of packages against transformers' `generate` on each prompt alone and unpadded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from protocol.generation import GenerationConfig
from server.api.service import Job
from server.static_batching.generate import generate
from server.static_batching.model import LoadedModel
from server.static_batching.options import package_key
from server.static_batching.processors import Unpadded
from server.static_batching.prompts import PaddedPrompts, Prompt
from tests.static_batching.alone import PROMPTS, alone

MANY_EOS = list(range(3, 40))  # so that some answers end early


@pytest.fixture(scope="module")
def reference(llama: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(llama)


def together(model: LoadedModel, configs: list[GenerationConfig]) -> list[list[list[int]]]:
    keys = {package_key(Job("x", prompt, config)) for prompt, config in zip(PROMPTS, configs, strict=True)}
    assert len(keys) == 1, "these could not share a package"
    batch = generate(model, [Prompt(ids, config) for ids, config in zip(PROMPTS, configs, strict=True)])
    return [[answer.token_ids for answer in answers] for answers in batch.answers]


def test_greedy_with_a_length_for_each(model: LoadedModel, reference: Any) -> None:
    lengths = [3, 50, 12, 1, 33, 20, 7]
    answers = together(model, [GenerationConfig(max_new_tokens=n) for n in lengths])
    expected = [alone(reference, p, max_new_tokens=n) for p, n in zip(PROMPTS, lengths, strict=True)]
    assert answers == expected


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.6},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 2},
        {"bad_words_ids": [[2], [1], *([token] for token in range(200, 300)), [310, 311]]},
        {"min_new_tokens": 12, "eos_token_id": MANY_EOS},
        {"eos_token_id": MANY_EOS},
    ],
)
@pytest.mark.parametrize("beams", [1, 3])
def test_options_of_transformers(
    model: LoadedModel, reference: Any, options: dict[str, Any], beams: int
) -> None:
    options = options | {"max_new_tokens": 24, "num_beams": beams}
    answers = together(model, [GenerationConfig(**options)] * len(PROMPTS))
    assert answers == [alone(reference, prompt, **options) for prompt in PROMPTS]
    lengths = {len(answer[0]) for answer in answers}
    assert "eos_token_id" not in options or len(lengths) > 1, "no answer ended early: the test shows nothing"


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [1.0, 0.3, -1.0])
def test_beam_search(
    model: LoadedModel, reference: Any, early_stopping: bool | str, length_penalty: float
) -> None:
    options: dict[str, Any] = {
        "max_new_tokens": 20,
        "num_beams": 4,
        "early_stopping": early_stopping,
        "length_penalty": length_penalty,
        "eos_token_id": MANY_EOS,
    }
    returned = [1, 2, 3, 4, 1, 2, 3]
    answers = together(model, [GenerationConfig(**options, num_return_sequences=n) for n in returned])
    expected = [
        alone(reference, prompt, **options, num_return_sequences=n)
        for prompt, n in zip(PROMPTS, returned, strict=True)
    ]
    assert answers == expected


def test_beam_sampling_is_that_of_a_seeded_transformers(model: LoadedModel, reference: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 12, "num_beams": 3, "do_sample": True, "temperature": 0.8}
    options |= {"top_k": 40, "top_p": 0.9}
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    answers = generate(model, [Prompt(PROMPTS[1], GenerationConfig(**options, seed=5))]).answers
    assert torch.equal(state, torch.random.get_rng_state()), "torch's own generator was left as it was"
    expected = alone(reference, PROMPTS[1], **options)
    assert [answer.token_ids for answer in answers[0]] == expected


def test_stop_strings(model: LoadedModel, reference: Any) -> None:
    vocabulary = model.tokenizer.vocabulary
    plain = [alone(reference, prompt, max_new_tokens=40)[0] for prompt in PROMPTS]
    texts = [b"".join(vocabulary[i] for i in ids).decode(errors="replace") for ids in plain]
    # a stop string from the middle of each text, crossing token boundaries; the last has none
    stops = [[text[8:11]] if text[8:11].isascii() else [text[12:14], "never"] for text in texts[:-1]] + [[]]
    configs = [GenerationConfig(max_new_tokens=40, stop=[s for s in stop if s]) for stop in stops]
    batch = generate(model, [Prompt(p, c) for p, c in zip(PROMPTS, configs, strict=True)])
    stopped = 0
    for answers, text, ids, config in zip(batch.answers, texts, plain, configs, strict=True):
        answer = answers[0]
        assert answer.token_ids == ids[: len(answer.token_ids)]
        cuts = [text.find(stop) for stop in config.stop if "\ufffd" not in stop and stop in text]
        if cuts:
            stopped += 1
            assert answer.text == text[: min(cuts)]
            assert answer.finish_reason == "stop"
            without_last = b"".join(vocabulary[i] for i in answer.token_ids[:-1])
            assert not any(stop.encode() in without_last for stop in config.stop)
    assert stopped >= 3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.05, "min_new_tokens": 10, "eos_token_id": MANY_EOS},
        {"logit_bias": {5: 2.0}, "frequency_penalty": 0.01},
    ],
)
def test_drafts_change_no_token(model: LoadedModel, monkeypatch: Any, options: dict[str, Any]) -> None:
    passes = 0
    forward = model.hf.forward

    def counted(*args: Any, **named: Any) -> Any:
        nonlocal passes
        passes += 1
        return forward(*args, **named)

    monkeypatch.setattr(model.hf, "forward", counted)
    prompts = [prompt[:5] * 4 for prompt in PROMPTS]
    made = {}
    for drafted in (0, 6):
        config = GenerationConfig(max_new_tokens=60, prompt_lookup_num_tokens=drafted, **options)
        passes = 0
        answers = [generate(model, [Prompt(prompt, config)]).answers[0][0] for prompt in prompts]
        made[drafted] = (passes, [answer.token_ids for answer in answers])
    assert made[0][1] == made[6][1]
    assert made[6][0] < made[0][0], "no draft was right: this shows nothing"
    texts = [model.tokenizer.hf.decode(ids).encode("ascii", "ignore").decode() for ids in made[0][1]]
    for prompt, text in zip(prompts, texts, strict=True):
        stops = [s for s in (text[9:12].strip(), text[20:23].strip()) if s]
        ended = []
        for drafted in (0, 6):
            lookup = {"stop": stops, "prompt_lookup_num_tokens": drafted}
            config = GenerationConfig(max_new_tokens=60, **lookup, **options)
            answer = generate(model, [Prompt(prompt, config)]).answers[0][0]
            ended.append((answer.token_ids, answer.text, answer.finish_reason))
        assert ended[0] == ended[1]


def test_drafts_are_made_for_one_prompt_at_a_time() -> None:
    jobs = [Job(name, [5, 6], GenerationConfig(prompt_lookup_num_tokens=4)) for name in "ab"]
    assert package_key(jobs[0]) != package_key(jobs[1])
    plain = [
        Job(name, [5, 6], GenerationConfig(max_matching_ngram_size=n)) for name, n in (("a", 2), ("b", 3))
    ]
    assert package_key(plain[0]) == package_key(plain[1])


def test_stop_strings_in_beam_search(model: LoadedModel, reference: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 20, "num_beams": 3}
    tokenizer = model.tokenizer.hf
    stop = ["e", "in", "s"]
    expected = [
        alone(reference, prompt, **options, stop_strings=stop, tokenizer=tokenizer) for prompt in PROMPTS
    ]
    answers = together(model, [GenerationConfig(**options, stop=stop)] * len(PROMPTS))
    assert answers == expected
    assert any(len(answer[0]) < 20 for answer in answers)


def test_bias_is_that_of_transformers(model: LoadedModel, reference: Any) -> None:
    bias = {5: 8.0, 100: -100.0, 437: -4.5}
    answers = together(model, [GenerationConfig(max_new_tokens=20, logit_bias=bias)] * len(PROMPTS))
    sequence_bias = {(token,): value for token, value in bias.items()}
    assert answers == [alone(reference, p, max_new_tokens=20, sequence_bias=sequence_bias) for p in PROMPTS]
    assert any(5 in answer[0] for answer in answers)


@pytest.mark.parametrize("make", [NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor])
@pytest.mark.parametrize("value", [1, 2, 3, 4])
def test_padding_is_no_token_for_what_looks_at_tokens(make: Any, value: int) -> None:
    """Not even where its id is one that the prompts hold."""
    ids = [[2, 2, 5], [2], [5, 2, 6, 5, 2], [6, 2, 2, 2, 5, 2, 2]]
    padded = PaddedPrompts([Prompt(row, GenerationConfig()) for row in ids], 2, torch.device("cpu"))
    scores, processor = (
        torch.randn(8, 9),
        make(value if make is NoRepeatNGramLogitsProcessor else value + 0.1),
    )
    rows = padded.input_ids.repeat_interleave(2, dim=0)  # two beams each
    ours = Unpadded(processor, padded)(rows, scores)
    for row in range(8):
        assert torch.equal(ours[[row]], processor(torch.tensor([ids[row // 2]]), scores[[row]]))


def test_presence_and_frequency_penalties(model: LoadedModel, reference: Any) -> None:
    """Against the formula of OpenAI's documentation, step by step on one sequence."""
    config = GenerationConfig(max_new_tokens=20, presence_penalty=1.5, frequency_penalty=0.7)
    answers = together(model, [config] * len(PROMPTS))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        generated: list[int] = []
        while len(generated) < 20:
            with torch.no_grad():
                logits = reference(torch.tensor([prompt + generated])).logits[0, -1]
            for token in set(generated):
                logits[token] -= 0.7 * generated.count(token) + 1.5
            generated.append(int(logits.argmax()))
        assert answer[0] == generated


def test_logprobs_are_those_of_the_model(model: LoadedModel, reference: Any) -> None:
    configs = [
        GenerationConfig(max_new_tokens=8 + i, repetition_penalty=1.3, logprobs=None if i == 2 else i)
        for i in range(len(PROMPTS))
    ]
    batch = generate(model, [Prompt(p, c) for p, c in zip(PROMPTS, configs, strict=True)])
    for prompt, config, (answer,) in zip(PROMPTS, configs, batch.answers, strict=True):
        if config.logprobs is None:
            assert answer.logprobs is None
            continue
        with torch.no_grad():
            logits = reference(torch.tensor([prompt + answer.token_ids])).logits[0]
        expected = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        assert answer.logprobs is not None and len(answer.logprobs) == len(answer.token_ids)
        for entry, token, row in zip(answer.logprobs, answer.token_ids, expected, strict=True):
            assert entry.token_id == token
            assert entry.logprob == pytest.approx(float(row[token]), abs=1e-4)
            values, ids = row.topk(config.logprobs)
            assert [i for i, _ in entry.top] == ids.tolist()
            assert [value for _, value in entry.top] == pytest.approx(values.tolist(), abs=1e-4)


def test_a_cancelled_row_ends_the_package(model: LoadedModel) -> None:
    long = GenerationConfig(max_new_tokens=200)
    batch = generate(model, [Prompt(PROMPTS[0], long, lambda: True), Prompt(PROMPTS[1], GenerationConfig())])
    assert batch.steps == 32
    assert len(batch.answers[1][0].token_ids) == 32


def test_work_is_accounted_for(model: LoadedModel) -> None:
    configs = [GenerationConfig(max_new_tokens=n) for n in (5, 20)]
    batch = generate(model, [Prompt(PROMPTS[i], config) for i, config in enumerate(configs)])
    assert (batch.rows, batch.steps, batch.useful) == (2, 20, 25)
    assert batch.padding == len(PROMPTS[1]) - len(PROMPTS[0])
