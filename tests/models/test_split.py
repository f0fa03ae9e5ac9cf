"""A model split over ranks computes what the whole one does, and its parts make the whole."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from server.checkpoints.errors import ModelError
from server.checkpoints.files import StoredTensor
from server.checkpoints.tensors import Part, read_tensors
from server.layers.linear import Linear, Target
from server.layers.rotary import Rotary
from server.layers.shard import Shard
from server.layers.spec import (
    AttentionSpec,
    ExpertsSpec,
    FeedForwardSpec,
    LayerSpec,
    ModelSpec,
    NormSpec,
    RotarySpec,
)
from server.models.decoder import Decoder
from server.models.names import Names
from server.models.split import split
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


class Threads:
    """What the ranks, a thread each, compute together."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._barrier = threading.Barrier(size)
        self._given: dict[int, Tensor] = {}
        self._rank = threading.local()

    def run(self, do: Callable[[int], None]) -> None:
        """Let each rank do its part."""

        def run(rank: int) -> None:
            self._rank.number = rank
            do(rank)

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _exchange(self, x: Tensor) -> list[Tensor]:
        self._given[self._rank.number] = x
        self._barrier.wait()
        found = [self._given[rank].clone() for rank in range(self.size)]
        self._barrier.wait()
        return found

    def reduce(self, x: Tensor) -> Tensor:
        return torch.stack(self._exchange(x)).sum(0)

    def gather(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        found = torch.cat(self._exchange(x), 1)
        return found if out is None else out.copy_(found[:, : out.shape[1]])


def split_logits(whole: ModelSpec, names: Names, stored: dict[str, Tensor], ranks: int) -> list[Tensor]:
    """What each rank has in the end."""
    parts, comm, found = [], Threads(ranks), [torch.empty(0)] * ranks
    for rank in range(ranks):
        part = Decoder(split(whole, ranks), F32, CPU, names, shard=Shard(rank, ranks))
        for name, target in part.weights().items():
            assert target.stored_shape(ranks) == stored[name].shape, name
            fill(target, target.shard(stored[name], rank, ranks))
        parts.append(part)

    def run(rank: int) -> None:
        found[rank] = logits_of(parts[rank], comm)

    comm.run(run)
    return found


JOINT = NormSpec(1e-5)
KINDS: dict[str, Callable[[AttentionSpec], AttentionSpec]] = {
    "heads": lambda own: own,
    "more ranks than key heads": lambda own: replace(own, num_kv_heads=1),
    "norms of their own": lambda own: replace(own, norm_scope="own"),
    "joint norms": lambda own: replace(own, norm=JOINT, norm_scope="joint"),
    "joint norms of fewer keys": lambda own: replace(own, norm=JOINT, norm_scope="joint", num_kv_heads=1),
}


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_ranks_of_a_split_model_compute_what_the_whole_does(
    parallel: bool, kind: str, ranks: int
) -> None:
    torch.manual_seed(1)
    spec = model_spec(parallel)
    spec = spec.with_layers(lambda _, layer: replace(layer, attention=KINDS[kind](layer.attention)))
    names = Names(feed_forward_norm="pre_feedforward_layernorm")
    whole = Decoder(spec, F32, CPU, names)
    stored = {name: torch.randn_like(target.tensor) * 0.3 for name, target in whole.weights().items()}
    for name, target in whole.weights().items():
        fill(target, stored[name])
    expected = logits_of(whole)
    for logits in split_logits(spec, names, stored, ranks):
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"num_heads": 6}, "6 heads are no multiple of it"),
    ({"num_heads": 12, "num_kv_heads": 3}, "3 heads of keys are neither a multiple of it nor a part"),
    ({"norm": NormSpec(1e-5, "layer"), "norm_scope": "joint"}, "a norm of kind 'layer' over all heads"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_what_cannot_be_split_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    spec = model_spec().with_layers(
        lambda _, layer: replace(layer, attention=replace(layer.attention, **fields))
    )
    with pytest.raises(ModelError, match=rf"cannot be split over 4 ranks: {message} \(layer 0\)"):
        split(spec, 4)


def test_feed_forward_parts_that_cannot_be_split() -> None:
    for part, message in (
        (FeedForwardSpec(26), "26 numbers of a feed-forward part"),
        (FeedForwardSpec(24, experts=ExpertsSpec(4, 2, shared=18)), "18 numbers of a shared expert"),
    ):
        spec = model_spec().with_layers(lambda _, layer, part=part: replace(layer, feed_forward=part))
        with pytest.raises(ModelError, match=message):
            split(spec, 4)


def test_names_that_do_not_tell_norms_apart() -> None:
    with pytest.raises(ValueError, match=r"two norms are called model\.layers\.0\.post_attention_layernorm"):
        Decoder(model_spec(), F32, CPU).weights()


def test_parts_put_together_are_what_was_stored() -> None:
    """Along the dimension that a target names, piece by piece where several are fused."""
    linear = Linear(12, 4, 2, 2, bias=True, dtype=F32, device=CPU)
    fused = Linear(12, 8, bias=True, dtype=F32, device=CPU)
    targets = linear.targets("outputs", "q", "k", "v") | fused.targets("outputs", "qkv", parts=(4, 2, 2))
    for name, target in targets.items():
        stored = torch.randn(target.stored_shape(RANKS))
        parts = [target.shard(stored, rank, RANKS) for rank in range(RANKS)]
        assert {part.shape for part in parts} == {target.tensor.shape} and target.axis == 0
        pieces = zip(*(part.split(target.parts or len(part)) for part in parts), strict=True)
        assert torch.equal(torch.cat([torch.cat(piece) for piece in pieces]), stored), name
    row = linear.targets("inputs", "q", "k", "v")
    assert row["q.weight"].axis == 1 and row["q.bias"].axis is None
    bias = torch.ones(8)
    assert torch.equal(sum(row["q.bias"].shard(bias, rank, RANKS) for rank in range(RANKS)), bias)
    whole = Target(torch.empty(3))
    assert torch.equal(whole.shard(bias, 1, RANKS), bias)


def test_ranks_that_are_more_than_heads_have_some_together() -> None:
    fused = Linear(3, 8, dtype=F32, device=CPU)
    (target,) = fused.targets("outputs", "qkv", parts=(4, 2, 2), copies=[[1, 2, 2]]).values()
    stored = torch.arange(24.0)[:, None].expand(24, 3)
    assert target.stored_shape(4) == (24, 3)
    rows = [target.shard(stored, rank, 4)[:, 0].tolist() for rank in range(4)]
    assert rows[1] == [4, 5, 6, 7, 16, 17, 20, 21]
    assert rows[2] == [8, 9, 10, 11, 18, 19, 22, 23]


def test_a_rank_reads_only_its_part_of_a_file(tmp_path: Path) -> None:
    save_file({"w": torch.arange(40.0).view(10, 4)}, tmp_path / "model.safetensors")
    stored = {"w": StoredTensor(tmp_path / "model.safetensors", "F32", (10, 4))}
    parts = {"w": Part(0, [(2, 4), (8, 9)])}
    ((_, found),) = read_tensors(stored, ["w"], parts)
    assert found[:, 0].tolist() == [8, 12, 32]


def test_codes_are_split_along_the_same_outputs_and_inputs_as_floats() -> None:
    """[inputs / n, outputs]: what counts outputs of a GPTQ weight is its second dimension."""
    assert GPTQLinear.axes["qweight"] == GPTQLinear.axes["qzeros"] == GPTQLinear.axes["scales"] == (1, 0)
    assert GPTQLinear.axes["g_idx"] == (None, 0)
