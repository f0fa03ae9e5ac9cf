"""The engine process: ``.venv/bin/python -m server.continuous_batching.engine_process ADDRESS PARENT``.

Imports torch, receives its startup data (`start_pipe`), loads the model and runs steps while there is work.
What takes transformers to read comes from the HTTP process, which has it (`checkpoint_reader`). It ends with
its parent, whatever it is doing: computing, loading, or waiting to send.
"""

from __future__ import annotations

import logging
import os
import pickle
import select
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import zmq

from server.checkpoints.errors import ModelError
from server.continuous_batching import messages
from server.continuous_batching.config import ServerConfig
from server.continuous_batching.endings import RANK_LOST_EXIT, REFUSED_EXIT, reason
from server.continuous_batching.model_texts import wants_models
from server.continuous_batching.outputs import RequestFailure, StepOutput
from server.continuous_batching.phases import phase, phases_told_to
from server.continuous_batching.start_pipe import receive_parts
from server.device.cuda_context import create_context
from server.scheduling.request import Request
from server.text.light_transformers import import_transformers_without_torch
from utils.garbage import tame_collector, without_collections
from utils.parent import signal_at_parent_death
from utils.threads import share_interpreter

if TYPE_CHECKING:
    from server.continuous_batching.build import BuiltEngine
    from server.continuous_batching.engine import Engine

STATS_INTERVAL_SECONDS = 0.1
LOOK_SECONDS = 3e-4
"""Between two checks whether the device has finished early."""

logger = logging.getLogger(__name__)


class EngineLoop:
    """Runs the engine's steps and sends its messages.

    Args:
        engine: model loaded.
        socket: connected to the HTTP side.
    """

    def __init__(self, engine: Engine, socket: zmq.Socket[bytes]) -> None:
        self._engine = engine
        self._socket = socket
        self._stats_due = 0.0

    def run(self) -> None:
        """Work until the process is ended."""
        while True:
            self._receive()
            if self._engine.has_work:
                self._report(self._engine.step())

    def _receive(self) -> None:
        """Handle all messages that come until the next step is to be planned; without work, wait for one."""
        while True:
            patience = self._patience()
            if self._has_message(patience):
                self._handle(messages.decode_to_engine(self._socket.recv()))
            elif patience == 0.0:
                return

    def _patience(self) -> float | None:
        """Seconds to wait for a message before the next check; None: until one comes."""
        if not self._engine.has_work:
            return None
        return min(max(self._engine.slack(), 0.0), LOOK_SECONDS)

    def _has_message(self, patience: float | None) -> bool:
        """Whether a message is there or comes within `patience`; its own timeouts are whole milliseconds."""
        if self._socket.poll(0):
            return True
        if patience == 0.0:
            return False
        select.select([self._socket], [], [], patience)
        return bool(self._socket.poll(0))

    def _handle(self, message: messages.ToEngine) -> None:
        if isinstance(message, messages.Cancel):
            self._engine.cancel(message.request_id)
            self._stats_due = 0.0
            if not self._engine.has_work:
                self._report(StepOutput())
            return
        try:
            refusal = self._engine.add(_request(message, time.monotonic()))
        except Exception as error:
            logger.exception("request %s cannot be made", message.request_id)
            text = f"this request failed: {error}"
            refusal = RequestFailure(message.request_id, 500, "generation_failed", text)
        if refusal is not None:
            self._report(StepOutput(failures=[refusal]))

    def _report(self, output: StepOutput) -> None:
        now = time.monotonic()
        stats = None
        if now >= self._stats_due or not self._engine.has_work:
            stats = self._engine.stats()
            self._stats_due = now + STATS_INTERVAL_SECONDS
        if output or stats is not None:
            self._socket.send(messages.encode(messages.Report(output, stats)))


def _request(message: messages.Add, now: float) -> Request:
    return Request(
        message.request_id,
        message.prompt,
        message.params,
        now,
        priority=message.priority,
        deadline=None if message.patience is None else now + message.patience,
        stream=message.stream,
        emitted=message.emitted,
        finished_answers=frozenset(message.finished_answers),
        cache_salt=message.cache_salt,
    )


def _read_config(part: bytes) -> ServerConfig:
    """The server's configuration, and the context of the GPU that it may ask for."""
    config = ServerConfig.model_validate_json(part)
    if config.model_loading_config.device != "cpu":
        create_context()
    return config


def lost_rank(problem: str) -> None:
    """End this process at once, whatever it is waiting for: the supervisor starts all ranks again."""
    logger.critical("the engine ends: %s", problem)
    os._exit(RANK_LOST_EXIT)


def serve(socket: zmq.Socket[bytes]) -> int:
    """Load the model and serve until the process is ended.

    Args:
        socket: connected to the HTTP side.

    Returns:
        The exit status where the model cannot be served; the reason is sent.
    """

    def tell(name: str) -> None:
        socket.send(messages.encode(messages.Loading(name, time.monotonic())))

    try:
        with phases_told_to(tell):
            built = _build()
    except (ModelError, ValueError, OSError, MemoryError, RuntimeError) as error:
        socket.send(messages.encode(messages.Refused(reason(error))))
        return REFUSED_EXIT
    tame_collector()
    share_interpreter()
    model = built.model
    ready = messages.Ready(
        limits=built.engine.limits,
        vocab_size=model.vocab_size,
        eos_token_ids=model.eos_token_ids,
        capabilities=built.capabilities,
        fingerprint=built.fingerprint,
    )
    socket.send(messages.encode(ready))
    EngineLoop(built.engine, socket).run()
    raise AssertionError("the loop does not end")


def _build() -> BuiltEngine:
    """Import torch, and build the engine from the startup data."""
    parts = receive_parts(sys.stdin.fileno())
    reader = ThreadPoolExecutor(1, "configuration")
    read = reader.submit(lambda: _read_config(parts.get()))
    with phase("import of torch"), without_collections():
        from server.continuous_batching.build import build_engine
    with phase("configuration"):
        config = read.result()
        reader.shutdown()
    if config.speculation_config.has_drafter and not wants_models(config):
        with phase("import of transformers"):
            import_transformers_without_torch()
    with phase("configuration of the model"):
        hf = pickle.loads(parts.get())
    return build_engine(config, hf, lambda: pickle.loads(parts.get()), lost_rank)


def main() -> int:
    """Serve until the process is ended; returns the exit status where the model cannot be served."""
    signal_at_parent_death(int(sys.argv[2]), signal.SIGKILL)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # The last message may be the reason for a refusal, and the HTTP process may not be listening yet: the
    # context closes once all messages have been received.
    with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
        socket.connect(sys.argv[1])
        return serve(socket)


if __name__ == "__main__":
    sys.exit(main())
