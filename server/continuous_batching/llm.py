"""Continuous batching from Python, without HTTP."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from protocol.generation import GenerationConfig
from server.continuous_batching.config import ServerConfig
from server.continuous_batching.decoding.params import SamplingParams
from server.continuous_batching.engine.build import build_engine
from server.continuous_batching.engine.outputs import RequestFailure, StepOutput
from server.continuous_batching.scheduler.request import Request
from server.continuous_batching.tokenizer import load_tokenizer
from server.offline import Answer, Generation, start_generations
from server.text.detokenizer import Detokenizer


class GenerationError(Exception):
    """A request that the engine refused or gave up; says why."""


class LLM:
    """A model in this process.

    Args:
        model: checkpoint directory, or a whole `ServerConfig`.
        options: sections of the configuration with the keys to change, e.g.
            ``cache_config={"num_blocks": 512}``; not with a `ServerConfig`.

    Raises:
        ModelError: the checkpoint cannot be served.
    """

    def __init__(self, model: str | Path | ServerConfig, **options: dict[str, Any]) -> None:
        if not isinstance(model, ServerConfig):
            loading = {"model_name_or_path": str(model), **options.pop("model_loading_config", {})}
            model = ServerConfig.model_validate({"model_loading_config": loading, **options})
        self.tokenizer = load_tokenizer(model.model_loading_config)
        built = build_engine(model, self.tokenizer.hf)
        self.engine = built.engine
        self.capabilities = built.capabilities
        self._model = built.model
        self._prompt_lookup = model.speculation_config.prompt_lookup
        self._count = 0

    def generate(
        self,
        prompts: Sequence[str | list[int]],
        config: GenerationConfig | Sequence[GenerationConfig] | None = None,
        *,
        progress: bool = False,
    ) -> list[Generation]:
        """Answer all prompts, batched as the engine sees fit.

        Args:
            prompts: texts or token ids.
            config: options for all prompts, or one for each.
            progress: show a bar of finished prompts and the rate of generated tokens.

        Raises:
            GenerationError: the first request that was refused or failed; the others are dropped.
        """
        generations, configs = start_generations(prompts, config, self.tokenizer)
        results: dict[str, tuple[Generation, GenerationConfig]] = {}
        # nobody waits for a single answer: the longest first, so that the batch is full to the end
        for index in sorted(range(len(prompts)), key=lambda i: -configs[i].max_new_tokens):
            generation, options = generations[index], configs[index]
            results[self._submit(generation.prompt_token_ids, options)] = (generation, options)
        try:
            self._run(results, progress)
        finally:
            for request_id in results:
                self.engine.cancel(request_id)
        for generation, options in results.values():
            self._write(generation, options)
        return generations

    def _submit(self, token_ids: list[int], options: GenerationConfig) -> str:
        self._count += 1
        request_id = f"offline-{self._count}"
        params = SamplingParams.of(options, self._model.eos_token_ids, self._prompt_lookup)
        refusal = self.engine.add(Request(request_id, token_ids, params, time.monotonic()))
        if refusal is not None:
            raise GenerationError(refusal.message)
        return request_id

    def _run(self, results: dict[str, tuple[Generation, GenerationConfig]], progress: bool) -> None:
        tokens = 0
        with tqdm(total=len(results), unit="prompt", disable=not progress) as bar:
            while self.engine.has_work:
                output = self.engine.step()
                tokens += self._take(output, results)
                bar.update(len(output.done))
                bar.set_postfix(tokens_per_second=f"{tokens / max(bar.format_dict['elapsed'], 1e-9):.0f}")

    @staticmethod
    def _take(output: StepOutput, results: dict[str, tuple[Generation, GenerationConfig]]) -> int:
        for failure in output.failures:
            raise GenerationError(_explain(failure))
        for delta in output.deltas:
            assert delta.finish_reason is not None  # nothing streams here
            generation, _ = results[delta.request_id]
            answer = Answer("", delta.token_ids, delta.finish_reason, delta.logprobs)
            while len(generation.answers) <= delta.index:
                generation.answers.append(answer)
            generation.answers[delta.index] = answer
        return sum(len(delta.token_ids) for delta in output.deltas)

    def _write(self, generation: Generation, options: GenerationConfig) -> None:
        for answer in generation.answers:
            writer = Detokenizer(self.tokenizer.vocabulary, options.stop)
            answer.text = writer.feed(answer.token_ids) + writer.finish()


def _explain(failure: RequestFailure) -> str:
    return f"{failure.request_id}: {failure.message}"
