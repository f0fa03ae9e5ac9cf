"""Draft heads that are not served are refused when loading, by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from server.checkpoints.errors import ModelError
from server.continuous_batching import LLM
from tests.continuous_batching import heads
from tests.continuous_batching.engines import small_llm

KEY = r"speculation_config\.draft_head"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return heads.llama(tmp_path_factory.mktemp("llama"))


def refused(model: Path, head: Path, words: str) -> None:
    with pytest.raises(ModelError, match=rf"{KEY}: .*{words}"):
        small_llm(model, speculation=heads.speculation_by(head))


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"architectures": ["EagleLlamaForCausalLM"]}, "'EagleLlamaForCausalLM'"),
        ({"architectures": None, "model_type": "medusa"}, "'medusa'"),
        ({"architectures": [], "speculators_model_type": "dflash"}, "'dflash'"),
        ({"architectures": ["LlamaForCausalLM"]}, "'LlamaForCausalLM'"),
    ],
)
def test_other_heads(llama: Path, tmp_path: Path, fields: dict[str, Any], name: str) -> None:
    head = heads.eagle3(tmp_path)
    heads.change_config(head, **fields)
    refused(llama, head, rf"holds {name}, which is no draft head that is supported \(EAGLE-3: .*draft_model")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_hidden_layers": 2}, "an EAGLE-3 head of 2 layers is not supported"),
        ({"norm_before_fc": True}, "norm_before_fc is not supported"),
        ({"eagle_config": {"use_aux_hidden_state": False}}, "use_aux_hidden_state: false is not supported"),
        ({"model_type": "mistral"}, "a layer of type 'mistral' is not supported"),
        ({"hidden_act": "tanh"}, "activation 'tanh' is not supported"),
        ({"target_hidden_size": 128}, "a model of hidden size 128, and this one has 64"),
        ({"hidden_size": 128}, "a model of hidden size 128, and this one has 64"),
        ({"vocab_size": 500}, "a model of vocabulary 500, and this one has 512"),
        ({"eagle_aux_hidden_state_layer_ids": [2, 9]}, "in front of layers 2, 9, and the model has 7"),
        ({"intermediate_size": 100}, r"down_proj.weight' has shape \[64, 96\], expected \[64, 100\]"),
        ({"num_attention_heads": "four"}, "config.json makes no EAGLE-3 head"),
    ],
)
def test_variants_and_sizes(llama: Path, tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    head = heads.eagle3(tmp_path)
    heads.change_config(head, **fields)
    refused(llama, head, words)


def test_too_few_layers(tiny_model: Path, tmp_path: Path) -> None:
    refused(tiny_model, heads.eagle3(tmp_path), "in front of layers 2, 1, -1, and the model has 2")


def test_tensors(llama: Path, tmp_path: Path) -> None:
    changes = {
        "lacks 1 tensors of the head, the first is 'fc.weight'": lambda t: t.pop("fc.weight"),
        "holds the tensor 'extra', which this head does not have": lambda t: t.update(extra=torch.ones(2)),
        "lacks d2t, which says what its 200 tokens are": lambda t: t.pop("d2t"),
        "d2t leads to tokens that the model does not have": lambda t: t["d2t"].add_(400),
    }
    for index, (words, change) in enumerate(changes.items()):
        head = heads.eagle3(tmp_path / str(index))
        heads.change_tensors(head, change)
        refused(llama, head, words)


def test_no_directory(llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "head.gguf"
    file.write_bytes(b"")
    refused(llama, file, "is not a directory with a checkpoint")


def test_layers_of_mimo(tmp_path: Path, llama: Path) -> None:
    model = heads.mimo(tmp_path)
    heads.change_config(model, num_nextn_predict_layers=2)
    refused(model, model, "num_nextn_predict_layers is 2, only 1 is supported")
    heads.change_config(model, num_nextn_predict_layers=1, vocab_size=500)
    refused(llama, model, "a model of vocabulary 500, and this one has 512")


def test_a_head_is_no_draft_model(llama: Path, tmp_path: Path) -> None:
    head = heads.eagle3(tmp_path)
    with pytest.raises(ModelError, match=r"draft_model: .* is a draft head: name it in .*draft_head"):
        small_llm(llama, speculation={"draft_model": str(head)})


def test_a_model_of_transformers_modules(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.checkpoints import tiny_tokenizer

    model = tmp_path / "model"
    tiny_tokenizer(model)
    sizes = heads.SIZES | {"num_hidden_layers": heads.LAYERS, "head_dim": 16}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("helium", **sizes)).save_pretrained(model)
    refused(model, heads.eagle3(tmp_path / "head"), "a model without a file in server/models")


def test_both_are_refused(llama: Path, tmp_path: Path) -> None:
    head = heads.eagle3(tmp_path)
    with pytest.raises(ModelError, match="draft_model and draft_head are both set"):
        small_llm(llama, speculation=heads.speculation_by(head) | {"draft_model": str(llama)})


def test_ranks_are_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"{KEY} is not supported where a model is split"):
        LLM(
            llama,
            model_loading_config={"torch_dtype": "float32", "device": "cpu"},
            parallel_config={"tensor_parallel_size": 2},
            speculation_config=heads.speculation_by(heads.eagle3(tmp_path)),
        )


def test_a_configuration_that_is_no_json(llama: Path, tmp_path: Path) -> None:
    head = heads.eagle3(tmp_path)
    (head / "config.json").write_text(json.dumps([1]))
    with pytest.raises(ModelError, match=r"config\.json"):
        small_llm(llama, speculation=heads.speculation_by(head))
