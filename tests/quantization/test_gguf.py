"""GGUF files: read as the `gguf` package reads them, served as by transformers, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, dequantize
from transformers import AutoModelForCausalLM, AutoTokenizer

from protocol.generation import GenerationConfig
from server.checkpoints.fingerprint import fingerprint
from server.checkpoints.gguf.header import GGUFHeader
from server.checkpoints.hf_config import read_hf_config
from server.continuous_batching.llm import LLM
from server.models import registry
from server.models.config import ModelConfig
from server.ops import choose
from server.ops.cpu.build import NativeError
from server.quantization.gguf.names import Place
from server.quantization.gguf.read import KINDS, read_tensor
from server.static_batching.pipeline import StaticPipeline
from tests.checkpoints import tiny_llama
from tests.quantization.gguf_families import FAMILIES, make
from tests.quantization.gguf_files import WRITABLE, random_blocks, write_gguf

pytest.importorskip(
    "transformers.integrations.gguf.gguf_tokenizer_mapping", reason="transformers 5.23 or later"
)

OPTIONS = GenerationConfig(max_new_tokens=12, ignore_eos=True)
PROMPTS = [[0, 17, 250, 99, 3, 41, 42, 300], [5], [7, 8, 9, 10]]


def engine(path: Path) -> LLM:
    return LLM(
        path,
        model_loading_config={"torch_dtype": "float32", "device": "cpu"},
        cache_config={"num_blocks": 64},
    )


def static(path: Path) -> StaticPipeline:
    return StaticPipeline(path, worker_config={"torch_dtype": "float32", "device": "cpu"})


def transformers_answers(path: Path) -> list[list[int]]:
    """Greedy tokens of transformers on the same file, dequantized to float32 by transformers itself."""
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    answers = []
    for prompt in PROMPTS:
        found = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=2)
        answers.append(found[0, len(prompt) :].tolist())
    return answers


def answers(server: Any) -> list[list[int]]:
    return [generation.answers[0].token_ids for generation in server.generate(PROMPTS, OPTIONS)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float Llama, grouped queries and a tied head included."""
    return tiny_llama(tmp_path_factory.mktemp("llama"), tie_word_embeddings=True)


