"""The whole pass in C++ against torch operations layer by layer, for all that specifications say."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from server.layers.rotary import Rotary
from server.layers.spec import (
    AttentionSpec,
    ClampSpec,
    ExpertsSpec,
    FeedForwardSpec,
    LayerSpec,
    ModelSpec,
    NormSpec,
    RotarySpec,
)
from server.models.decoder import Decoder
from server.ops.attention import AttentionShape
from server.ops.backend import AttentionChoice, Backend, LayeredBackend
from server.ops.cpu import backend as native
from server.ops.cpu.attention import NativeAttention
from server.ops.cpu.backend import NativeBackend
from server.ops.cpu.library import NativeLibrary
from server.ops.grouped_attention import GroupedAttention
from server.ops.layer_ops import LayerOps
from server.ops.torch.attention import TorchAttention
from tests.ops.cpu.scenes import LONGEST, Scene

SIZE = 16
CPU = torch.device("cpu")
RMS = NormSpec(1e-6)
ATTENTION = AttentionSpec(6, 2, 32, 32, scale=0.2)
LAYER = LayerSpec(ATTENTION, FeedForwardSpec(96), RMS, RMS)
ROTARIES = (RotarySpec(1e4, 32), RotarySpec(1e6, 32), RotarySpec(1e4, 24))


def model_spec(*layers: LayerSpec, **fields: Any) -> ModelSpec:
    return ModelSpec(vocab_size=77, hidden_size=64, layers=layers, rotaries=ROTARIES, norm=RMS, **fields)


def layer(**fields: Any) -> LayerSpec:
    """A layer as a Llama has it but for `fields`, those of its parts included."""
    attention = {key: fields.pop(key) for key in list(fields) if hasattr(ATTENTION, key)}
    feed_forward = {key: fields.pop(key) for key in list(fields) if hasattr(LAYER.feed_forward, key)}
    changed = replace(LAYER.feed_forward, **feed_forward)
    return replace(LAYER, attention=replace(ATTENTION, **attention), feed_forward=changed, **fields)


GEMMA = NormSpec(1e-6, minus_one=True)
LAYER_NORM = NormSpec(1e-5, kind="layer", bias=True)
AFTER = {"attention_norm": None, "feed_forward_norm": None}
CASES: dict[str, ModelSpec] = {
    "llama": model_spec(LAYER, LAYER),
    "gemma": model_spec(
        *(
            layer(
                window=window,
                rotary=0 if window else 1,
                norm=GEMMA,
                activation="gelu_tanh",
                attention_norm=GEMMA,
                attention_post_norm=GEMMA,
                feed_forward_norm=GEMMA,
                feed_forward_post_norm=GEMMA,
            )
            for window in (20, None, 20)
        ),
        embedding_scale=8.0,
        logit_softcap=3.0,
    ),
    "softcap and sinks": model_spec(layer(softcap=1.5, sinks=True), layer(sinks=True, window=7)),
    "norms behind alone": model_spec(
        layer(**AFTER, attention_post_norm=RMS, feed_forward_post_norm=NormSpec(1e-3)), LAYER
    ),
    "a norm behind attention alone": model_spec(layer(attention_post_norm=RMS), LAYER),
    "no rotation, rotation in part": model_spec(layer(rotary=None), layer(rotary=2)),
    "scales": model_spec(layer(residual_scale=0.3), layer(residual_scale=0.7), logit_scale=0.25),
    "layer norms": replace(
        model_spec(
            layer(attention_norm=LAYER_NORM, feed_forward_norm=replace(LAYER_NORM, bias=False)),
            learned_positions=LONGEST,
        ),
        norm=LAYER_NORM,
    ),
    "parallel parts": model_spec(layer(parallel=True, residual_scale=0.5), layer(parallel=True)),
    "feed-forward parts of several sizes": model_spec(layer(inner=32), layer(inner=160)),
    "norms of heads, each and all": model_spec(
        layer(norm=LAYER_NORM, norm_scope="own"), layer(norm=RMS, norm_scope="joint"), layer(norm=RMS)
    ),
    "a bias of the head": model_spec(LAYER, head_bias=True),
    "experts": model_spec(
        layer(inner=32, experts=ExpertsSpec(7, 3)),
        LAYER,
        layer(inner=64, experts=ExpertsSpec(5, 1, normalized=False), feed_forward_post_norm=RMS),
    ),
    "experts with biases and a clamped gate": model_spec(
        layer(inner=32, bias=True, clamp=ClampSpec(0.7, 1.7), experts=ExpertsSpec(4, 2, router_bias=True))
    ),
    "experts without a gate": model_spec(
        layer(inner=64, bias=True, gated=False, activation="relu2", experts=ExpertsSpec(4, 4))
    ),
    "shared experts": model_spec(
        layer(inner=32, experts=ExpertsSpec(4, 2, shared=96, shared_gate=True), residual_scale=0.6),
        layer(inner=32, experts=ExpertsSpec(4, 2, shared=64)),
    ),
    "biases": model_spec(layer(bias=True, output_bias=True, gated=False), layer(bias=True)),
    **{
        f"{activation} {'with' if gated else 'without'} a gate": model_spec(
            layer(activation=activation, gated=gated)
        )
        for activation in ("silu", "gelu", "gelu_tanh", "relu", "relu2")
        for gated in (True, False)
    },
}


def random_model(spec: ModelSpec, dtype: torch.dtype) -> Decoder:
    model = Decoder(spec, dtype, CPU)
    for name, parameter in model.named_parameters():
        scale = 0.4 if parameter.dim() < 2 else parameter.shape[-1] ** -0.5
        mean = float("norm" in name and not name.endswith("bias"))
        parameter.data = (torch.randn(parameter.shape) * scale + mean).to(parameter.dtype)
    return model


def run(
    backend: Backend, model: Decoder, scene: Scene, cache: Tensor, token_ids: Tensor, rows: Tensor
) -> Tensor:
    dtype = cache.dtype
    backend.prepare(model, dtype)
    rotaries = [Rotary(each, LONGEST, dtype=dtype, device=CPU) for each in ROTARIES]
    attention = backend.make_attention(scene.shape, rotaries, cache)
    attention.prepare(scene.batch())
    return backend.forward(model, token_ids, rows, attention).float()


def compare(library: NativeLibrary, spec: ModelSpec, dtype: torch.dtype) -> float:
    """How far the pass in C++ is from torch's, as a part of the logits' deviation."""
    torch.manual_seed(1)
    model = random_model(spec, dtype)
    assert native.objection(model, dtype) is None
    shape = AttentionShape(tuple(each.attention for each in spec.layers), SIZE, dtype)
    scene = Scene(shape, [1, 40, 70, 33, 90], [1, 1, 3, 33, 50], 3, layers=len(spec.layers))
    tokens = sum(scene.fresh)
    token_ids, rows = torch.randint(0, spec.vocab_size, (tokens,)), torch.tensor([0, 1, 4, 37, tokens - 1])
    choice = AttentionChoice("torch", TorchAttention, TorchAttention.capabilities, "")
    steps = (scene, scene.cache.clone(), token_ids, rows)
    expected = run(LayeredBackend(choice, LayerOps(), ""), copy.deepcopy(model), *steps)
    choice = AttentionChoice("native", NativeAttention, NativeAttention.capabilities, "")  # type: ignore[arg-type]
    found = run(NativeBackend(choice, library), model, scene, scene.cache.clone(), token_ids, rows)
    assert expected.std() > 0.1
    return float((found - expected).abs().max() / expected.std())


@pytest.mark.parametrize("case", CASES)
def test_every_specification(library: NativeLibrary, case: str) -> None:
    assert compare(library, CASES[case], torch.float32) < 3e-5


@pytest.mark.parametrize("case", ["llama", "gemma", "softcap and sinks", "layer norms", "parallel parts"])
def test_in_bfloat16(library: NativeLibrary, case: str) -> None:
    assert compare(library, CASES[case], torch.bfloat16) < 0.15


def test_layers_in_several_caches(library: NativeLibrary) -> None:
    """Layers that lie in caches of their own, with blocks of their own, give the same as in one."""
    torch.manual_seed(2)
    spec = model_spec(layer(), layer(window=9), layer(window=9), layer())
    model = random_model(spec, torch.float32)
    layers = tuple(each.attention for each in spec.layers)
    lengths, fresh = [40, 70, 90], [1, 3, 50]
    scene = Scene(AttentionShape(layers, SIZE, torch.float32), lengths, fresh, 2, layers=4)
    token_ids, rows = torch.randint(0, 77, (54,)), torch.tensor([0, 3, 53])
    choice = AttentionChoice("native", NativeAttention, NativeAttention.capabilities, "")  # type: ignore[arg-type]
    whole = NativeBackend(choice, library)
    expected = run(whole, copy.deepcopy(model), scene, scene.cache.clone(), token_ids, rows)

    split = NativeBackend(choice, library)
    split.prepare(model, torch.float32)
    rotaries = [Rotary(each, LONGEST, dtype=torch.float32, device=CPU) for each in ROTARIES]
    caches = []
    for members in ([0, 3], [1, 2]):
        shape = AttentionShape(tuple(layers[i] for i in members), SIZE, torch.float32)
        part = Scene(shape, lengths, fresh, 2, layers=2)  # its blocks lie elsewhere
        for own, other in zip(part.tables, scene.tables, strict=True):
            part.cache[own] = scene.cache[other][:, members]
        attention = split.make_attention(shape, rotaries, part.cache)
        batch = part.batch()
        if members == [1, 2]:
            part.forget_before(9, batch)
        attention.prepare(batch)
        caches.append(attention)
    grouped = GroupedAttention(caches, [(0, 0), (1, 0), (1, 1), (0, 1)])
    assert torch.equal(split.forward(model, token_ids, rows, grouped), expected)


def test_norms_behind_parallel_parts_are_refused() -> None:
    spec = model_spec(layer(parallel=True, attention_post_norm=RMS))
    assert "norms behind parallel parts" in str(
        native.objection(Decoder(spec, torch.float32, CPU), torch.float32)
    )


def test_experts_that_it_does_not_compute_are_refused() -> None:
    experts = ExpertsSpec(4, 2, shared=64)
    for spec, said in (
        (layer(inner=32, experts=experts, parallel=True), "experts beside attention"),
        (layer(inner=32, experts=experts, gated=False), "a shared expert with a bias or without a gate"),
    ):
        found = native.objection(Decoder(model_spec(spec), torch.float32, CPU), torch.float32)
        assert said in str(found)
