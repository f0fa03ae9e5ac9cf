"""Every kernel multiplies as the dequantized weight does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from server.device.triton_support import Gpu
from server.quantization.gptq.kernels.base import GPTQKernel
from server.quantization.gptq.kernels.cpu import DENSE_ROWS, CpuKernel, blocks_are_known
from server.quantization.gptq.kernels.dense import DenseKernel
from server.quantization.gptq.kernels.marlin import MarlinKernel
from server.quantization.gptq.kernels.select import choose_kernels, cuda_kernels
from server.quantization.gptq.kernels.triton import DENSE_ROWS as TRITON_DENSE_ROWS
from server.quantization.gptq.kernels.triton import TritonKernel
from server.quantization.gptq.kernels.triton_product import tiling
from server.quantization.gptq.weight import QuantizedWeight
from tests.quantization.checkpoints import FORMS, Form, filled_linear, random_layer, save_layers

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CPU = torch.device("cpu")
HALVES = [torch.float16, torch.bfloat16] if DEVICE.type == "cuda" else [torch.float16]
"""Triton's interpreter cuts bfloat16 off where hardware rounds."""
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 4e-3}
BITS_4 = [form for form in FORMS if form.bits == 4 and form.version == 2]
BITS_8 = [form for form in FORMS if form.bits == 8 and form.version == 2]


def weight_of(form: Form, path: Path, inputs: int, outputs: int) -> QuantizedWeight:
    checkpoint = save_layers(path, form, {"a": random_layer(form, inputs, outputs)})
    (weight,) = filled_linear(checkpoint, ["a"]).quantized_weights()
    return weight


def error(kernel: GPTQKernel, weight: QuantizedWeight, rows: int, dtype: torch.dtype) -> float:
    """‖y − x Wᵀ‖ / ‖x Wᵀ‖ for random x."""
    x = torch.randn(rows, weight.inputs, generator=torch.Generator().manual_seed(rows)).to(dtype)
    expected = x.double() @ weight.dequantized(torch.float32).double().t()
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
    kernel = CpuKernel(weight, torch.bfloat16)
    for rows in (1, 5, DENSE_ROWS - 1, DENSE_ROWS, 2 * DENSE_ROWS):
        assert error(kernel, weight, rows, torch.bfloat16) < 6e-3


def test_cpu_kernel_unpacks_the_codes_it_was_given(tmp_path: Path) -> None:
    assert blocks_are_known()
    weight = weight_of(Form(group_size=64, sym=False, version=2), tmp_path, 128, 1200)
    kernel = CpuKernel(weight, torch.bfloat16)
    unpacked = torch.cat([kernel.dequantized(0, 1024), kernel.dequantized(1024, 1200)], dim=1)
    exact = weight.dequantized(torch.float32).t()
    assert torch.allclose(unpacked.float(), exact, atol=float(exact.abs().max()) * 2**-7)


def test_cpu_kernel_keeps_a_quarter_of_the_memory(tmp_path: Path) -> None:
    weight = weight_of(Form(group_size=128), tmp_path, 512, 512)
    kernel = CpuKernel(weight, torch.bfloat16)
    kept = sum(tensor.nbytes for tensor in kernel.buffers())
    assert kept <= 0.27 * 512 * 512 * 2


@pytest.mark.parametrize("form", BITS_4[:4] + BITS_8, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_dequantizing_kernel(form: Form, dtype: torch.dtype, tmp_path: Path) -> None:
    weight = weight_of(form, tmp_path, 256, 40)
    kernel = DenseKernel(weight, dtype)
    kernel.step = 16
    assert error(kernel, weight, 3, dtype) < (1e-6 if dtype == torch.float32 else 1e-3)


@pytest.mark.parametrize("form", BITS_4 + BITS_8, ids=str)
@pytest.mark.parametrize("dtype", HALVES)
def test_triton_kernel(form: Form, dtype: torch.dtype, tmp_path: Path) -> None:
    weight = weight_of(form, tmp_path, 512, 160)  # a whole tile and a part of one
    assert TritonKernel.refuses_weight(weight) is None
    kernel = TritonKernel(weight, dtype)
    for rows in (1, 17):
        assert error(kernel, weight, rows, dtype) < TOLERANCE[dtype]
    assert not kernel.arrivals.any()


@pytest.mark.parametrize("rows", [33, 65, 130, TRITON_DENSE_ROWS])
@pytest.mark.parametrize("dtype", HALVES)
def test_triton_kernel_with_many_rows(rows: int, dtype: torch.dtype, tmp_path: Path) -> None:
    weight = weight_of(Form(group_size=64, desc_act=True), tmp_path, 256, 128)
    assert error(TritonKernel(weight, dtype), weight, rows, dtype) < TOLERANCE[dtype]


@pytest.mark.parametrize("rows", [1, 20, TRITON_DENSE_ROWS])
@pytest.mark.parametrize("desc_act", [False, True])
def test_triton_kernel_adds_a_residual(rows: int, desc_act: bool, tmp_path: Path) -> None:
    weight = weight_of(Form(group_size=128, desc_act=desc_act), tmp_path, 1024, 96)
    kernel = TritonKernel(weight, torch.float16).to(DEVICE)
    x, residual = (torch.randn(rows, n, generator=torch.Generator().manual_seed(n)) for n in (1024, 96))
    exact = residual.half().double() + x.half().double() @ weight.dequantized(torch.float32).double().t()
    y = kernel.add_to(x.half().to(DEVICE), residual.half().to(DEVICE))
    assert float((y.double().cpu() - exact).norm() / exact.norm()) < 1e-3
    assert not kernel.arrivals.any()


@pytest.mark.skipif(DEVICE.type == "cpu", reason="the interpreter has no bfloat16")
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 6e4])
def test_triton_kernel_with_scales_of_any_size(scale: float, tmp_path: Path) -> None:
    """The quicker way to bfloat16 weights passes denormals and multiplies by far powers of two."""
    form = Form(group_size=128)
    layer = random_layer(form, 512, 256)
    layer["scales"] = (layer["scales"] / layer["scales"].max() * scale).half()
    checkpoint = save_layers(tmp_path, form, {"a": layer})
    (weight,) = filled_linear(checkpoint, ["a"]).quantized_weights()
    kernel = TritonKernel(weight, torch.bfloat16)
    assert kernel.symmetric
    assert error(kernel, weight, 16, torch.bfloat16) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("form", BITS_4 + BITS_8, ids=str)
