"""How a checkpoint calls the tensors of a model, and orders their numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Names:
    """Checkpoint names of modules, without ``.weight``; Llama's, unless a family says otherwise.

    Those of a layer's parts follow `layer`, in which ``{}`` stands for its index. Where projections of one
    input are stored as one, one name stands for all of them.

    Attributes:
        base: prefix of all but the output layer: a checkpoint of the model without that layer does not have
            it.
        derived: ends of names of tensors in old checkpoints that follow from the configuration.
        apart: beginnings of names of tensors that belong to another model of the checkpoint, as a draft head.
        renamed: pieces of names in old checkpoints, and what stands for them here.
        transposed: matrices of layers are stored as [inputs, outputs].
        mixed_heads: queries, keys and values, stored as one, stand side by side for each head.
        stacked_experts: projections of all experts are stored as one, each transposed and gates and ups
            taking turns (gpt-oss), rather than by the number of the expert behind `experts`.
        paired: neighbours in a head of queries or keys rotate together, rather than its two halves.
    """

    base: str = "model."
    derived: tuple[str, ...] = ("rotary_emb.inv_freq",)
    apart: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    transposed: bool = False
    mixed_heads: bool = False
    paired: bool = False
    embedding: str = "model.embed_tokens"
    positions: str = "model.embed_positions"
    norm: str = "model.norm"
    head: str = "lm_head"
    layer: str = "model.layers.{}"
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    output: str = "self_attn.o_proj"
    query_norm: str = "self_attn.q_norm"
    key_norm: str = "self_attn.k_norm"
    sinks: str = "self_attn.sinks"
    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    router: str = "mlp.gate"
    experts: str = "mlp.experts"
    expert_gate_up: tuple[str, ...] = ("gate_proj", "up_proj")
    expert_down: str = "down_proj"
    stacked_experts: bool = False
    shared_gate_up: tuple[str, ...] = ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj")
    shared_down: str = "mlp.shared_expert.down_proj"
    shared_gate: str = "mlp.shared_expert_gate"
    attention_norm: str = "input_layernorm"
    attention_post_norm: str = "post_attention_layernorm"
    feed_forward_norm: str = "post_attention_layernorm"
    feed_forward_post_norm: str = "post_feedforward_layernorm"
