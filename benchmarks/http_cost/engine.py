"""An engine process that computes nothing:
``.venv/bin/python -m benchmarks.http_cost.engine ADDRESS PARENT``.

It speaks the messages of `server.continuous_batching.messages`, and gives each request a token a step, at the
steps a second that the environment says. It begins once as many requests wait as it says there.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import zmq

from protocol.completion import FinishReason
from server.continuous_batching import messages
from server.continuous_batching.outputs import AnswerDelta, StepOutput
from server.continuous_batching.start_pipe import receive_parts
from server.continuous_batching.stats import EngineStats
from server.scheduling.limits import GroupSize, Limits
from utils.parent import signal_at_parent_death

STREAMS = "HTTP_COST_STREAMS"
STEPS_PER_SECOND = "HTTP_COST_STEPS_PER_SECOND"
FIRST_TOKEN, LAST_TOKEN = 68, 93
"""Letters, in the tokenizer of `benchmarks.checkpoints`."""


def ready(streams: int) -> messages.Ready:
    """What an engine with room for so many streams says of itself."""
    groups = (GroupSize(2**20),)
    limits = Limits(8192, streams, streams, 8192, 8192, groups, 16, 0.0)
    capabilities = {"device": "cpu"}
    return messages.Ready(limits, 300, (), capabilities, "http-cost")


class Counting:
    """Requests in hand, and the tokens that each has still to get."""

    def __init__(self) -> None:
        self._left: dict[str, int] = {}
        self._streamed: dict[str, bool] = {}
        self._answers: dict[str, list[int]] = {}
        self._steps = 0

    @property
    def requests(self) -> int:
        return len(self._left)

    def take(self, message: messages.ToEngine) -> None:
        """Add or forget a request."""
        if isinstance(message, messages.Cancel):
            self._left.pop(message.request_id, None)
            return
        self._left[message.request_id] = message.params.max_new_tokens
        self._streamed[message.request_id] = message.stream
        self._answers[message.request_id] = []

    def step(self) -> messages.Report:
        """A token for each."""
        self._steps += 1
        token = FIRST_TOKEN + self._steps % (LAST_TOKEN - FIRST_TOKEN)
        output = StepOutput()
        for request_id in list(self._left):
            answer = self._answers[request_id]
            if not answer:
                output.started[request_id] = 0
                if not self._streamed[request_id]:
                    output.begun.append(request_id)
            answer.append(token)
            self._left[request_id] -= 1
            reason: FinishReason | None = None if self._left[request_id] else "length"
            if self._streamed[request_id]:
                output.deltas.append(AnswerDelta(request_id, 0, [token], reason))
            elif reason is not None:
                output.deltas.append(AnswerDelta(request_id, 0, answer, reason))
            if reason is not None:
                output.done.append(request_id)
                del self._left[request_id]
        return messages.Report(output, EngineStats(steps=self._steps, running=len(self._left)))


def main() -> None:
    """Work until the process is ended."""
    signal_at_parent_death(int(sys.argv[2]), signal.SIGKILL)
    streams, pause = int(os.environ[STREAMS]), 1.0 / float(os.environ[STEPS_PER_SECOND])
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.connect(sys.argv[1])
    receive_parts(sys.stdin.fileno())  # an unread pipe would block the server; no part is needed here
    socket.send(messages.encode(ready(streams)))
    counting, due, begun = Counting(), 0.0, False
    while True:
        wait = max(0.0, due - time.monotonic()) if begun else None
        if socket.poll(None if wait is None else int(1e3 * wait)):
            counting.take(messages.decode_to_engine(socket.recv()))
            begun = begun or counting.requests >= streams
        elif counting.requests:
            due = max(due + pause, time.monotonic())
            socket.send(messages.encode(counting.step()))
        else:
            begun = False


if __name__ == "__main__":
    main()
