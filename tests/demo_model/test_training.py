"""The training script: what it learns from, and a short run of it from end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from demo_model.corpus import Document, Segment, documents
from demo_model.dataset import IGNORED, encode_documents
from demo_model.evaluate_tools import calls_in
from demo_model.train import Recipe

ROOT = Path(__file__).parents[2]


def as_messages(document: Document) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """A conversation in OpenAI's form, calls taken apart, and its tools."""
    tools, messages = None, []
    for segment in document:
        if segment.role == "tools":
            tools = [{"type": "function", "function": json.loads(line)} for line in segment.text.splitlines()]
            continue
        message: dict[str, Any] = {"role": segment.role, "content": segment.text}
        if "<tool_call>" in segment.text:
            found = calls_in(segment.text)
            assert found
            functions = [{"name": call.name, "arguments": call.arguments} for call in found]
            message |= {
                "content": None,
                "tool_calls": [{"type": "function", "function": function} for function in functions],
            }
        messages.append(message)
    return messages, tools


def test_a_conversation_is_laid_out_as_the_chat_template_does(tokenizer: PreTrainedTokenizerFast) -> None:
    chats = [document for document in documents(5, 200) if document[0].role in ("tools", "system", "user")]
    assert len(chats) > 50
    assert any("tool_call" in segment.text for chat in chats for segment in chat)
    for document in chats:
        trimmed = [Segment(segment.role, segment.text.strip()) for segment in document]
        messages, tools = as_messages(trimmed)
        text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
        data = encode_documents([trimmed], tokenizer)
        assert data.tokens.tolist() == tokenizer.encode(text, add_special_tokens=False)


def test_bare_text_is_laid_out_as_a_prompt_and_its_continuation(tokenizer: PreTrainedTokenizerFast) -> None:
    data = encode_documents([[Segment("prompt", "17 + 25 ="), Segment("text", " 42")]], tokenizer)
    answer = [*tokenizer.encode(" 42", add_special_tokens=False), tokenizer.eos_token_id]
    assert data.tokens.tolist() == tokenizer.encode("17 + 25 =") + answer


def test_only_what_the_model_says_is_learnt(tokenizer: PreTrainedTokenizerFast) -> None:
    document = [Segment("system", "Be kind."), Segment("user", "Hello!"), Segment("assistant", "Hi!")]
    data = encode_documents([document], tokenizer)
    learnt = data.tokens[data.learnt].tolist()
    assert tokenizer.decode(learnt) == "<|bos|>Hi!<|eos|>"


def test_batches_begin_with_a_document_and_label_the_next_token(tokenizer: PreTrainedTokenizerFast) -> None:
    data = encode_documents(documents(0, 300), tokenizer)
    inputs, labels = data.batch(np.random.default_rng(0), 8, 128)
    assert inputs.shape == labels.shape == (8, 128)
    assert (inputs[:, 0] == tokenizer.bos_token_id).all()
    known = labels[:, :-1] != IGNORED
    assert 0.3 < known.mean() < 1
    assert (labels[:, :-1][known] == inputs[:, 1:][known]).all()
    with pytest.raises(ValueError, match="too few"):
        data.batch(np.random.default_rng(0), 1, len(data.tokens))


def test_learning_rate_rises_then_falls_to_nothing() -> None:
    recipe = Recipe(steps=100)
    rates = [recipe.rate_at(step) for step in range(100)]
    assert rates.index(max(rates)) == 4
    assert max(rates) == pytest.approx(recipe.learning_rate)
    assert rates[-1] < 0.001 * recipe.learning_rate


@pytest.mark.slow
def test_a_short_run_makes_a_checkpoint_that_loads_and_again_the_same(tmp_path: Path) -> None:
    options = ["--steps", "3", "--rows", "1", "--documents", "3000", "--device", "cpu"]
    for command, out in ((["demo_model/train.py"], "script"), (["-m", "demo_model.train"], "module")):
        run = subprocess.run(
            [sys.executable, *command, "--out", tmp_path / out, *options],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
    weights = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("script", "module")]
    assert weights[0] == weights[1]

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "script")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "script")
    prompt = tokenizer("Once upon a time", return_tensors="pt")
    new = model.generate(**prompt, max_new_tokens=4, min_new_tokens=4)
    assert new.shape == (1, prompt.input_ids.shape[1] + 4)
