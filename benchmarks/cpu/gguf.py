"""A Llama checkpoint as a GGUF file in bfloat16: ``python -m benchmarks.cpu.gguf MODEL FILE``.

Written with llama.cpp's own `gguf` package. Queries and keys are permuted as llama.cpp's rotation of
neighbouring pairs wants them; the tokenizer is a stand-in, for only token ids are sent.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def _target(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.weight"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{_NAMES[rest]}.weight"


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """Halves of each head → neighbouring pairs."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def convert(model: Path, file: Path) -> None:
    """Write `file` from the checkpoint in directory `model`."""
    import gguf
    from safetensors.torch import load_file

    config = json.loads((model / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{index}>" for index in range(config["vocab_size"])])
    writer.add_token_scores([0.0] * config["vocab_size"])
    writer.add_token_types([gguf.TokenType.NORMAL] * config["vocab_size"])
    for name, tensor in load_file(model / "model.safetensors").items():
        target = _target(name)
        if target.endswith(("attn_q.weight", "attn_k.weight")):
            tensor = _interleaved(tensor, heads if "attn_q" in target else kv_heads)
        if tensor.dim() == 1:
            writer.add_tensor(target, tensor.float().numpy())
            continue
        raw = tensor.contiguous().view(torch.uint8).numpy()
        writer.add_tensor(target, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
