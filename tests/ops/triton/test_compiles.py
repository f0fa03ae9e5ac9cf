"""The kernels compile for Hopper as they are launched: the interpreter takes what the compiler does not."""

from __future__ import annotations

import pytest
import torch

from tests.scripts import run_script

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there they run")

_LAUNCHES = """
import sys
from dataclasses import replace
from types import SimpleNamespace

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from server.device import triton_support

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
triton_support.gpu_of = lambda device: triton_support.Gpu(132, 227 * 1024)

from server.device.peer_collectives import PeerCollectives
from server.device.two_shot_sums import TwoShotSums
from server.ops.attention import AttentionShape
from server.ops.triton.attention import FixedOrderAttention, TritonAttention
from server.ops.triton.fixed_product import product as fixed_product
from server.sampling.triton.beams import best_continuations
from server.device.triton_store import store
from server.worker.triton_begin import begin_decodes
from server.worker.triton_copy import copy_blocks
from server.sampling.triton.drafts import accept
from server.sampling.triton.filters import find_bounds
from server.layers.microscaled import Microscaled
from server.ops.triton.experts import inward, outward, tiling_of
from server.layers.spec import ExpertsSpec
from server.layers.weights import EmbeddingRows
from server.quantization.fp8.stack import ScaledStack
from tests.quantization.stacks import random_stack
from server.ops.triton.routing import assign, route
from server.ops.triton.few_experts import few_inward, few_outward
from server.ops.triton.few_rows import few_rows
from server.ops.triton.gated_product import gated_product
from server.ops.triton.gates import SILU, Gate, gate_mul
from server.ops.triton.norm import rms_norm
from server.quantization.fp8.product import product
from server.quantization.gemv import gemv
from server.quantization.fp8.rows import RowScales, quantize
from server.sampling.triton.penalties import add_bias, count_tokens, penalise
from server.sampling.verification import GpuDrafts
from tests.ops.shapes import attention_shape, attention_spec
from tests.ops.triton.scenes import paged_batch, rotary_of
from tests.sampling.triton.draws import draw, options_of

cpu, dtype = torch.device("cpu"), getattr(torch, sys.argv[1])
tensor = lambda *shape: torch.zeros(shape, dtype=dtype)
for inputs in (256, 5120, 8192):
    gemv(tensor(1, inputs), tensor(64, inputs), norm=tensor(inputs), eps=1e-5, gated=True)
    gemv(tensor(1, inputs), tensor(64, inputs), residual=tensor(1, 64))
if dtype != torch.float32:
    options = {"dtype": dtype, "device": cpu}
    stacks = [
        ScaledStack((8, 256, 512), 2, stored=stored, block=block, **options)
        for stored, block in ((torch.float8_e4m3fn, None), (torch.float8_e4m3fn, 128), (torch.int8, None))
    ]
    for bits, symmetric in ((4, True), (4, False), (8, True)):
        stack = random_stack((8, 256, 512), bits, 64, symmetric=symmetric, **options)
        stack.settle(cpu)
        stack.pack_for_triton()
        stacks.append(stack)
for rows in (3, 600, 3000):
    by = tiling_of(rows / 4, tensor(8, 512, 128))
    chosen, shares = route(tensor(rows, 8), ExpertsSpec(8, 2))
    to = assign(chosen, 8, by.rows)
    inner = inward(tensor(rows, 512), tensor(8, 256, 512), tensor(8, 256), to, by)
    outward(tensor(2 * rows, 128), tensor(8, 512, 128), None, to, by, shares)
    if dtype != torch.float32:
        codes = Microscaled(8, 256, 512, dtype=dtype, device=cpu)
        inward(tensor(rows, 512), codes, tensor(8, 256), to, by)
        for stack in stacks:
            inward(tensor(rows, 512), stack, tensor(8, 256), to, tiling_of(rows / 4, stack))
few_inward(tensor(3, 512), tensor(8, 256, 512), None, chosen, SILU)
few_outward(tensor(6, 256), tensor(8, 512, 256), None, chosen, shares)
if dtype != torch.float32:
    few_inward(tensor(3, 512), codes, tensor(8, 256), chosen, Gate(1.7, 7.0))
    for stack in stacks:
        few_inward(tensor(3, 512), stack, None, chosen, SILU)
rms_norm(tensor(3, 2048), tensor(2048), 1e-5)
peers = PeerCollectives([1 << 40, 3 << 40], 0, cpu)
peers.reduce(tensor(1, 4096))
peers.gather(tensor(1, 512), tensor(1, 1022))
TwoShotSums([1 << 40, 3 << 40], 0, cpu, peers.stop).reduce(tensor(1000, 4096))
gate_mul(tensor(3, 4096))
drawing = (tensor(4, 9001), *options_of(cpu, [0.0, 1.0, 0.7, 1.0]), torch.zeros(4, 20, dtype=torch.int32))
draw(*drawing)
best_continuations(tensor(4, 9001), torch.zeros(4), 8)
rows, options = torch.zeros(4, dtype=torch.int32), torch.zeros(4, 4)
room = torch.zeros(4, 9001)
draw(*drawing, bounds=find_bounds(tensor(4, 9001), rows, options, room))
add_bias(tensor(4, 9001), rows, options[0], room, room)
penalise(tensor(4, 9001), rows, options[1:], room.bool(), room, room)
count_tokens(rows, rows, options[0], room.bool(), room)
penalise(tensor(4, 9001), rows, options[1:], room.bool(), room, room, (rows, rows, torch.zeros(4, 20).int()))
count_tokens(rows, rows, options[0], room.bool(), room, (rows, rows, rows))
draw(*drawing, keep=False)
accept(rows, rows, rows, GpuDrafts(rows, rows, rows), torch.zeros(4, 20).int(), rows)
copy_blocks(tensor(4, 5000), torch.tensor([(0, 1)]))
table = torch.zeros(4, 7, dtype=torch.int32)
begin = torch.zeros(300).int(), torch.zeros(8, 32).int(), table, table, 4, 2, 32
begin_decodes(*begin)
begin_decodes(*begin, EmbeddingRows(tensor(9, 3000), 2.0), tensor(4, 3000))
store(rows, rows)
for heads, kv_heads, head_dim, decodes in (
    (4, 2, 16, 2), (4, 2, 64, 2), (6, 2, 96, 80), (8, 1, 128, 2), (8, 8, 128, 80), (4, 2, 256, 2)
):
    batch = paged_batch([5, 130] * (decodes // 2), [(0, 20)], 16, cpu)
    cache = tensor(batch.tables.numel(), 1, 2, 16, kv_heads, head_dim)
    shape = attention_shape(heads, kv_heads, head_dim, 16, dtype)
    for kind in (TritonAttention, FixedOrderAttention):
        attention = kind(shape, [rotary_of(head_dim, dtype, cpu)], cache)
        attention.prepare(batch)
        tokens = len(batch.rows)
        attention.forward(0, tensor(tokens, heads, head_dim), *(tensor(tokens, kv_heads, head_dim),) * 2)
batch = paged_batch([5, 130], [(0, 20)], 16, cpu)
shape = AttentionShape((attention_spec(4, 2, 64, window=20, softcap=30.0, sinks=True),), 16, dtype)
cache = tensor(batch.tables.numel(), 1, 2, 16, 2, 64)
attention = TritonAttention(shape, [rotary_of(24, dtype, cpu)], cache)
attention.prepare(batch)
attention.forward(0, *(tensor(len(batch.rows), count, 64) for count in (4, 2, 2)), tensor(4))
if dtype != torch.float32:
    first = len(compiled)
    for rows in (2, 32, 64, 128):
        few_rows(tensor(rows, 4096), tensor(6144, 4096), bias=tensor(6144))
        few_rows(tensor(rows, 4096), tensor(2048, 4096), residual=tensor(rows, 2048))
        few_rows(tensor(rows, 4096), tensor(4096, 4096), gated=True)
    for _, ptx, _ in compiled[first:]:
        # some weights are asked for before the wait, x is behind it
        asked = ptx.split("griddepcontrol.wait")[0].count("cp.async.bulk.tensor")
        assert 1 <= asked <= 2 and "wgmma.mma_async" in ptx
    gated_product(tensor(8192, 4096), tensor(28672, 4096))
    assert "wgmma.mma_async.sync.aligned.m64n256k16" in compiled[-1][1], "gate and up are one product"
    first = len(compiled)
    weight = tensor(128, 512)
    for rows in (1, 32, 64, 65, 9000):
        fixed_product(tensor(rows, 512), weight, tensor(rows, 128), residual=True)
        fixed_product(tensor(rows, 512), weight, tensor(rows, 64), bias=tensor(128), gated=True)
    fixed_product(tensor(9000, 512), tensor(4096, 512), tensor(9000, 4096))
    made = compiled[first:]
    # all by the same units, whose bits do not depend on the size of the tile
    assert all("wgmma.mma_async" in ptx and "mma.sync.aligned.m" not in ptx for _, ptx, _ in made)
    assert {name for name, _, _ in made} == {"product_of_few", "product_of_many"}
    weight, scales = tensor(256, 4096).to(torch.float8_e4m3fn), torch.zeros(256)
    quantize(tensor(3, 8192), RowScales(128), gated=True, overlapped=True)
    rows = quantize(tensor(3, 4096), RowScales(128), norm=tensor(4096), overlapped=True)
    product(rows, weight, scales, None, dtype, block=128)
    rows = quantize(tensor(3, 4096), RowScales(), overlapped=True)
    product(rows, weight, scales, None, dtype, residual=tensor(3, 256))
    for block in (None, 128):
        gemv(tensor(1, 4096), weight, scales, norm=tensor(4096), gated=True, block=block)
    batch = paged_batch([5, 130], [(0, 20)], 16, cpu)
    for head_dim in (64, 96, 128):
        cache = tensor(batch.tables.numel(), 1, 2, 16, 2, head_dim).to(torch.float8_e4m3fn)
        shape = replace(attention_shape(8, 2, head_dim, 16, dtype), cache_scales=torch.ones(1, 2, 2))
        attention = TritonAttention(shape, [rotary_of(head_dim, dtype, cpu)], cache)
        attention.prepare(batch)
        attention.forward(0, *(tensor(len(batch.rows), count, head_dim) for count in (8, 2, 2)))
    names = [name for name, _, _ in compiled]
    assert "_quantize" in names and "wgmma" in compiled[-1][1]
names = {name for name, _, _ in compiled}
assert names >= {
    "_gemv", "_rms_norm", "_reduce", "_reduce_in_two_shots", "_gather", "_gate_mul", "_inward", "_outward",
    "_draw_in_tile", "_draw_in_line", "_rotate_and_store", "decode", "decode_in_pieces",
    "_attend_chunk", "_best_of_tile", "_best_of_line", "_copy_blocks", "_begin_decodes", "_store",
    "_find_maxima", "_measure", "_tally", "_narrow", "_list", "_find_borders",
    "_add_bias", "_penalise", "_count_tokens", "_accept",
}, names
# each tells its successor that it may begin, and waits for its predecessor; but for routes to
# experts and sums of prompts, which stand behind products of cuBLAS
for name, ptx, _ in compiled:
    if name not in ("_route", "_reduce_in_two_shots"):
        assert "griddepcontrol.wait" in ptx and "griddepcontrol.launch_dependents" in ptx
assert max(shared for _, _, shared in compiled) <= 227 * 1024, "what a multiprocessor of Hopper has"
"""


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_kernels_compile_for_hopper(dtype: str) -> None:
    run_script(_LAUNCHES, dtype, timeout=1400, TRITON_INTERPRET="0")
