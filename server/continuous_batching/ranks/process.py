"""A rank beside rank 0: ``python -m server.continuous_batching.ranks.process DIRECTORY RANK COUNT PARENT``.

Reads the configuration as one line of JSON from standard input, loads its part of the model, and does what
rank 0 says. It ends with rank 0, whatever it is doing.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import zmq

from server.checkpoints.errors import ModelError
from server.continuous_batching.build_rank import build_rank
from server.continuous_batching.config import ServerConfig
from server.continuous_batching.endings import RANK_LOST_EXIT, REFUSED_EXIT, reason
from server.continuous_batching.ranks import messages
from server.continuous_batching.ranks.beats import Beats
from server.continuous_batching.start_pipe import receive_parts
from server.device.collectives import Group
from server.layers.shard import Shard
from server.worker.worker import Worker
from utils.garbage import tame_collector
from utils.parent import signal_at_parent_death

logger = logging.getLogger(__name__)


class Follower:
    """Does the calls of rank 0.

    Args:
        worker: of this rank.
        socket: connected to rank 0.
        told: called once rank 0 speaks.
    """

    def __init__(self, worker: Worker, socket: zmq.Socket[bytes], told: Callable[[], None]) -> None:
        self._worker = worker
        self._socket = socket
        self._told = told
        self._failed = False

    def run(self) -> int:
        """Work until rank 0 ends or the ranks are out of step; returns the exit status."""
        while True:
            message = messages.decode_to_rank(self._socket.recv())
            if isinstance(message, messages.Ask):
                self._socket.send(messages.encode(messages.State(self._failed)))
                self._failed = False
                self._told()
                continue
            if isinstance(message, messages.End):
                return 0
            if self._failed:
                return RANK_LOST_EXIT  # what failed here did not fail on rank 0, or it would have asked
            try:
                self._do(message)
            except Exception:
                logger.exception("a call failed")
                self._failed = True

    def _do(self, message: messages.Call | messages.Sample) -> None:
        if isinstance(message, messages.Sample):
            self._worker.sample(message.sample)
        elif message.kind == "launch":
            self._worker.launch(message.step)
        elif message.kind == "swap":
            self._worker.swap(message.step)
        else:
            self._worker.copy(message.step)
        self._worker.take_timings()


def _connect(context: zmq.Context[zmq.Socket[bytes]], path: Path) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.PAIR)
    socket.setsockopt(zmq.LINGER, 1000)
    socket.connect(f"ipc://{path}")
    return socket


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("rank", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("parent", type=int)
    parser.add_argument("--ends-leader", action="store_true", help="end rank 0 if it hangs")
    return parser.parse_args()


def follow(
    config: ServerConfig,
    shard: Shard,
    directory: Path,
    context: zmq.Context[zmq.Socket[bytes]],
    lost: Callable[[str], None],
) -> int:
    """Follow rank 0 to its end; returns the exit status.

    Args:
        directory: where rank 0 is found.
        lost: called from another thread with what is wrong when rank 0 gives no sign of life.
    """
    socket, pulse = (_connect(context, directory / f"{name}-{shard.rank}") for name in ("steps", "beats"))
    beats = Beats({0: pulse}, lambda: None, lost)

    def join(device: torch.device) -> Group:
        socket.send(messages.encode(messages.Read()))
        beats.start()
        return Group(directory, shard.rank, shard.ranks, device)

    try:
        built = build_rank(config, shard, join)
        tame_collector()
        loaded = built.loaded
        socket.send(messages.encode(messages.Loaded(str(loaded.device), loaded.weights_bytes)))
        return Follower(built.worker, socket, beats.begin).run()
    except (ModelError, ValueError, OSError, MemoryError, RuntimeError) as error:
        socket.send(messages.encode(messages.Refused(reason(error))))
        return REFUSED_EXIT
    finally:
        beats.end()
        context.destroy(linger=1000)


def main() -> int:
    """Follow rank 0 until the process is ended."""
    arguments = _parse()
    signal_at_parent_death(arguments.parent, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for rank 0, with which this one ends
    form = f"%(asctime)s %(levelname)s rank {arguments.rank}: %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=form)
    startup_data = receive_parts(sys.stdin.fileno())

    def lost(problem: str) -> None:
        logger.error("%s", problem)
        if arguments.ends_leader:
            os.kill(arguments.parent, signal.SIGKILL)
        os._exit(RANK_LOST_EXIT)

    config = ServerConfig.model_validate_json(startup_data.get())
    shard = Shard(arguments.rank, arguments.count)
    return follow(config, shard, arguments.directory, zmq.Context(), lost)


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # threads of the collectives may wait for ranks that are gone
