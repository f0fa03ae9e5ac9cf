"""Both servers compute what the dequantized float model computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from protocol.generation import GenerationConfig
from server.checkpoints.errors import ModelError
from server.continuous_batching.llm import LLM
from server.models.decoder import Decoder
from server.quantization.formats.gptq import GPTQ
from server.quantization.gptq.linear import GPTQLinear
from server.quantization.swap import load_quantized
from server.static_batching.config import WorkerConfig
from server.static_batching.model import load_model
from server.static_batching.pipeline import StaticPipeline
from tests.checkpoints import tiny_llama, tiny_tokenizer
from tests.quantization.models import dequantized, quantized, shuffle_groups

CPU = torch.device("cpu")
PROMPT = [5, 17, 250, 99, 3, 41, 42, 300]
DEMO = Path(__file__).parents[2] / "demo_model" / "checkpoint"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float Llama whose attention has biases."""
    return tiny_llama(tmp_path_factory.mktemp("llama"), hidden=128, attention_bias=True)


def engine(path: Path, **loading: Any) -> LLM:
    loading = {"quantize_method": "gptq", "torch_dtype": "float32", "device": "cpu"} | loading
    return LLM(path, model_loading_config=loading, cache_config={"num_blocks": 64})


def layers_of(llm: LLM) -> list[GPTQLinear]:
    model = llm.engine.worker.runner.model
    assert isinstance(model, Decoder)
    return [module for module in model.modules() if isinstance(module, GPTQLinear)]


@torch.inference_mode()
def expected_logits(path: Path, out: Path) -> torch.Tensor:
    """Logits after `PROMPT` of transformers' model with the dequantized weights."""
    model = AutoModelForCausalLM.from_pretrained(dequantized(path, out), dtype=torch.float32)
    logits: torch.Tensor = model(torch.tensor([PROMPT])).logits[0, -1]
    return logits.log_softmax(-1)


def engine_logits(llm: LLM) -> torch.Tensor:
    """Log probabilities of all tokens after `PROMPT`."""
    vocab = llm.engine.worker.runner.model.spec.vocab_size
    options = GenerationConfig(max_new_tokens=1, logprobs=20)
    (generation,) = llm.generate([PROMPT], options)
    found = torch.full((vocab,), float("nan"))
    for token, value in (generation.answers[0].logprobs or [])[0].top:
        found[token] = value
    return found


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    known = ~value.isnan()
    assert known.sum() >= 20
    return float((value[known] - reference[known]).norm() / reference[known].norm())


