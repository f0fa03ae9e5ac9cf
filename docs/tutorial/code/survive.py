"""Chapter 11: a stream whose server is killed goes on, byte for byte. Starts three processes of its own.

.venv/bin/python -m docs.tutorial.code.survive
"""

from __future__ import annotations

import json
import signal
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

from docs.tutorial.code.common import DEMO, start

MODEL = {"model_name_or_path": DEMO, "torch_dtype": "float32", "num_threads": 1}
OPTIONS = {"max_new_tokens": 1500, "ignore_eos": True}
BODY = {"model": "demo", "prompt": "Once upon a time", "generation_config": OPTIONS, "stream": True}


def status(gateway: str) -> Any:
    with urllib.request.urlopen(f"{gateway}/status", timeout=5) as answer:
        return json.load(answer)


def stream(gateway: str) -> Iterator[str]:
    request = urllib.request.Request(f"{gateway}/completion/v2", json.dumps(BODY).encode())
    with urllib.request.urlopen(request, timeout=120) as lines:
        for line in lines:
            if line.startswith(b'data: {"choices":[{'):
                yield json.loads(line[6:])["choices"][0]["text"]


def main(argv: list[str] | None = None) -> None:
    services: list[tuple[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        try:
            app, config = "continuous_batching_server_app.py", {"model_loading_config": MODEL}
            services += [start(app, "server", config, place, "--model_id", "demo") for _ in range(2)]
            config = {"continuous_batching_server_urls": [url for url, _ in services]}
            services.append(start("client_app.py", "client", config, place))
            gateway = services[-1][0]
            wait(gateway)
            undisturbed = "".join(stream(gateway))
            pieces = stream(gateway)
            text = next(pieces)
            busy = next(r["url"] for r in status(gateway)["replicas"] if r["requests_in_flight"])
            dict(services)[busy].send_signal(signal.SIGKILL)
            text += "".join(pieces)
            resumed = status(gateway)["requests"]["resumed_streams"]
        finally:
            for _, process in services:
                process.kill()
    print(f"the server that was answering was killed; streams continued elsewhere: {resumed}")
    print(f"{len(text)} characters came, the same as without the kill: {text == undisturbed}")


def wait(gateway: str) -> None:
    for _ in range(600):
        try:
            if sum(r["state"] == "ready" for r in status(gateway)["replicas"]) == 2:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise SystemExit("the servers did not start")


if __name__ == "__main__":
    main()
