"""What a server takes is known while it starts again."""

from __future__ import annotations

import dataclasses

from client.health.replicas import Registry
from client.health.report import Report
from protocol import routes
from protocol.accepts import Accepts
from protocol.status import ServerState


def test_a_server_that_loads_keeps_its_terms() -> None:
    """It tells them once it is ready: until then a stream of any route waits for it."""
    registry = Registry(lambda: 0.0)
    replica = registry.join("continuous_batching", "http://a", "config")
    told = Accepts(routes=(routes.OPENAI_RESPONSES,))
    ready = Report(kind=replica.kind, state=ServerState.READY, names=("m",), accepts=told)
    registry.reported(replica, ready)
    assert replica.terms.routes == {routes.OPENAI_RESPONSES}
    registry.refused(replica, "killed")
    registry.reported(replica, dataclasses.replace(ready, state=ServerState.LOADING, accepts=None))
    assert replica.terms.routes == {routes.OPENAI_RESPONSES}
    for _ in range(3):  # another program, of before there were terms
        registry.reported(replica, dataclasses.replace(ready, accepts=None))
    assert routes.OPENAI_RESPONSES not in replica.terms.routes
