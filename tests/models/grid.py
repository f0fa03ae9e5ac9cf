"""Families × weight formats: each cell is proven by serving a small checkpoint of it.

.venv/bin/python -m tests.models.grid     proves all cells anew and writes docs/models.md, in some minutes
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported: cells are proven on the CPU

import numpy as np
from safetensors.torch import load_file
from tqdm import tqdm

from protocol.generation import GenerationConfig
from server.checkpoints.errors import ModelError
from server.continuous_batching import LLM
from server.models.registry import FAMILIES
from tests.models.small_models import EVEN, MODELS
from tests.models.small_models import save as save_floats
from tests.quantization import gguf_families
from tests.quantization.others import awq_layer, compressed, declare, fp8_layer
from tests.quantization.others import save as save_tensors

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
W4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
FORMATS: dict[str, Any] = {
    "fp8": ({"quant_method": "fp8"}, fp8_layer(None, per_output=True, name="weight_scale")),
    "compressed-tensors": compressed("pack-quantized", **W4),
    "awq": (AWQ, awq_layer),
}
"""Name → (``quantization_config``, what quantizes a layer)."""
KEPT = "FP8 on FP8 units"
"""The column of `prove_kept`."""
GGUF = {"llama", *gguf_families.FAMILIES}
"""Families that `tests.quantization.test_gguf` serves."""
SERVED = "yes"
ALIKE = 0.7
"""Correlation of log probabilities, at least: activations are rounded to FP8, and with weights drawn so wide
other experts are chosen. Weights in another order would leave none of it."""
DEQUANTIZED = "dequantized when loaded: "
TABLE = re.compile(r"(<!-- table: models -->\n)(.*?)(\n<!-- end -->)", re.S)
_MATRIX = re.compile(r"\b(layers|h)\.\d+\..*\.weight$")
_PROMPTS = [[0, 17, 250, 99, 3, 41, 42, 300], [5], [7, 8, 9, 10]]
_LONG = [(7 * place * place + 3) % 500 for place in range(60)]
_OPTIONS = GenerationConfig(max_new_tokens=8, ignore_eos=True)


def prove_cell(family: str, column: str, directory: Path) -> str:
    """What stands in a cell of the table."""
    if column == KEPT:
        return prove_kept(family, directory)
    return prove(family, column, directory)


def table() -> str:
    """The table of all cells, proven one by one."""
    columns = [*FORMATS, KEPT]
    lines = [
        "| `model_type` | models | floats | GGUF | " + " | ".join(f"`{c}`" for c in FORMATS) + f" | {KEPT} |"
    ]
    lines.append("|---" * (len(columns) + 4) + "|")
    for family, about in tqdm(sorted(FAMILIES.items()), "proving", unit="family"):
        gguf = SERVED if family in GGUF else "–"
        found = []
        for column in columns:
            with tempfile.TemporaryDirectory() as directory:
                found.append(prove_cell(family, column, Path(directory)))
        lines.append(f"| `{family}` | {about.models} | {SERVED} | {gguf} | " + " | ".join(found) + " |")
    return "\n".join(lines)


def read_table(page: str) -> dict[tuple[str, str], str]:
    """(family, column) → what the page says."""
    rows = [line.strip("| ").split(" | ") for line in TABLE.findall(page)[0][1].strip().splitlines()]
    columns = [name.strip("`") for name in rows[0]]
    return {
        (row[0].strip("`"), column): said
        for row in rows[2:]
        for column, said in zip(columns[4:], row[4:], strict=True)
    }


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    proven = table()
    PAGE.write_text(TABLE.sub(lambda found: f"{found[1]}{proven}{found[3]}", text), encoding="utf-8")


def prove(family: str, name: str, directory: Path) -> str:
    """`SERVED`, if the family in that format answers as the floats that its weights stand for; else what it
    is refused with.

    Raises:
        AssertionError: it answers otherwise.
    """
    paths = _quantized(family, name, directory)
    try:
        found = _answers(paths[0])
    except ModelError as error:
        return _reason(str(error))
    assert found == _answers(paths[1]), f"{family} in {name} answers otherwise than its floats"
    return SERVED


def prove_kept(family: str, directory: Path) -> str:
    """`SERVED`, if FP8 of the family stays so where a device multiplies it, and its log probabilities follow
    those of the floats; else why not.

    The products are those of torch and Triton's interpreter.

    Raises:
        AssertionError: they do not.
    """
    paths = _quantized(family, "fp8", directory)
    multiplied = {name: lambda *_: None for name in ("objection", "objection_to_experts")}
    with mock.patch.multiple("server.models.load", **multiplied):
        llm = _engine(paths[0])
    follows = np.corrcoef(_logprobs(llm), _logprobs(_engine(paths[1])))[0, 1]
    assert follows > ALIKE, f"{family} in FP8 is unlike its floats: a correlation of {follows:.3f}"
    weights = llm.capabilities["weights"]
    why = weights["reason"].rpartition(DEQUANTIZED)[2] if DEQUANTIZED in weights["reason"] else ""
    if not weights["name"].startswith("fp8 ("):
        return f"no: {why}"
    return f"{SERVED}; {why}" if why else SERVED


def _quantized(family: str, name: str, directory: Path) -> tuple[Path, Path]:
    """(a checkpoint of the family in the format, the floats that it stands for)."""
    declared, quantize = FORMATS[name]
    floats = _small(family, directory / "source")
    paths = directory / "quantized", directory / "floats"
    tensors = load_file(floats / "model.safetensors")
    stored, plain = dict(tensors), dict(tensors)
    for seed, (key, tensor) in enumerate(sorted(tensors.items())):
        if _MATRIX.search(key) and tensor.ndim == 2 and tensor.shape[0] % 16 == tensor.shape[1] % 32 == 0:
            parts, weight = quantize(tensor, seed)
            del stored[key]
            stored |= {f"{key.removesuffix('weight')}{part}": value for part, value in parts.items()}
            plain[key] = weight.float()
    assert stored.keys() != tensors.keys(), f"nothing of {family} was quantized"
    for path, content in zip(paths, (stored, plain), strict=True):
        shutil.copytree(floats, path)
        save_tensors({key: tensor.contiguous() for key, tensor in content.items()}, path)
    declare(paths[0], declared)
    return paths


def _small(family: str, path: Path) -> Path:
    """A small float checkpoint with sizes that all formats take."""
    known = [name for name, (kind, _) in MODELS.items() if kind == family]
    chosen = next((name for name in known if name.endswith("-even")), known[0] if known else None)
    fields = {} if chosen is None else MODELS[chosen][1]
    return save_floats(path, family, EVEN | fields | _even(fields))


def _even(fields: dict[str, Any]) -> dict[str, Any]:
    """Sizes instead of odd ones of `fields`."""
    sizes = {"hidden_size": 64} | ({"moe_intermediate_size": 32} if "moe_intermediate_size" in fields else {})
    return sizes if fields.get("head_dim", 16) is None else sizes | {"head_dim": 16}


def _engine(path: Path) -> LLM:
    loading = {"torch_dtype": "float32", "device": "cpu", "quantization": "auto"}
    return LLM(path, model_loading_config=loading, cache_config={"num_blocks": 64})


def _logprobs(llm: LLM) -> list[float]:
    """Of the tokens of a prompt."""
    options = GenerationConfig(max_new_tokens=1, prompt_logprobs=0)
    (generation,) = llm.generate([_LONG], options)
    return [each.logprob for each in generation.answers[0].prompt_logprobs or ()]


def _answers(path: Path) -> list[list[int]]:
    return [each.answers[0].token_ids for each in _engine(path).generate(_PROMPTS, _OPTIONS)]


def _reason(message: str) -> str:
    """What a refusal says, without this checkpoint's paths and layers."""
    words = "in an order of the checkpoint's own"
    if words in message:
        return f"no: {words}"
    raise AssertionError(f"an unknown refusal: {message}")


if __name__ == "__main__":
    main()
