"""Loads any causal language model of transformers and finds out how it can be run."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from server.gptq.checkpoint import is_gptq
from server.gptq.config import GPTQError
from server.static_batching.config import WorkerConfig
from server.static_batching.memory import keep_memory_pages
from server.static_batching.problems import ModelError, one_line, told
from server.static_batching.quantised import load_gptq
from server.static_batching.tryout import try_out
from server.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(slots=True)
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


def load_model(config: WorkerConfig) -> LoadedModel:
    """Load the model and try it out.

    Raises:
        ModelError: it cannot be loaded, or not be run as configured.
    """
    from transformers import GenerationConfig

    path = config.model_name_or_path
    device = _device(config)
    if device.type == "cpu":
        keep_memory_pages()
    weights, reason = _weights(config)
    tokenizer = _tokenizer(config)
    hf, kept = _hf_model(config, device, weights, reason)
    eos = hf.generation_config.eos_token_id
    # what a request leaves open has this project's defaults, not those of the checkpoint
    hf.generation_config = GenerationConfig()
    pad = tokenizer.hf.pad_token_id
    model = LoadedModel(
        hf=hf,
        tokenizer=tokenizer,
        device=device,
        eos_token_ids=[] if eos is None else [eos] if isinstance(eos, int) else list(eos),
        pad_token_id=0 if pad is None else int(pad),
        vocab_size=_vocab_size(hf),
        max_length=_max_length(config, hf, tokenizer),
        can_draft=not hf._is_stateful,
        capabilities={
            "device": told(str(device), "configured" if config.device != "auto" else "the fastest there is"),
            "dtype": told(str(hf.dtype).removeprefix("torch."), f"torch_dtype is {config.torch_dtype}"),
            "weights": kept,
            "attention": told(str(hf.config._attn_implementation), "transformers' choice"),
        },
    )
    model.can_batch, model.capabilities["padding"] = try_out(hf, model.pad_token_id, path)
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


def _weights(config: WorkerConfig) -> tuple[str | None, str]:
    """The format of weights to load ("safetensors", "pickle", or None for either) and why."""
    if config.use_safetensors:
        return "safetensors", "use_safetensors is true"
    directory = Path(config.model_name_or_path)
    if not directory.is_dir():
        return None, "use_safetensors is false"
    if any(directory.glob("*.bin")):
        return "pickle", "use_safetensors is false"
    logger.info("use_safetensors is false, but %s has no pickled weights: loading safetensors", directory)
    return "safetensors", "use_safetensors is false, but there are no pickled weights"


def _tokenizer(config: WorkerConfig) -> Tokenizer:
    path = config.tokenizer_name_or_path or config.model_name_or_path
    try:
        return Tokenizer(
            path,
            use_fast=config.use_fast_tokenizer,
            trust_remote_code=config.trust_remote_code,
            revision=None if Path(path).is_dir() else config.revision,
        )
    except Exception as error:  # transformers raises whatever its parts raise
        raise ModelError(f"the tokenizer in {path} cannot be loaded: {one_line(error)}") from error


def _hf_model(
    config: WorkerConfig, device: torch.device, weights: str | None, reason: str
) -> tuple[Any, dict[str, str]]:
    """The model, and in what form its weights are and why."""
    from transformers import AutoModelForCausalLM

    path = config.model_name_or_path
    _check_quantisation(config, weights)
    dtype = _DTYPES.get(config.torch_dtype)
    options: dict[str, Any] = {"device_map": device} if config.low_cpu_mem_usage else {}
    if not Path(path).is_dir():
        options["revision"] = config.revision
    try:
        if config.is_gptq_quantized:
            return load_gptq(config, device, dtype)
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype or "auto",
            trust_remote_code=config.trust_remote_code,
            use_safetensors={"safetensors": True, "pickle": False, None: None}[weights],
            **options,
        )
        return model.to(device).eval(), told(weights or "any", reason)
    except GPTQError as error:
        raise ModelError(str(error)) from error
    except Exception as error:
        raise ModelError(f"the model in {path} cannot be loaded: {one_line(error)}") from error


def _check_quantisation(config: WorkerConfig, weights: str | None) -> None:
    """That configuration and checkpoint agree."""
    path = config.model_name_or_path
    if config.is_gptq_quantized and weights == "pickle":
        raise ModelError(
            f"{path}: GPTQ weights are loaded from safetensors alone: set use_safetensors to true"
        )
    if not config.is_gptq_quantized and is_gptq(Path(path)):
        raise ModelError(f"{path} holds a GPTQ checkpoint: set is_gptq_quantized to true")


def _vocab_size(hf: Any) -> int:
    head = hf.get_output_embeddings()
    return int(hf.config.get_text_config().vocab_size if head is None else head.weight.shape[0])


def _max_length(config: WorkerConfig, hf: Any, tokenizer: Tokenizer) -> int:
    text = hf.config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
    known = [getattr(text, name) for name in names if isinstance(getattr(text, name, None), int)]
    limit = known[0] if known else tokenizer.hf.model_max_length
    if config.model_max_length is not None:
        if known and config.model_max_length > limit:
            raise ModelError(f"model_max_length {config.model_max_length} is above the model's {limit}")
        return config.model_max_length
    if limit > 2**31:
        raise ModelError("the checkpoint does not say how long its context is: set model_max_length")
    return int(limit)
