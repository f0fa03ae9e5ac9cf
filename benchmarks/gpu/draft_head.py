"""What a draft head gives: ``.venv/bin/python -m benchmarks.gpu.draft_head SHAPE VOCAB OUT.json``.

The model has random weights and forced texts, as in `benchmarks.gpu.speculation`. Its EAGLE-3 head guesses
from VOCAB tokens (32000 in public checkpoints of an 8b), and is forced as the draft model of
`benchmarks.gpu.draft_model` is, whose figures these are too, the formula included:

- queries and keys are parts of the embedding, so that each place sees itself: no token comes twice in a text;
- values are as much of the embedding as all key heads hold, less what stands for the state of the target;
- the output layer scores highest the guess behind that embedding.

All of the head is computed: states of three layers, ``fc``, the layer, the output layer.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.checkpoints import SHAPES, LlamaShape, describe_llama
from benchmarks.gpu import speculation
from benchmarks.gpu.draft_model import guesses, load_forced, measure, options_of
from server.continuous_batching import LLM
from server.continuous_batching.draft_head import HeadDrafter
from server.models.heads.eagle3 import Eagle3Head
from server.scheduling.speculation.by_model import ModelSpeculator

SHARPNESS = 4.0
"""Of queries and of keys: a token's score of itself leads by far, and those of others are noise."""


def save_head(path: Path, shape: LlamaShape, vocab: int) -> Path:
    """Save an EAGLE-3 head for a model of that shape, all but its output layer forced.

    Args:
        vocab: tokens that it guesses from, those from `speculation.CIRCLES` on.
    """
    size, hidden = shape.hidden // shape.heads, shape.hidden
    held, group = shape.kv_heads * size, shape.heads // shape.kv_heads
    part, share = torch.eye(held, hidden), (held / hidden) ** 0.5  # of the embedding, and of its length
    nothing, asked = torch.zeros, SHARPNESS * torch.eye(size, 2 * hidden)
    handed_on = nothing(hidden, shape.heads, size)
    for head in range(0, shape.heads, group):  # the others of a group would add the same once more
        first = head // group * size
        handed_on[first : first + size, head] = torch.eye(size)
    attention = {
        "q_proj": asked.repeat(shape.heads, 1),
        "k_proj": asked.repeat(shape.kv_heads, 1),
        "v_proj": torch.cat((part, -share * part), 1),
        "o_proj": handed_on.flatten(1),
    }
    inner = {name: nothing(shape.inner, hidden) for name in ("gate_proj", "up_proj")}
    inner["down_proj"] = nothing(hidden, shape.inner)
    tensors = {f"midlayer.self_attn.{name}.weight": tensor for name, tensor in attention.items()}
    tensors |= {f"midlayer.mlp.{name}.weight": tensor for name, tensor in inner.items()}
    norms = ("midlayer.hidden_norm", "midlayer.input_layernorm", "midlayer.post_attention_layernorm", "norm")
    tensors |= {f"{name}.weight": torch.ones(hidden) for name in norms}
    tensors |= {"fc.weight": nothing(hidden, 3 * hidden), "lm_head.weight": nothing(vocab, hidden)}
    stored = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}
    path.mkdir(parents=True, exist_ok=True)
    save_file(stored | {"d2t": torch.full((vocab,), speculation.CIRCLES)}, path / "model.safetensors")
    fields = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "num_hidden_layers": 1,
        "hidden_size": hidden,
        "intermediate_size": shape.inner,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "draft_vocab_size": vocab,
        "max_position_embeddings": shape.max_length,
    }
    (path / "config.json").write_text(json.dumps(fields))
    return path


def load(shape: str, vocab: str, directory: Path, rows: int, drafted: int) -> LLM:
    """An `LLM` of that shape with a draft head whose vocabulary has `vocab` tokens."""
    large, head = directory / shape, directory / f"head-{vocab}-for-{shape}"
    describe_llama(large, SHAPES[shape])
    save_head(head, SHAPES[shape], int(vocab))
    return load_forced(large, rows, draft_head=str(head), draft_num_tokens=drafted)


def force_head(speculator: ModelSpeculator, rate: float) -> None:
    """Let the head say what `guesses` has, as far as its vocabulary goes."""
    drafter = speculator._model
    assert isinstance(drafter, HeadDrafter) and isinstance(drafter.runner.head, Eagle3Head)
    force_output(drafter.runner.head, rate)


@torch.no_grad()
def force_output(head: Eagle3Head, rate: float) -> None:
    """Fill its output layer."""
    output, embedding = head.head.weight, head.embedding
    attention = head.spec.layers[0].attention
    held = attention.num_kv_heads * attention.head_dim
    place = guesses(len(embedding), rate).to(output.device) - speculation.CIRCLES
    own = ((place >= 0) & (place < len(output))).nonzero()[:, 0]
    known: Tensor = embedding[own, :held] / (speculation.EMBEDDED * held**0.5)
    output.zero_()
    output[:, :held].index_add_(0, place[own], known.to(output.dtype))


def main() -> None:
    """Measure, show a line for each case, and write all there is so far."""
    measure(options_of(__doc__, "tokens that the head guesses from", None), load, force_head, "HEAD")


if __name__ == "__main__":
    main()
