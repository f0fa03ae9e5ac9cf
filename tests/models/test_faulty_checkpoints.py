"""What is wrong with a checkpoint is said alike by both servers, in one line that names file, key or tensor;
what transformers serves is served alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import AutoTokenizer

from protocol.generation import GenerationConfig
from server.checkpoints.errors import ModelError
from server.continuous_batching import LLM
from server.continuous_batching import config as continuous_config
from server.models.config import ModelConfig
from server.static_batching import config as static_config
from server.static_batching.pipeline import StaticPipeline
from tests.checkpoints import CORPUS, tiny_llama

PROMPT = [5, 17, 250, 99, 3, 41, 42, 300]
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def engine(path: Path, **loading: Any) -> LLM:
    loading = {"torch_dtype": "float32", "device": "cpu"} | loading
    return LLM(path, model_loading_config=loading, cache_config={"num_blocks": 64})


def static(path: Path, **worker: Any) -> StaticPipeline:
    return StaticPipeline(path, worker_config={"torch_dtype": "float32", "device": "cpu"} | worker)


SERVERS = pytest.mark.parametrize("server", [engine, static])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    """A copy of the model to be damaged."""
    return Path(shutil.copytree(llama, tmp_path / "model"))


def change(file: Path, **fields: Any) -> None:
    """Set fields of a JSON file; None: take them out."""
    content = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def shard(path: Path) -> None:
    """Leave an index behind that names a file which is not there."""
    places = {"lm_head.weight": "model-00002-of-00002.safetensors"}
    (path / "model.safetensors").unlink()
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "an end token as text": (
        lambda path: change(path / "generation_config.json", eos_token_id="2"),
        "generation_config.json: eos_token_id is '2', expected a token id or a list of them",
    ),
    "an end token as text in a list": (
        lambda path: change(path / "generation_config.json", eos_token_id=[1, "</s>"]),
        "generation_config.json: eos_token_id is [1, '</s>'], expected",
    ),
    "a negative end token": (
        lambda path: change(path / "generation_config.json", eos_token_id=-1),
        "generation_config.json: eos_token_id is -1, expected",
    ),
    "a broken generation_config.json": (
        lambda path: (path / "generation_config.json").write_text('{"eos_token_id": 1,'),
        "generation_config.json cannot be read: ",
    ),
    "a generation_config.json of another kind": (
        lambda path: (path / "generation_config.json").write_text("[]"),
        "generation_config.json does not hold a JSON object",
    ),
    "a broken tokenizer.json": (
        lambda path: (path / "tokenizer.json").write_text('{"model": '),
        "tokenizer.json cannot be read: ",
    ),
    "a tokenizer.json that is a git-LFS pointer": (
        lambda path: (path / "tokenizer.json").write_text(LFS),
        "tokenizer.json is a git-LFS pointer, and `git lfs pull` fetches the file",
    ),
    "a broken tokenizer_config.json": (
        lambda path: (path / "tokenizer_config.json").write_text("{"),
        "tokenizer_config.json cannot be read: ",
    ),
    "a broken config.json": (
        lambda path: (path / "config.json").write_text("{'model_type': 'llama'}"),
        "config.json cannot be read: ",
    ),
    "more layers than memory has room for": (
        lambda path: change(path / "config.json", num_hidden_layers=10**9),
        "config.json: num_hidden_layers is 1000000000, expected at most 10,000",
    ),
    "the same of a model within": (
        lambda path: change(path / "config.json", text_config={"n_layer": 1e12}),
        "config.json: n_layer is 1000000000000.0, expected at most 10,000",
    ),
    "a model type that there is not": (
        lambda path: change(path / "config.json", model_type="lama"),
        "config.json",
    ),
    "weights that are a git-LFS pointer": (
        lambda path: (path / "model.safetensors").write_text(LFS),
        "model.safetensors is not a readable safetensors file: it is a git-LFS pointer",
    ),
    "a shard that is not there": (shard, "'model-00002-of-00002.safetensors', and there is no such file"),
    "no weights": (
        lambda path: (path / "model.safetensors").unlink(),
        "holds no model.safetensors and no index of it (found: no *.safetensors)",
    ),
    "quantized by another method": (
        lambda path: change(path / "config.json", quantization_config={"quant_method": "bitsandbytes"}),
        "config.json: weights quantized by 'bitsandbytes' are not supported (supported: awq, ",
    ),
}


@SERVERS
@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_is_one_line_that_names_the_file(what: str, server: Any, copy: Path) -> None:
    damage, said = FAULTS[what]
    damage(copy)
    with pytest.raises(ModelError) as caught:
        server(copy)
    message = str(caught.value)
    assert said in message and str(copy) in message and "\n" not in message


@SERVERS
def test_arguments_that_are_no_configuration(server: Any, llama: Path, tmp_path: Path) -> None:
    for options, said in (
        ({"torch_dtype": "float8"}, r"torch_dtype: expected"),
        ({"torch_dtpye": "float32"}, r"torch_dtpye: unknown key"),
        ({"model_max_length": 1}, r"model_max_length: expected"),
    ):
        with pytest.raises(ModelError, match=said):
            server(llama, **options)
    with pytest.raises(ModelError, match=r"model_name_or_path: expected a model directory .* does not exist"):
        server(tmp_path / "missing")


@pytest.mark.parametrize(
    ("kind", "config", "section"),
    [
        (LLM, continuous_config.ServerConfig, "model_loading_config"),
        (StaticPipeline, static_config.ServerConfig, "worker_config"),
    ],
)
def test_options_beside_a_whole_configuration_are_refused(
    kind: Any, config: Any, section: str, llama: Path
) -> None:
    whole = config.model_validate({section: {"model_name_or_path": str(llama)}})
    with pytest.raises(TypeError, match=r"batcher_config: set these in the ServerConfig"):
        kind(whole, batcher_config={})


def ends(server: Any) -> list[int]:
    if isinstance(server, LLM):
        return list(server._model.eos_token_ids)
    return list(server._model.eos_token_ids)


@SERVERS
def test_end_tokens_come_from_one_file_or_the_other(server: Any, copy: Path) -> None:
    """``generation_config.json`` counts first; where it says none, the configuration does."""
    change(copy / "config.json", eos_token_id=7)
    change(copy / "generation_config.json", eos_token_id=[3, 4])
    assert ends(server(copy)) == [3, 4]
    change(copy / "generation_config.json", eos_token_id=None)
    assert ends(server(copy)) == [7]
    (copy / "generation_config.json").unlink()
    assert ends(server(copy)) == [7]


@SERVERS
def test_a_tokenizer_of_sentencepiece_alone(server: Any, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text(CORPUS * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(copy / "tokenizer"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        minloglevel=2,
    )
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer.vocab").unlink()
    (copy / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    served = server(copy)
    text = "The quick brown fox, 42!"
    assert served.tokenizer.encode(text) == AutoTokenizer.from_pretrained(copy).encode(text)
    assert served.tokenizer.decode(served.tokenizer.encode(text)) == text
    assert served.generate([text], GenerationConfig(max_new_tokens=2))[0].answers


@SERVERS
def test_what_has_no_effect_is_said(server: Any, llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    server(llama, use_fast_tokenizer=False)
    assert "use_fast_tokenizer is false, which has no effect" in caplog.text
    caplog.clear()
    server(llama, use_fast_tokenizer=True)
    assert "use_fast_tokenizer" not in caplog.text


@SERVERS
def test_lengths_above_those_of_training(server: Any, copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    server(copy, model_max_length=2048)
    assert "was made for" not in caplog.text
    server(copy, model_max_length=4096)
    assert f"model_max_length is 4096, but {copy} was made for 2048 tokens" in caplog.text
    caplog.clear()
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 2048}
    change(copy / "config.json", rope_parameters=rope)
    server(copy, model_max_length=8192)
    assert "was made for" not in caplog.text
    assert ModelConfig.load(copy).max_length == 2048
