"""The Triton kernels compile for a GPU: the interpreter takes what the compiler does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

_COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from server.gptq.kernels import triton_product

dtype, zero = sys.argv[1], int(sys.argv[2])

def compiled(kernel, signature, constants):
    if zero >= 0:
        constants = constants | {"zeros": None}
    source = ASTSource(kernel, signature | dict.fromkeys(constants, "constexpr"), constants)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]

common = {"words": "*i32", "scales": "*fp16", "zeros": "*u8", "N": "i32", "GROUP": "i32"}
codes = {"BITS": 4, "SUBS": 8, "ZERO": zero, "COLUMNS": 128}
rows = {"x": "*" + dtype, "y": "*" + dtype, "partials": "*fp32", "arrivals": "*i32", "M": "i32", "K": "i32"}
product = compiled(triton_product._product_kernel, common | rows, codes | {"ROWS": 16, "SPLITS": 4})
assert "mma.sync" in product
compiled(triton_product._dequantise_kernel, common | {"weight": "*" + dtype}, codes)
"""


@pytest.mark.parametrize("zero", [8, -1])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_kernels_compile_for_hopper(zero: int, dtype: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE, dtype, str(zero)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
