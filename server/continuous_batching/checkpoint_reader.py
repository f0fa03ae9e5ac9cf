"""What the HTTP process reads of a checkpoint for the engine's, on threads.

It needs the tokenizer in any case, and transformers for it, which takes a second or two to import.
The engine's process imports torch meanwhile, and does without transformers where the model is of a
family of ours.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from pathlib import Path

from server.checkpoints.fingerprint import fingerprint
from server.checkpoints.hf_config import read_hf_config
from server.checkpoints.plain_config import PlainConfig
from server.continuous_batching.config import ModelLoadingConfig, ServerConfig
from server.continuous_batching.model_texts import ModelTexts, wants_models
from server.continuous_batching.tokenizer import load_tokenizer
from server.text.grammars.compiler import GrammarTokens
from server.text.light_transformers import import_transformers_without_torch
from server.text.tokenizer import Tokenizer


def read_config(config: ServerConfig) -> PlainConfig | None:
    """The checkpoint's configuration; None: an engine is to read it itself, for it `wants_models`.

    Raises:
        ModelError: there is none, or it is not readable or not supported.
    """
    if wants_models(config):
        return None
    import_transformers_without_torch()
    return PlainConfig(read_hf_config(Path(config.model_loading_config.model_name_or_path)))


def read_texts(loading: ModelLoadingConfig, tokenizer: Tokenizer) -> ModelTexts:
    """The texts of the checkpoint, with the tokenizer that was loaded from it.

    Raises:
        OSError: a file cannot be read.
    """
    name = fingerprint(loading.model_name_or_path, loading.tokenizer_path)
    return ModelTexts(tokenizer.vocabulary, GrammarTokens.of(tokenizer.hf), name)


class CheckpointReader:
    """Reads what the HTTP process and its engines need, in the order in which engines wait for it.

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
        yield await asyncio.to_thread(lambda: pickle.dumps(read_texts(self._loading, tokenizer)))

    async def _load_tokenizer(self) -> Tokenizer:
        await self._config  # it imports transformers, which no two threads should do
        tokenizer = await asyncio.to_thread(load_tokenizer, self._loading)
        await asyncio.to_thread(lambda: tokenizer.vocabulary)
        return tokenizer
