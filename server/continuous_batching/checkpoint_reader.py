"""What the HTTP process reads of a checkpoint for the engine's, on a thread.

It needs the tokenizer in any case, and transformers for it, which takes a second or two to import.
The engine's process imports torch meanwhile, and does without transformers where the model is of a
family of ours.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
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

    Attributes:
        config: the server's configuration.
        located: the configuration with local paths, once hub checkpoints have been downloaded.
        tokenizer: the tokenizer, with its vocabulary cached.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        thread = ThreadPoolExecutor(1, "checkpoint")  # one: no two threads should import transformers
        self.located: Future[ServerConfig] = thread.submit(config.located)
        self._hf = thread.submit(lambda: read_config(self.located.result()))
        self.tokenizer: Future[Tokenizer] = thread.submit(self._read_tokenizer)
        thread.shutdown(wait=False)

    def wait_for_config(self, seconds: float) -> None:
        """Wait at most `seconds` until the model's configuration has been read or reading it has failed."""
        wait([self._hf], seconds)

    def parts(self) -> Iterator[bytes]:
        """Startup data for an engine, in the order of `start_pipe`; blocks until each part has been read.

        Raises:
            ModelError, OSError: they cannot be read.
        """
        config = self.located.result()
        yield config.to_json()
        yield pickle.dumps(self._hf.result())
        yield pickle.dumps(read_texts(config.model_loading_config, self.tokenizer.result()))

    def _read_tokenizer(self) -> Tokenizer:
        self._hf.result()  # raises if the model cannot be served
        tokenizer = load_tokenizer(self.located.result().model_loading_config)
        _ = tokenizer.vocabulary  # cached now, not at the first request
        return tokenizer
