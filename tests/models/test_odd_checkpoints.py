"""What people do to the files of a checkpoint: served as transformers would, or refused in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from protocol.generation import GenerationConfig
from server.checkpoints.errors import ModelError
from tests.checkpoints import tiny_llama
from tests.models.test_faulty_checkpoints import PROMPT, SERVERS, change, engine


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), hidden=32, layers=1)


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "model"))


def retype(path: Path, dtype: torch.dtype) -> None:
    """Store the weights in another type."""
    file = path / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)


def with_mark(file: Path) -> None:
    """As editors on Windows save it."""
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())


def make_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a configuration with a byte order mark": (lambda path: with_mark(path / "config.json"), "config.json"),
    "a directory in place of a file": (lambda path: make_directory(path / "config.json"), "config.json"),
    "an end token that is a fraction": (
        lambda path: change(path / "generation_config.json", eos_token_id=1.5),
        "generation_config.json: eos_token_id is 1.5",
    ),
    "an end token that is true": (
        lambda path: change(path / "generation_config.json", eos_token_id=True),
        "generation_config.json: eos_token_id is True",
    ),
    "no positions": (
        lambda path: change(path / "config.json", max_position_embeddings=-1),
        "max_position_embeddings",
    ),
    "a tokenizer that is a model": (
        lambda path: change(path / "tokenizer_config.json", tokenizer_class="LlamaForCausalLM"),
        "tokenizer_config.json: tokenizer_class 'LlamaForCausalLM' is no tokenizer",
    ),
    "no tokenizer": (lambda path: (path / "tokenizer.json").unlink(), "tokenizer"),
    "a width that is text": (lambda path: change(path / "config.json", hidden_size="32"), "hidden_size"),
}


@SERVERS
@pytest.mark.parametrize("what", REFUSED)
def test_refused_in_one_line(what: str, server: Any, copy: Path) -> None:
    damage, said = REFUSED[what]
    damage(copy)
    with pytest.raises(ModelError) as caught:
        server(copy)
    message = str(caught.value)
    assert said in message and str(copy) in message and "\n" not in message


ENGINE_ALONE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a window that is no number": (
        lambda path: change(path / "config.json", sliding_window={}),
        "a sliding_window of {} tokens is not supported",
    ),
    "a rope whose type is no name": (
        lambda path: change(path / "config.json", rope_parameters={"rope_type": True, "rope_theta": 1e4}),
        "rope_parameters: rope_type is True",
    ),
    "more rows than there is memory for": (
        lambda path: change(path / "config.json", vocab_size=2**40),
        "the memory does not suffice",
    ),
    "a rope without a number": (
        lambda path: change(path / "config.json", rope_parameters={"rope_type": "default", "rope_theta": []}),
        "rope_parameters: rope_theta is []",
    ),
    "a rope that nobody knows": (
        lambda path: change(path / "config.json", rope_parameters={"rope_type": "x", "rope_theta": 1e4}),
        "rope_parameters: rope scaling 'x' is not supported",
    ),
}
"""transformers serves these, in one way or another."""


@pytest.mark.parametrize("what", ENGINE_ALONE)
def test_refused_by_the_engine_alone(what: str, copy: Path) -> None:
    damage, said = ENGINE_ALONE[what]
    damage(copy)
    with pytest.raises(ModelError) as caught:
        engine(copy)
    assert said in str(caught.value) and "\n" not in str(caught.value)


SERVED: dict[str, Callable[[Path], object]] = {
    "a special token that there is not": lambda path: (path / "special_tokens_map.json").write_text(
        '{"bos_token": {}}'
    ),
    "end tokens that are listed twice": lambda path: change(
        path / "generation_config.json", eos_token_id=[1, 1]
    ),
    "weights in double precision": lambda path: retype(path, torch.float64),
    "a key that nobody knows": lambda path: change(path / "config.json", my_own_note={"a": [1]}),
    "an end token beyond the vocabulary": lambda path: change(
        path / "generation_config.json", eos_token_id=100_000
    ),
    "a template among several": lambda path: change(
        path / "tokenizer_config.json", chat_template=[{"name": "default", "template": "x"}]
    ),
}


@SERVERS
@pytest.mark.parametrize("what", SERVED)
def test_served_as_before(what: str, server: Any, copy: Path) -> None:
    options = GenerationConfig(max_new_tokens=4, ignore_eos=True)
    expected = server(copy).generate([PROMPT], options)[0].answers[0].token_ids
    SERVED[what](copy)
    assert server(copy).generate([PROMPT], options)[0].answers[0].token_ids == expected