RECIPES: list[dict[str, Any]] = [
    {"group_size": 32},
    {"group_size": 64, "sym": False},
    {"group_size": 128},
    {"group_size": -1, "sym": False},
    {"bits": 8, "group_size": 32, "sym": False},
]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_logits(llama: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    path = quantized(llama, tmp_path / "q", **recipe)
    expected = expected_logits(path, tmp_path / "float")
    assert relative_error(engine_logits(engine(path)), expected) < 1e-2
    model, _ = load_quantized(GPTQ().open(path, {}), dtype=torch.float32, device=CPU)
    with torch.inference_mode():
        logits = model(torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)
    assert relative_error(logits, expected) < 1e-5


EXACT: list[dict[str, Any]] = [
    {"group_size": 64, "desc_act": True},
    {"group_size": -1, "sym": False},
    {"group_size": 32, "sym": False, "desc_act": True},
    {"bits": 8, "group_size": 128, "desc_act": True},
]


@pytest.mark.parametrize("recipe", EXACT, ids=str)
def test_float32_is_computed_in_float32(llama: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    """Greedy answers of the static server are those of the dequantized model, token by token."""
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    path = quantized(llama, tmp_path / "q", **{k: v for k, v in recipe.items() if k != "desc_act"})
    if recipe.get("desc_act"):
        shuffle_groups(path, {name: seed for seed, name in enumerate(kinds)})
    reference = AutoModelForCausalLM.from_pretrained(
        dequantized(path, tmp_path / "float"), dtype=torch.float32
    )
    reference.generation_config.eos_token_id = None
    worker = {"device": "cpu", "torch_dtype": "float32", "is_gptq_quantized": True}
    pipeline = StaticPipeline(path, worker_config=worker)
    assert pipeline.capabilities["dtype"]["name"] == "float32"
    assert "bfloat16" not in pipeline.capabilities["weights"]["name"]
    prompts = [[3 + 37 * i % 500, *PROMPT[: 2 + i % 7]] for i in range(12)]
    answers = pipeline.generate(prompts, GenerationConfig(max_new_tokens=16, ignore_eos=True))
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = torch.tensor([prompt])
        sequence = reference.generate(tokens, max_new_tokens=16, do_sample=False, pad_token_id=2)[0]
        assert answer.answers[0].token_ids == sequence[len(prompt) :].tolist()


def test_projections_of_one_order_stay_fused(llama: Path, tmp_path: Path) -> None:
    path = quantized(llama, tmp_path / "q", group_size=32)
    orders = {"q_proj": 1, "k_proj": 1, "v_proj": 1, "gate_proj": 2, "up_proj": 3, "down_proj": 4}
    shuffle_groups(path, orders)
    llm = engine(path)
    kernels = [len(layer.kernels) for layer in layers_of(llm)]
    assert kernels == [1, 1, 2, 1] * 2  # qkv in one, o, gate and up apart, down
    expected = expected_logits(path, tmp_path / "float")
    assert relative_error(engine_logits(llm), expected) < 1e-2


def test_nothing_of_the_checkpoint_is_kept_beside_the_kernels(llama: Path, tmp_path: Path) -> None:
    path = quantized(llama, tmp_path / "q", group_size=64)
    model, _ = load_quantized(GPTQ().open(path, {}), dtype=torch.bfloat16, device=CPU)
    by_torch = [module for module in model.modules() if isinstance(module, GPTQLinear)]
    for layer in [*layers_of(engine(path)), *by_torch]:
        assert layer.qweight is layer.qzeros is layer.scales is layer.g_idx is None
        names = {name.split(".")[-1] for name, _ in layer.named_buffers()}
        assert names <= {"packed", "scales_and_offsets", "bias"}
        assert not list(layer.parameters())


def test_status_names_the_kernels(llama: Path, tmp_path: Path) -> None:
    path = quantized(llama, tmp_path / "q", group_size=64)
    assert engine(path).capabilities["weights"]["name"] == "native-int4 (8 layers)"
    worker = load_model(WorkerConfig(model_name_or_path=str(path), is_gptq_quantized=True, device="cpu"))
    assert worker.capabilities["weights"]["name"] == "torch-int4 (14 layers)"
    assert worker.capabilities["dtype"]["name"] == "bfloat16"


def test_architectures_without_linear_modules(tmp_path: Path) -> None:
    """GPT-2 has `Conv1D`, whose weight lies the other way round."""
    tiny_tokenizer(tmp_path / "float")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=512, n_embd=64, n_layer=2, n_head=4, n_positions=128)
    reference = GPT2LMHeadModel(config).eval()
    reference.save_pretrained(tmp_path / "float")
    path = quantized(tmp_path / "float", tmp_path / "q", group_size=32, bits=8)
    model, _ = load_quantized(GPTQ().open(path, {}), dtype=torch.float32, device=CPU)
    assert isinstance(model.transformer.h[0].mlp.c_fc, GPTQLinear)
    with torch.inference_mode():
        error = model(torch.tensor([PROMPT])).logits - reference(torch.tensor([PROMPT])).logits
    assert error.norm() < 2e-2 * reference(torch.tensor([PROMPT])).logits.norm()


def test_layers_that_a_model_lacks_are_named(llama: Path, tmp_path: Path) -> None:
    path = quantized(llama, tmp_path / "q", group_size=32)
    shallow = (path / "config.json").read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 1')
    (path / "config.json").write_text(shallow)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj is missing from the model"):
        load_quantized(GPTQ().open(path, {}), dtype=torch.float32, device=CPU)


def test_configuration_and_checkpoint_must_agree(llama: Path, tmp_path: Path) -> None:
    path = quantized(llama, tmp_path / "q", group_size=32)
    with pytest.raises(ModelError, match="set quantization to 'gptq' or 'auto'"):
        engine(path, quantize_method=None)
    with pytest.raises(ModelError, match="is not a GPTQ checkpoint"):
        engine(llama)
    with pytest.raises(
        ModelError, match=r"gptq_model_base_name is set, but the weights in .* are read as floats"
    ):
        engine(llama, quantize_method=None, gptq_model_base_name="model")
    with pytest.raises(ModelError, match=r"no other\.safetensors"):
        engine(path, gptq_model_base_name="other")


def test_base_names_are_used(llama: Path, tmp_path: Path) -> None:
    path = quantized(llama, tmp_path / "q", group_size=32)
    (path / "model.safetensors").rename(path / "mine.safetensors")
    (path / "quantize_config.json").rename(path / "how.json")
    names = {"gptq_model_base_name": "mine", "gptq_config_base_name": "how"}
    assert engine_logits(engine(path, **names)).isfinite().any()


def test_text_of_the_demo_model(tmp_path: Path) -> None:
    """At least 98 of 100 tokens are those that the dequantized float model would choose there."""
    path = quantized(DEMO, tmp_path / "q", group_size=128)
    model = AutoModelForCausalLM.from_pretrained(dequantized(path, tmp_path / "float"), dtype=torch.float32)
    llm = engine(path, torch_dtype="bfloat16")
    prompts = ["Once upon a time", "What is 17 + 25?", "The capital of France", "One morning, a small"]
    answers = llm.generate(prompts, GenerationConfig(max_new_tokens=64, ignore_eos=True))
    equal = total = 0
    for generation in answers:
        tokens = generation.prompt_token_ids + generation.answers[0].token_ids
        with torch.inference_mode():
            best = model(torch.tensor([tokens])).logits[0].argmax(-1)
        start = len(generation.prompt_token_ids)
        equal += int((best[start - 1 : -1] == torch.tensor(tokens[start:])).sum())
        total += len(tokens) - start
    assert total == 256 and equal >= 0.98 * total
