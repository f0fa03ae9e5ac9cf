"""Rank 0's side: starts the other ranks, tells them what to do, and notices when one is lost."""

from __future__ import annotations

import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
import zmq

from server.checkpoints.errors import ModelError
from server.continuous_batching.config import ServerConfig
from server.continuous_batching.ranks import messages
from server.continuous_batching.ranks.beats import Beats
from server.continuous_batching.ranks.others import Others
from server.continuous_batching.socket_paths import socket_root
from server.device.collectives import Group

_ANSWER_SECONDS = 30.0
"""Within which a rank that failed as rank 0 did says so."""
_POLL_MILLISECONDS = 100

Message = TypeVar("Message", messages.Read, messages.Loaded, messages.State)


class RankLostError(RuntimeError):
    """A rank is gone or out of step: the engine can compute no more."""


class Ranks:
    """The ranks beside this one, each a process; they end with it, and with the thread that makes it.

    Args:
        config: of the server.
        count: how many there are, this one included.
        lost: called, from any thread, with what is wrong when one is gone; it ends this process, which the
            others end, too, where it hangs. None: the others are ended, and calls raise.
    """

    def __init__(self, config: ServerConfig, count: int, lost: Callable[[str], None] | None = None) -> None:
        self.count = count
        directory = tempfile.TemporaryDirectory(prefix="ranks-", dir=socket_root())
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.directory = Path(directory.name)
        self._steps, beats = (
            {rank: bind(context, self.directory / f"{name}-{rank}") for rank in range(1, count)}
            for name in ("steps", "beats")
        )
        self._others = Others(config, count, self.directory, lost)
        self._beats = Beats(beats, self._others.gone, self._others.lose)
        self.close = weakref.finalize(self, _end, self._steps, self._beats, self._others, context, directory)
        self._loaded: list[messages.Loaded] = []

    def join(self, device: torch.device) -> Group:
        """Wait until every rank has read its weights, then let all join.

        Raises:
            ModelError: one cannot.
        """
        for rank in self._steps:
            self._hear(rank, messages.Read)
        self._beats.start()
        self._others.group = Group(self.directory, 0, self.count, device)
        return self._others.group

    def wait_until_loaded(self) -> None:
        """Return once every rank can take steps; from now on each must give signs of life.

        Raises:
            ModelError: one cannot be made ready.
        """
        self._loaded = [self._hear(rank, messages.Loaded) for rank in self._steps]
        self._ask()
        self._beats.begin()

    def describe(self, own: messages.Loaded) -> dict[str, Any]:
        """What there is to know of all ranks, for the operator.

        Args:
            own: what rank 0 has loaded.
        """
        loaded, group = [own, *self._loaded], self._others.group
        assert group is not None
        return {
            "count": self.count,
            "collectives": group.describe(),
            "devices": [each.device for each in loaded],
            "weights_bytes": [each.weights_bytes for each in loaded],
            "pids": self._others.pids,
        }

    def send(self, message: bytes) -> None:
        """Tell all ranks.

        Raises:
            RankLostError: one is lost.
        """
        self.check()
        for socket in self._steps.values():
            while not _sent(socket, message):
                self.check()

    def check(self) -> None:
        """Raise RankLostError if one is lost."""
        if self._others.problem is not None:
            raise RankLostError(self._others.problem)

    def give_up(self, problem: str) -> None:
        """End all ranks: there is no going on."""
        self._others.lose(problem)

    def check_failed_alike(self) -> None:
        """The last call failed here: return once every rank says that it failed there, too.

        Raises:
            RankLostError: one does not; the ranks are out of step.
        """
        for rank, failed in self._ask().items():
            if not failed:
                self._others.lose(f"rank {rank} did what failed on rank 0: the ranks are out of step")
        self.check()

    def _ask(self) -> dict[int, bool]:
        """Of each rank, whether its last call failed."""
        self.send(messages.encode(messages.Ask()))
        return {rank: self._hear(rank, messages.State, _ANSWER_SECONDS).failed for rank in self._steps}

    def _hear(self, rank: int, kind: type[Message], seconds: float = float("inf")) -> Message:
        """The next message of a rank."""
        socket, end = self._steps[rank], time.monotonic() + seconds
        while not socket.poll(_POLL_MILLISECONDS):
            problem = self._others.gone()
            if problem is not None and not socket.poll(0):  # what it said last may have come meanwhile
                self._others.lose(problem)
            if time.monotonic() >= end:
                self._others.lose(f"rank {rank} is out of step: it does not answer")
            self.check()
        message = messages.decode_from_rank(socket.recv())
        if isinstance(message, messages.Refused):
            raise ModelError(f"rank {rank}: {message.message}")
        assert isinstance(message, kind), message
        return message


def bind(context: zmq.Context[zmq.Socket[bytes]], path: Path) -> zmq.Socket[bytes]:
    """Rank 0's end of a pair of sockets, which is a file."""
    socket = context.socket(zmq.PAIR)
    socket.setsockopt(zmq.LINGER, 0)
    socket.bind(f"ipc://{path}")
    return socket


def _sent(socket: zmq.Socket[bytes], message: bytes) -> bool:
    """Whether the other end took it within a moment; one that is gone takes nothing."""
    try:
        socket.send(message, zmq.NOBLOCK)
    except zmq.Again:
        socket.poll(_POLL_MILLISECONDS, zmq.POLLOUT)
        return False
    return True


def _end(
    steps: Mapping[int, zmq.Socket[bytes]],
    beats: Beats,
    others: Others,
    context: zmq.Context[zmq.Socket[bytes]],
    directory: tempfile.TemporaryDirectory[str],
) -> None:
    beats.end()
    for socket in steps.values():
        with suppress(zmq.Again):
            socket.send(messages.encode(messages.End()), zmq.NOBLOCK)
    others.end()
    context.destroy(linger=0)
    directory.cleanup()
