"""Wrote `gptqmodel.safetensors`: layers packed and dequantized by gptqmodel, for every variant.

python tests/quantization/make_fixture.py    # where gptqmodel 7.6 is installed
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import torch
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.quantization import QuantizeConfig
from gptqmodel.utils.model import (
    convert_gptq_v1_to_v2_format_module,
    convert_gptq_v2_to_v1_format_module,
)
from safetensors.torch import save_file

INPUTS, OUTPUTS = 256, 32


def main() -> None:
    """Write the file beside this one."""
    torch.manual_seed(0)
    tensors = {}
    for i, (bits, size, desc_act, sym) in enumerate(product((4, 8), (32, 64, 128, -1), (0, 1), (0, 1))):
        version = 1 + i // 2 % 2
        group_size = INPUTS if size == -1 else size
        linear = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
        order = torch.randperm(INPUTS) if desc_act else torch.arange(INPUTS)
        g_idx = torch.empty(INPUTS, dtype=torch.int32)
        g_idx[order] = torch.arange(INPUTS, dtype=torch.int32) // group_size
        scales = torch.rand(OUTPUTS, INPUTS // group_size) * 0.02 + 0.002
        zeros = torch.full_like(scales, 1 << (bits - 1))
        if not sym:
            zeros = torch.randint(0 if version == 2 else 1, 1 << bits, scales.shape).float()
        layer = TorchLinear(
            bits=bits,
            group_size=size,
            sym=bool(sym),
            desc_act=bool(desc_act),
            in_features=INPUTS,
            out_features=OUTPUTS,
            bias=False,
        )
        layer.pack(linear, scales, zeros, g_idx)
        layer.qzero_format(format=2)
        if version == 1:
            convert_gptq_v2_to_v1_format_module(layer, QuantizeConfig(bits=bits, group_size=size))
        name = f"{bits},{size},{desc_act},{sym},{version}"
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            tensors[f"{name}/{part}"] = getattr(layer, part).clone()
        if version == 1:
            convert_gptq_v1_to_v2_format_module(layer, bits=bits, pack_dtype=torch.int32)
        layer.post_init()
        tensors[f"{name}/weight"] = layer.dequantize_weight().half().t().contiguous()
    save_file(tensors, Path(__file__).with_name("gptqmodel.safetensors"))


if __name__ == "__main__":
    main()
