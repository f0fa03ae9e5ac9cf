"""One call of transformers' `generate` for the prompts of a package."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import GenerationConfig as HFGenerationConfig
from transformers import StoppingCriteriaList

from protocol.generation import GenerationConfig
from server.static_batching.model import LoadedModel
from server.static_batching.processors import LogprobRecorder, Package, build_processors
from server.static_batching.prompt_scores import prompt_logprobs
from server.static_batching.prompts import PaddedPrompts, Prompt
from server.static_batching.stopping import RowStopping, cut
from server.text.detokenizer import Detokenizer
from server.text.offline import Answer


@dataclass(slots=True)
class Batch:
    """What came out of one call."""

    answers: list[list[Answer]]
    """For each prompt its answers, in order."""
    rows: int
    """Sequences decoded side by side."""
    steps: int
    """Tokens computed for every row, needed or not."""
    padding: int
    """Prompt tokens computed that belong to no prompt."""
    useful: int
    """Of ``rows * steps``, those before their row was done; beams are of use until the longest
    answer of their prompt ends."""


@torch.inference_mode()
def generate(model: LoadedModel, prompts: Sequence[Prompt]) -> Batch:
    """Answer `prompts`, whose options are alike (`options.package_key`), in one batch."""
    config = prompts[0].config
    eos = eos_token_ids(config, model)
    padded = PaddedPrompts(prompts, model.pad_token_id, model.device)
    form, grammar = config.structured_outputs, None
    if form is not None:
        grammar = model.grammars.compile(form.model_dump(), eos)
    processors = build_processors(Package(config, padded, eos, grammar))
    recorder = _recorder(prompts)
    if recorder is not None:
        processors.insert(0, recorder)
    with _seeded(config, model.device):
        sequences = model.hf.generate(
            padded.input_ids,
            attention_mask=padded.attention_mask,
            generation_config=_hf_config(prompts, model, eos),
            logits_processor=processors,
            stopping_criteria=StoppingCriteriaList([RowStopping(padded, model.tokenizer.vocabulary)]),
        )
    if recorder is not None:
        recorder.finish(sequences)
    new = sequences[:, padded.width :].tolist()
    per_prompt = len(new) // len(prompts) if config.num_beams > 1 else None
    answers, row = [], 0
    for prompt in prompts:
        scored = prompt_logprobs(model, prompt)
        rows = range(row, row + (per_prompt or prompt.rows))
        row = rows.stop
        group = [_answer(model, prompt, new[i], i, eos, recorder) for i in rows[: prompt.config.num_choices]]
        for answer in group:
            answer.prompt_logprobs = scored
        answers.append(group)
    if config.num_beams > 1:
        useful = sum(config.num_beams * max(len(answer.token_ids) for answer in group) for group in answers)
    else:
        useful = sum(len(answer.token_ids) for group in answers for answer in group)
    beams = len(padded.rows) * config.num_beams
    return Batch(answers, beams, len(new[0]), int(padded.padding.sum()), useful)


def eos_token_ids(config: GenerationConfig, model: LoadedModel) -> list[int]:
    """The tokens that end an answer."""
    own = config.eos_token_ids
    eos = [] if config.ignore_eos else model.eos_token_ids if own is None else own
    return list(dict.fromkeys([*eos, *config.stop_token_ids]))


def _hf_config(prompts: Sequence[Prompt], model: LoadedModel, eos: list[int]) -> HFGenerationConfig:
    config = prompts[0].config
    options: dict[str, object] = {}
    if config.num_beams > 1:
        options = {
            "num_beams": config.num_beams,
            "num_return_sequences": max(prompt.config.num_choices for prompt in prompts),
            "early_stopping": config.early_stopping,
            "length_penalty": config.length_penalty,
        }
        if config.do_sample:
            options |= {
                "do_sample": True,
                "temperature": config.temperature,
                "top_k": config.top_k,
                "top_p": config.top_p,
                "min_p": config.min_p or None,
                "typical_p": config.typical_p,
            }
    if config.prompt_lookup_num_tokens:
        options = {
            "prompt_lookup_num_tokens": config.prompt_lookup_num_tokens,
            "max_matching_ngram_size": config.max_matching_ngram_size,
        }
    # other sampling is `SeededChoice`, after which the greedy choice is the sample
    return HFGenerationConfig(
        max_new_tokens=max(prompt.config.max_new_tokens for prompt in prompts),
        eos_token_id=eos or None,
        pad_token_id=model.pad_token_id,
        **{"do_sample": False, **options},
    )


def _recorder(prompts: Sequence[Prompt]) -> LogprobRecorder | None:
    wanted = [prompt.config.logprobs for prompt in prompts if prompt.config.logprobs is not None]
    return LogprobRecorder(max(wanted)) if wanted else None


@contextmanager
def _seeded(config: GenerationConfig, device: torch.device) -> Iterator[None]:
    """Beam sampling draws from torch's own generator: seeded here, and put back afterwards."""
    if not (config.do_sample and config.num_beams > 1):
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        yield


def _answer(
    model: LoadedModel,
    prompt: Prompt,
    new: list[int],
    row: int,
    eos: list[int],
    recorder: LogprobRecorder | None,
) -> Answer:
    vocabulary = model.tokenizer.vocabulary
    token_ids, reason = cut(new, prompt, eos, vocabulary)
    writer = Detokenizer(vocabulary.showing(prompt.shown_markers), prompt.config.stop)
    text = writer.feed(token_ids) + writer.finish()
    logprobs = None
    if recorder is not None and prompt.config.logprobs is not None:
        logprobs = recorder.of_row(row, token_ids, prompt.config.logprobs)
    return Answer(text, token_ids, reason, logprobs)
