"""When the next step is planned where steps overlap."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import zmq

from server.continuous_batching.engine_process import LOOK_SECONDS, EngineLoop
from server.continuous_batching.launched import Launched
from server.continuous_batching.pace import MARGIN_SECONDS, Pace
from server.scheduling.step_time import StepTime

LEAD = 0.0005
STEP = 0.01


class Device:
    """A device whose steps all take `STEP`, and an engine that launches and reads them."""

    def __init__(self) -> None:
        self.now = 100.0
        self._free = 0.0
        self.pace = Pace(StepTime(), lambda: self.now)

    def launch(self, rows: int = 8, chunks: tuple[Any, ...] = ()) -> Launched:
        begin = self.now
        self.now += LEAD
        plan: Any = SimpleNamespace(num_tokens=rows, decodes=[None] * rows, chunks=chunks)
        self._free = max(self._free, self.now) + STEP
        step = Launched(plan, [], SimpleNamespace(is_ready=False), begin)  # type: ignore[arg-type]
        self.pace.launched(plan, begin)
        return step

    def read(self, step: Launched, end: float) -> None:
        self.now = max(self.now, end)
        self.pace.read(step)

    def warmed(self) -> Launched:
        """A step that has just begun, after some of its size; each is launched before the last one ends."""
        step = self.launch()
        for _ in range(5):
            end = self._free
            following = self.launch()
            self.read(step, end)
            step = following
        return step


def test_the_next_step_is_planned_shortly_before_the_last_ends() -> None:
    device = Device()
    step = device.warmed()
    slack = device.pace.slack(step, 0)
    assert pytest.approx(slack, abs=1e-4) == 0.95 * STEP - LEAD - MARGIN_SECONDS
    device.now += slack / 2
    assert device.pace.slack(step, 0) == pytest.approx(slack / 2)


def test_no_time_is_lost_where_the_device_is_done_or_nothing_is_known() -> None:
    device = Device()
    assert device.pace.slack(None, 0) == 0.0
    assert device.pace.slack(device.launch(), 0) == 0.0
    step = device.warmed()
    step.choice = SimpleNamespace(is_ready=True)  # type: ignore[assignment]
    assert device.pace.slack(step, 0) == 0.0
    step.choice = None
    assert device.pace.slack(step, 0) == 0.0


def test_steps_with_prompts_are_planned_when_their_longer_launch_needs_it() -> None:
    device = Device()
    step = device.warmed()
    assert device.pace.slack(step, 400) == 0.0, "how long they take to launch is not known"
    begin, device.now = device.now, device.now + 0.004
    device.pace.launched(SimpleNamespace(chunks=[1], num_tokens=500), begin)  # type: ignore[arg-type]
    assert device.pace.slack(step, 4000) == 0.0, "nor how long those take that are not replayed"
    plain, with_prompts = (device.pace.slack(step, waiting) for waiting in (0, 400))
    assert plain - with_prompts == pytest.approx(0.004 - LEAD)


def test_a_prompt_that_goes_on_counts_as_one_that_waits() -> None:
    device = Device()
    step = device.warmed()
    begin, device.now = device.now, device.now + 0.004
    device.pace.launched(SimpleNamespace(chunks=[1], num_tokens=500), begin)  # type: ignore[arg-type]
    waiting = device.pace.slack(step, 400)
    step.plan.chunks = [SimpleNamespace(end=100, sequence=SimpleNamespace(prefill_end=500))]  # type: ignore[list-item]
    for _ in range(5):
        device.pace._times.observe(step.plan, STEP)
    assert device.pace.slack(step, 0) == pytest.approx(waiting)


class Engine:
    """Has work, and the given slacks one after the other."""

    has_work = True

    def __init__(self, *slacks: float) -> None:
        self._slacks = list(slacks)

    def slack(self) -> float:
        return self._slacks.pop(0)


class Loop(EngineLoop):
    """Messages come at the given waits; remembers how long it was to wait."""

    def __init__(self, engine: Any, *arrivals: int) -> None:
        super().__init__(engine, SimpleNamespace(recv=bytes))  # type: ignore[arg-type]
        self._arrivals = arrivals
        self.waits: list[float | None] = []
        self.handled = 0

    def _has_message(self, patience: float | None) -> bool:
        self.waits.append(patience)
        return len(self.waits) - 1 in self._arrivals

    def _handle(self, message: Any) -> None:
        self.handled += 1


@pytest.mark.parametrize(
    ("slacks", "arrivals", "waits"),
    [
        ([0.0], [], [0.0]),
        ([-0.5, 0.0], [0], [0.0, 0.0]),
        ([0.0052, 0.0049, 0.0001, -0.1], [], [LOOK_SECONDS, LOOK_SECONDS, 0.0001, 0.0]),
        ([0.005, 0.004, 0.0], [0, 1], [LOOK_SECONDS, LOOK_SECONDS, 0.0]),
    ],
)
def test_the_loop_takes_requests_until_the_step_is_due(
    monkeypatch: pytest.MonkeyPatch, slacks: list[float], arrivals: list[int], waits: list[float]
) -> None:
    monkeypatch.setattr("server.continuous_batching.messages.decode_to_engine", lambda data: data)
    loop = Loop(Engine(*slacks), *arrivals)
    loop._receive()
    assert loop.waits == waits and loop.handled == len(arrivals)


def test_messages_are_waited_for_no_longer_than_asked() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context, context.socket(zmq.PAIR) as here, context.socket(zmq.PAIR) as there:
        here.bind("inproc://pace")
        there.connect("inproc://pace")
        loop = EngineLoop(SimpleNamespace(has_work=False), here)  # type: ignore[arg-type]
        assert loop._patience() is None
        begin = time.monotonic()
        assert not loop._has_message(0.0) and not loop._has_message(0.02)
        assert time.monotonic() - begin < 1.0
        for number in range(3):
            there.send(b"%d" % number)
        for number in range(3):
            assert loop._has_message(None)
            assert here.recv() == b"%d" % number
        assert not loop._has_message(0.0)
        threading.Timer(0.05, there.send, [b"late"]).start()
        begin = time.monotonic()
        while not loop._has_message(5.0):
            pass
        assert time.monotonic() - begin < 4.0
