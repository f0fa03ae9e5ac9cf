"""Log probabilities of prompts over HTTP: those of transformers in float32, from every service."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.stack import MODEL, MODEL_DIRECTORY, Stack, call

PROMPTS = ["The capital of France is Paris.", "17 + 25 = 42", "你好", "Once upon a time " * 40]
SERVICES = ("gateway", "cb_server", "sb_server")
TOP = 2


@pytest.fixture(scope="module")
def expected() -> list[tuple[list[int], torch.Tensor]]:
    """The tokens of each prompt, and [tokens - 1, vocab] log probabilities behind them."""
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL_DIRECTORY)
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL_DIRECTORY, dtype=torch.float32)
    found = []
    with torch.inference_mode():
        for prompt in PROMPTS:
            ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
            found.append((ids[0].tolist(), model(ids).logits[0, :-1].log_softmax(dim=-1)))
    return found


def check(logprobs: Any, ids: list[int], logs: torch.Tensor) -> None:
    """`logprobs` of ``/v1/completions`` begin with those of the prompt."""
    own = logs.gather(1, torch.tensor(ids[1:]).unsqueeze(1)).squeeze(1)
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    assert logprobs["token_logprobs"][1 : len(ids)] == pytest.approx(own.tolist(), abs=2e-4)
    best = logs.max(dim=1).values.tolist()
    assert [max(top.values()) for top in logprobs["top_logprobs"][1 : len(ids)]] == pytest.approx(
        best, abs=2e-4
    )


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_an_echo_with_logprobs(
    stack: Stack, expected: list[tuple[list[int], torch.Tensor]], service: str, tokens: int
) -> None:
    body = {"model": MODEL, "prompt": PROMPTS, "max_tokens": tokens, "echo": True, "logprobs": TOP}
    answer = call(getattr(stack, service), "/v1/completions", body | {"temperature": 0})
    assert answer.status == 200, answer.text
    for choice, prompt, (ids, logs) in zip(answer.json["choices"], PROMPTS, expected, strict=True):
        logprobs = choice["logprobs"]
        check(logprobs, ids, logs)
        counts = {len(values) for values in logprobs.values()}
        assert len(counts) == 1 and len(ids) <= counts.pop() <= len(ids) + tokens
        assert choice["text"].startswith(prompt) and (tokens or choice["text"] == prompt)
        shown = [*zip(logprobs["tokens"], logprobs["text_offset"], strict=True)][1 : len(ids)]
        assert all(prompt.startswith(text, at) for text, at in shown if "bytes:" not in text)
    assert tokens or answer.json["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("service", SERVICES[:2])
def test_an_echo_that_is_streamed(
    stack: Stack, expected: list[tuple[list[int], torch.Tensor]], service: str
) -> None:
    body = {"model": MODEL, "prompt": PROMPTS[0], "max_tokens": 4, "echo": True, "logprobs": TOP}
    answer = call(getattr(stack, service), "/v1/completions", body | {"temperature": 0, "stream": True})
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    first, *others = (json.loads(event)["choices"][0] for event in events)
    check(first["logprobs"], *expected[0])
    assert first["text"].startswith(PROMPTS[0])
    assert all(None not in choice["logprobs"]["token_logprobs"] for choice in others)


@pytest.mark.parametrize(
    ("service", "route"), [("cb_server", "/completion/v2"), ("sb_server", "/completion/v1")]
)
def test_native_routes_and_chats(
    stack: Stack, expected: list[tuple[list[int], torch.Tensor]], service: str, route: str
) -> None:
    url, (ids, logs) = getattr(stack, service), expected[1]
    config = {"max_new_tokens": 2, "prompt_logprobs": TOP}
    answer = call(url, route, {"model": MODEL, "prompt": ids, "generation_config": config})
    (choice,) = answer.json["choices"]
    first, *told = choice["prompt_logprobs"]
    assert first is None and len(told) == len(ids) - 1 and choice.get("logprobs") is None
    for token, line, log in zip(ids[1:], told, logs, strict=True):
        assert line[str(token)]["logprob"] == pytest.approx(log[token].item(), abs=2e-4)
        assert abs(line[str(token)]["rank"] - 1 - int((log > log[token]).sum())) <= 1
        assert TOP <= len(line) <= TOP + 1
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    answer = call(url, "/v1/chat/completions", chat | {"prompt_logprobs": 0})
    assert answer.json["usage"]["prompt_tokens"] == len(answer.json["prompt_logprobs"])
