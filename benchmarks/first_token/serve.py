"""The HTTP process with stamps: ``.venv/bin/python -m benchmarks.first_token.serve CONFIG PORT``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.first_token.stamps import after, before, own_stamps
from benchmarks.gpu.made_up_weights import serve
from protocol.headers import REQUEST_ID
from server.api import completions
from server.api.answer import EventStream
from server.continuous_batching import messages
from server.continuous_batching.service import ContinuousBatchingService
from server.continuous_batching.supervisor import EngineSupervisor
from utils.http_server import HttpProtocol


def watch() -> None:
    """Note when requests pass through this process."""
    stamps = own_stamps()

    def arrived(protocol: HttpProtocol) -> None:
        for name, value in protocol.headers:
            if name.decode() == REQUEST_ID:
                stamps.note(value.decode(), "arrived")

    def parsed(context: Any, request: Any, *_: Any) -> None:
        stamps.note(request.state.request_id, "parsed")

    def submitted(_: EngineSupervisor, message: messages.ToEngine) -> None:
        if isinstance(message, messages.Add):
            stamps.note(message.request_id, "submitted")

    def told(_: ContinuousBatchingService, report: messages.Report) -> None:
        for delta in report.output.deltas:
            stamps.note(delta.request_id, "told")

    before(HttpProtocol, "on_headers_complete", arrived)
    before(completions, "answer", parsed)
    after(EngineSupervisor, "send", submitted)
    before(ContinuousBatchingService, "_on_report", told)
    before(EventStream, "_start", lambda stream, _: stamps.note(stream._request_id, "written"))


if __name__ == "__main__":
    watch()
    serve(Path(sys.argv[1]), int(sys.argv[2]), "benchmarks.first_token.engine")
