"""Quantized checkpoints as transformers models of any architecture: layers of the format take the places
of its linear ones before weights are loaded, so that the float model never exists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from server.checkpoints.errors import ModelError
from server.checkpoints.hf_config import read_hf_config
from server.checkpoints.loading_report import LOADING_OPTIONS, difference
from server.quantization.formats.base import OpenFormat
from server.quantization.linear import pack_layers

_METHOD = "own_linear_layers"
"""Our name among transformers' quantizers; its own ones need further packages."""
EXPERTS = ".experts."
"""In the names of layers that transformers holds as one tensor for all experts."""


class _SwapConfig(QuantizationConfigMixin):  # type: ignore[misc]  # transformers is not typed
    """What `_Swap` is given by way of transformers.

    Attributes:
        description: of what multiplies, once the layers are packed.
    """

    def __init__(self, checkpoint: OpenFormat, dtype: torch.dtype, device: torch.device) -> None:
        self.quant_method = _METHOD
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.device = device
        self.description: dict[str, str] | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": _METHOD}


class _Swap(HfQuantizer):  # type: ignore[misc]
    """Swaps layers before weights are loaded, packs them afterwards."""

    quantization_config: _SwapConfig

    def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        swap_layers(model, self.quantization_config.checkpoint, self.quantization_config.dtype)
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        config = self.quantization_config
        config.description = pack_layers(model, config.dtype, config.device)
        return model

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def load_quantized(
    checkpoint: OpenFormat, *, dtype: torch.dtype, device: torch.device, trust_remote_code: bool = False
) -> tuple[Any, dict[str, str]]:
    """Load a checkpoint's architecture with layers of its format, or with floats where none stay quantized.

    Args:
        dtype: of activations and of the weights that are not quantized.

    Returns:
        The ``PreTrainedModel``, and what multiplies and why, for the operator.

    Raises:
        ModelError: layers that this cannot hold, tensors that are missing, superfluous or contradict
            each other.
    """
    config = read_hf_config(checkpoint.path, trust_remote_code=trust_remote_code)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    options: dict[str, Any] = {"config": config, "dtype": dtype, **LOADING_OPTIONS}
    swap = _SwapConfig(checkpoint, dtype, device)
    if checkpoint.layers:
        if _METHOD not in AUTO_QUANTIZER_MAPPING:
            register_quantizer(_METHOD)(_Swap)
        options["quantization_config"] = swap
    if checkpoint.as_stored:
        config.transformers_weights = checkpoint.entry.name
        model, report = AutoModelForCausalLM.from_pretrained(
            str(checkpoint.path), trust_remote_code=trust_remote_code, **options
        )
    else:
        model, report = _load_read(checkpoint, options, trust_remote_code)
    problem = difference(model, report)
    if problem is not None:
        raise ModelError(f"{checkpoint.path} {problem}")
    description = swap.description or checkpoint.describe(dtype)
    if description is None:
        raise ModelError(f"{checkpoint.path}: none of its layers is quantized")
    return model.to(device).eval(), description


def _load_read(
    checkpoint: OpenFormat, options: Mapping[str, Any], trust_remote_code: bool
) -> tuple[Any, Mapping[str, Any]]:
    """The model and transformers' report, from tensors that the format reads."""
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(options["config"], trust_remote_code=trust_remote_code)
    named = checkpoint.for_model(empty.state_dict().keys())
    tensors = {name: _Unread(named, name, options["dtype"]) for name in named.tensors}
    model, report = type(empty).from_pretrained(None, state_dict=tensors, **options)
    return model, report


class _Unread:
    """A tensor that is read when transformers takes it, so that no second copy of the model is in memory."""

    def __init__(self, checkpoint: OpenFormat, name: str, dtype: torch.dtype) -> None:
        self._checkpoint, self._name, self._dtype = checkpoint, name, dtype
        self.shape = checkpoint.tensors[name].shape

    def __getitem__(self, _: Any) -> torch.Tensor:
        ((_, tensor),) = self._checkpoint.read([self._name], self._dtype)
        return tensor


def swap_layers(model: nn.Module, checkpoint: OpenFormat, dtype: torch.dtype) -> None:
    """Put an empty layer of the format in the place of every layer of `model` that is quantized.

    Raises:
        ModelError: a layer that is not there, or is not a linear one.
    """
    modules = dict(model.named_modules())
    for name in sorted(checkpoint.layers):
        module = modules.get(name)
        if isinstance(module, nn.Linear):
            inputs, outputs = module.in_features, module.out_features
        elif isinstance(module, Conv1D):
            inputs, outputs = module.nx, module.nf
        elif module is None and EXPERTS in name:
            raise ModelError(
                f"{checkpoint.path}: experts that stay quantized ({name}) are not supported here; "
                "continuous batching serves them"
            )
        else:
            kind = "is missing from" if module is None else f"({type(module).__name__}) is not linear in"
            raise ModelError(f"{checkpoint.path}: the quantized layer {name} {kind} the model")
        parent, _, child = name.rpartition(".")
        swapped = checkpoint.linear([name], inputs, [outputs], dtype=dtype, device=torch.device("meta"))
        setattr(modules[parent], child, swapped)
        if not modules[parent]._non_persistent_buffers_set:
            # some architectures initialise a layer's weight from its parent, and there is none
            modules[parent]._is_hf_initialized = True
