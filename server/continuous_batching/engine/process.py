"""The engine process: ``python -m server.continuous_batching.engine.process ADDRESS``.

Reads the configuration as one line of JSON from standard input, loads the model and steps while
there is work. Standard input stays open for as long as the parent lives; its end is ours.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING

import zmq

from server.continuous_batching.config import ServerConfig
from server.continuous_batching.engine import messages
from server.continuous_batching.engine.outputs import StepOutput
from server.continuous_batching.engine.phases import phase
from server.continuous_batching.models.config import ModelError
from server.continuous_batching.scheduler.request import Request
from server.continuous_batching.tokenizer import load_tokenizer
from utils.garbage import tame_collector

if TYPE_CHECKING:
    from server.continuous_batching.engine.engine import Engine

REFUSED_EXIT = 3
"""Exit status where the model cannot be served: trying again would not help."""

STATS_INTERVAL_SECONDS = 0.1

logger = logging.getLogger(__name__)


class EngineLoop:
    """Steps an engine and speaks for it.

    Args:
        engine: model loaded.
        socket: connected to the HTTP side.
    """

    def __init__(self, engine: Engine, socket: zmq.Socket[bytes]) -> None:
        self._engine = engine
        self._socket = socket
        self._poller = zmq.Poller()
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(sys.stdin.fileno(), zmq.POLLIN)
        self._stats_due = 0.0

    def run(self) -> None:
        """Work until the parent is gone."""
        while self._receive():
            if self._engine.has_work:
                self._report(self._engine.step())

    def _receive(self) -> bool:
        """Take all messages, waiting for one if there is nothing to do; False: the parent is gone."""
        events = dict(self._poller.poll(0 if self._engine.has_work else None))
        if sys.stdin.fileno() in events:
            return False
        while self._socket in events:
            self._handle(messages.decode_to_engine(self._socket.recv()))
            events = dict(self._poller.poll(0))
        return True

    def _handle(self, message: messages.ToEngine) -> None:
        if isinstance(message, messages.Cancel):
            self._engine.cancel(message.request_id)
            self._stats_due = 0.0
            if not self._engine.has_work:
                self._report(StepOutput())
            return
        now = time.monotonic()
        request = Request(
            message.request_id,
            message.prompt,
            message.params,
            now,
            priority=message.priority,
            deadline=None if message.patience is None else now + message.patience,
            stream=message.stream,
            emitted=message.emitted,
            finished_answers=frozenset(message.finished_answers),
        )
        refusal = self._engine.add(request)
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


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Of numpy, of CUDA, or of torch on a CPU, which has no type for it."""
    from torch import OutOfMemoryError

    return isinstance(error, MemoryError | OutOfMemoryError) or "can't allocate memory" in str(error)


def main() -> int:
    """Serve until the parent is gone; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    given = sys.stdin.readline()
    if not given:
        return 0  # the parent is gone already
    config = ServerConfig.model_validate_json(given)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.setsockopt(zmq.LINGER, 1000)
    socket.connect(sys.argv[1])
    try:
        with phase("tokenizer"):
            tokenizer = load_tokenizer(config.model_loading_config)
        with phase("import of torch"):
            from server.continuous_batching.engine.build import build_engine
        built = build_engine(config, tokenizer.hf)
    except (ModelError, ValueError, OSError) as error:
        socket.send(messages.encode(messages.Refused(" ".join(str(error).split()))))
        return REFUSED_EXIT
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        message = f"the memory does not suffice for this model and configuration ({error})"
        socket.send(messages.encode(messages.Refused(" ".join(message.split()))))
        return REFUSED_EXIT
    tame_collector()
    limits, model = built.engine.limits, built.model
    ready = messages.Ready(limits, model.vocab_size, model.eos_token_ids, built.capabilities)
    socket.send(messages.encode(ready))
    EngineLoop(built.engine, socket).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
