"""Small random draft heads, in the layouts of public checkpoints, and models for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from server.continuous_batching.draft_head import HeadDrafter
from server.scheduling.speculation.by_model import ModelSpeculator
from tests.checkpoints import tiny_llama, tiny_tokenizer
from tests.continuous_batching.drafts import FreeDrafts, FreeModel

LAYERS, HIDDEN, HEADS, KV_HEADS, INNER, VOCAB, DRAFTED = 7, 64, 4, 2, 96, 512, 200
SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCAB,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}


def qwen(path: Path, kind: str = "qwen2") -> Path:
    """A random Qwen2 or Qwen3, whose biases and norms are random too."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tiny_tokenizer(path, vocab=VOCAB)
    torch.manual_seed(3)
    more = {"head_dim": 16} if kind == "qwen3" else {}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "tie_word_embeddings": False}
    sizes = SIZES | ends | more | {"num_hidden_layers": LAYERS, "initializer_range": 0.2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).float()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.2)
    model.save_pretrained(path)
    return path


def llama(path: Path) -> Path:
    """A random Llama with as many layers as EAGLE-3 reads in front of."""
    return tiny_llama(path, layers=LAYERS, vocab=VOCAB)


def mimo(path: Path) -> Path:
    """A random MiMo: a Qwen2 and its multi-token prediction layer."""
    qwen(path)
    drawn = _Drawn(5, HIDDEN)
    layer = _layer(drawn, HIDDEN, biased=True)
    layer |= {f"{name}.weight": drawn.norm() for name in ("token_layernorm", "hidden_layernorm")}
    layer |= {"final_layernorm.weight": drawn.norm(), "input_proj.weight": drawn.matrix(HIDDEN, 2 * HIDDEN)}
    file = path / "model.safetensors"
    tensors = load_file(file) | {f"model.mtp_layers.0.{name}": tensor for name, tensor in layer.items()}
    save_file(tensors, file, {"format": "pt"})
    change_config(path, model_type="mimo", architectures=["MiMoForCausalLM"], num_nextn_predict_layers=1)
    return path


