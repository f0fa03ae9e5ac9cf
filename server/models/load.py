"""Loads a checkpoint, float or quantized, as a model of the engine."""

from __future__ import annotations

import torch

from server.checkpoints.errors import ModelError
from server.layers.shard import WHOLE, Shard
from server.models.config import ModelConfig
from server.models.decoder import Decoder
from server.models.linears import QuantizedLinears
from server.models.source import ModelSource
from server.models.weights import load_weights
from server.quantization.experts import objection as objection_to_experts
from server.quantization.formats.registry import open_format
from server.quantization.fp8.scheme import objection
from server.quantization.gguf.objection import objection as objection_to_blocks


def load_model(
    source: ModelSource,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    shard: Shard = WHOLE,
) -> tuple[Decoder, dict[str, str] | None]:
    """The model of a checkpoint, weights as they are stored (`Backend.prepare` comes next).

    Args:
        config: of the checkpoint; of a split model what a rank computes (`ModelConfig.split`).
        dtype: of activations and of weights that are not quantized.
        shard: which rank this is.

    Returns:
        The model, and for weights that were dequantized the name and the reason of what they have become.

    Raises:
        ModelError: the checkpoint cannot be loaded as configured.
    """
    path, found = source.path, config.model_type
    if source.model_type not in (None, found):
        raise ModelError(f"model_type is {source.model_type!r}, but the model in {path} is of type {found!r}")
    checkpoint = open_format(path, source.quantization)
    architecture = config.architecture
    if architecture.load is not None:
        if checkpoint is not None:
            raise ModelError(
                f"quantized weights of model type {found!r}, which has no file here, are not supported"
            )
        return architecture.load(path, architecture.spec, dtype, device), None
    if checkpoint is not None and shard.ranks > 1 and (uncut := checkpoint.objection_to_split()):
        raise ModelError(f"the weights in {path} cannot be split over {shard.ranks} ranks: {uncut}")
    if checkpoint is not None:
        other = "the checkpoint has its matrices transposed" if architecture.names.transposed else None
        if shard.ranks > 1:
            other = "the model is split over ranks"
        checkpoint = checkpoint.for_float8(other or objection(device, dtype))
        checkpoint = checkpoint.for_experts(other or objection_to_experts(device, dtype))
        if architecture.names.paired or architecture.names.mixed_heads:
            other = "the checkpoint has its heads in another order"
        checkpoint = checkpoint.for_blocks(other or objection_to_blocks(device, dtype))
    linears = None if checkpoint is None else QuantizedLinears(checkpoint, dtype, device)
    model = architecture.decoder(architecture.spec, dtype, device, architecture.names, linears, shard)
    load_weights(path, model, checkpoint)
    if checkpoint is not None and model.head.bias is None:
        names = [architecture.names.head] + ([architecture.names.embedding] if model.tied else [])
        model.head = checkpoint.head(names, dtype=dtype, device=device) or model.head
    return model, None if checkpoint is None else checkpoint.describe(dtype)
