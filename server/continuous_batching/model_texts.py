"""The vocabulary and tokenizer data that an engine needs; it loads no tokenizer itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from server.continuous_batching.config import ServerConfig
from server.models.registry import may_need_modules
from server.text.grammars.compiler import GrammarTokens
from server.text.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class ModelTexts:
    """Data of the tokenizer, and the checkpoint's fingerprint, which names cache entries.

    Attributes:
        vocabulary: bytes of each token, for stop strings.
        grammar_tokens: the tokenizer, for grammars.
        fingerprint: of the checkpoint.
    """

    vocabulary: Vocabulary
    grammar_tokens: GrammarTokens
    fingerprint: str


def wants_models(config: ServerConfig) -> bool:
    """Whether transformers' models may be wanted: its modules compute families without a file here, and code
    that comes with a model may want any part of transformers."""
    loading = config.model_loading_config
    paths = (loading.model_name_or_path, config.speculation_config.draft_model)
    return loading.trust_remote_code or any(
        path is not None and may_need_modules(Path(path)) for path in paths
    )
