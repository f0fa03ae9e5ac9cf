"""What a GGUF file says of its model is taken over, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter

from server.checkpoints.errors import ModelError
from server.checkpoints.fingerprint import fingerprint
from server.checkpoints.gguf.config import config_fields
from server.checkpoints.gguf.header import GGUFHeader
from server.checkpoints.hf_config import read_hf_config
from server.models.config import ModelConfig
from server.quantization.formats.gguf import GGUF
from tests.checkpoints import tiny_llama
from tests.quantization.gguf_files import random_blocks, write_gguf
from tests.quantization.test_gguf import answers, engine, static

pytest.importorskip(
    "transformers.integrations.gguf.gguf_tokenizer_mapping", reason="transformers 5.23 or later"
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def gguf(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(llama, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_the_factors_of_llama_3_are_recognised(llama: Path, tmp_path: Path) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    checkpoint = tiny_llama(tmp_path / "float", head_dim=32, rope_parameters=rope)
    hf = read_hf_config(checkpoint)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](hf, torch.device("cpu"))
    plain = 1 / 500000.0 ** (torch.arange(0, 32, 2) / 32)
    path = with_factors(checkpoint, tmp_path / "model.gguf", (plain / scaled).numpy())
    assert read_hf_config(path).rope_parameters == rope
    assert answers(engine(path)) == answers(engine(checkpoint))
    with pytest.raises(ModelError, match=r"rope_freqs\.weight' are not those of a Llama 3"):
        read_hf_config(with_factors(checkpoint, tmp_path / "odd.gguf", np.full(16, 2.0, np.float32)))


def with_factors(checkpoint: Path, out: Path, factors: np.ndarray) -> Path:
    """`write_gguf` in float32 with a tensor of factors besides."""
    return write_gguf(checkpoint, out, "F32", more={"rope_freqs.weight": factors})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 512,
            },
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
        ),
    ],
)
def test_scaled_rotary_embeddings(
    fields: dict[str, Any], expected: dict[str, Any], llama: Path, tmp_path: Path
) -> None:
    rope = read_hf_config(write_gguf(llama, tmp_path / "x.gguf", fields=fields)).rope_parameters
    assert {key: rope[key] for key in expected} == expected


def test_whatever_a_header_holds_is_read_or_refused(gguf: Path, tmp_path: Path) -> None:
    whole = np.frombuffer(gguf.read_bytes(), np.uint8)
    header = GGUFHeader.read(gguf)
    begin = min(tensor.offset for tensor in header.tensors.values())
    rng, path, refused = np.random.default_rng(0), tmp_path / "x.gguf", 0
    for _ in range(300):
        damaged = whole.copy()
        for place in rng.integers(4, begin if rng.random() < 0.5 else 700, rng.integers(1, 5)):
            damaged[place] = rng.choice([0, 1, 2, 4, 9, 127, 255, damaged[place] ^ 1])
        path.write_bytes(damaged.tobytes())
        try:
            config_fields(GGUFHeader.read(path))
        except ModelError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 50


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a field that changes the model": (
        {"attention.clamp_kqv": 8.0},
        r"field llama\.attention\.clamp_kqv \(8",
    ),
    "a rope of another kind": ({"rope.scaling.type": "longrope"}, "rope scaling 'longrope' is not supported"),
    "a part of a head rotated": ({"rope.dimension_count": 8}, "rotary embedding of 8 of 16 numbers"),
    "layers that differ": ({"attention.head_count": [4, 4]}, "differs from layer to layer"),
    "no size": ({"embedding_length": None}, "does not say its hidden_size"),
    "no layers": ({"block_count": 0}, "its num_hidden_layers is 0, expected a number above 0"),
    "text for a number": ({"embedding_length": "64"}, "its hidden_size is '64', expected a number"),
    "values of another size": ({"attention.value_length": 8}, "values of 8 numbers a head and keys of 16"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_served_is_refused_by_name(what: str, llama: Path, tmp_path: Path) -> None:
    fields, said = REFUSED[what]
    path = write_gguf(llama, tmp_path / "x.gguf", fields=fields)
    with pytest.raises(ModelError, match=said) as caught:
        ModelConfig.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_types_of_blocks_that_are_not_supported(tmp_path: Path) -> None:
    for architecture, kind, said in (
        (
            "llama",
            "IQ4_NL",
            "token_embd.weight is of type IQ4_NL, which is not supported .supported: F32, F16",
        ),
        ("mamba", "Q8_0", "GGUF architecture 'mamba' is not supported .supported: gemma2"),
    ):
        writer = GGUFWriter(str(tmp_path / "x.gguf"), architecture)
        blocks = random_blocks(kind, 8, 32)
        writer.add_tensor("token_embd.weight", blocks, raw_dtype=GGMLQuantizationType[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(ModelError, match=said):
            GGUF().open(tmp_path / "x.gguf", {})
            ModelConfig.load(tmp_path / "x.gguf")


@pytest.mark.parametrize("size", [0, 3, 20, 100, 5000, -1])
def test_damaged_files_are_named(size: int, gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf.read_bytes()[:size])
    with pytest.raises(ModelError, match=r"x\.gguf is not a readable GGUF file: "):
        GGUFHeader.read(path)


def test_other_files_are_no_gguf_files(llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes((llama / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match="does not begin with 'GGUF'"):
        engine(path)
    with pytest.raises(
        ModelError, match=r"model_name_or_path: expected a model directory .* is not a directory"
    ):
        engine(llama / "model.safetensors")


def test_a_file_that_was_cut_in_parts(llama: Path, gguf: Path, tmp_path: Path) -> None:
    write_gguf(llama, tmp_path / "cut.gguf", max_tensors=8)
    first, *others = sorted(tmp_path.glob("cut-*.gguf"))
    assert len(others) == 2
    assert GGUFHeader.read(first).tensors.keys() == GGUFHeader.read(gguf).tensors.keys()
    assert answers(engine(first)) == answers(engine(gguf)) == answers(static(first))
    before = fingerprint(first)
    with pytest.raises(ModelError, match=r"one of 3 parts: name the first, \*-00001-of-00003\.gguf"):
        GGUFHeader.read(others[0])
    content = bytearray(others[1].read_bytes())
    content[-40:] = bytes(40)
    others[1].write_bytes(content)
    assert fingerprint(first) != before
    others[1].unlink()
    with pytest.raises(ModelError, match=r"cut-00003-of-00003\.gguf is not a readable GGUF file"):
        GGUFHeader.read(first)


@pytest.mark.parametrize("server", [engine, static])
@pytest.mark.parametrize(("blocks", "said"), [(3, "lacks 9 tensors"), (1, r"holds the tensor 'blk\.1\.")])
def test_tensors_that_do_not_fit(server: Any, blocks: int, said: str, llama: Path, tmp_path: Path) -> None:
    path = write_gguf(llama, tmp_path / "x.gguf", fields={"block_count": blocks})
    with pytest.raises(ModelError, match=said):
        server(path)
