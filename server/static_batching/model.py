"""Loads any causal language model of transformers and finds out how it can be run."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from protocol.accepts import Refusal
from server.checkpoints.errors import ModelError
from server.checkpoints.files import (
    find_pickled,
    pickled_entry,
    read_headers,
    read_json,
    refuse_codes,
    stored_tensors,
)
from server.checkpoints.fingerprint import fingerprint
from server.checkpoints.hf_config import read_hf_config
from server.checkpoints.lengths import eos_token_ids, positions, trained_length, warn_beyond
from server.checkpoints.loading_report import LOADING_OPTIONS, difference
from server.checkpoints.tokenizer import read_tokenizer
from server.static_batching.config import WorkerConfig
from server.static_batching.memory import keep_memory_pages
from server.static_batching.options import refusals
from server.static_batching.problems import with_reason
from server.static_batching.quantized import load_quantized
from server.static_batching.tryout import try_out
from server.text.grammars.compiler import GrammarCompiler, GrammarTokens
from server.text.tokenizer import Tokenizer
from utils.messages import one_line

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass
class LoadedModel:
    """A model with what the rest of the server needs to know of it."""

    hf: Any
    """The ``PreTrainedModel``, in evaluation mode."""
    tokenizer: Tokenizer
    device: torch.device
    eos_token_ids: list[int]
    pad_token_id: int
    vocab_size: int
    max_length: int
    can_batch: bool = True
    """Whether a prompt has the same answer beside others as alone."""
    can_draft: bool = True
    """Whether it can take back tokens that were guessed wrong."""
    capabilities: dict[str, Any] = field(default_factory=dict)
    fingerprint: str | None = None
    """That of the checkpoint (`server.checkpoints.fingerprint`)."""

    @cached_property
    def grammars(self) -> GrammarCompiler:
        """Compiles grammars; made for the first one, since a large tokenizer takes a moment to write out."""
        tokens = GrammarTokens.of(self.tokenizer.hf)
        return GrammarCompiler(tokens, self.vocab_size, self.eos_token_ids)

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """What cannot be asked of it."""
        return refusals(self.max_length, self.can_batch, self.can_draft)


def load_model(config: WorkerConfig) -> LoadedModel:
    """Load the model and try it out.

    Raises:
        ModelError: it cannot be loaded, or not be run as configured.
    """
    from transformers import GenerationConfig

    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    config = config.located()
    path = Path(config.model_name_or_path)
    device = _device(config)
    if device.type == "cpu":
        keep_memory_pages()
    weights, reason = _weights(config)
    tokenizer = _tokenizer(config)
    hf, kept = _hf_model(config, device, weights, reason)
    # what a request leaves open has this project's defaults, not those of the checkpoint
    hf.generation_config = GenerationConfig()
    pad = tokenizer.hf.pad_token_id
    model = LoadedModel(
        hf=hf,
        tokenizer=tokenizer,
        device=device,
        eos_token_ids=list(eos_token_ids(path, hf.config)),
        pad_token_id=0 if pad is None else int(pad),
        vocab_size=_vocab_size(hf),
        max_length=_max_length(config, hf, tokenizer),
        can_draft=not hf._is_stateful,
        capabilities={
            "device": with_reason(
                str(device), "configured" if config.device != "auto" else "the fastest there is"
            ),
            "dtype": _dtype(hf, config),
            "weights": kept,
            "attention": with_reason(str(hf.config._attn_implementation), "transformers' choice"),
        },
    )
    model.can_batch, model.capabilities["padding"] = try_out(hf, model.pad_token_id, str(path))
    model.fingerprint = fingerprint(path, config.tokenizer_path)
    return model


def _device(config: WorkerConfig) -> torch.device:
    cuda = torch.cuda.is_available()
    if config.device == "cuda" and not cuda:
        raise ModelError("device is 'cuda', but torch finds no CUDA device")
    device = torch.device("cuda:0" if cuda and config.device != "cpu" else "cpu")
    if device.type == "cuda" and config.torch_dtype == "bfloat16" and not torch.cuda.is_bf16_supported():
        name = torch.cuda.get_device_name(device)
        raise ModelError(f"torch_dtype bfloat16 cannot be computed on {name}: use float16 or float32")
    return device


def _weights(config: WorkerConfig) -> tuple[str, str]:
    """The format of weights to load ("safetensors" or "pickle") and why.

    Raises:
        ModelError: it is not the one that is wanted.
    """
    directory = Path(config.model_name_or_path)
    pickled = find_pickled(directory)
    if not config.use_safetensors:
        files = directory.glob("*.bin")
        if any(files):
            return "pickle", "use_safetensors is false"
        logger.info("use_safetensors is false, but %s has no pickled weights: loading safetensors", directory)
        return "safetensors", "use_safetensors is false, but there are no pickled weights"
    if pickled is not None:
        raise ModelError(f"{pickled} holds pickled weights: set use_safetensors to false to load them")
    return "safetensors", "use_safetensors is true"


def _tokenizer(config: WorkerConfig) -> Tokenizer:
    hf = read_tokenizer(
        Path(config.tokenizer_path),
        use_fast=config.use_fast_tokenizer,
        trust_remote_code=config.trust_remote_code,
    )
    return Tokenizer(
        hf, chat_format=config.chat_format, sanitize_control_tokens=config.sanitize_control_tokens
    )


def _hf_model(
    config: WorkerConfig, device: torch.device, weights: str, reason: str
) -> tuple[Any, dict[str, str]]:
    """The model, and in what form its weights are and why."""
    from transformers import AutoModelForCausalLM

    path = Path(config.model_name_or_path)
    dtype = _DTYPES.get(config.torch_dtype)
    try:
        quantized = load_quantized(config, device, dtype, weights)
        if quantized is not None:
            return quantized
        # code of a checkpoint's own may know what its integers mean
        _check_files(path, weights, floats=not config.trust_remote_code)
        _check_generation_config(path)
        hf_config = read_hf_config(path, trust_remote_code=config.trust_remote_code)
        model, report = AutoModelForCausalLM.from_pretrained(
            str(path),
            config=hf_config,
            dtype=dtype or "auto",
            trust_remote_code=config.trust_remote_code,
            use_safetensors=weights == "safetensors",
            **LOADING_OPTIONS,
            **({"device_map": device} if config.low_cpu_mem_usage else {}),
        )
        problem = difference(model, report)
        model = model.to(device).eval()
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"the model in {path} cannot be loaded: {one_line(error)}") from error
    if problem is not None:
        raise ModelError(f"{path} {problem}")
    return model, with_reason(weights, reason)


def _check_files(path: Path, weights: str, *, floats: bool) -> None:
    """That the files of a local checkpoint agree with each other: where they do not, transformers reads on.

    Args:
        floats: weights that are none are refused, too; transformers would take them for such.

    Raises:
        ModelError: they do not.
    """
    try:
        entry = pickled_entry(path) if weights == "pickle" else None
        stored = stored_tensors(path) if entry is None else read_headers(entry)
        if floats:
            refuse_codes(stored)
    except ModelError as error:
        raise ModelError(f"the model in {path} cannot be loaded: {error}") from error


def _check_generation_config(path: Path) -> None:
    """That the file can be read, where there is one; transformers' error does not name it."""
    file = path / "generation_config.json"
    if file.is_file():
        read_json(file)


