"""The tokenizer that a configuration names."""

from __future__ import annotations

from pathlib import Path

from server.checkpoints.tokenizer import read_tokenizer
from server.continuous_batching.config import ModelLoadingConfig
from server.text.light_transformers import import_transformers_without_torch
from server.text.tokenizer import Tokenizer


def load_tokenizer(loading: ModelLoadingConfig, *, with_models: bool = False) -> Tokenizer:
    """Load it.

    Args:
        with_models: this process may want transformers' models, too, and has imported torch for them.

    Raises:
        ModelError: it cannot be loaded, or not with the configuration of the model beside it.
    """
    # code that comes with a model may want any part of transformers
    if not (with_models or loading.trust_remote_code):
        import_transformers_without_torch()
    hf = read_tokenizer(
        Path(loading.tokenizer_path),
        use_fast=loading.use_fast_tokenizer,
        trust_remote_code=loading.trust_remote_code,
    )
    return Tokenizer(
        hf, chat_format=loading.chat_format, sanitize_control_tokens=loading.sanitize_control_tokens
    )
