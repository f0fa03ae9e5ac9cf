"""The decoder of the Llama family: Llama 1–3, Mistral, Qwen2, Qwen3.

Tokens of all sequences of a step stand in one dimension; only attention knows which belong together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from server.continuous_batching.attention.base import AttentionBackend
from server.continuous_batching.kernels.base import Kernels
from server.continuous_batching.layers.linear import Linear, WeightMap, empty_parameter
from server.continuous_batching.layers.norm import RMSNorm
from server.continuous_batching.models.config import DecoderConfig
from server.continuous_batching.models.linears import Linears, PlainLinears


class Attention(nn.Module):
    """Weights of grouped-query self-attention."""

    def __init__(
        self, config: DecoderConfig, prefix: str, linears: Linears, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.split = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        sizes = [heads * config.head_dim for heads in self.split]
        self.prefix = prefix
        self.projections = [f"{prefix}.{name}_proj" for name in "qkvo"]
        self.qkv = linears(self.projections[:3], config.hidden_size, *sizes, bias=config.qkv_bias)
        self.output = linears(self.projections[3:], sizes[0], config.hidden_size, bias=config.output_bias)
        self.query_norm = self.key_norm = None
        if config.head_norm:
            self.query_norm = RMSNorm(config.head_dim, config.norm_eps, dtype=dtype, device=device)
            self.key_norm = RMSNorm(config.head_dim, config.norm_eps, dtype=dtype, device=device)

    def weights(self) -> WeightMap:
        found = self.qkv.weights(*self.projections[:3]) | self.output.weights(*self.projections[3:])
        if self.query_norm is not None and self.key_norm is not None:
            found[f"{self.prefix}.q_norm.weight"] = self.query_norm.weight
            found[f"{self.prefix}.k_norm.weight"] = self.key_norm.weight
        return found

    def heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [tokens, heads, head_dim] from their joint projection."""
        heads = qkv.view(qkv.shape[0], sum(self.split), self.head_dim)
        query, key, value = torch.split(heads, self.split, dim=1)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        return query, key, value


class FeedForward(nn.Module):
    """Weights of ``down(silu(gate(x)) · up(x))`` (SwiGLU; Shazeer, 2020)."""

    def __init__(self, config: DecoderConfig, prefix: str, linears: Linears) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.projections = [f"{prefix}.{name}_proj" for name in ("gate", "up", "down")]
        self.gate_up = linears(self.projections[:2], hidden, inner, inner, bias=config.mlp_bias)
        self.down = linears(self.projections[2:], inner, hidden, bias=config.mlp_bias)

    def weights(self) -> WeightMap:
        return self.gate_up.weights(*self.projections[:2]) | self.down.weights(*self.projections[2:])


class Layer(nn.Module):
    """Attention, then feed-forward, each on a normalised residual stream."""

    def __init__(
        self, config: DecoderConfig, index: int, linears: Linears, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.index = index
        self.prefix = f"model.layers.{index}"
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps, dtype=dtype, device=device)
        self.attention = Attention(config, f"{self.prefix}.self_attn", linears, dtype, device)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.norm_eps, dtype=dtype, device=device)
        self.feed_forward = FeedForward(config, f"{self.prefix}.mlp", linears)

    def weights(self) -> WeightMap:
        found = {
            f"{self.prefix}.input_layernorm.weight": self.attention_norm.weight.data,
            f"{self.prefix}.post_attention_layernorm.weight": self.feed_forward_norm.weight.data,
        }
        return found | self.attention.weights() | self.feed_forward.weights()

    def forward(self, x: Tensor, attention: AttentionBackend[Any], kernels: Kernels) -> Tensor:
        """The residual stream [tokens, hidden] after this layer."""
        qkv = kernels.norm_linear(x, self.attention_norm, self.attention.qkv)
        attended = attention.forward(self.index, *self.attention.heads(qkv))
        x = kernels.linear_add(attended, self.attention.output, x)
        inner = kernels.norm_gated_linear(x, self.feed_forward_norm, self.feed_forward.gate_up)
        return kernels.linear_add(inner, self.feed_forward.down, x)


class Decoder(nn.Module):
    """Token ids in, logits out.

    Args:
        config: shape of the model.
        dtype: of weights, activations and cache.
        device: where all of it lives.
        linears: makes the linear layers of the decoder layers; None: plain ones.
    """

    def __init__(
        self,
        config: DecoderConfig,
        dtype: torch.dtype,
        device: torch.device,
        linears: Linears | None = None,
    ) -> None:
        super().__init__()
        linears = linears or PlainLinears(dtype, device)
        self.config = config
        self.embedding = empty_parameter(config.vocab_size, config.hidden_size, dtype=dtype, device=device)
        self.layers = nn.ModuleList(
            Layer(config, i, linears, dtype, device) for i in range(config.num_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.norm_eps, dtype=dtype, device=device)
        self.head = Linear(config.hidden_size, config.vocab_size, dtype=dtype, device=device)
        if config.tie_word_embeddings:
            self.head.weight = self.embedding

    def weights(self) -> WeightMap:
        """Every tensor of the checkpoint and where it goes."""
        found: WeightMap = {
            "model.embed_tokens.weight": self.embedding.data,
            "model.norm.weight": self.norm.weight.data,
        }
        for layer in self.layers:
            assert isinstance(layer, Layer)
            found |= layer.weights()
        if not self.config.tie_word_embeddings:
            found |= self.head.weights("lm_head")
        return found

    def forward(
        self,
        token_ids: Tensor,
        logit_rows: Tensor | None,
        attention: AttentionBackend[Any],
        kernels: Kernels,
        out: Tensor | None = None,
    ) -> Tensor:
        """Compute a step's tokens.

        Args:
            token_ids: integers [tokens].
            logit_rows: integers [rows], the tokens whose successors are wanted; None: all.
            attention: was given the batch.
            kernels: the arithmetic.
            out: takes the result instead of new memory.

        Returns:
            [rows, vocab]: logits, in the weights' type or float32.
        """
        x = functional.embedding(token_ids, self.embedding)
        for layer in self.layers:
            x = layer(x, attention, kernels)
        if logit_rows is not None:
            x = x.index_select(0, logit_rows)
        return kernels.norm_linear(x, self.norm, self.head, out)
