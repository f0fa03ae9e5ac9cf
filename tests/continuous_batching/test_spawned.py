"""An engine process and the process that started it."""

from __future__ import annotations

import pickle
import time
from pathlib import Path

import zmq

from server.continuous_batching import messages
from server.continuous_batching.config import ServerConfig
from server.continuous_batching.endings import REFUSED_EXIT
from server.continuous_batching.spawned import SpawnedEngine
from tests.e2e.stack import damaged_model


def start(model: Path) -> SpawnedEngine:
    """An engine process that has its configuration, and reads the model's itself."""
    loading = {"model_loading_config": {"model_name_or_path": str(model)}}
    engine = SpawnedEngine()
    engine.configure([ServerConfig.model_validate(loading).to_json(), pickle.dumps(None)])
    assert engine.configured is not None
    engine.configured.result(60)
    return engine


def test_a_refusal_reaches_a_server_that_listens_later(tmp_path: Path) -> None:
    engine = start(damaged_model(tmp_path))
    time.sleep(5.0)  # longer than it takes to refuse the model
    assert engine._process.poll() is None
    with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
        engine.listen(socket)
        last: messages.FromEngine = messages.Loading("", 0.0)
        while not isinstance(last, messages.Refused):
            assert socket.poll(60_000)
            last = messages.decode_from_engine(socket.recv())
        assert "safetensors" in last.message
        assert engine._process.wait(60) == REFUSED_EXIT
    engine.kill()


def test_an_engine_without_a_listener_ends_when_its_pipe_closes(tmp_path: Path) -> None:
    engine = start(damaged_model(tmp_path))
    time.sleep(3.0)
    assert engine._process.stdin is not None
    engine._process.stdin.close()
    assert engine._process.wait(10) == 0
    engine.kill()
