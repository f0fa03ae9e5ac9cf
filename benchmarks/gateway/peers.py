"""The gateways that are measured: how each is installed, into an environment of its own, and started."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEY = "sk-stub"

PRODUCTION_STACK = "git+https://github.com/vllm-project/production-stack@vllm-stack-0.1.12"
LITELLM = "litellm[proxy]==1.106.2"


class NotInstallable(Exception):
    """A peer that cannot be had on this machine; the message says why."""


@dataclass(frozen=True)
class Peer:
    """A gateway in front of the stub."""

    name: str
    command: Sequence[str | Path]
    environment: dict[str, str] = field(default_factory=dict)


Install = Callable[[Path, int, int, str | None], Peer]
"""(its directory, port of the stub, its own port, source) -> the peer, installed."""


def ours(directory: Path, stub: int, port: int, source: str | None) -> Peer:
    """This project's gateway, every feature on, as `client_app.py` of the checkout `source` starts it."""
    root = ROOT if source is None else Path(source)
    config = directory / "client_config.json"
    config.write_text(json.dumps({"continuous_batching_server_urls": [f"http://127.0.0.1:{stub}"]}))
    flags = ["--port", str(port), "--client_config_file_path", str(config)]
    return Peer("this gateway", [sys.executable, root / "client_app.py", *flags])


NGINX_CONFIG = """\
daemon off; worker_processes 1; pid {directory}/pid; error_log {directory}/errors;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 300s;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  upstream stub {{ server 127.0.0.1:{stub}; keepalive 256; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://stub; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 300s;
    }}
  }}
}}
"""


def nginx(directory: Path, stub: int, port: int, source: str | None) -> Peer:
    """nginx of the system, or of the distribution's package unpacked beside us."""
    binary = shutil.which("nginx") or directory / "usr/sbin/nginx"
    if not Path(binary).exists():
        _run(directory, "apt-get", "download", "nginx")
        for package in directory.glob("nginx_*.deb"):
            _run(directory, "dpkg", "-x", package.name, ".")
    config = directory / "nginx.conf"
    config.write_text(NGINX_CONFIG.format(directory=directory, stub=stub, port=port))
    return Peer("nginx", [binary, "-p", directory, "-c", config])


def production_stack(directory: Path, stub: int, port: int, source: str | None) -> Peer:
    """vLLM production-stack's router; it asks for Python 3.12."""
    python = _environment(directory, 12, [source or PRODUCTION_STACK])
    flags = ["--service-discovery", "static", "--static-backends", f"http://127.0.0.1:{stub}"]
    flags += ["--static-models", "stub", "--routing-logic", "roundrobin"]
    command = [str(python), "-m", "vllm_router.app", "--host", "127.0.0.1", "--port", str(port), *flags]
    return Peer("production-stack router", command)


def litellm(directory: Path, stub: int, port: int, source: str | None) -> Peer:
    """LiteLLM's proxy."""
    python = _environment(directory, 9, [source or LITELLM])
    config = directory / "config.yaml"
    parameters = {"model": "openai/stub", "api_base": f"http://127.0.0.1:{stub}/v1", "api_key": KEY}
    # JSON is YAML
    config.write_text(json.dumps({"model_list": [{"model_name": "stub", "litellm_params": parameters}]}))
    command = [
        str(python.parent / "litellm"),
        "--config",
        str(config),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    environment = {
        "LITELLM_LOG": "ERROR",
        "LITELLM_MASTER_KEY": KEY,
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    return Peer("LiteLLM proxy", [*command, "--num_workers", "1", "--telemetry", "False"], environment)


PEERS: dict[str, Install] = {
    "ours": ours,
    "nginx": nginx,
    "production-stack": production_stack,
    "litellm": litellm,
}


def _environment(directory: Path, minor: int, packages: Sequence[str]) -> Path:
    """The interpreter, at least 3.`minor`, of an environment with `packages`; made if it is not there."""
    python = directory / "venv/bin/python"
    done = directory / "installed"
    if not done.exists() or done.read_text() != "\n".join(packages):
        _run(directory, _interpreter(minor), "-m", "venv", "--clear", "venv")
        _run(directory, str(python), "-m", "pip", "install", "--quiet", *packages)
        done.write_text("\n".join(packages))
    return python


def _interpreter(minor: int) -> str:
    if sys.version_info >= (3, minor):
        return sys.executable
    for newer in range(minor, minor + 4):
        name = f"python3.{newer}"
        if shutil.which(name) and subprocess.run([name, "-V"], capture_output=True).returncode == 0:
            return name
    raise NotInstallable(f"needs Python 3.{minor}, which is not on this machine")


def _run(directory: Path, *command: str) -> None:
    try:
        subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise NotInstallable(str(error)) from None
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout).strip().splitlines() or ["no reason given"]
        raise NotInstallable(f"{command[0]}: {lines[-1]}") from None
