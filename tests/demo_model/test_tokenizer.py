"""The tokenizer: any text survives it, and it is the one that the training script makes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from demo_model.corpus import documents
from demo_model.tokenizer import MARKERS, save_tokenizer, train_tokenizer
from demo_model.train import CONTEXT, TOKENIZER_DOCUMENTS, VOCABULARY, Recipe
from server.text.formats.chosen import choose_format

SPECIAL = [f"<|{name}|>" for name in ("pad", "bos", "eos", "system", "user", "assistant", "tools", "tool")]


@given(text=st.text().filter(lambda text: "<|" not in text))
def test_any_text_survives(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_digits_are_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("17+142=159") == list("17+142=159")


def test_characters_beyond_ascii_take_several_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    for character in "你é😊":
        assert len(tokenizer.tokenize(character)) == len(character.encode())


def test_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.convert_ids_to_tokens(list(range(len(SPECIAL)))) == SPECIAL
    assert set(tokenizer.all_special_tokens) == set(SPECIAL)
    assert tokenizer.tokenize("<|user|>hello") == ["<|user|>", *tokenizer.tokenize("hello")]


def test_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "  Hello! \n"},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "Bye"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|bos|><|system|>Be kind.<|user|>Hello!<|assistant|>Hi!<|eos|><|user|>Bye<|assistant|>"
    )  # fmt: skip


def test_chat_template_refuses_an_unknown_role(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(Exception, match="unknown role critic"):
        tokenizer.apply_chat_template([{"role": "critic", "content": "1"}], tokenize=False)


def test_the_markers_of_calls_are_tokens_that_decoding_shows(tokenizer: PreTrainedTokenizerFast) -> None:
    for marker in MARKERS:
        ids = tokenizer.encode(f"{marker}\n", add_special_tokens=False)
        assert tokenizer.convert_ids_to_tokens(ids[:1]) == [marker]
        assert tokenizer.decode(ids, skip_special_tokens=True) == f"{marker}\n"


def test_chat_template_with_tools(tokenizer: PreTrainedTokenizerFast) -> None:
    add, now = ({"name": name, "parameters": {"type": "object"}} for name in ("add", "now"))
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "名": "二"}}}
    messages = [
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "tool_call_id": "1", "content": "3"},
    ]
    text = tokenizer.apply_chat_template(
        messages,
        tools=[{"type": "function", "function": function} for function in (add, now)],
        tokenize=False,
        add_generation_prompt=True,
    )
    written = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "名": "二"}}\n</tool_call>'
    assert text == (
        '<|bos|><|tools|>{"name": "add", "parameters": {"type": "object"}}\n'
        '{"name": "now", "parameters": {"type": "object"}}'
        f"<|user|>Add.<|assistant|>{written}\n{written}<|eos|><|tool|>3<|assistant|>"
    )


def test_servers_know_the_format_of_calls(tokenizer: PreTrainedTokenizerFast) -> None:
    assert choose_format({"default": tokenizer.chat_template}, None, "auto").name == "hermes"


def test_the_checkpoint_has_the_tokenizer_that_training_makes(directory: Path, tmp_path: Path) -> None:
    sample = documents(Recipe().seed, TOKENIZER_DOCUMENTS)
    save_tokenizer(train_tokenizer(sample, VOCABULARY, CONTEXT), tmp_path)
    made, shipped = AutoTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(directory)
    assert made.get_vocab() == shipped.get_vocab()
    assert made.chat_template == shipped.chat_template
    assert made.encode("What is 17 plus 25?\n") == shipped.encode("What is 17 plus 25?\n")


def test_too_little_text_is_refused() -> None:
    with pytest.raises(ValueError, match="use more"):
        train_tokenizer(documents(0, 10), VOCABULARY, CONTEXT)
