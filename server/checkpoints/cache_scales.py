"""The scales of keys and values that a checkpoint brings for a cache in FP8, by the names that vLLM reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from server.checkpoints.errors import ModelError
from server.checkpoints.files import stored_tensors
from server.checkpoints.tensors import read_tensors

if TYPE_CHECKING:
    from torch import Tensor

_SCALE = re.compile(
    r"layers\.(\d+)\.(?:self_attn|attention)\."
    r"(?:(?:attn\.|[kv]_proj\.)?([qkv]|prob)(?:_output)?_scale|([kv])_proj\.output_scale)$"
)
"""Under `self_attn`: `k_scale`, `attn.k_scale`, `k_proj.k_scale`, `k_proj.output_scale`; alike for values."""


def is_cache_scale(name: str) -> bool:
    """Whether the tensor `name` is no weight, but a scale of what attention keeps or computes in between."""
    return _SCALE.search(name) is not None


@dataclass(frozen=True, slots=True)
class CacheScales:
    """What stored keys and values are multiplied by.

    Attributes:
        found: (layer, ``k`` or ``v``) → float32 [1] or [kv_heads].
    """

    found: dict[tuple[int, str], Tensor]

    @classmethod
    def read(cls, path: Path) -> CacheScales:
        """Those of the checkpoint at `path`: none, one for each layer, or one for each of its key heads."""
        stored = stored_tensors(path) if path.is_dir() else {}
        places = {}
        for name in stored:
            match = _SCALE.search(name)
            if match is not None and (part := match[2] or match[3]) in ("k", "v"):
                places[name] = int(match[1]), part
        return cls({places[name]: scale.float().flatten() for name, scale in read_tensors(stored, places)})

    def of(self, layers: Sequence[int], kv_heads: int) -> Tensor:
        """float32 [layers, 2, kv_heads] of keys, then values, of those layers; 1 where there is none.

        Raises:
            ModelError: scales of another number of heads, or that nothing can be divided by.
        """
        import torch

        scales = torch.ones(len(layers), 2, kv_heads)
        for place, layer in enumerate(layers):
            for part, kind in enumerate("kv"):
                found = self.found.get((layer, kind))
                if found is None:
                    continue
                if len(found) not in (1, kv_heads) or not bool((found.isfinite() & (found > 0)).all()):
                    raise ModelError(
                        f"{kind}_scale of layer {layer} is {found.tolist()}: expected one positive number, "
                        f"or one for each of {kv_heads} heads"
                    )
                scales[place, part] = found
        return scales

    @property
    def origin(self) -> str:
        """For the operator."""
        count = len(self.found)
        return f"scaled by {count} scales of the checkpoint" if count else "no scales in the checkpoint: 1.0"