def _dtype(hf: Any, config: WorkerConfig) -> dict[str, str]:
    """In what most weights are computed and why; an architecture may keep some in float32.

    Raises:
        ModelError: it is not the configured type, as code of a checkpoint's own may have it.
    """
    weights: Counter[torch.dtype] = Counter()
    for weight in hf.parameters():
        if weight.is_floating_point():
            weights[weight.dtype] += weight.numel()
    (dtype, _), *others = weights.most_common()
    name = str(dtype).removeprefix("torch.")
    reason = f"torch_dtype is {config.torch_dtype}"
    if config.torch_dtype not in ("auto", name):
        raise ModelError(f"{config.model_name_or_path}: {reason}, but the model computes in {name}")
    kept = [f"{str(other).removeprefix('torch.')} ({count} values)" for other, count in others]
    return with_reason(name, f"{reason}; the model keeps {', '.join(kept)}" if kept else reason)


def _vocab_size(hf: Any) -> int:
    head = hf.get_output_embeddings()
    return int(hf.config.get_text_config().vocab_size if head is None else head.weight.shape[0])


def _max_length(config: WorkerConfig, hf: Any, tokenizer: Tokenizer) -> int:
    """Tokens of the longest sequence.

    Raises:
        ModelError: the checkpoint does not say, or is configured for more positions than it has.
    """
    path, wanted = Path(config.model_name_or_path), config.model_max_length
    limit = trained_length(hf.config)
    if wanted is not None:
        if limit is not None and wanted > limit and not _rotates(hf):
            raise ModelError(f"model_max_length {wanted} is above the model's {limit}")
        warn_beyond(path, hf.config, wanted)
        return wanted
    length = positions(hf.config) or tokenizer.hf.model_max_length
    if length > 2**31:
        raise ModelError("the checkpoint does not say how long its context is: set model_max_length")
    return int(length)


def _rotates(hf: Any) -> bool:
    """Whether positions are angles, of which there are as many as one wants."""
    return getattr(hf.config.get_text_config(), "rope_parameters", None) is not None
