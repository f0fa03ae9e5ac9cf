"""Continuous batching from Python, without HTTP."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from protocol.errors import ApiError
from protocol.generation import GenerationConfig
from server.checkpoints.config_of import config_of
from server.checkpoints.errors import ModelError
from server.continuous_batching.build import build_engine
from server.continuous_batching.checkpoint_reader import read_texts
from server.continuous_batching.config import ServerConfig
from server.continuous_batching.outputs import RequestFailure, StepOutput
from server.continuous_batching.tokenizer import load_tokenizer
from server.device.faults import out_of_memory
from server.scheduling.params import SamplingParams
from server.scheduling.request import Request
from server.text.checks import ModelSize
from server.text.detokenizer import Detokenizer
from server.text.logprob import TokenLogprob
from server.text.offline import Answer, Generation, start_generations
from utils.messages import one_line


class GenerationError(Exception):
    """A request that the engine refused or gave up; says why."""


class _Pending(NamedTuple):
    """What a request is for."""

    generation: Generation
    options: GenerationConfig
    prompt_logprobs: list[TokenLogprob] | None


class LLM:
    """A model in this process.

    Args:
        model: checkpoint directory, GGUF file or hub name, or a whole `ServerConfig`.
        options: sections of the configuration with the keys to change, e.g.
            ``cache_config={"num_blocks": 512}``; not with a `ServerConfig`.

    Raises:
        ModelError: the checkpoint cannot be served, or not as configured.
        TypeError: options beside a `ServerConfig`.
    """

    def __init__(self, model: str | Path | ServerConfig, **options: dict[str, Any]) -> None:
        config = config_of(model, options, ServerConfig, "model_loading_config").located()
        loading = config.model_loading_config
        self.tokenizer = load_tokenizer(loading, with_models=True)
        try:
            built = build_engine(config, None, lambda: read_texts(loading, self.tokenizer))
        except (MemoryError, RuntimeError) as error:  # torch's own is of the latter
            if not out_of_memory(error):
                raise
            path = loading.model_name_or_path
            reason = f"the memory does not suffice for this model and configuration ({one_line(error)})"
            raise ModelError(f"{path}: {reason}") from error
        self.engine = built.engine
        self.capabilities = built.capabilities
        self._model = built.model
        self._prompt_lookup = config.speculation_config.prompt_lookup
        self._size = ModelSize(self._model.vocab_size, self.engine.limits.model_max_length)
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
            prompts: texts or token ids, any number of them.
            config: options for all prompts, or one for each.
            progress: show a bar of finished prompts and the rate of generated tokens.

        Raises:
            GenerationError: the first prompt that is refused, before anything is computed, or the first
                request that fails; the others are dropped.
            TypeError, ValueError: arguments that are no prompts or options at all.
        """
        try:
            generations, configs, tokens = start_generations(prompts, config, self.tokenizer, self._size)
        except ApiError as error:
            raise GenerationError(str(error)) from error
        results: dict[str, _Pending] = {}
        requests: deque[Request] = deque()
        # no caller waits for a single answer: the longest first, so that the batch is full to the end
        for index in sorted(range(len(prompts)), key=lambda i: -configs[i].max_new_tokens):
            generation, options = generations[index], configs[index]
            request = self._request(tokens[index], options)
            if (refusal := self.engine.objection(request)) is not None:
                raise GenerationError(f"prompts[{index}]: {refusal.message}")
            requests.append(request)
            results[request.id] = _Pending(
                generation, options, None if options.prompt_logprobs is None else []
            )
        try:
            self._run(requests, results, progress)
        finally:
            for request_id in results:
                self.engine.cancel(request_id)
        for pending in results.values():
            self._write(pending.generation, pending.options)
        return generations

    def _request(self, token_ids: np.ndarray, options: GenerationConfig) -> Request:
        self._count += 1
        params = SamplingParams.of(options, self._model.eos_token_ids, self._prompt_lookup)
        return Request(f"offline-{self._count}", token_ids, params, time.monotonic())

    def _run(
        self,
        requests: deque[Request],
        results: dict[str, _Pending],
        progress: bool,
    ) -> None:
        tokens = 0
        with tqdm(total=len(results), unit="prompt", disable=not progress) as bar:
            while requests or self.engine.has_work:
                while requests and self.engine.has_room:  # the queue is bounded, the prompts are not
                    if (refusal := self.engine.add(requests.popleft())) is not None:
                        raise GenerationError(_explain(refusal))
                output = self.engine.step()
                tokens += self._take(output, results)
                bar.update(len(output.done))
                bar.set_postfix(tokens_per_second=f"{tokens / max(bar.format_dict['elapsed'], 1e-9):.0f}")

    @staticmethod
    def _take(output: StepOutput, results: dict[str, _Pending]) -> int:
        for failure in output.failures:
            raise GenerationError(_explain(failure))
        for report in output.prompts:
            entries = results[report.request_id].prompt_logprobs
            assert entries is not None
            entries += report.logprobs
        for delta in output.deltas:
            assert delta.finish_reason is not None  # nothing streams here
            generation, _, prompt = results[delta.request_id]
            answer = Answer("", delta.token_ids, delta.finish_reason, delta.logprobs, prompt)
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
