"""Pickled weights are served as safetensors are, and no code of theirs is run."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from protocol.generation import GenerationConfig
from server.checkpoints.errors import ModelError
from server.continuous_batching import LLM
from server.static_batching.pipeline import StaticPipeline
from tests.checkpoints import tiny_llama

PROMPT = [5, 17, 250, 99, 3, 41, 42, 300]
OPTIONS = GenerationConfig(max_new_tokens=8, ignore_eos=True)


def engine(path: Path) -> LLM:
    loading = {"torch_dtype": "float32", "device": "cpu"}
    return LLM(path, model_loading_config=loading, cache_config={"num_blocks": 64})


def static(path: Path, use_safetensors: bool = False) -> StaticPipeline:
    worker = {"torch_dtype": "float32", "device": "cpu", "use_safetensors": use_safetensors}
    return StaticPipeline(path, worker_config=worker)


def answer(server: Any) -> list[int]:
    tokens: list[int] = server.generate([PROMPT], OPTIONS)[0].answers[0].token_ids
    return tokens


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def pickled(llama: Path, tmp_path: Path) -> Path:
    path = Path(shutil.copytree(llama, tmp_path / "model"))
    (path / "model.safetensors").unlink()
    torch.save(load_file(llama / "model.safetensors"), path / "pytorch_model.bin")
    return path


def test_both_servers_answer_alike(llama: Path, pickled: Path) -> None:
    expected = answer(engine(llama))
    assert answer(engine(pickled)) == answer(static(pickled)) == expected
    # of a PyTorch before 1.6, which cannot be mapped
    torch.save(
        load_file(llama / "model.safetensors"),
        pickled / "pytorch_model.bin",
        _use_new_zipfile_serialization=False,
    )
    assert answer(engine(pickled)) == expected


def test_several_files(llama: Path, pickled: Path) -> None:
    tensors = load_file(llama / "model.safetensors")
    files = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
    places = {name: files[i % 2] for i, name in enumerate(sorted(tensors))}
    for file in files:
        torch.save({name: tensors[name] for name in places if places[name] == file}, pickled / file)
    (pickled / "pytorch_model.bin").unlink()
    (pickled / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    expected = answer(engine(llama))
    assert answer(engine(pickled)) == answer(static(pickled)) == expected
    (pickled / files[1]).unlink()
    for server in (engine, static):
        with pytest.raises(ModelError, match=rf"{files[1]}', and there is no such file"):
            server(pickled)


def test_safetensors_come_first(llama: Path, pickled: Path) -> None:
    shutil.copy(llama / "model.safetensors", pickled)
    (pickled / "pytorch_model.bin").write_bytes(b"not looked at")
    assert answer(engine(pickled)) == answer(static(pickled, use_safetensors=True)) == answer(engine(llama))


def test_a_server_that_wants_safetensors_says_so(pickled: Path) -> None:
    with pytest.raises(ModelError, match=r"pytorch_model\.bin holds pickled weights: set use_safetensors"):
        static(pickled, use_safetensors=True)


class Code:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("server", [engine, static])
def test_no_code_is_run(server: Any, pickled: Path, tmp_path: Path) -> None:
    file, mark = pickled / "pytorch_model.bin", tmp_path / "mark"
    for content in (
        pickle.dumps({"a": Code(mark)}),
        b"version https://git-lfs.github.com/spec/v1\n",
        b"",
        b"x",
    ):
        file.write_bytes(content)
        with pytest.raises(
            ModelError, match=r"pytorch_model\.bin is not a readable file of pickled"
        ) as caught:
            server(pickled)
        assert "\n" not in str(caught.value)
    assert "git-lfs" not in str(caught.value).lower() and not mark.exists()
    torch.save({"a": Code(mark)}, file)
    with pytest.raises(ModelError, match="is not a readable file of pickled weights"):
        server(pickled)
    torch.save([torch.ones(1)], file)
    with pytest.raises(ModelError, match="does not hold tensors by name"):
        server(pickled)
    assert not mark.exists()
