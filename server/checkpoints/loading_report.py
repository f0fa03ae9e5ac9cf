"""Where a checkpoint and its architecture differ, from the report that transformers makes while loading.

transformers only warns: it fills tensors that are missing with random numbers and leaves out those that
it has no place for, so that a damaged checkpoint answers with nonsense. What an architecture knows to be
superfluous or tied, and old names that it maps to new ones, are not in the report.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

LOADING_OPTIONS = {"output_loading_info": True, "ignore_mismatched_sizes": True}
"""For ``from_pretrained``, so that it returns the report instead of an error without names."""

_CAUSAL_MASKS = re.compile(r"\.(attn|attention)\.(bias|masked_bias|causal_mask)$")
"""Buffers in old files of GPT-2, GPT-J, GPT-Neo and CodeGen. No parameter of theirs has such a name."""


def difference(model: Any, report: Mapping[str, Any]) -> str | None:
    """What the files lack or hold too much for `model`, to be put behind the path; None: nothing.

    Args:
        model: the ``PreTrainedModel`` that was loaded.
        report: the second value of ``from_pretrained``.
    """
    if report["mismatched_keys"]:
        name, found, expected = min(report["mismatched_keys"])
        return f"holds {name!r} of shape {list(found)}, expected {list(expected)}"
    missing = report["missing_keys"]
    if missing:
        return f"lacks {len(missing)} {_tensors(missing)}, the first is {min(missing)!r}"
    computed = {name for name, _ in model.named_non_persistent_buffers()}  # old files store some of these
    unknown = {
        name
        for name in report["unexpected_keys"] - computed
        if not _CAUSAL_MASKS.search(name) and not _is_of_another_part(model, name)
    }
    if unknown:
        rest = f", and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        return f"holds the tensor {min(unknown)!r}{rest}, which this model does not have"
    return None


def _is_of_another_part(model: Any, name: str) -> bool:
    """Whether `name` stands beside the text model of a checkpoint with more parts, e.g. a vision tower."""
    if "_text" not in model.config.model_type:  # as in "llama4_text", the text part of "llama4"
        return False
    part = name.removeprefix(f"{model.base_model_prefix}.").partition(".")[0]
    return not hasattr(model, part) and not hasattr(model.base_model, part)


def _tensors(names: set[str]) -> str:
    return "tensor" if len(names) == 1 else "tensors"