@pytest.fixture(scope="module")
def gguf(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(llama, tmp_path_factory.mktemp("gguf") / "tiny.gguf", "Q4_1")


def test_the_header_is_what_the_gguf_package_reads(gguf: Path) -> None:
    header, reader = GGUFHeader.read(gguf), GGUFReader(gguf)
    fields = {name: f.contents() for name, f in reader.fields.items() if not name.startswith("GGUF.")}
    assert header.fields == fields
    found = {t.name: (t.kind, list(t.shape), t.offset, t.size) for t in header.tensors.values()}
    assert found == {
        t.name: (t.tensor_type.name, t.shape.tolist()[::-1], t.data_offset, t.n_bytes) for t in reader.tensors
    }


@pytest.mark.parametrize("kind", KINDS)
def test_dequantizing_is_bit_equal_to_the_gguf_package(kind: str, tmp_path: Path) -> None:
    raw = GGMLQuantizationType[kind]
    if kind in ("F32", "F16", "BF16"):
        values = np.random.default_rng(0).standard_normal((96, 256)).astype(np.float32)
        data = values.astype(np.float16) if kind == "F16" else values
        if kind == "BF16":
            data = (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    else:
        data = random_blocks(kind, 96, 256)
    writer = GGUFWriter(str(tmp_path / "x.gguf"), "llama")
    writer.add_tensor("whole", data, raw_dtype=raw)
    writer.add_tensor("experts", data.reshape(4, 24, -1), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors = GGUFHeader.read(tmp_path / "x.gguf").tensors
    expected = dequantize(GGUFReader(tmp_path / "x.gguf").tensors[0].data, raw)
    found = read_tensor(Place(tensors["whole"], None, "none"), torch.float32)
    assert np.array_equal(found.numpy(), expected)
    assert np.isfinite(expected).all() and len(np.unique(expected)) > 16
    half = read_tensor(Place(tensors["experts"], 2, "none"), torch.bfloat16)
    assert torch.equal(half, torch.from_numpy(expected[48:72].copy()).bfloat16())


@pytest.mark.parametrize("kind", WRITABLE)
def test_both_servers_answer_as_transformers_on_the_same_file(kind: str, llama: Path, tmp_path: Path) -> None:
    path = write_gguf(llama, tmp_path / f"{kind}.gguf", kind)
    expected = transformers_answers(path)
    served = engine(path)
    assert answers(served) == expected
    weights = served.capabilities["weights"]
    if kind in ("F32", "F16", "BF16"):
        assert weights == {"name": "float32", "reason": f"{kind} in the checkpoint (GGUF)"}
    else:
        assert weights["name"] == f"native-int{kind[1]} (9 layers)"
        assert weights["reason"] == "dequantized in the registers of own kernels"
    if kind in ("Q4_1", "F16"):
        pipeline = static(path)
        assert answers(pipeline) == expected
        told = pipeline.capabilities["weights"]
        assert told["name"] == "float32" and told["reason"].startswith(kind)
        assert ("dequantized when loaded" in told["reason"]) == (kind == "Q4_1")


def test_without_own_kernels_blocks_become_floats(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise NativeError("no C++ compiler is installed")

    expected = answers(engine(gguf))
    monkeypatch.setattr(choose, "load", refuse)
    served = engine(gguf)
    assert answers(served) == expected
    weights = served.capabilities["weights"]
    assert weights["name"] == "float32" and weights["reason"].startswith("Q4_1 (GGUF) in the checkpoint")


def test_what_is_fused_but_not_alike(llama: Path, tmp_path: Path) -> None:
    """Stripes of queries, keys and values may differ in type; gate and up, which share stripes, may not."""
    path = write_gguf(llama, tmp_path / "mixed.gguf", "Q8_0", kinds={"attn_v": "Q5_1", "ffn_up": "Q4_0"})
    served = engine(path)
    assert answers(served) == transformers_answers(path)
    weights = served.capabilities["weights"]
    assert weights["name"] == "native-int5+8 (7 layers); float32"
    assert "dequantized when loaded" in weights["reason"]


@pytest.mark.parametrize("family", FAMILIES)
def test_families_answer_as_the_float_checkpoint(family: str, tmp_path: Path) -> None:
    """Written as floats, a file answers as the checkpoint that it was made of."""
    checkpoint = make(family, tmp_path / "float")
    path = write_gguf(checkpoint, tmp_path / "model.gguf", "F32")
    expected = answers(static(checkpoint))
    assert answers(static(path)) == expected
    if family in registry.FAMILIES:
        assert answers(engine(path)) == expected


def test_biases_are_not_lost(tmp_path: Path) -> None:
    checkpoint = tiny_llama(tmp_path / "float", attention_bias=True)
    path = write_gguf(checkpoint, tmp_path / "model.gguf", "F32")
    assert read_hf_config(path).attention_bias
    assert answers(engine(path)) == answers(engine(checkpoint))


def test_the_tokenizer_is_that_of_transformers(gguf: Path) -> None:
    own = engine(gguf).tokenizer
    theirs = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    for text in ("The quick brown fox, 42 and 2048!", "<s>你好</s>", "Émile's\n\n  café 😀", ""):
        ids = theirs.encode(text)
        assert own.encode(text) == ids
        assert own.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    chat = [{"role": "user", "content": "hi"}]
    assert own.hf.apply_chat_template(chat, tokenize=False) == theirs.apply_chat_template(
        chat, tokenize=False
    )
    assert (own.hf.bos_token_id, own.hf.eos_token_id, own.hf.pad_token_id) == (0, 1, 2)
    assert ModelConfig.load(gguf).eos_token_ids == (1,)


def test_copies_have_one_fingerprint(gguf: Path, llama: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.gguf").write_bytes(gguf.read_bytes())
    other = write_gguf(llama, tmp_path / "other.gguf", "Q5_1")
    assert fingerprint(tmp_path / "copy.gguf") == fingerprint(gguf) != fingerprint(other)
    # another template of the same length
    (tmp_path / "copy.gguf").write_bytes(gguf.read_bytes().replace(b"unknown role", b"another role"))
    assert fingerprint(tmp_path / "copy.gguf") != fingerprint(gguf)
