"""What the HTTP process reads of a checkpoint for the engine's.

It needs the tokenizer in any case, and transformers for it, which takes a second or two to import.
The engine's process imports torch meanwhile, and does without transformers where the model is of a
family of ours.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from server.checkpoints.fingerprint import fingerprint
from server.checkpoints.hf_config import read_hf_config
from server.checkpoints.plain_config import PlainConfig
from server.continuous_batching.config import ModelLoadingConfig, ServerConfig
from server.continuous_batching.tokenizer import load_tokenizer
from server.models.registry import may_need_modules
from server.text.grammars.compiler import GrammarTokens
from server.text.light_transformers import import_transformers_without_torch
from server.text.tokenizer import Tokenizer
from server.text.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class ModelTexts:
    """What an engine needs to know of a model's texts, and the checkpoint's name for caches.

    Attributes:
        vocabulary: bytes of each token, for stop strings.
        grammar_tokens: the tokenizer, for grammars.
        fingerprint: of the checkpoint.
    """

    vocabulary: Vocabulary
    grammar_tokens: GrammarTokens
    fingerprint: str

    @classmethod
    def of(cls, loading: ModelLoadingConfig, tokenizer: Tokenizer) -> ModelTexts:
        """Those of the checkpoint, with the tokenizer that was loaded from it."""
        name = fingerprint(loading.model_name_or_path, loading.tokenizer_path)
        return cls(tokenizer.vocabulary, GrammarTokens.of(tokenizer.hf), name)


def wants_models(config: ServerConfig) -> bool:
    """Whether transformers' models may be wanted: its modules compute families without a file here, and code
    that comes with a model may want any part of transformers."""
    loading = config.model_loading_config
    paths = (loading.model_name_or_path, config.speculation_config.draft_model)
    return loading.trust_remote_code or any(
        path is not None and may_need_modules(Path(path)) for path in paths
    )


def read_config(config: ServerConfig) -> PlainConfig | None:
    """The checkpoint's configuration; None: an engine is to read it itself, for it `wants_models`.

    Raises:
        ModelError: there is none, or it is not readable or not supported.
    """
    if wants_models(config):
        return None
    import_transformers_without_torch()
    return PlainConfig(read_hf_config(Path(config.model_loading_config.model_name_or_path)))


class CheckpointReader:
    """Reads on threads what the HTTP process and its engines need, in the order in which engines wait for it.

    Args:
        config: the server's configuration.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._loading = config.model_loading_config
        self._config = asyncio.create_task(asyncio.to_thread(read_config, config))
        self._tokenizer = asyncio.create_task(self._load_tokenizer())

    async def tokenizer(self) -> Tokenizer:
        """The tokenizer, and the vocabulary with it.

        Raises:
            ModelError: it or the configuration cannot be loaded.
        """
        return await asyncio.shield(self._tokenizer)

    async def parts(self) -> AsyncIterator[bytes]:
        """What an engine reads of its socket: the configuration and a `ModelTexts`, pickled.

        Raises:
            ModelError, OSError: they cannot be read.
        """
        yield pickle.dumps(await asyncio.shield(self._config))
        tokenizer = await self.tokenizer()
        yield await asyncio.to_thread(lambda: pickle.dumps(ModelTexts.of(self._loading, tokenizer)))

    async def _load_tokenizer(self) -> Tokenizer:
        await self._config  # it imports transformers, which no two threads should do
        tokenizer = await asyncio.to_thread(load_tokenizer, self._loading)
        await asyncio.to_thread(lambda: tokenizer.vocabulary)
        return tokenizer
