"""The kernels compile for Hopper as they are launched: the interpreter takes what the compiler does not."""

from __future__ import annotations

import pytest
import torch

from tests.scripts import run_script

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there they run")

_LAUNCHES = """
import sys
from types import SimpleNamespace

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from server.continuous_batching.kernels import triton_support

class Hopper:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)

compiled = []

def compile_only(self, *args, grid, warmup, **options):
    kernel = run(self, *args, grid=grid, warmup=True, **options)
    compiled.append((self.fn.__name__, kernel.asm["ptx"], kernel.metadata.shared))

driver.set_active(Hopper())
run, JITFunction.run = JITFunction.run, compile_only
triton_support.overlaps_launches = lambda device: True

from benchmarks.gpu.skinny import Tiling, skinny
from server.continuous_batching.attention.base import AttentionShape
from server.continuous_batching.attention.triton_backend import TritonAttention
from server.continuous_batching.kernels.triton_beams import best_continuations
from server.continuous_batching.kernels.triton_begin import begin_decodes
from server.continuous_batching.kernels.triton_copy import copy_blocks
from server.continuous_batching.kernels.triton_filters import find_bounds
from server.continuous_batching.kernels.triton_gemv import gemv
from server.continuous_batching.kernels.triton_norm import rms_norm, silu_mul
from server.continuous_batching.kernels.triton_penalties import History, penalise
from tests.kernels.conftest import draw, options_of
from tests.kernels.test_triton_attention import paged_batch, rotary_of

cpu, dtype = torch.device("cpu"), getattr(torch, sys.argv[1])
tensor = lambda *shape: torch.zeros(shape, dtype=dtype)
for inputs in (256, 8192):
    gemv(tensor(1, inputs), tensor(64, inputs), norm=tensor(inputs), eps=1e-5, gated=True)
    gemv(tensor(1, inputs), tensor(64, inputs), residual=tensor(1, 64))
rms_norm(tensor(3, 2048), tensor(2048), 1e-5)
silu_mul(tensor(3, 4096))
drawing = (tensor(4, 9001), *options_of(cpu, [0.0, 1.0, 0.7, 1.0]), torch.zeros(4, dtype=torch.int32))
draw(*drawing)
best_continuations(tensor(4, 9001), torch.zeros(4), 8)
rows, options = torch.zeros(4, dtype=torch.int32), torch.zeros(4, 4)
room = torch.zeros(4, 9001)
bounds, history = find_bounds(tensor(4, 9001), rows, options, room), History(room.bool(), room)
penalise(tensor(4, 9001), rows, options, room, None, room)
penalise(tensor(4, 9001), rows, options, None, history, room)
draw(*drawing, bounds=bounds, penalised=options[1], history=history)
copy_blocks(tensor(4, 5000), torch.tensor([(0, 1)]))
begin_decodes(*[rows] * 4, torch.zeros(4, 7, dtype=torch.int32))
for heads, kv_heads, head_dim, decodes in (
    (4, 2, 16, 2), (4, 2, 64, 2), (6, 2, 96, 80), (8, 1, 128, 2), (8, 8, 128, 80), (4, 2, 256, 2)
):
    batch = paged_batch([5, 130] * (decodes // 2), [(0, 20)], 16, cpu)
    cache = tensor(batch.tables.numel(), 1, 2, 16, kv_heads, head_dim)
    shape = AttentionShape(heads, kv_heads, head_dim, 16, dtype)
    attention = TritonAttention(shape, rotary_of(head_dim, dtype, cpu), cache)
    attention.prepare(batch)
    tokens = len(batch.rows)
    attention.forward(0, tensor(tokens, heads, head_dim), *(tensor(tokens, kv_heads, head_dim),) * 2)
if dtype != torch.float32:
    x, weight, y = tensor(8, 256), tensor(128, 256), tensor(8, 64)
    skinny(x, weight, y, Tiling(16, 128, 4, 4), norm=tensor(256), gated=True)
names = {name for name, _, _ in compiled}
assert names >= {
    "_gemv", "_rms_norm", "_silu_mul", "_summarise", "_choose", "_rotate_and_store", "_decode",
    "_attend_chunk", "_best_of_tile", "_best_of_line", "_copy_blocks", "_begin_decodes",
    "_find_maxima", "_measure", "_tally", "_narrow", "_list", "_find_borders", "_penalise",
}, names
# each tells its successor that it may begin, and waits for its predecessor; but for the first of a graph
for name, ptx, _ in compiled:
    if name != "_begin_decodes":
        assert "griddepcontrol.wait" in ptx and "griddepcontrol.launch_dependents" in ptx
assert max(shared for _, _, shared in compiled) <= 227 * 1024, "what a multiprocessor of Hopper has"
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_compile_for_hopper(dtype: str) -> None:
    run_script(_LAUNCHES, dtype, timeout=280, TRITON_INTERPRET="0")
