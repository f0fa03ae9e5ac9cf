"""What the Python interfaces of both servers, without HTTP, take and give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from protocol.completion import FinishReason
from protocol.generation import GenerationConfig
from server.text.logprob import TokenLogprob
from server.text.tokenizer import Tokenizer


@dataclass(slots=True)
class Answer:
    """One answer to a prompt."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[TokenLogprob] | None = None


@dataclass(slots=True)
class Generation:
    """A prompt with its answers, in order."""

    prompt_token_ids: list[int]
    answers: list[Answer] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Text of the first answer."""
        return self.answers[0].text


def start_generations(
    prompts: Sequence[str | list[int]],
    config: GenerationConfig | Sequence[GenerationConfig] | None,
    tokenizer: Tokenizer,
) -> tuple[list[Generation], list[GenerationConfig]]:
    """A generation without answers and the options for each of `prompts`, texts or token ids.

    Args:
        config: options for all prompts, or one for each; none are the defaults.

    Raises:
        ValueError: not as many configurations as prompts.
    """
    if config is None or isinstance(config, GenerationConfig):
        config = [config or GenerationConfig()] * len(prompts)
    if len(config) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but {len(config)} configurations")
    token_ids = [tokenizer.encode(p) if isinstance(p, str) else list(p) for p in prompts]
    return [Generation(ids) for ids in token_ids], list(config)
