"""Checkpoints to measure with: the architecture and size of real models, random weights."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.commands import command


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """Sizes of a Llama."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocab: int = 32_000
    max_length: int = 2_048

    @property
    def bytes_per_token(self) -> int:
        """Bytes of bfloat16 weights that every token is multiplied with (all but the embedding)."""
        attention = self.hidden * (self.heads + self.kv_heads) * 2 * (self.hidden // self.heads)
        layer = attention + 3 * self.hidden * self.inner
        return 2 * (self.layers * layer + self.vocab * self.hidden)


SHAPES = {
    "125m": LlamaShape(768, 12, 12, 4, 2_048),
    "500m": LlamaShape(1_024, 24, 16, 8, 4_096),
    "1b": LlamaShape(2_048, 22, 32, 4, 5_632, max_length=4_096),
    "8b": LlamaShape(4_096, 32, 32, 8, 14_336, vocab=128_256, max_length=8_192),
    "3b": LlamaShape(3_072, 28, 24, 8, 8_192, vocab=128_256, max_length=8_192),
    "7b": LlamaShape(3_584, 28, 28, 4, 18_944, vocab=152_064, max_length=8_192),
    "14b": LlamaShape(5_120, 48, 40, 8, 13_824, vocab=152_064, max_length=8_192),
    "32b": LlamaShape(5_120, 64, 40, 8, 27_648, vocab=152_064, max_length=8_192),
    "70b": LlamaShape(8_192, 80, 64, 8, 28_672, vocab=128_256, max_length=8_192),
}


def make_llama(path: Path, shape: LlamaShape, *, dtype: str = "bfloat16", seed: int = 0) -> Path:
    """Save a Llama with random weights and a byte-level tokenizer in `path`, unless it is there.

    Token ids below 300 are those of the tokenizer (0, 1, 2: ``<s>``, ``</s>``, ``<pad>``); the rest of
    the vocabulary has no text, which a benchmark that sends token ids does not need.

    Args:
        path: a directory; made where it does not exist.
        shape: sizes.
        dtype: of the saved weights.
    """
    if (path / "model.safetensors").is_file():
        return path
    import torch
    from transformers import LlamaForCausalLM

    config = describe_llama(path, shape, dtype=dtype)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(path)
    return path


def describe_llama(
    path: Path, shape: LlamaShape, *, dtype: str = "bfloat16", tokenizer: Path | None = None
) -> Any:
    """Save configuration and tokenizer only, for engines that make up the weights themselves.

    Args:
        tokenizer: a ``tokenizer.json`` whose tokens 0, 1 and 2 are those of the byte-level one, which is
            the default.
    """
    from tokenizers import Tokenizer
    from transformers import LlamaConfig

    known = _byte_tokenizer() if tokenizer is None else Tokenizer.from_file(str(tokenizer))
    config = LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.inner,
        vocab_size=shape.vocab,
        max_position_embeddings=shape.max_length,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype=dtype,
    )
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path) as made:  # another engine may be reading what is there
        _save_tokenizer(known, Path(made), shape.max_length)
        config.save_pretrained(made)
        for file in Path(made).iterdir():
            file.replace(path / file.name)
    return config


SPECIAL_TOKENS = ["<s>", "</s>", "<pad>"]


def _byte_tokenizer(words: int = 0) -> Any:
    """One token a byte, and `words` more that no text is split into."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIAL_TOKENS, *alphabet, *(f"Ġw{number}" for number in range(words))]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return tokenizer


def byte_tokenizer(path: Path, max_length: int) -> None:
    """Save a tokenizer of bytes in `path`."""
    _save_tokenizer(_byte_tokenizer(), path, max_length)


def word_tokenizer(path: Path, vocab: int) -> Path:
    """Save a tokenizer at `path` in which each of `vocab` ids has a text, so that every token of an answer
    shows.

    Returns:
        `path`, for `describe_llama`.
    """
    _byte_tokenizer(vocab - 256 - len(SPECIAL_TOKENS)).save(str(path))
    return path


def _save_tokenizer(tokenizer: Any, path: Path, max_length: int) -> None:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=max_length,
    )
    fast.save_pretrained(path)


def main() -> None:
    """``.venv/bin/python -m benchmarks.checkpoints SHAPE DIRECTORY``."""
    if len(sys.argv) != 3 or sys.argv[1] not in SHAPES:
        sizes = "; ".join(f"{name}: {dataclasses.asdict(shape)}" for name, shape in SHAPES.items())
        sys.exit(f"usage: {command('-m', 'benchmarks.checkpoints')} SHAPE DIRECTORY\nshapes: {sizes}")
    print(make_llama(Path(sys.argv[2]), SHAPES[sys.argv[1]]))


if __name__ == "__main__":
    main()
