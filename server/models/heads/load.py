"""Loads a draft head from a checkpoint directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from server.checkpoints.errors import ModelError
from server.checkpoints.files import StoredTensor, read_json, refuse_codes, stored_tensors
from server.checkpoints.hf_config import read_hf_config
from server.checkpoints.tensors import read_tensors
from server.layers.linear import Linear, LinearLayer
from server.models.decoder import Decoder
from server.models.heads import eagle3, mimo
from server.models.heads.head import DraftHead
from server.models.weights import fill

Stored = Mapping[str, tuple[str, StoredTensor]]
"""A head's name of a tensor → its name in the file, and what the file says of it."""


@dataclass(frozen=True, slots=True)
class HeadSource:
    """Where a head is, and for what.

    Attributes:
        path: directory of its checkpoint.
        target: the model, weights as they are stored or as a backend has packed them.
        target_path: its checkpoint.
    """

    path: Path
    target: Decoder
    target_path: Path


def holds_eagle3(path: Path) -> bool:
    """Whether a checkpoint is an EAGLE-3 head."""
    return path.is_dir() and eagle3.is_eagle3(read_json(path / "config.json"))


def load_head(source: HeadSource, dtype: torch.dtype, device: torch.device) -> tuple[DraftHead, bool]:
    """(the head, whether its output layer is to be the target's).

    Raises:
        ModelError: the checkpoint holds none that is supported, or one that does not fit the target.
    """
    path, target = source.path, source.target
    if not path.is_dir():
        raise ModelError(f"{path} is not a directory with a checkpoint")
    fields, head = read_json(path / "config.json"), None
    if target.own_forward:
        raise ModelError("a draft head is not supported for a model without a file in server/models")
    if eagle3.is_eagle3(fields):
        spec = eagle3.read(path, fields, target.spec)
        stored = _stored(path, eagle3.plain_name)
        stored = {name: found for name, found in stored.items() if name not in eagle3.UNREAD}
        head = eagle3.Eagle3Head(spec, stored, dtype, device)
        _fill(path, head, stored)
        head.settle(path)
        borrows = not head.own_output
        if not head.own_embedding:
            _share_embedding(path, head, target)
        return head, borrows
    if mimo.has_mtp(fields):
        layer = mimo.MimoHead(mimo.read(path, read_hf_config(path), target.spec), dtype, device)
        own = {name: found for name, found in _stored(path, str).items() if name.startswith(layer.prefix)}
        _fill(path, layer, own)
        _share_embedding(path, layer, target)
        return layer, True
    names = [*(fields.get("architectures") or ()), fields.get("speculators_model_type")]
    name = next((name for name in names if name), fields.get("model_type"))
    raise ModelError(
        f"{path} holds {name!r}, which is no draft head that is supported (EAGLE-3: "
        f"{', '.join(eagle3.ARCHITECTURES)}; multi-token prediction: MiMoForCausalLM); "
        "a smaller model is named in speculation_config.draft_model"
    )


def _stored(path: Path, named: Callable[[str], str]) -> Stored:
    return {named(name): (name, tensor) for name, tensor in stored_tensors(path).items()}


def _share_embedding(path: Path, head: DraftHead, target: Decoder) -> None:
    """Let `head` look up the target's embedding.

    Raises:
        ModelError: it is of another size, or is not what enters the target's layers.
    """
    hidden, spec = head.spec.hidden_size, target.spec
    if hidden != spec.hidden_size:
        raise ModelError(f"{path} lacks an embedding of {hidden} numbers; the model's has {spec.hidden_size}")
    if spec.embedding_scale != 1.0 or spec.learned_positions is not None:
        raise ModelError(f"{path} lacks an embedding, and the model scales its own, or adds positions to it")
    head.share(embedding=target.embedding)


def _fill(path: Path, head: DraftHead, stored: Stored) -> None:
    """Read the tensors of a head.

    Raises:
        ModelError: some are missing, unknown, of another shape, or no floats.
    """
    targets = head.weights()
    for name, (stored_name, tensor) in stored.items():
        if name not in targets:
            raise ModelError(f"{tensor.file} holds the tensor {stored_name!r}, which this head does not have")
        if tensor.shape != (expected := targets[name].stored_shape()):
            raise ModelError(
                f"{tensor.file}: {stored_name!r} has shape {list(tensor.shape)}, expected {list(expected)}"
            )
    if missing := targets.keys() - stored.keys():
        raise ModelError(f"{path} lacks {len(missing)} tensors of the head, the first is {min(missing)!r}")
    refuse_codes(dict(stored.values()))
    own = {stored_name: name for name, (stored_name, _) in stored.items()}
    for stored_name, values in read_tensors(dict(stored.values()), own):
        with torch.no_grad():
            fill(targets[own[stored_name]], values)


def output_of(source: HeadSource, dtype: torch.dtype) -> LinearLayer:
    """The target's output layer, for a head to multiply with.

    On a CPU a copy of its own, since kernels there have packed the target's for themselves alone.

    Raises:
        ModelError: its weights are no floats there.
    """
    target, device = source.target, source.target.embedding.device
    if device.type != "cpu":
        return target.head
    names, spec = target.names, target.spec
    output = Linear(spec.hidden_size, spec.vocab_size, bias=spec.head_bias, dtype=dtype, device=device)
    wanted = output.weights(names.head)
    stored = stored_tensors(source.target_path)
    if f"{names.head}.weight" not in stored:
        output.weight = nn.Parameter(target.embedding.detach(), requires_grad=False)
        del wanted[f"{names.head}.weight"]
    found = {name: stored[name] for name in wanted}
    refuse_codes(found)
    for name, tensor in read_tensors(found, found):
        wanted[name].copy_(tensor)
    return output
