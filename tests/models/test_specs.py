"""What specifications can say beyond the families that there are, on models that transformers has."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from protocol.generation import GenerationConfig
from server.layers.spec import AttentionSpec, FeedForwardSpec, LayerSpec, ModelSpec, NormSpec, RotarySpec
from server.models import registry
from server.models.architecture import Architecture
from server.models.decoder import Decoder
from server.models.llama import llama_spec
from server.models.names import Names
from server.models.registry import Family
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.reference import Reference, mixed_requests
from tests.continuous_batching.test_exactness import assert_exact
from tests.models.small_models import save


def read_stablelm(hf: Any) -> Architecture:
    """Layer norms, a quarter of each head turns, and both parts of a layer read the same stream."""
    norm = NormSpec(hf.layer_norm_eps, "layer", bias=True)
    size, parallel = hf.hidden_size // hf.num_attention_heads, hf.use_parallel_residual
    layer = LayerSpec(
        AttentionSpec(hf.num_attention_heads, hf.num_key_value_heads, size, size, size**-0.5, bias=True),
        FeedForwardSpec(hf.intermediate_size),
        attention_norm=norm,
        feed_forward_norm=norm,
        parallel=parallel,
    )
    rope = hf.rope_parameters
    turning = RotarySpec(rope["rope_theta"], int(size * rope["partial_rotary_factor"]))
    names = Names(feed_forward_norm="input_layernorm" if parallel else "post_attention_layernorm")
    layers = (layer,) * hf.num_hidden_layers
    return Architecture(ModelSpec(hf.vocab_size, hf.hidden_size, layers, (turning,), norm), names)


def read_bigcode(hf: Any) -> Architecture:
    """GPT-2 with one key head: learned positions, no gate, biases, projections stored as one."""
    norm = NormSpec(hf.layer_norm_epsilon, "layer", bias=True)
    size = hf.n_embd // hf.n_head
    layer = LayerSpec(
        AttentionSpec(hf.n_head, 1, size, size, size**-0.5, rotary=None, bias=True, output_bias=True),
        FeedForwardSpec(4 * hf.n_embd, "gelu_tanh", gated=False, bias=True),
        attention_norm=norm,
        feed_forward_norm=norm,
    )
    spec = ModelSpec(
        hf.vocab_size, hf.n_embd, (layer,) * hf.n_layer, (), norm, learned_positions=hf.n_positions, tied=True
    )
    names = Names(
        embedding="transformer.wte",
        positions="transformer.wpe",
        norm="transformer.ln_f",
        layer="transformer.h.{}",
        qkv=("attn.c_attn",),
        output="attn.c_proj",
        gate_up=("mlp.c_fc",),
        down="mlp.c_proj",
        attention_norm="ln_1",
        feed_forward_norm="ln_2",
    )
    return Architecture(spec, names)


def register(monkeypatch: pytest.MonkeyPatch, kind: str, read: Callable[[Any], Architecture]) -> None:
    """As a line of `FAMILIES` and a file of its own do."""
    module = ModuleType(f"tests.models.{kind}")
    module.read = read  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(registry.FAMILIES, kind, Family(module.__name__, "a test"))


@pytest.mark.parametrize(
    ("kind", "read", "fields"),
    [
        ("stablelm", read_stablelm, {"use_parallel_residual": True, "use_qkv_bias": True, "head_dim": None}),
        ("gpt_bigcode", read_bigcode, {"n_positions": 400, "n_embd": 44, "n_head": 4, "n_layer": 2}),
    ],
    ids=["parallel parts", "learned positions"],
)
def test_answers_are_those_of_transformers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, read: Any, fields: dict[str, Any]
) -> None:
    register(monkeypatch, kind, read)
    fields = {"hidden_size": 64, "pad_token_id": None} | fields if kind == "stablelm" else fields
    path = save(tmp_path, kind, fields)
    reference = Reference(path)
    llm = small_llm(path, max_length=300, chunk=13, tokens=40)
    assert_exact(llm, reference, mixed_requests(reference, 6, seed=4, longest=15, longest_prompt=40))


def test_a_family_with_a_forward_pass_of_its_own(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    """It is run layer by layer, and `/status` says why."""

    class Backwards(Decoder):
        """Its layers in the other order."""

        own_forward = True

        def forward(
            self,
            token_ids: Tensor,
            logit_rows: Any,
            attention: Any,
            ops: Any,
            out: Any = None,
            comm: Any = None,
            states: Any = None,
        ) -> Tensor:
            x = self.embed(token_ids, attention.positions)
            for layer in reversed(list(self.layers)):
                x = layer(x, attention, ops, comm)
            return self.logits(x if logit_rows is None else x[logit_rows], ops, out)

    prompt, options = [5, 17, 250, 99], GenerationConfig(max_new_tokens=8, ignore_eos=True)
    plain = small_llm(tiny_model)
    assert plain.capabilities["kernels"]["name"].startswith("native")
    register(monkeypatch, "llama", lambda hf: Architecture(llama_spec(hf), decoder=Backwards))
    llm = small_llm(tiny_model)
    assert "a forward pass of its own" in llm.capabilities["kernels"]["reason"]
    assert llm.capabilities["attention"]["name"] == "native"
    answers = [each.generate([prompt], options)[0].answers[0].token_ids for each in (plain, llm)]
    assert answers[0] != answers[1]
    reference = Reference(tiny_model)
    reference.model.model.layers = torch.nn.ModuleList(reversed(reference.model.model.layers))
    for index, layer in enumerate(reference.model.model.layers):
        layer.self_attn.layer_idx = index
    expected = reference.answers(prompt, GenerationConfig(max_new_tokens=8, eos_token_id=511))
    assert [answers[1]] == expected