def eagle3(
    path: Path,
    *,
    reduced: bool = True,
    own_embedding: bool = False,
    hidden: int = HIDDEN,
    **config: Any,
) -> Path:
    """A random EAGLE-3 head in the layout of SafeAILab and SpecForge.

    Args:
        hidden: size, also of the target.
        reduced: it guesses from `DRAFTED` tokens, by ``d2t``.
        config: further fields of its ``config.json``.
    """
    drawn, vocab = _Drawn(11, hidden), DRAFTED if reduced else VOCAB
    tensors = {f"midlayer.{name}": tensor for name, tensor in _layer(drawn, 2 * hidden).items()}
    tensors["midlayer.hidden_norm.weight"], tensors["norm.weight"] = drawn.norm(), drawn.norm()
    tensors["fc.weight"] = drawn.matrix(hidden, 3 * hidden)
    tensors["lm_head.weight"] = drawn.matrix(vocab, hidden)
    if own_embedding:
        tensors["embed_tokens.weight"] = drawn.matrix(VOCAB, hidden)
    if reduced:
        ids = torch.randperm(VOCAB, generator=drawn.dice)[:DRAFTED].sort().values
        tensors["d2t"] = ids - torch.arange(DRAFTED)
        tensors["t2d"] = torch.zeros(VOCAB, dtype=torch.bool).index_fill_(0, ids, True)
    fields = {"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "num_hidden_layers": 1}
    return save_head(
        path, tensors, SIZES | fields | {"hidden_size": hidden, "draft_vocab_size": vocab} | config
    )


def as_speculators(path: Path, source: Path, **config: Any) -> Path:
    """The same head in the layout of speculators."""
    fields = json.loads((source / "config.json").read_text())
    wanted = {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "draft_vocab_size": fields.pop("draft_vocab_size"),
        "transformer_layer_config": {**fields, "architectures": None},
    }
    tensors = load_file(source / "model.safetensors")
    renamed = {name.replace("midlayer.", "layers.0."): tensor for name, tensor in tensors.items()}
    return save_head(path, renamed, wanted | config)


def knowing(path: Path, model: Path) -> Path:
    """An EAGLE-3 head that says what `model`, a Llama, would say of the newest token alone.

    Each place sees itself, for all queries and keys are one vector, whose product is greatest where both are
    turned alike. Values are the embedding less what stands for the state, to which they are added.
    """
    hidden = json.loads((model / "config.json").read_text())["hidden_size"]
    target, eye, nothing = load_file(model / "model.safetensors"), torch.eye(hidden), torch.zeros
    tensors = {
        "midlayer.self_attn.q_proj.weight": nothing(hidden, 2 * hidden),
        "midlayer.self_attn.q_proj.bias": torch.full((hidden,), 12.0),
        "midlayer.self_attn.k_proj.weight": nothing(hidden, 2 * hidden),
        "midlayer.self_attn.k_proj.bias": torch.full((hidden,), 12.0),
        "midlayer.self_attn.v_proj.weight": torch.cat((eye, -eye), 1),
        "midlayer.self_attn.v_proj.bias": nothing(hidden),
        "midlayer.self_attn.o_proj.bias": nothing(hidden),
        "midlayer.self_attn.o_proj.weight": eye,
        "midlayer.mlp.down_proj.weight": nothing(hidden, INNER),
        "fc.weight": nothing(hidden, 3 * hidden),
        "norm.weight": target["model.norm.weight"],
        "lm_head.weight": target["lm_head.weight"],
    }
    tensors |= {f"midlayer.mlp.{name}_proj.weight": nothing(INNER, hidden) for name in ("gate", "up")}
    norms = ("hidden_norm", "input_layernorm", "post_attention_layernorm")
    tensors |= {f"midlayer.{name}.weight": torch.ones(hidden) for name in norms}
    fields = {"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "num_hidden_layers": 1}
    read = {
        "num_key_value_heads": HEADS,
        "attention_bias": True,
        "eagle_aux_hidden_state_layer_ids": [0, 1, 2],
    }
    return save_head(path, tensors, SIZES | fields | read | {"hidden_size": hidden})


def save_head(path: Path, tensors: dict[str, Tensor], fields: dict[str, Any]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(fields))
    return path


def change_config(path: Path, **fields: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def change_tensors(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Let `change` have its way with the tensors of a checkpoint."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"})


class _Drawn:
    """Random tensors, wide enough that the likeliest token leads clearly."""

    def __init__(self, seed: int, hidden: int) -> None:
        self.dice = torch.Generator().manual_seed(seed)
        self.hidden = hidden

    def matrix(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.dice) * 0.2

    def norm(self) -> Tensor:
        return 1.0 + 0.2 * torch.randn(self.hidden, generator=self.dice)


def _layer(drawn: _Drawn, inputs: int, *, biased: bool = False) -> dict[str, Tensor]:
    hidden = drawn.hidden
    size = hidden // HEADS
    found = {
        "self_attn.q_proj.weight": drawn.matrix(HEADS * size, inputs),
        "self_attn.k_proj.weight": drawn.matrix(KV_HEADS * size, inputs),
        "self_attn.v_proj.weight": drawn.matrix(KV_HEADS * size, inputs),
        "self_attn.o_proj.weight": drawn.matrix(hidden, HEADS * size),
        "mlp.gate_proj.weight": drawn.matrix(INNER, hidden),
        "mlp.up_proj.weight": drawn.matrix(INNER, hidden),
        "mlp.down_proj.weight": drawn.matrix(hidden, INNER),
        "input_layernorm.weight": drawn.norm(),
        "post_attention_layernorm.weight": drawn.norm(),
    }
    if biased:
        for name in ("q_proj", "k_proj", "v_proj"):
            outputs = len(found[f"self_attn.{name}.weight"])
            found[f"self_attn.{name}.bias"] = drawn.matrix(outputs)
    return found


def speculation_by(head: Path, count: int = 4) -> dict[str, Any]:
    return {"draft_head": str(head), "draft_num_tokens": count}


def drafting(llm: LLM) -> HeadDrafter:
    """Let `llm` compute every draft it can make; returns its head."""
    speculator = llm.engine.scheduler.speculator
    assert isinstance(speculator, ModelSpeculator) and isinstance(speculator._model, HeadDrafter)
    speculator.cost, speculator.draft_cost = FreeDrafts(), FreeModel()
    return speculator._model


def greedy(count: int = 40, **more: Any) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=count, ignore_eos=True, **more)
