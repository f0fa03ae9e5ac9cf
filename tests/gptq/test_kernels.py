"""Every kernel multiplies as the dequantised weight does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from server.gptq.kernels.base import GPTQKernel
from server.gptq.kernels.cpu import DENSE_ROWS, CpuKernel, blocks_are_known
from server.gptq.kernels.dense import DenseKernel
from server.gptq.kernels.select import choose_kernels
from server.gptq.kernels.triton import DENSE_ROWS as TRITON_DENSE_ROWS
from server.gptq.kernels.triton import TritonKernel
from server.gptq.weight import QuantisedWeight
from tests.gptq.checkpoints import FORMS, Form, filled_linear, random_layer, save_layers

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CPU = torch.device("cpu")
HALVES = [torch.float16, torch.bfloat16] if DEVICE.type == "cuda" else [torch.float16]
"""Triton's interpreter cuts bfloat16 off where hardware rounds."""
BITS_4 = [form for form in FORMS if form.bits == 4 and form.version == 2]
BITS_8 = [form for form in FORMS if form.bits == 8 and form.version == 2]


def weight_of(form: Form, path: Path, inputs: int, outputs: int) -> QuantisedWeight:
    checkpoint = save_layers(path, form, {"a": random_layer(form, inputs, outputs)})
    (weight,) = filled_linear(checkpoint, ["a"]).quantised_weights()
    return weight


def error(kernel: GPTQKernel, weight: QuantisedWeight, rows: int, dtype: torch.dtype) -> float:
    """‖y − x Wᵀ‖ / ‖x Wᵀ‖ for random x."""
    x = torch.randn(rows, weight.inputs, generator=torch.Generator().manual_seed(rows)).to(dtype)
    expected = x.double() @ weight.dequantised(torch.float32).double().t()
    y: Tensor = kernel.to(DEVICE if isinstance(kernel, TritonKernel) else CPU)(
        x.to(DEVICE) if isinstance(kernel, TritonKernel) else x
    )
    assert y.dtype == dtype and y.shape == expected.shape
    return float((y.double().cpu() - expected).norm() / expected.norm())


@pytest.mark.parametrize("form", BITS_4, ids=str)
@pytest.mark.parametrize("outputs", [64, 208])  # 208 = 3 blocks and a rest
def test_cpu_kernel(form: Form, outputs: int, tmp_path: Path) -> None:
    weight = weight_of(form, tmp_path, 256, outputs)
    assert CpuKernel.refuses_weight(weight) is None
    for dtype in (torch.float32, torch.bfloat16):
        kernel = CpuKernel(weight, dtype)
        for rows in (1, 5, DENSE_ROWS - 1, DENSE_ROWS, 2 * DENSE_ROWS):
            assert error(kernel, weight, rows, dtype) < 6e-3


def test_cpu_kernel_unpacks_the_codes_it_was_given(tmp_path: Path) -> None:
    assert blocks_are_known()
    weight = weight_of(Form(group_size=64, sym=False, version=2), tmp_path, 128, 1200)
    kernel = CpuKernel(weight, torch.bfloat16)
    unpacked = torch.cat([kernel.dequantised(0, 1024), kernel.dequantised(1024, 1200)], dim=1)
    exact = weight.dequantised(torch.float32).t()
    assert torch.allclose(unpacked.float(), exact, atol=float(exact.abs().max()) * 2**-7)


def test_cpu_kernel_keeps_a_quarter_of_the_memory(tmp_path: Path) -> None:
    weight = weight_of(Form(group_size=128), tmp_path, 512, 512)
    kernel = CpuKernel(weight, torch.bfloat16)
    kept = sum(tensor.nbytes for tensor in kernel.buffers())
    assert kept <= 0.27 * 512 * 512 * 2


@pytest.mark.parametrize("form", BITS_4[:4] + BITS_8, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_dequantising_kernel(form: Form, dtype: torch.dtype, tmp_path: Path) -> None:
    weight = weight_of(form, tmp_path, 256, 40)
    kernel = DenseKernel(weight, dtype)
    kernel.step = 16
    assert error(kernel, weight, 3, dtype) < (1e-6 if dtype == torch.float32 else 1e-3)


@pytest.mark.parametrize("form", BITS_4 + BITS_8, ids=str)
@pytest.mark.parametrize("dtype", HALVES)
def test_triton_kernel(form: Form, dtype: torch.dtype, tmp_path: Path) -> None:
    weight = weight_of(form, tmp_path, 512, 160)
    kernel = TritonKernel(weight, dtype)
    for rows in (1, 17):
        assert error(kernel, weight, rows, dtype) < (1e-3 if dtype == torch.float16 else 4e-3)
    assert not kernel.arrivals.any()


@pytest.mark.parametrize("rows", [64, TRITON_DENSE_ROWS])
def test_triton_kernel_with_many_rows(rows: int, tmp_path: Path) -> None:
    weight = weight_of(Form(group_size=64, desc_act=True), tmp_path, 256, 96)
    assert error(TritonKernel(weight, torch.float16), weight, rows, torch.float16) < 1e-3


@pytest.mark.parametrize("form", BITS_4 + BITS_8, ids=str)
@pytest.mark.parametrize("dtype", HALVES)
def test_triton_dequantises_bit_for_bit(form: Form, dtype: torch.dtype, tmp_path: Path) -> None:
    from server.gptq.kernels import triton_product

    weight = weight_of(form, tmp_path, 256, 48)
    kernel = TritonKernel(weight, dtype).to(DEVICE)
    values = triton_product.dequantise(
        kernel.words, kernel.scales, kernel.zeros, kernel.bits, kernel.group_size, kernel.zero, dtype
    )
    expected = weight.dequantised(dtype).t()
    if weight.order is not None:
        expected = expected[weight.order]
    assert torch.equal(values.cpu(), expected)


def test_what_a_kernel_cannot_hold_goes_to_the_next(tmp_path: Path) -> None:
    choice = choose_kernels(4, CPU, torch.float32)
    weight = weight_of(Form(), tmp_path, 64, 64)
    odd = weight_of(Form(), tmp_path, 64, 24)
    assert [type(choice.kernel_for(w)) for w in (weight, weight, odd)] == [CpuKernel, CpuKernel, DenseKernel]
    told = choice.describe()
    assert told["name"] == "torch-int4 (2 layers), dequantise (1 layers)"
    assert "24 outputs are not a multiple of 16" in told["reason"]


def test_eight_bits_on_a_cpu_are_dequantised_and_that_is_told() -> None:
    choice = choose_kernels(8, CPU, torch.bfloat16)
    assert choice.usable == (DenseKernel,)
    assert choice.describe()["reason"] == "torch-int4: takes 4 bits, not 8"
