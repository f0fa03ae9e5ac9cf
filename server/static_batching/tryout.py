"""Tries a model out once it is loaded: does it run, and may its prompts be padded and batched?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from server.checkpoints.errors import ModelError, computes_nan
from server.static_batching.problems import with_reason
from utils.messages import one_line

_SHORT, _LONG = range(3, 8), range(5, 14)
"""Prompts, as token ids."""


@torch.inference_mode()
def try_out(hf: Any, pad_token_id: int, path: str) -> tuple[bool, dict[str, str]]:
    """Generate two tokens, alone and beside a longer prompt.

    Args:
        hf: a ``PreTrainedModel``.
        pad_token_id: fills the left of the shorter prompt.
        path: names the model in errors.

    Returns:
        Whether the shorter prompt has the same answer beside the other (most recurrent models
        keep no state per row of a batch, or let padding into it), and how that was found out.

    Raises:
        ModelError: the model does not run, or computes NaN.
    """
    short, long = list(_SHORT), list(_LONG)
    gap = len(long) - len(short)
    alone = _run_alone(hf, short, pad_token_id, path)
    if not torch.isfinite(alone).all():
        raise computes_nan(path)
    mask = [[0] * gap + [1] * len(short), [1] * len(long)]
    try:
        beside = _logits(hf, [[pad_token_id] * gap + short, long], mask, pad_token_id)
    except Exception as error:
        _run_alone(hf, short, pad_token_id, path)  # or the failure was one of the device
        return False, with_reason(
            "none", f"one sequence at a time: in a batch the model fails ({one_line(error)})"
        )
    tolerance = 1e-3 if hf.dtype == torch.float32 else 5e-2
    change = float((alone[0] - beside[0]).abs().max() / alone.abs().max())
    found = f"beside a longer prompt logits change by {change:.1g} of the largest"
    if change <= tolerance:
        return True, with_reason("left", found)
    return False, with_reason("none", f"one sequence at a time: {found}")


def _run_alone(hf: Any, prompt: list[int], pad_token_id: int, path: str) -> Tensor:
    try:
        return _logits(hf, [prompt], [[1] * len(prompt)], pad_token_id)
    except Exception as error:
        what = f"in {str(hf.dtype).removeprefix('torch.')} on {hf.device.type}"
        problem = f"the model does not run {what} ({one_line(error)}): try another torch_dtype"
        raise ModelError(f"{path}: {problem}") from error


def _logits(hf: Any, input_ids: list[list[int]], mask: list[list[int]], pad_token_id: int) -> Tensor:
    """Logits of the token after each prompt and of the one after token 0, [prompts, 2, vocab]."""

    def always_0(input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, float("-inf"))
        forced[:, 0] = 0.0
        return forced

    output = hf.generate(
        torch.tensor(input_ids, device=hf.device),
        attention_mask=torch.tensor(mask, device=hf.device),
        max_new_tokens=2,
        do_sample=False,
        pad_token_id=pad_token_id,
        output_logits=True,
        return_dict_in_generate=True,
        logits_processor=LogitsProcessorList([always_0]),
    )
    return torch.stack(output.logits, dim=1).float()
