"""Trains the demo model from nothing: writes its text, its tokenizer and its weights.

    .venv/bin/python -m demo_model.train --out build/demo_model

The same seed, device and library versions give the same checkpoint, bit for bit.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

if not __package__:  # run as a plain script: python demo_model/train.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo_model.corpus import documents
from demo_model.dataset import Dataset, encode_documents
from demo_model.tokenizer import save_tokenizer, train_tokenizer
from utils.commands import with_interpreter

CONTEXT = 2048
VOCABULARY = 1536
TOKENIZER_DOCUMENTS = 30_000


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the model is trained."""

    seed: int = 0
    steps: int = 6400
    documents: int = 400_000
    rows: int = 16
    """Windows of `CONTEXT` tokens in a step."""
    learning_rate: float = 2e-3
    weight_decay: float = 0.1

    def rate_at(self, step: int) -> float:
        """Learning rate: linear warm-up over a twentieth of the steps, then half a cosine down to 0."""
        warm_up = max(1, self.steps // 20)
        if step < warm_up:
            return self.learning_rate * (step + 1) / warm_up
        done = (step - warm_up) / max(1, self.steps - warm_up)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained Llama of 5 million parameters.

    Heads of 64, two of them for keys and values, and widths divisible by 128: sizes that paged
    attention kernels, tensor parallelism over two devices and int4 groups of 128 all take.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    return model


def optimizer_of(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves norms alone."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    fused = parameters[0].device.type == "cuda"
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=fused)


def fit(model: LlamaForCausalLM, data: Dataset, recipe: Recipe, device: torch.device) -> None:
    """Trains `model` in place; matrix products run in bfloat16 on a GPU and in float32 on a CPU."""
    model.to(device).train()
    optimizer = optimizer_of(model, recipe)
    rng = np.random.default_rng(recipe.seed)
    progress = tqdm(range(recipe.steps), "training", unit="step")
    for step in progress:
        inputs, labels = (torch.from_numpy(part).to(device) for part in data.batch(rng, recipe.rows, CONTEXT))
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(step)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(input_ids=inputs, use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == recipe.steps - 1:
            progress.set_postfix(loss=f"{loss.item():.4f}")


def train(out: Path, recipe: Recipe, device: torch.device) -> None:
    """Writes a checkpoint to `out` (made if missing): bfloat16 weights, tokenizer, chat template."""
    torch.manual_seed(recipe.seed)
    sample = documents(recipe.seed, min(recipe.documents, TOKENIZER_DOCUMENTS))
    tokenizer = train_tokenizer(sample, VOCABULARY, CONTEXT)
    corpus = documents(recipe.seed, recipe.documents)
    data = encode_documents(tqdm(corpus, "writing text", recipe.documents, unit=" documents"), tokenizer)
    model = build_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(data.tokens):,} tokens of text, on {device}")
    fit(model, data, recipe, device)
    model.to("cpu", torch.bfloat16).save_pretrained(out)
    save_tokenizer(tokenizer, out)
    print(f"checkpoint in {out}")


def main() -> None:
    """Command line."""
    default = Recipe()
    parser = argparse.ArgumentParser(
        description=with_interpreter(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="directory for the checkpoint")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--documents", type=int, default=default.documents, help="size of the corpus")
    parser.add_argument(
        "--rows", type=int, default=default.rows, help=f"batch size, in windows of {CONTEXT} tokens"
    )
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda, …")
    options = parser.parse_args()
    name = options.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not reproducible
    torch.use_deterministic_algorithms(True)
    recipe = Recipe(options.seed, options.steps, options.documents, options.rows)
    train(options.out, recipe, torch.device(name))


if __name__ == "__main__":
    main()
