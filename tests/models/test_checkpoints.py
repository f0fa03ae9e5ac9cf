"""What is read of a checkpoint directory is what transformers reads; what contradicts itself is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from protocol.generation import GenerationConfig
from server.checkpoints.errors import ModelError
from server.continuous_batching import LLM
from server.static_batching.config import WorkerConfig
from server.static_batching.model import load_model
from tests.checkpoints import tiny_llama
from tests.continuous_batching.reference import Reference

PROMPT = [5, 17, 250, 99, 3, 41, 42, 300]
OPTIONS = GenerationConfig(max_new_tokens=8, ignore_eos=True)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def untied(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "untied")


def engine(path: Path) -> LLM:
    return LLM(
        path,
        model_loading_config={"torch_dtype": "float32", "device": "cpu"},
        cache_config={"num_blocks": 64},
    )


def served(path: Path) -> list[int]:
    (generation,) = engine(path).generate([PROMPT], OPTIONS)
    return generation.answers[0].token_ids


def assert_as_transformers(path: Path) -> None:
    """Also that the weights count: other ones would answer otherwise."""
    expected = Reference(path).answers(PROMPT, GenerationConfig(max_new_tokens=8, eos_token_id=511))
    assert [served(path)] == expected


def refusals(path: Path) -> tuple[str, str]:
    """What both servers say."""
    with pytest.raises(ModelError) as engine_error:
        engine(path)
    with pytest.raises(ModelError) as static_error:
        load_model(WorkerConfig(model_name_or_path=str(path), device="cpu", torch_dtype="float32"))
    said = (str(engine_error.value), str(static_error.value))
    assert not any("\n" in message for message in said)
    return said


def change_config(path: Path, **fields: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def save(tensors: Tensors, file: Path) -> None:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})


def change_tensors(path: Path, change: Callable[[Tensors], Tensors]) -> None:
    save(change(load_file(path / "model.safetensors")), path / "model.safetensors")


def shard(path: Path, **placed: str) -> dict[str, str]:
    """Split the weights in two files; `placed` is what the index says besides, or instead."""
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {name: SHARDS[i >= len(names) // 2] for i, name in enumerate(names)}
    for file in SHARDS:
        save({name: tensor for name, tensor in tensors.items() if places[name] == file}, path / file)
    index = {"metadata": {"total_size": 1}, "weight_map": places | placed}
    (path / INDEX).write_text(json.dumps(index))
    return places


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


# -- tied embeddings -------------------------------------------------------------------------------


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "sharded"])
def test_a_head_of_its_own_counts_more_than_a_configuration_that_ties_it(untied: Path, sharded: bool) -> None:
    before = served(untied)
    change_config(untied, tie_word_embeddings=True)
    if sharded:
        shard(untied)
    assert served(untied) == before
    assert_as_transformers(untied)


def test_a_stored_copy_of_a_tied_embedding(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path, tie_word_embeddings=True)
    change_tensors(path, lambda tensors: tensors | {HEAD: tensors[EMBEDDING]})
    assert_as_transformers(path)


def test_a_tied_head_stands_for_an_embedding_that_is_not_stored(untied: Path) -> None:
    change_tensors(untied, without(EMBEDDING))
    with pytest.raises(ModelError, match=r"lacks 1 tensors, the first is 'model\.embed_tokens\.weight'"):
        engine(untied)
    change_config(untied, tie_word_embeddings=True)
    assert_as_transformers(untied)


def test_neither_is_invented(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path, tie_word_embeddings=True)
    config = json.loads((path / "config.json").read_text())
    del config["tie_word_embeddings"]  # false, for a Llama
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"'lm_head\.weight'"):
        engine(path)
    change_config(path, tie_word_embeddings=True)
    change_tensors(path, without(EMBEDDING))
    with pytest.raises(ModelError, match=r"'model\.embed_tokens\.weight'"):
        engine(path)


def test_a_head_of_another_shape_is_refused(untied: Path) -> None:
    change_config(untied, tie_word_embeddings=True)
    change_tensors(untied, lambda tensors: tensors | {HEAD: tensors[HEAD][:500]})
    with pytest.raises(ModelError, match=r"'lm_head\.weight' has shape \[500, 64\], expected \[512, 64\]"):
        engine(untied)


# -- names and files -------------------------------------------------------------------------------


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "sharded"])
@pytest.mark.parametrize(
    "stray", ["consolidated", "adapter_model", "model.fp16", "original/consolidated", "zzz"]
)
def test_what_lies_beside_the_weights_is_not_read(untied: Path, stray: str, sharded: bool) -> None:
    if sharded:
        shard(untied)
    (untied / stray).parent.mkdir(exist_ok=True)
    save(
        {"layers.0.attention.wq.weight": torch.ones(2), EMBEDDING: torch.ones(2)},
        untied / f"{stray}.safetensors",
    )
    assert_as_transformers(untied)


def test_one_file_goes_before_an_index(untied: Path) -> None:
    tensors = load_file(untied / "model.safetensors")
    shard(untied)
    save({name: -tensor for name, tensor in tensors.items()}, untied / "model.safetensors")
    assert_as_transformers(untied)


def test_names_of_a_base_model(untied: Path) -> None:
    """Without the prefix, and with one that should not be."""
    change_tensors(
        untied,
        lambda tensors: {
            f"model.{name}" if name == HEAD else name.removeprefix("model."): tensor
            for name, tensor in tensors.items()
        },
    )
    assert_as_transformers(untied)


def test_tensors_that_follow_from_the_configuration_are_left_out(untied: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_tensors(untied, lambda tensors: tensors | {name: torch.ones(8)})
    assert_as_transformers(untied)


def test_a_file_that_the_configuration_names(untied: Path) -> None:
    (untied / "model.safetensors").rename(untied / "other.safetensors")
    change_config(untied, transformers_weights="other.safetensors")
    assert_as_transformers(untied)
    for name, said in {
        "../other.safetensors": "outside of the directory",
        "other.bin": "neither *.safetensors nor",
        "gone.safetensors": "no such file",
    }.items():
        change_config(untied, transformers_weights=name)
        for message in refusals(untied):
            assert f"transformers_weights names '{name}'" in message and said in message


def test_directories_of_links_as_the_hub_caches_them(untied: Path, tmp_path: Path) -> None:
    shard(untied)
    links = tmp_path / "links"
    links.mkdir()
    for file in untied.iterdir():
        (links / file.name).symlink_to(file)
    assert_as_transformers(links)


def test_weights_under_another_name_are_not_guessed(untied: Path) -> None:
    (untied / "model.safetensors").rename(untied / "consolidated.safetensors")
    for message in refusals(untied):
        assert "holds no model.safetensors and no index of it (found: consolidated.safetensors)" in message


# -- contradictions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("placed", "said"),
    [
        (
            {HEAD: "gone.safetensors"},
            f"{INDEX} places '{HEAD}' in 'gone.safetensors', and there is no such file",
        ),
        ({HEAD: SHARDS[1]}, f"{SHARDS[1]} lacks the tensor '{HEAD}', which"),
        ({"model.more": SHARDS[0]}, f"{SHARDS[0]} lacks the tensor 'model.more', which"),
        ({HEAD: f"../{SHARDS[0]}"}, f"{INDEX} places '{HEAD}' in '../{SHARDS[0]}', outside of the directory"),
        ({HEAD: "/etc/hostname"}, f"{INDEX} places '{HEAD}' in '/etc/hostname', outside of the directory"),
        ({HEAD: "config.json"}, "config.json is not a readable safetensors file"),
        ({HEAD: ""}, f"{INDEX}: weight_map: '{HEAD}' has '' for a file name"),
    ],
    ids=["no file", "another file", "no tensor", "outside", "absolute", "no safetensors", "empty"],
)
def test_an_index_that_contradicts_its_files(untied: Path, placed: dict[str, str], said: str) -> None:
    shard(untied, **placed)
    (untied.parent / SHARDS[0]).write_bytes((untied / SHARDS[0]).read_bytes())
    for message in refusals(untied):
        assert said in message


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "cannot be read"), ("[]", "does not hold a JSON object"), ("{}", "has no weight_map")],
)
def test_an_index_that_is_none(untied: Path, text: str, said: str) -> None:
    shard(untied)
    (untied / INDEX).write_text(text)
    for message in refusals(untied):
        assert f"{INDEX} {said}" in message


def test_a_tensor_in_two_files(untied: Path) -> None:
    shard(untied)
    save(load_file(untied / SHARDS[1]) | {HEAD: torch.zeros(512, 64)}, untied / SHARDS[1])
    for message in refusals(untied):
        assert f"the tensor '{HEAD}' is in {untied / SHARDS[0]} and in {untied / SHARDS[1]}" in message


def test_a_tensor_under_two_names(untied: Path) -> None:
    change_tensors(untied, lambda tensors: tensors | {"norm.weight": tensors["model.norm.weight"]})
    with pytest.raises(ModelError, match=r"'norm\.weight', which is 'model\.norm\.weight' once more"):
        engine(untied)


def test_weights_quantized_by_another_method(untied: Path) -> None:
    change_config(untied, quantization_config={"quant_method": "hqq", "bits": 4})
    with pytest.raises(ModelError, match="quantized by 'hqq' are not supported"):
        engine(untied)
