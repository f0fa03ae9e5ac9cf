"""Step 1: a Llama in plain torch.

The tokens of all sequences stand in one dimension. Only `attend` knows which of them belong together.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, queries [n, heads, dim], keys and values [n, kv_heads, dim]) → [n, heads, dim]."""


class Llama:
    """Weights of a checkpoint directory, in float32."""

    def __init__(self, path: str | Path) -> None:
        config = json.loads((Path(path) / "config.json").read_text())
        weights = self._read(Path(path) / "model.safetensors")
        self.weights = {name.removeprefix("model."): weight.float() for name, weight in weights.items()}
        self.layers, self.eps = config["num_hidden_layers"], config["rms_norm_eps"]
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.dim = config.get("head_dim") or config["hidden_size"] // self.heads
        self.eos: int = config["eos_token_id"]
        steps = torch.arange(0, self.dim, 2) / self.dim
        self.frequencies = config["rope_parameters"]["rope_theta"] ** -steps
        self.head = self.weights.get("lm_head.weight", self.weights["embed_tokens.weight"])

    def _read(self, file: Path) -> dict[str, Tensor]:
        return load_file(file)

    @torch.inference_mode()
    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend, wanted: Tensor) -> Tensor:
        """Logits [wanted, vocab] behind the tokens at the places `wanted`; tokens and positions are [n]."""
        x = self.weights["embed_tokens.weight"][tokens]
        for layer in range(self.layers):
            name = f"layers.{layer}"
            h = self._norm(x, f"{name}.input_layernorm")
            q, k, v = (
                self._linear(h, f"{name}.self_attn.{p}_proj").view(len(h), -1, self.dim) for p in "qkv"
            )
            h = attend(layer, self._rotate(q, positions), self._rotate(k, positions), v).flatten(1)
            x = x + self._linear(h, f"{name}.self_attn.o_proj")
            h = self._norm(x, f"{name}.post_attention_layernorm")
            h = silu(self._linear(h, f"{name}.mlp.gate_proj")) * self._linear(h, f"{name}.mlp.up_proj")
            x = x + self._linear(h, f"{name}.mlp.down_proj")
        return linear(self._norm(x[wanted], "norm"), self.head)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self.weights[f"{name}.weight"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return rms_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.eps)

    def _rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        angles = positions[:, None, None] * self.frequencies
        (low, high), cos, sin = x.chunk(2, -1), angles.cos(), angles.sin()
        return torch.cat((low * cos - high * sin, high * cos + low * sin), -1)


def attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention [..., n, heads, dim]; `mask` [..., n, keys] says which keys a query sees."""
    q, k, v = (x.transpose(-3, -2) for x in (query, keys, values))
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask.unsqueeze(-3), enable_gqa=True)
    return out.transpose(-3, -2)
