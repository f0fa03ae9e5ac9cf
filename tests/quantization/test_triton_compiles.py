"""The Triton kernels compile for a GPU: the interpreter takes what the compiler does not."""

from __future__ import annotations

import pytest

from tests.scripts import run_script

pytest.importorskip("triton")

_COMPILE = """
import sys
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from server.quantization.gptq.kernels import triton_codes, triton_product

dtype, bits, way = sys.argv[1], int(sys.argv[2]), sys.argv[3]

def compiled(kernel, signature, constants, warps=4):
    source = ASTSource(kernel, signature | dict.fromkeys(constants, "constexpr"), constants)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})

common = {"words": "*i32", "factors": "*i32", "N": "i32", "K": "i32"}
codes = {"BITS": bits, "GROUP": 128, "SCALES": tl.float16}
rows = {"x": "*" + dtype, "y": "*" + dtype, "partials": "*fp32", "arrivals": "*i32", "M": "i32"}
tile = {"OUTPUTS": 128, "WAY": way, "RESIDUAL": True, "PDL": True, "WHOLE": True}
for tile_rows, stages, warps, parts in ((16, 4, 4, 4), (256, 3, 8, 1)):
    cut = tile | {"ROWS": tile_rows, "STAGES": stages, "PARTS": parts}
    product = compiled(triton_product._product_kernel, common | rows, codes | cut, warps)
    assert "wgmma" in product.asm["ptx"], "the matrix units of Hopper are not used"
    loop = product.asm["ttgir"].partition("scf.for")[2].partition("scf.yield")[0]
    moved = [line for line in loop.splitlines() if "convert_layout" in line and "dot_op" not in line]
    assert not moved, f"weights are moved between threads: {moved}"
compiled(triton_codes._dequantize_kernel, common | {"weight": "*" + dtype}, codes | {"ROWS": 64})
"""


@pytest.mark.parametrize(
    ("dtype", "bits", "way"),
    [
        ("bf16", 4, "shrunk"),
        pytest.param("bf16", 4, "paired", marks=pytest.mark.slow),
        ("fp16", 4, "paired"),
        ("bf16", 8, "plain"),
    ],
)
def test_kernels_compile_for_hopper(dtype: str, bits: int, way: str) -> None:
    run_script(_COMPILE, dtype, str(bits), way, timeout=200, TRITON_INTERPRET="0")
