"""What tells a checkpoint from others, and what does not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from server.checkpoints.fingerprint import PAGE, fingerprint
from tests.checkpoints import tiny_llama


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    shutil.copytree(checkpoint, tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


def test_a_copy_has_the_same(checkpoint: Path, copy: Path, tmp_path: Path) -> None:
    told = fingerprint(checkpoint)
    assert len(told) == 32 and fingerprint(copy) == told
    (copy / "README.md").write_text("a note")
    (copy / ".cache").mkdir()
    (copy / ".cache" / "lock.json").write_text("{}")
    (tmp_path / "link").symlink_to(copy)
    for file in list(copy.glob("*.safetensors")):  # as in the cache of the hub
        file.rename(tmp_path / "blob")
        file.symlink_to(tmp_path / "blob")
    assert fingerprint(copy) == fingerprint(tmp_path / "link") == fingerprint(copy, copy) == told


def one_tensor(path: Path) -> None:
    file = path / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.down_proj.weight"] += 1e-3
    save_file(tensors, file, metadata={"format": "pt"})


def one_scale(path: Path) -> None:
    file = path / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = 2.0
    save_file(tensors, file, metadata={"format": "pt"})


def another_dtype(path: Path) -> None:
    file = path / "model.safetensors"
    save_file({name: t.to(torch.bfloat16) for name, t in load_file(file).items()}, file)


def another_key(path: Path) -> None:
    file = path / "config.json"
    file.write_text(file.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))


def another_template(path: Path) -> None:
    (path / "chat_template.jinja").write_text("{{ messages }}")


def another_file(path: Path) -> None:
    (path / "pytorch_model.bin").write_bytes(bytes(10))


@pytest.mark.parametrize(
    "change", [one_tensor, one_scale, another_dtype, another_key, another_template, another_file]
)
def test_another_checkpoint_has_another(checkpoint: Path, copy: Path, change: Callable[[Path], None]) -> None:
    change(copy)
    assert fingerprint(copy) != fingerprint(checkpoint)


def test_a_tokenizer_elsewhere_is_part_of_it(checkpoint: Path, copy: Path) -> None:
    assert fingerprint(checkpoint, copy) != fingerprint(checkpoint)
    before = fingerprint(checkpoint, copy)
    file = copy / "tokenizer.json"
    file.write_text(file.read_text().replace("Ġthe", "Ġeht"))
    assert fingerprint(checkpoint, copy) != before


def test_pickled_weights_are_sampled_all_over(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    found = set()
    for place in (None, PAGE, 2**20, 2**21 - 1):
        content = bytearray(2**21)
        if place is not None:
            content[place - PAGE : place + 1] = b"x" * (PAGE + 1)
        file.write_bytes(content)
        found.add(fingerprint(tmp_path))
    assert len(found) == 4


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 100, (2).to_bytes(8, "little") + b"[]abc"])
def test_damaged_weights_have_one_too(tmp_path: Path, content: bytes) -> None:
    """Who loads them says what is wrong."""
    (tmp_path / "model.safetensors").write_bytes(content)
    assert len(fingerprint(tmp_path)) == 32
