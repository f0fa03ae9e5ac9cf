"""Static batching from Python, without HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from protocol.errors import ApiError
from protocol.generation import GenerationConfig
from server.api.refusals import check_refusals
from server.api.service import Job
from server.checkpoints.config_of import config_of
from server.static_batching.batcher import Batcher, QueuedRequest
from server.static_batching.config import ServerConfig
from server.static_batching.generate import Batch
from server.static_batching.model import load_model
from server.static_batching.options import package_key
from server.static_batching.prompts import Prompt
from server.static_batching.worker import Worker
from server.text.checks import ModelSize
from server.text.offline import Generation, start_generations


class StaticPipeline:
    """A model in this process, whose prompts run package by package.

    Args:
        model: checkpoint directory, GGUF file or hub name, or a whole `ServerConfig`.
        options: sections of the configuration with the keys to change, e.g.
            ``batcher_config={"package_max_workload": 32}``; not with a `ServerConfig`.

    Raises:
        ModelError: the checkpoint cannot be served, or not as configured.
        TypeError: options beside a `ServerConfig`.
    """

    def __init__(self, model: str | Path | ServerConfig, **options: dict[str, Any]) -> None:
        config = config_of(model, options, ServerConfig, "worker_config")
        self._model = load_model(config.worker_config)
        self._worker = Worker(self._model, config.worker_config.batch_size)
        self._max_workload = config.batcher_config.package_max_workload
        self.tokenizer = self._model.tokenizer
        self.capabilities = self._model.capabilities

    def generate(
        self,
        prompts: Sequence[str | list[int]],
        config: GenerationConfig | Sequence[GenerationConfig] | None = None,
        *,
        progress: bool = False,
    ) -> list[Generation]:
        """Answer all prompts.

        Args:
            prompts: texts or token ids.
            config: options for all prompts, or one for each.
            progress: show a bar of finished prompts.

        Raises:
            ApiError: a prompt or an option that cannot be served, or a package that failed.
            TypeError, ValueError: arguments that are no prompts or options at all.
        """
        size = ModelSize(self._model.vocab_size, self._model.max_length)
        generations, configs, _ = start_generations(prompts, config, self.tokenizer, size)
        ids = [generation.prompt_token_ids for generation in generations]
        batcher: Batcher[int] = Batcher(self._max_workload, 0.0)
        for i, (prompt, options) in enumerate(zip(ids, configs, strict=True)):
            job = Job(str(i), prompt, options)
            check_refusals(job, self._model.refusals)
            key = package_key(job, self._model.can_batch)
            batcher.add(QueuedRequest(key, options.num_rows, len(prompt), 0.0, i))
        with tqdm(total=len(prompts), unit="prompt", disable=not progress) as bar:
            while package := [queued.item for queued in batcher.take(0.0)]:

                def deliver(part: slice, outcome: Batch | ApiError, package: list[int] = package) -> None:
                    if isinstance(outcome, ApiError):
                        raise outcome
                    for i, answers in zip(package[part], outcome.answers, strict=True):
                        generations[i].answers = answers
                    bar.update(len(outcome.answers))

                self._worker.run([Prompt(ids[i], configs[i]) for i in package], deliver)
        return generations
