"""Stands for `vllm serve`: loads, answers, and drains on SIGTERM. What it was given is in ``/given``.

A model called ``failing`` ends it while it loads, and a request for ``/die`` at any time.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LOAD_SECONDS = 0.5
READY_AT = time.monotonic() + LOAD_SECONDS


class Handler(BaseHTTPRequestHandler):
    slow = 0

    def do_GET(self) -> None:
        if self.path == "/die":
            subprocess.Popen(["sleep", "600"])  # what an engine leaves behind
            os._exit(7)
        if self.path == "/slow":
            Handler.slow += 1
            time.sleep(1.5)
        loading = self.path == "/health" and time.monotonic() < READY_AT
        body = json.dumps(
            {"argv": sys.argv[1:], "environment": dict(os.environ), "slow": Handler.slow}
        ).encode()
        self.send_response(503 if loading else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    options = dict(zip(sys.argv[3::2], sys.argv[4::2], strict=False))
    if options["--served-model-name"] == "failing":
        sys.exit("vllm serve: error: unrecognized arguments: --no-such-option")
    server = ThreadingHTTPServer((options["--host"], int(options["--port"])), Handler)
    server.daemon_threads = False  # requests in flight are finished
    stop = threading.Thread(target=server.shutdown)
    signal.signal(signal.SIGTERM, lambda *_: stop.start())
    server.serve_forever()
    server.server_close()


if __name__ == "__main__":
    main()
