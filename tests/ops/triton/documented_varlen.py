"""What torch documents of its attention over sequences of unequal length, for machines without a GPU."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def documented_varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
    *, scale: float, window_size: tuple[int, int], enable_gqa: bool, seqused_k: Tensor,
    block_table: Tensor, num_splits: int,
) -> Tensor:  # fmt: skip
    """What torch 2.13 says of `varlen_attn`, in float64, and what its kernels ask of their arguments."""
    assert key.shape[1] % 256 == 0 and key.stride(-1) == value.stride(-1) == block_table.stride(-1) == 1
    assert {t.dtype for t in (cu_seq_q, cu_seq_k, seqused_k, block_table)} == {torch.int32}
    assert window_size[1] == 0 and enable_gqa and num_splits == 1
    assert cu_seq_k.diff().tolist() == seqused_k.tolist() and max_k == seqused_k.max()
    assert max_q == cu_seq_q.diff().max() and cu_seq_q[-1] == len(query)
    assert block_table.shape == (len(seqused_k), -(-max_k // key.shape[1]))
    outputs, group = [], query.shape[1] // key.shape[2]
    for index, (begin, end) in enumerate(itertools.pairwise(cu_seq_q.tolist())):
        length = int(seqused_k[index])
        keys, values = (x[block_table[index].long()].flatten(0, 1)[:length] for x in (key, value))
        keys, values = (x.double().repeat_interleave(group, 1) for x in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", query[begin:end].double(), keys) * scale
        before = torch.arange(length - (end - begin), length)[:, None] - torch.arange(length)
        unseen = (before < 0) | ((before > window_size[0]) & (window_size[0] >= 0))
        weights = scores.masked_fill(unseen, float("-inf")).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, values))
    return torch.cat(outputs).to(query.dtype)
