"""Models of a hub are downloaded, with what a server reads and no more; or it is said how to get them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from server.checkpoints.errors import ModelError
from server.checkpoints.hub import files_of, find_checkpoint

COMMIT = "0" * 39 + "1"
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"x",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"pickled",
    "original/consolidated.safetensors": b"more weights",
    "onnx/model.onnx": b"others",
    "README.md": b"# Model",
}
GGUFS = {
    "small.gguf": b"GGUF small",
    "large.gguf": b"GGUF large",
    "q8/cut-00001-of-00002.gguf": b"GGUF 1",
    "q8/cut-00002-of-00002.gguf": b"GGUF 2",
    "README.md": b"# Model",
}
REPOSITORIES = {"some/model": FILES, "some/model-GGUF": GGUFS}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as its client asks for."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].removeprefix("/")
        for name, files in REPOSITORIES.items():
            if path.startswith(f"api/models/{name}/tree/"):
                self.answer(
                    [{"type": "file", "path": p, "oid": "1", "size": len(b)} for p, b in files.items()]
                )
                return
            if path in (f"api/models/{name}", f"api/models/{name}/revision/main"):
                self.answer({"id": name, "sha": COMMIT, "siblings": [{"rfilename": p} for p in files]})
                return
            for file, content in files.items():
                if path in (f"{name}/resolve/main/{file}", f"{name}/resolve/{COMMIT}/{file}"):
                    self.send(200, content)
                    return
        self.send(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

    do_HEAD = do_GET

    def answer(self, value: object) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        own = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
        for key, value in (own | (headers or {}) | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def found(name: str, home: Path, **environment: str) -> str:
    """What another process finds: the hub's client reads its environment when it is imported."""
    script = (
        "import sys\nfrom server.checkpoints.hub import find_checkpoint, ModelError\n"
        "try:\n    print(find_checkpoint(sys.argv[1]))\nexcept ModelError as error:\n    print(error)"
    )
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HTTP"))}
    done = subprocess.run(
        [sys.executable, "-c", script, name],
        env=inherited | {"HF_HOME": str(home)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_a_server_reads_is_downloaded_from_the_mirror(hub: str, tmp_path: Path) -> None:
    path = Path(found("some/model", tmp_path, HF_ENDPOINT=hub))
    files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    assert files == ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    assert (path / "model.safetensors").read_bytes() == b"weights"
    # and is there without a network
    assert found("some/model", tmp_path, HF_ENDPOINT=hub, HF_HUB_OFFLINE="1") == str(path)


def test_a_gguf_file_of_a_model_is_named(hub: str, tmp_path: Path) -> None:
    said = found("some/model-GGUF", tmp_path, HF_ENDPOINT=hub)
    assert said == (
        "some/model-GGUF holds GGUF files: name one of them, e.g. some/model-GGUF/small.gguf "
        "(all: small.gguf, large.gguf, q8/cut-00001-of-00002.gguf, q8/cut-00002-of-00002.gguf)"
    )
    path = found("some/model-GGUF/large.gguf", tmp_path, HF_ENDPOINT=hub)
    assert Path(path).read_bytes() == b"GGUF large"
    first = Path(found("some/model-GGUF/q8/cut-00001-of-00002.gguf", tmp_path, HF_ENDPOINT=hub))
    assert first.with_name("cut-00002-of-00002.gguf").read_bytes() == b"GGUF 2"


def test_a_model_that_is_not_there_and_a_hub_that_is_not_there(hub: str, tmp_path: Path) -> None:
    said = found("no/such-model", tmp_path, HF_ENDPOINT=hub)
    assert said.startswith(f"'no/such-model' is neither a path here nor a model at {hub}")
    said = found("some/model", tmp_path, HF_ENDPOINT=hub, HF_HUB_OFFLINE="1")
    assert "is no path here, and cannot be downloaded from" in said and "HF_HUB_OFFLINE is set" in said
    assert "`hf download some/model --local-dir DIR`" in said and "HF_ENDPOINT" in said


def test_modelscope_is_asked_by_its_own_package() -> None:
    with pytest.raises(ModelError, match=r"install it \(pip install modelscope\)"):
        find_checkpoint("modelscope:Qwen/Qwen3-0.6B")


def test_modelscope_downloads_what_a_server_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the signature of modelscope 1.40's `snapshot_download`."""
    asked = []

    def snapshot_download(model_id: str, revision: str | None = None, allow_patterns: Any = None) -> str:
        if model_id == "no/model":
            raise ConnectionError("no route\nto host")
        asked.append((model_id, revision, allow_patterns[-1]))
        if allow_patterns[-1] == "*.bin":
            (tmp_path / "pytorch_model.bin").touch()
        return str(tmp_path)

    package = ModuleType("modelscope")
    package.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modelscope", package)
    assert find_checkpoint("modelscope:some/model", "v1") == tmp_path
    assert asked == [("some/model", "v1", "*.safetensors"), ("some/model", "v1", "*.bin")]
    with pytest.raises(
        ModelError, match=r"\(no route to host\): .*`modelscope download --model no/model --local"
    ):
        find_checkpoint("modelscope:no/model")


def test_pickled_weights_are_wanted_where_there_are_no_others() -> None:
    names = [name for name in FILES if not name.startswith("model.")]
    assert files_of(names) == ["chat_template.jinja", "config.json", "pytorch_model.bin", "tokenizer.json"]
    assert files_of(list(FILES), weights=False) == ["chat_template.jinja", "config.json", "tokenizer.json"]
