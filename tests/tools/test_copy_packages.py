"""The packages in a project that has a `utils` of its own: they are imported and serve from there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from benchmarks.ports import free_port
from tools.copy_packages import main, rewritten

OWN = "raise RuntimeError('the project has a utils and a client of its own')\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("utils", "client", "server", "protocol"):
        (tmp_path / f"{name}.py").write_text(OWN)
    main([str(tmp_path / "inference")])
    return tmp_path


def test_a_server_answers_from_another_project(project: Path, tiny_model: Path) -> None:
    port = free_port()
    config = {
        "model_loading_config": {
            "model_name_or_path": str(tiny_model),
            "torch_dtype": "float32",
            "device": "cpu",
        },
        "cache_config": {"num_blocks": 32, "num_blocks_cpu": 0},
    }
    (project / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "inference.continuous_batching_server_app", "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    server = subprocess.Popen(
        [*command, "--model_id", "tiny", "--server_config_file_path", "config.json"],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, server.stdout and server.stdout.read()
                time.sleep(0.2)
        body = json.dumps({"model": "tiny", "prompt": "Once", "generation_config": {"max_new_tokens": 3}})
        request = urllib.request.Request(f"http://127.0.0.1:{port}/completion/v2", body.encode())
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 3
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def test_the_gateway_can_be_imported_there(project: Path) -> None:
    program = "import inference.client.app as app; print(app.__name__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=project, capture_output=True, text=True)
    assert done.stdout == "inference.client.app\n", done.stderr


def test_only_names_of_modules_are_rewritten() -> None:
    source = (
        "from utils.config import x\nfrom protocol import routes\nfrom utilsother import y\n"
        'NAME = "server.models.llama"\nTEXT = "the server.\\n"\nimport utils_of_mine\n'
        "ROOT = Path(__file__).resolve().parents[1]\nPAGE = Path(__file__).parents[1]\n"
    )
    assert rewritten(source, "a.b") == (
        "from a.b.utils.config import x\nfrom a.b.protocol import routes\nfrom utilsother import y\n"
        'NAME = "a.b.server.models.llama"\nTEXT = "the server.\\n"\nimport utils_of_mine\n'
        "ROOT = Path(__file__).resolve().parents[3]\nPAGE = Path(__file__).parents[1]\n"
    )


def test_what_cannot_be_copied_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="client needs utils"):
        main([str(tmp_path / "x"), "--packages", "protocol", "client"])
    with pytest.raises(SystemExit, match="exists"):
        main([str(tmp_path)])
