"""A Llama checkpoint as a GGUF file: ``.venv/bin/python -m benchmarks.cpu.gguf MODEL FILE [TYPE]``.

In bfloat16, or as llama.cpp quantizes it to TYPE, e.g. Q8_0 or Q4_K_M.

Written with llama.cpp's own `gguf` package, in that engine's environment, without torch. Queries and
keys are permuted as llama.cpp's rotation of neighbouring pairs wants them; the tokenizer is a
stand-in, for only token ids are sent.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

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


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Halves of each head → neighbouring pairs."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def _tensors(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Name and bits (uint16) of every bfloat16 tensor of a safetensors file."""
    data = np.memmap(file, np.uint8, mode="r")
    (size,) = struct.unpack("<Q", data[:8].tobytes())
    header = json.loads(data[8 : 8 + size].tobytes())
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "BF16":
            raise ValueError(f"{name} in {file} is {entry['dtype']}, not BF16")
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        yield name, data[begin:end].view(np.uint16).reshape(entry["shape"])


def convert(model: Path, file: Path) -> None:
    """Write `file` from the checkpoint in directory `model`."""
    import gguf

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
    for name, bits in _tensors(model / "model.safetensors"):
        target = _target(name)
        if target.endswith(("attn_q.weight", "attn_k.weight")):
            bits = _interleaved(bits, heads if "attn_q" in target else kv_heads)
        if bits.ndim == 1:
            writer.add_tensor(target, (bits.astype(np.uint32) << 16).view(np.float32))
        else:
            raw = np.ascontiguousarray(bits).view(np.uint8)
            writer.add_tensor(target, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(source: Path, file: Path, kind: str) -> None:
    """Write `file` from the GGUF file `source` by llama.cpp's own quantizer."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(file).encode(), params)
    if failed:
        raise RuntimeError(f"llama.cpp cannot quantize {source} to {kind}")


def main() -> None:
    model, file, *kind = sys.argv[1:]
    if not kind:
        convert(Path(model), Path(file))
        return
    plain = Path(model) / "model-bf16.gguf"
    if not plain.is_file():
        convert(Path(model), plain)
    quantize(plain, Path(file), kind[0])


if __name__ == "__main__":
    main()
