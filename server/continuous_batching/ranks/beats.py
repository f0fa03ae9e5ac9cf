"""Signs of life between ranks: each has a thread that beats, whatever its steps do meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import zmq

TICK_SECONDS = 0.1
LOST_SECONDS = 1.0
"""Without a beat for so long, a rank is lost: it was stopped, hangs with the interpreter's lock, or is dead.
A step may take as long as it likes, for the thread that beats does not wait for it."""


class Silence:
    """Counts the seconds since each of some ranks was heard.

    It counts ticks, not time: where all processes were suspended together, none of them is to blame.
    """

    def __init__(self, ranks: Mapping[int, object]) -> None:
        self._seconds = dict.fromkeys(ranks, 0.0)

    def tick(self, seconds: float, heard: set[int]) -> str | None:
        """Count `seconds` more for those that were not `heard`; returns who is lost, once one is."""
        for rank in self._seconds:
            silent = self._seconds[rank] + min(seconds, 2 * TICK_SECONDS)
            self._seconds[rank] = 0.0 if rank in heard else silent
            if self._seconds[rank] >= LOST_SECONDS:
                return f"rank {rank} has given no sign of life for {self._seconds[rank]:.1f} s"
        return None


class Beats(threading.Thread):
    """Beats to other ranks and listens to theirs.

    Args:
        sockets: a pair with each of them, which only this thread uses.
        check: finds what else may be wrong, at every tick; None: nothing is.
        lost: called once with what is wrong; then the thread ends.

    Loading may hold the interpreter's lock for longer: silence counts from `begin` on.
    """

    def __init__(
        self,
        sockets: Mapping[int, zmq.Socket[bytes]],
        check: Callable[[], str | None],
        lost: Callable[[str], None],
    ) -> None:
        super().__init__(name="rank-beats", daemon=True)
        self._sockets = sockets
        self._check = check
        self._lost = lost
        self._begun, self._ended = threading.Event(), threading.Event()

    def run(self) -> None:
        silence, last = Silence(self._sockets), time.monotonic()
        while not self._ended.wait(TICK_SECONDS):
            heard = {rank for rank, socket in self._sockets.items() if self._beat(socket)}
            now = time.monotonic()
            last, passed = now, now - last
            problem = self._check()
            if problem is None and self._begun.is_set():
                problem = silence.tick(passed, heard)
            if problem is not None and not self._ended.is_set():
                self._lost(problem)
                return

    @staticmethod
    def _beat(socket: zmq.Socket[bytes]) -> bool:
        """Send a beat; returns whether any came."""
        came = False
        with suppress(zmq.Again):
            while True:
                socket.recv(zmq.NOBLOCK)
                came = True
        with suppress(zmq.Again):  # of one that does not listen, the silence tells
            socket.send(b"", zmq.NOBLOCK)
        return came

    def begin(self) -> None:
        """From now on, silence is a failure."""
        self._begun.set()

    def end(self) -> None:
        """Stop beating and listening; sockets may be closed then."""
        self._ended.set()
        if self.is_alive() and threading.current_thread() is not self:
            self.join()
