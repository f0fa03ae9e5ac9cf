"""The text part of a checkpoint that sees images, too, is served by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, SiglipVisionConfig

from protocol.generation import GenerationConfig
from server.checkpoints.errors import ModelError
from server.continuous_batching import LLM
from tests.checkpoints import tiny_tokenizer

PROMPT = [5, 17, 250, 99, 3, 41, 42, 300]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gemma")
    text = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": 4,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "eos_token_id": 1,
    }
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    torch.manual_seed(0)
    config = Gemma3Config(text_config=text, vision_config=vision.to_dict(), mm_tokens_per_image=4)
    Gemma3ForConditionalGeneration(config).save_pretrained(path)
    tiny_tokenizer(path)
    return path


def engine(path: Path) -> LLM:
    loading = {"torch_dtype": "float32", "device": "cpu"}
    return LLM(path, model_loading_config=loading, cache_config={"num_blocks": 64})


def answer(path: Path) -> list[int]:
    options = GenerationConfig(max_new_tokens=8, ignore_eos=True)
    return engine(path).generate([PROMPT], options)[0].answers[0].token_ids


def test_it_answers_as_transformers(gemma: Path) -> None:
    model = Gemma3ForConditionalGeneration.from_pretrained(gemma, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    found = model.generate(torch.tensor([PROMPT]), max_new_tokens=8, do_sample=False, pad_token_id=2)
    assert answer(gemma) == found[0, len(PROMPT) :].tolist()


def test_other_names_of_its_parts(gemma: Path, tmp_path: Path) -> None:
    """As transformers 4 wrote them, which is how they are published; and a part that is missing."""
    expected = answer(gemma)
    for file in gemma.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(gemma / "model.safetensors")
    assert any("language_model." in name for name in tensors)
    renamed = {
        name.replace("model.language_model.", "language_model.model.").replace(
            "model.vision", "vision"
        ): tensor
        for name, tensor in tensors.items()
    }
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert answer(tmp_path) == expected
    del renamed["language_model.model.norm.weight"]
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 tensors, the first is 'model\.norm\.weight'"):
        engine(tmp_path)
    renamed["language_model.model.extra.weight"] = torch.ones(1)
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"the tensor 'language_model\.model\.extra\.weight'"):
        engine(tmp_path)
