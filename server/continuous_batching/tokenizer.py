"""The tokenizer that a configuration names."""

from __future__ import annotations

from server.continuous_batching.config import ModelLoadingConfig
from server.text.light_transformers import import_transformers_without_torch
from server.text.tokenizer import Tokenizer


def load_tokenizer(loading: ModelLoadingConfig) -> Tokenizer:
    """Load it; in a process that has not imported torch, without importing torch."""
    if not loading.trust_remote_code:  # code that comes with a model may want any part of transformers
        import_transformers_without_torch()
    return Tokenizer(
        loading.tokenizer_path,
        use_fast=loading.use_fast_tokenizer,
        trust_remote_code=loading.trust_remote_code,
    )
