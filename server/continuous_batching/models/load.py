"""Loads a checkpoint, float or GPTQ, as a model of the engine."""

from __future__ import annotations

from pathlib import Path

import torch

from server.continuous_batching.config import ModelLoadingConfig
from server.continuous_batching.models.config import DecoderConfig, ModelError
from server.continuous_batching.models.decoder import Decoder
from server.continuous_batching.models.linears import GPTQLinears
from server.continuous_batching.models.loader import load_weights
from server.gptq.checkpoint import GPTQCheckpoint, is_gptq
from server.gptq.config import GPTQError


def load_model(
    config: ModelLoadingConfig, shape: DecoderConfig, dtype: torch.dtype, device: torch.device
) -> Decoder:
    """The model of a configuration, weights as the checkpoint has them (`Kernels.prepare` comes next).

    Args:
        shape: of the model.
        dtype: of activations and of weights that are not quantised.

    Raises:
        ModelError: the checkpoint cannot be loaded as configured.
    """
    path = Path(config.model_name_or_path)
    found = shape.hf.model_type
    if config.model_type not in (None, found):
        raise ModelError(f"model_type is {config.model_type!r}, but the model in {path} is of type {found!r}")
    checkpoint = open_checkpoint(config, path)
    if checkpoint is None:
        model = Decoder(shape, dtype, device)
        load_weights(path, model.weights(), tied=shape.tie_word_embeddings)
        return model
    try:
        model = Decoder(shape, dtype, device, GPTQLinears(checkpoint, dtype, device))
        load_weights(path, model.weights(), tied=shape.tie_word_embeddings, files=checkpoint.files)
    except GPTQError as error:
        raise ModelError(str(error)) from error
    return model


def open_checkpoint(config: ModelLoadingConfig, path: Path) -> GPTQCheckpoint | None:
    """The GPTQ checkpoint in directory `path`; None: it is not quantised, and not said to be.

    Raises:
        ModelError: configuration and checkpoint disagree, or it cannot be served.
    """
    if config.quantize_method is None:
        for key in ("gptq_model_base_name", "gptq_config_base_name"):
            if getattr(config, key) is not None:
                raise ModelError(f"{key} is set, but quantize_method is null")
        if is_gptq(path):
            raise ModelError(f"{path} is quantised: set quantize_method to 'gptq'")
        return None
    try:
        return GPTQCheckpoint.open(
            path,
            model_base_name=config.gptq_model_base_name,
            config_base_name=config.gptq_config_base_name,
        )
    except GPTQError as error:
        raise ModelError(str(error)) from error
