"""Random matrices of experts as codes in groups."""

from __future__ import annotations

from pathlib import Path

import torch

from server.checkpoints.files import StoredTensor
from server.quantization.gptq.checkpoint import GPTQCheckpoint
from server.quantization.gptq.config import GPTQConfig
from server.quantization.gptq.packing import pack_columns
from server.quantization.gptq.stack import GroupedStack


def random_stack(
    shape: tuple[int, int, int],
    bits: int,
    group: int,
    *,
    symmetric: bool,
    ordered: bool = True,
    parts: int = 2,
    dtype: torch.dtype,
    device: torch.device,
) -> GroupedStack:
    """A stack that is filled, not settled.

    Args:
        ordered: groups are in the order of inputs; otherwise each expert has an order of its own.
        parts: projections that stand on top of each other.
    """
    experts, outputs, inputs = shape
    names = [f"experts.{expert}.{part}" for expert in range(experts) for part in range(parts)]
    tensors = {f"{name}.g_idx": StoredTensor(Path(), "I32", (inputs,)) for name in names}
    config = GPTQConfig(bits, group, desc_act=not ordered, sym=symmetric, zero_offset=0)
    checkpoint = GPTQCheckpoint(Path(), config, Path(), tensors, torch.float16)
    stack = GroupedStack(checkpoint, names, shape, dtype=dtype, device=device)
    assert stack.qweight is not None and stack.qzeros is not None
    assert stack.scales is not None and stack.g_idx is not None
    stack.qweight.random_(-(2**31), 2**31 - 1)
    stack.scales.uniform_(0.01, 0.05).mul_(16 / 2**bits)
    groups = torch.arange(inputs) // stack.group_size
    for expert in range(experts):
        zeros = torch.randint(0, 1 << bits, (inputs // stack.group_size, outputs), dtype=torch.uint8)
        if symmetric:
            zeros.fill_(1 << (bits - 1))
        stack.qzeros[expert] = pack_columns(zeros, bits).to(device)
        stack.g_idx[expert] = (groups if ordered else groups[torch.randperm(inputs)]).to(device)
    return stack
