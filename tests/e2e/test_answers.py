"""What the model says through the HTTP API: exact against transformers, right, and under load."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo_model.corpus import held_out_sums, result_in
from tests.e2e.stack import MODEL, MODEL_DIRECTORY, Answer, Stack, call

NEW_TOKENS = 48
PROMPTS = [
    "Once upon a time",
    "17 + 25 =",
    "What is 62 minus 38?",
    "The capital of France is",
    "Q",
    "the the the the the the the the the the the the the the the the the the the the",
    "你好",
    "In the morning the little fox walked through the wood. " * 12,
]


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    """Greedy continuations by transformers in float32, one prompt at a time."""
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL_DIRECTORY)
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL_DIRECTORY, dtype=torch.float32)
    texts = {}
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            tokens = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                do_sample=False,
                max_new_tokens=NEW_TOKENS,
            )
        new = tokens[0, inputs["input_ids"].shape[1] :]
        texts[prompt] = tokenizer.decode(new, skip_special_tokens=True)
    return texts


def complete(stack: Stack, route: str, prompt: str) -> Answer:
    body = {"model": MODEL, "prompt": prompt, "generation_config": {"max_new_tokens": NEW_TOKENS}}
    return call(stack.gateway, route, body)


def text_of(answer: Answer) -> str:
    assert answer.status == 200, answer.text
    return str(answer.json["choices"][0]["text"])


@pytest.mark.parametrize("route", ["/completion/v1", "/completion/v2"])
def test_greedy_equals_transformers(stack: Stack, expected: dict[str, str], route: str) -> None:
    assert {prompt: text_of(complete(stack, route, prompt)) for prompt in PROMPTS} == expected


@pytest.mark.parametrize("route", ["/completion/v1", "/completion/v2"])
def test_32_at_once_all_answer_rightly(stack: Stack, expected: dict[str, str], route: str) -> None:
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(32)]
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda prompt: complete(stack, route, prompt), prompts))
    assert [text_of(answer) for answer in answers] == [expected[prompt] for prompt in prompts]


def test_at_least_95_percent_of_200_unseen_sums_are_right(stack: Stack) -> None:
    sums = held_out_sums(200, seed=0)

    def right(question: str, result: str) -> bool:
        message = {"role": "user", "content": question}
        body = {"model": MODEL, "messages": [message], "temperature": 0, "max_tokens": NEW_TOKENS}
        answer = call(stack.gateway, "/v1/chat/completions", body)
        assert answer.status == 200, answer.text
        return str(result_in(answer.json["choices"][0]["message"]["content"])) == result

    with ThreadPoolExecutor(16) as pool:
        share = sum(pool.map(right, *zip(*sums, strict=True))) / len(sums)
    assert len(set(sums)) == 200
    assert share >= 0.95
