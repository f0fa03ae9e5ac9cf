"""GPTQ checkpoints as transformers models of any architecture: quantised layers take the places of its
linear ones before weights are loaded, so that the float model never exists."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from server.gptq.checkpoint import GPTQCheckpoint
from server.gptq.config import GPTQError
from server.gptq.kernels.select import KernelChoice, choose_kernels
from server.gptq.linear import GPTQLinear

_METHOD = "gptq_linear"
"""Our name among transformers' quantisers; its own for "gptq" needs further packages."""


class _SwapConfig(QuantizationConfigMixin):  # type: ignore[misc]  # transformers is not typed
    """What `_Swap` is given by way of transformers."""

    def __init__(self, checkpoint: GPTQCheckpoint, choice: KernelChoice, device: torch.device) -> None:
        self.quant_method = _METHOD
        self.checkpoint = checkpoint
        self.choice = choice
        self.device = device

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": _METHOD, "bits": self.checkpoint.config.bits}


class _Swap(HfQuantizer):  # type: ignore[misc]
    """Swaps layers before weights are loaded, packs them afterwards."""

    quantization_config: _SwapConfig

    def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        swap_layers(model, self.quantization_config.checkpoint, self.quantization_config.choice.dtype)
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        for module in model.modules():
            if isinstance(module, GPTQLinear):
                module.to(self.quantization_config.device)
                module.pack(self.quantization_config.choice)
        return model

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def load_quantised(
    checkpoint: GPTQCheckpoint, *, dtype: torch.dtype, device: torch.device, trust_remote_code: bool = False
) -> tuple[Any, dict[str, str]]:
    """Load a checkpoint's architecture with `GPTQLinear` layers.

    Args:
        dtype: of activations and of the weights that are not quantised.

    Returns:
        The ``PreTrainedModel``, and which kernels multiply and why, for the operator.

    Raises:
        GPTQError: layers that this cannot hold, tensors that are missing or contradict each other.
    """
    if _METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(_METHOD)(_Swap)
    config = AutoConfig.from_pretrained(str(checkpoint.path), trust_remote_code=trust_remote_code)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.transformers_weights = checkpoint.entry.name
    choice = choose_kernels(checkpoint.config.bits, device, dtype)
    model, loaded = AutoModelForCausalLM.from_pretrained(
        str(checkpoint.path),
        config=config,
        quantization_config=_SwapConfig(checkpoint, choice, device),
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
    )
    if loaded["missing_keys"]:
        raise GPTQError(f"{checkpoint.path} lacks the tensor {min(loaded['missing_keys'])!r}")
    return model.to(device).eval(), choice.describe()


def swap_layers(model: nn.Module, checkpoint: GPTQCheckpoint, dtype: torch.dtype) -> None:
    """Put an empty `GPTQLinear` in the place of every layer of `model` that `checkpoint` holds quantised.

    Raises:
        GPTQError: a layer that is not there, or is not a linear one.
    """
    modules = dict(model.named_modules())
    for name in checkpoint.layers:
        module = modules.get(name)
        if isinstance(module, nn.Linear):
            inputs, outputs = module.in_features, module.out_features
        elif isinstance(module, Conv1D):
            inputs, outputs = module.nx, module.nf
        else:
            kind = "is missing from" if module is None else f"({type(module).__name__}) is not linear in"
            raise GPTQError(f"{checkpoint.path}: the quantised layer {name} {kind} the model")
        parent, _, child = name.rpartition(".")
        swapped = GPTQLinear(checkpoint, [name], inputs, [outputs], dtype=dtype, device=torch.device("meta"))
        setattr(modules[parent], child, swapped)
        if not modules[parent]._non_persistent_buffers_set:
            # some architectures initialise a layer's weight from its parent, and there is none
            modules[parent]._is_hf_initialized = True
