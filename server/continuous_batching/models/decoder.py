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


class Attention(nn.Module):
    """Weights of grouped-query self-attention."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.split = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        sizes = [heads * config.head_dim for heads in self.split]
        self.qkv = Linear(config.hidden_size, *sizes, bias=config.qkv_bias, dtype=dtype, device=device)
        self.output = Linear(
            sizes[0], config.hidden_size, bias=config.output_bias, dtype=dtype, device=device
        )
        self.query_norm = self.key_norm = None
        if config.head_norm:
            self.query_norm = RMSNorm(config.head_dim, config.norm_eps, dtype=dtype, device=device)
            self.key_norm = RMSNorm(config.head_dim, config.norm_eps, dtype=dtype, device=device)

    def weights(self, prefix: str) -> WeightMap:
        found = self.qkv.weights(*(f"{prefix}.{name}_proj" for name in "qkv"))
        found |= self.output.weights(f"{prefix}.o_proj")
        if self.query_norm is not None and self.key_norm is not None:
            found[f"{prefix}.q_norm.weight"] = self.query_norm.weight
            found[f"{prefix}.k_norm.weight"] = self.key_norm.weight
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

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        inner = config.intermediate_size
        self.gate_up = Linear(
            config.hidden_size, inner, inner, bias=config.mlp_bias, dtype=dtype, device=device
        )
        self.down = Linear(inner, config.hidden_size, bias=config.mlp_bias, dtype=dtype, device=device)

    def weights(self, prefix: str) -> WeightMap:
        found = self.gate_up.weights(f"{prefix}.gate_proj", f"{prefix}.up_proj")
        return found | self.down.weights(f"{prefix}.down_proj")


class Layer(nn.Module):
    """Attention, then feed-forward, each on a normalised residual stream."""

    def __init__(self, config: DecoderConfig, index: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.index = index
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps, dtype=dtype, device=device)
        self.attention = Attention(config, dtype, device)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.norm_eps, dtype=dtype, device=device)
        self.feed_forward = FeedForward(config, dtype, device)

    def weights(self, prefix: str) -> WeightMap:
        found = {
            f"{prefix}.input_layernorm.weight": self.attention_norm.weight.data,
            f"{prefix}.post_attention_layernorm.weight": self.feed_forward_norm.weight.data,
        }
        found |= self.attention.weights(f"{prefix}.self_attn")
        return found | self.feed_forward.weights(f"{prefix}.mlp")

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
    """

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.config = config
        self.embedding = empty_parameter(config.vocab_size, config.hidden_size, dtype=dtype, device=device)
        self.layers = nn.ModuleList(Layer(config, i, dtype, device) for i in range(config.num_layers))
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
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            found |= layer.weights(f"model.layers.{index}")
        if not self.config.tie_word_embeddings:
            found |= self.head.weights("lm_head")
        return found

    def forward(
        self,
        token_ids: Tensor,
        logit_rows: Tensor | None,
        attention: AttentionBackend[Any],
        kernels: Kernels,
    ) -> Tensor:
        """Compute a step's tokens.

        Args:
            token_ids: integers [tokens].
            logit_rows: integers [rows], the tokens whose successors are wanted; None: all.
            attention: was given the batch.
            kernels: the arithmetic.

        Returns:
            [rows, vocab]: logits, in the weights' type or float32.
        """
        x = functional.embedding(token_ids, self.embedding)
        for layer in self.layers:
            x = layer(x, attention, kernels)
        if logit_rows is not None:
            x = x.index_select(0, logit_rows)
        return kernels.norm_linear(x, self.norm, self.head)
