"""A model split over ranks computes what the whole one does, and its parts make the whole."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from server.layers.linear import Linear, Target
from server.layers.rotary import Rotary
from server.layers.spec import AttentionSpec, FeedForwardSpec, LayerSpec, ModelSpec, NormSpec, RotarySpec
from server.models.decoder import Decoder
from server.models.names import Names
from server.models.weights import fill
from server.ops.attention import AttentionBatch, AttentionShape, ChunkSpan
from server.ops.layer_ops import LayerOps
from server.ops.torch.attention import TorchAttention
from server.quantization.gptq.linear import GPTQLinear

CPU, F32 = torch.device("cpu"), torch.float32
RANKS = 2


def model_spec(parallel: bool = False) -> ModelSpec:
    """Everything that the residual can have: biases, norms behind parts, a scale, capped logits, sinks."""
    norm = NormSpec(1e-5, minus_one=True)
    attention = AttentionSpec(4, 2, 16, 16, 0.3, window=5, norm=norm, sinks=True, bias=True, output_bias=True)
    layer = LayerSpec(
        attention, FeedForwardSpec(24, "gelu_tanh", bias=True), norm, norm, norm, norm, 0.7, parallel
    )
    rotary = RotarySpec(100.0, 16)
    return ModelSpec(53, 32, (layer, layer), (rotary,), norm, embedding_scale=3.0, logit_softcap=2.0)


def rank_spec(spec: ModelSpec) -> ModelSpec:
    """What one of `RANKS` ranks computes."""

    def part(layer: LayerSpec) -> LayerSpec:
        heads = layer.attention
        return replace(
            layer,
            attention=replace(
                heads, num_heads=heads.num_heads // RANKS, num_kv_heads=heads.num_kv_heads // RANKS
            ),
            feed_forward=replace(layer.feed_forward, inner=layer.feed_forward.inner // RANKS),
        )

    return replace(spec, layers=tuple(map(part, spec.layers)))


def logits_of(model: Decoder, comm: Any = None) -> Tensor:
    """Of a prompt of 11 tokens."""
    spec, length = model.spec, 11
    attention = spec.layers[0].attention
    cache = torch.zeros(3, len(spec.layers), 2, 4, attention.num_kv_heads, attention.head_dim)
    shape = AttentionShape(tuple(layer.attention for layer in spec.layers), 4, F32)
    rotaries = [Rotary(each, length, dtype=F32, device=CPU) for each in spec.rotaries]
    backend = TorchAttention(shape, rotaries, cache)
    positions = torch.arange(length)
    chunk = ChunkSpan(0, length, 0, torch.arange(3))
    empty = torch.zeros((0, 0), dtype=torch.long)
    backend.prepare(
        AttentionBatch(positions, positions // 4, positions % 4, np.zeros(0, np.int64), empty, [chunk])
    )
    tokens = torch.arange(3, 3 + length)
    with torch.inference_mode():
        return model(tokens, None, backend, LayerOps(), None, comm)


class Sum:
    """Adds up what the ranks, a thread each, have computed."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(RANKS)
        self._given: list[Tensor] = []

    def reduce(self, x: Tensor) -> Tensor:
        if self._barrier.wait() == 0:
            self._given = []
        self._barrier.wait()
        self._given.append(x)
        self._barrier.wait()
        return torch.stack(self._given).sum(0)


@pytest.mark.parametrize("parallel", [False, True])
def test_the_ranks_of_a_split_model_compute_what_the_whole_does(parallel: bool) -> None:
    torch.manual_seed(1)
    spec = model_spec(parallel)
    names = Names(feed_forward_norm="pre_feedforward_layernorm")
    whole = Decoder(spec, F32, CPU, names)
    stored = {name: torch.randn_like(target.tensor) * 0.3 for name, target in whole.weights().items()}
    for name, target in whole.weights().items():
        fill(target, stored[name])
    ranks = []
    for rank in range(RANKS):
        part = Decoder(rank_spec(spec), F32, CPU, names)
        for name, target in part.weights().items():
            fill(target, target.shard(stored[name], rank, RANKS))
        ranks.append(part)
    comm, found = Sum(), [torch.empty(0)] * RANKS

    def run(rank: int) -> None:
        found[rank] = logits_of(ranks[rank], comm)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = logits_of(whole)
    for logits in found:
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits_of(ranks[0]), expected, atol=1e-2)


def test_names_that_do_not_tell_norms_apart() -> None:
    with pytest.raises(ValueError, match=r"two norms are called model\.layers\.0\.post_attention_layernorm"):
        Decoder(model_spec(), F32, CPU).weights()


def test_parts_put_together_are_what_was_stored() -> None:
    """Along the dimension that a target names, piece by piece where several are fused."""
    linear = Linear(12, 8, 4, 4, bias=True, dtype=F32, device=CPU)
    fused = Linear(12, 16, bias=True, dtype=F32, device=CPU)
    targets = linear.targets("outputs", "q", "k", "v") | fused.targets("outputs", "qkv", parts=(8, 4, 4))
    for name, target in targets.items():
        stored = torch.randn_like(target.tensor)
        parts = [target.shard(stored, rank, RANKS) for rank in range(RANKS)]
        assert {part.shape for part in parts} == {(len(stored) // RANKS, *stored.shape[1:])}
        assert target.axis == 0
        sizes = [part // RANKS for part in target.parts or (len(stored),)]
        pieces = zip(*(part.split(sizes) for part in parts), strict=True)
        assert torch.equal(torch.cat([torch.cat(piece) for piece in pieces]), stored), name
    row = linear.targets("inputs", "q", "k", "v")
    assert row["q.weight"].axis == 1 and row["q.bias"].axis is None
    bias = torch.ones(8)
    assert torch.equal(sum(row["q.bias"].shard(bias, rank, RANKS) for rank in range(RANKS)), bias)
    whole = Target(torch.empty(3))
    assert torch.equal(whole.shard(bias, 1, RANKS), bias)


def test_codes_are_split_along_the_same_outputs_and_inputs_as_floats() -> None:
    """[inputs / n, outputs]: what counts outputs of a GPTQ weight is its second dimension."""
    assert GPTQLinear.axes["qweight"] == GPTQLinear.axes["qzeros"] == GPTQLinear.axes["scales"] == (1, 0)
    assert GPTQLinear.axes["g_idx"] == (None, 0)