@pytest.mark.parametrize("dtype", HALVES)
def test_triton_dequantizes_bit_for_bit(form: Form, dtype: torch.dtype, tmp_path: Path) -> None:
    weight = weight_of(form, tmp_path, 256, 48)
    values = TritonKernel(weight, dtype).to(DEVICE).dequantized(dtype)
    expected = weight.dequantized(dtype)
    if weight.order is not None:
        expected = expected[:, weight.order]
    assert torch.equal(values.cpu(), expected)


@pytest.mark.parametrize("gpu", [Gpu(132, 232448), Gpu(108, 166912), Gpu(128, 101376)], ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_tilings_fit_and_fill_a_gpu_and_are_no_finer_than_that(gpu: Gpu, bits: int) -> None:
    for rows, outputs, inputs in [(1, 4096, 14336), (16, 6144, 4096), (64, 512, 256), (256, 28672, 4096)]:
        cut = tiling(rows, outputs, inputs, bits, gpu)
        programs = -(-outputs // cut.outputs) * -(-rows // cut.rows) * cut.parts
        assert cut.parts == 1 or programs <= 3 * gpu.multiprocessors
        assert cut.parts == 1 or inputs // 128 >= 4 * cut.parts
        assert cut.rows >= min(rows, 64)
        codes, x = cut.outputs * 128 * bits // 8, 2 * cut.rows * 128
        assert cut.stages >= 2
        assert cut.stages * (codes + x) < gpu.shared


def test_triton_kernel_keeps_a_quarter_of_bfloat16(tmp_path: Path) -> None:
    weight = weight_of(Form(group_size=128, sym=False, version=2), tmp_path, 1024, 1024)
    kept = sum(tensor.nbytes for tensor in TritonKernel(weight, torch.bfloat16).buffers())
    assert kept <= 0.27 * 1024 * 1024 * 2


def test_own_kernel_is_first_where_it_was_measured_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    for capability, bits, dtype, first in (
        ((9, 0), 4, torch.bfloat16, TritonKernel),
        ((9, 0), 4, torch.float16, MarlinKernel),
        ((9, 0), 8, torch.bfloat16, MarlinKernel),
        ((8, 0), 4, torch.bfloat16, MarlinKernel),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, now=capability: now)
        assert cuda_kernels(bits, gpu, dtype)[0] is first


def test_what_a_kernel_cannot_hold_goes_to_the_next(tmp_path: Path) -> None:
    choice = choose_kernels(4, CPU, torch.bfloat16)
    weight = weight_of(Form(), tmp_path, 64, 64)
    odd = weight_of(Form(), tmp_path, 64, 24)
    assert [type(choice.kernel_for(w)) for w in (weight, weight, odd)] == [CpuKernel, CpuKernel, DenseKernel]
    told = choice.describe()
    assert told["name"] == "torch-int4 (2 layers), dequantize (1 layers)"
    assert "24 outputs are not a multiple of 16" in told["reason"]


@pytest.mark.parametrize("form", BITS_4 + BITS_8, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_cpu_computes_in_the_type_of_the_activations(
    form: Form, dtype: torch.dtype, tmp_path: Path
) -> None:
    weight = weight_of(form, tmp_path, 256, 64)
    kernel = choose_kernels(form.bits, CPU, dtype).kernel_for(weight)
    for rows in (1, 40):
        assert error(kernel, weight, rows, dtype) < (1e-6 if dtype == torch.float32 else 1e-3)


def test_eight_bits_on_a_cpu_are_dequantized_and_that_is_told() -> None:
    choice = choose_kernels(8, CPU, torch.bfloat16)
    assert choice.usable == (DenseKernel,)
    assert choice.describe()["reason"] == "torch-int4: takes 4 bits, not 8"
