"""What the experiments share: the demo model, its tokens, tables, and starting a service."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
DEMO = str(ROOT / "demo_model" / "checkpoint")
CPU = {"device": "cpu", "torch_dtype": "float32", "num_threads": 1}
"""`model_loading_config` with which every machine prints the same tokens and counts."""


def tokenizer() -> Any:
    """That of the demo model: `encode(text).ids`, `decode(ids)`."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(f"{DEMO}/tokenizer.json")


def chat(text: str) -> list[int]:
    """The tokens of a question to the demo model, in its chat format."""
    return list(tokenizer().encode(f"<|user|>{text}<|assistant|>").ids)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print columns: the first to the left, the others to the right."""
    cells = [list(map(str, row)) for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for first, *rest in cells:
        line = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))]
        print("  ".join(line).rstrip())


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(app: str, option: str, config: dict[str, Any], place: str, *more: str) -> tuple[str, Any]:
    """(URL, process) of a service with that configuration."""
    port = str(free_port())
    path = Path(place) / f"{port}.json"
    path.write_text(json.dumps(config))
    command = [sys.executable, app, "--port", port, f"--{option}_config_file_path", str(path), *more]
    return f"http://127.0.0.1:{port}", subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
