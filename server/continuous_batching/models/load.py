"""Loads a checkpoint, float or GPTQ, as a model of the engine."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from server.continuous_batching.config import ModelLoadingConfig
from server.continuous_batching.models.config import DecoderConfig, ModelError
from server.continuous_batching.models.decoder import Decoder
from server.continuous_batching.models.linears import GPTQLinears
from server.continuous_batching.models.loader import load_weights
from server.gptq.checkpoint import GPTQCheckpoint, is_gptq
from server.gptq.config import GPTQError
from server.gptq.kernels.select import choose_kernels
from server.gptq.linear import GPTQLinear


def load_model(
    config: ModelLoadingConfig, shape: DecoderConfig, dtype: torch.dtype, device: torch.device
) -> tuple[Decoder, dict[str, str]]:
    """The model of a configuration, ready to compute.

    Args:
        shape: of the model.
        dtype: of activations and of weights that are not quantised.

    Returns:
        The model, and in what form its weights are and why, for the operator.

    Raises:
        ModelError: the checkpoint cannot be loaded as configured.
    """
    path = Path(config.model_name_or_path)
    checkpoint = open_checkpoint(config, path)
    if checkpoint is None:
        model = Decoder(shape, dtype, device)
        load_weights(path, model.weights(), tied=shape.tie_word_embeddings)
        return model, {"name": config.torch_dtype, "reason": "quantize_method is null"}
    try:
        model = Decoder(shape, dtype, device, GPTQLinears(checkpoint, dtype, device))
        load_weights(path, model.weights(), tied=shape.tie_word_embeddings, files=checkpoint.files)
        return model, pack_weights(model, checkpoint, dtype, device)
    except GPTQError as error:
        raise ModelError(str(error)) from error


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


def pack_weights(
    model: nn.Module, checkpoint: GPTQCheckpoint, dtype: torch.dtype, device: torch.device
) -> dict[str, str]:
    """Give the loaded weights of every quantised layer of `model` to the fastest kernel, layer by layer.

    Args:
        dtype: of the activations.
        device: where the model is.

    Returns:
        Which kernels these are and why, for the operator.

    Raises:
        GPTQError: tensors that contradict each other.
    """
    layers = [module for module in model.modules() if isinstance(module, GPTQLinear)]
    choice = choose_kernels(checkpoint.config.bits, device, dtype)
    for layer in tqdm(layers, "packing weights", unit="layer", mininterval=1.0):
        layer.pack(choice)
    return choice.describe()
