"""Loading takes the memory of the int4 weights, and never that of their floats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints import tiny_llama
from tests.scripts import run_script
from tools.round_to_nearest import Recipe, quantize_weight

HIDDEN, INNER, LAYERS = 1024, 3072, 24

_MEASURE = """
import sys, threading, time
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from server.continuous_batching.config import ModelLoadingConfig
from server.ops.layer_ops import LayerOps
from server.ops.choose import choose_backend
from server.models.config import ModelConfig
from server.models.load import load_model
from server.quantization.formats.gptq import GPTQ
from server.quantization.swap import load_quantized

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

def load(which, path):
    cpu = torch.device("cpu")
    if which == "static":
        return load_quantized(GPTQ().open(Path(path), {}), dtype=torch.bfloat16, device=cpu)
    config = ModelLoadingConfig(
        model_name_or_path=path, quantize_method="gptq", torch_dtype="bfloat16", device="cpu"
    )
    model, _ = load_model(config.source, ModelConfig.load(Path(path)), torch.bfloat16, cpu)
    backend = LayerOps() if which == "torch" else choose_backend(model, torch.bfloat16, cpu, 16)
    assert which == "torch" or backend.name.startswith("native")
    backend.prepare(model, torch.bfloat16)
    return model, backend

which, warm, path = sys.argv[1:]
load(which, warm)
base = peak = anonymous()
done = False

def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.001)

thread = threading.Thread(target=watch)
thread.start()
model, holder = load(which, path)
done = True
thread.join()
kept = sum(t.nbytes for t in {*model.parameters(), *model.buffers()})
kept += holder.packed_bytes if which == "native" else 0
print(peak - base, kept)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 million random weights in 4 bits, in enough layers that one of them is a small part."""
    path = tiny_llama(tmp_path_factory.mktemp("wide"), hidden=64)
    torch.manual_seed(0)
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
        "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    tensors = {
        "model.embed_tokens.weight": torch.zeros(512, HIDDEN, dtype=torch.bfloat16),
        "lm_head.weight": torch.zeros(512, HIDDEN, dtype=torch.bfloat16),
        "model.norm.weight": torch.ones(HIDDEN),
    }
    layer = {name: quantize_weight(torch.randn(shape), Recipe()) for name, shape in shapes.items()}
    for index in range(LAYERS):
        prefix = f"model.layers.{index}"
        for name, parts in layer.items():
            tensors |= {f"{prefix}.{name}.{part}": tensor.clone() for part, tensor in parts.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = torch.ones(HIDDEN)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config |= {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS}
    config |= {"head_dim": HIDDEN // 4, "quantization_config": Recipe().config()}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Loaded first, so that what libraries take for themselves does not count."""
    from tests.quantization.models import quantized

    path = tmp_path_factory.mktemp("small")
    return quantized(tiny_llama(path / "float", hidden=128), path / "q", group_size=32)


@pytest.mark.parametrize("server", ["native", "torch", "static"])
def test_peak_while_loading(server: str, checkpoint: Path, small: Path) -> None:
    told = run_script(_MEASURE, server, str(small), str(checkpoint), timeout=200)
    peak, kept = map(int, told.split())
    floats = 2 * LAYERS * (3 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER)
    assert kept < 0.32 * floats
    assert peak < 1.1 * kept
