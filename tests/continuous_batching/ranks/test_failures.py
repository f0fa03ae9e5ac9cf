"""What one request causes fails that request alone, on every rank; a lost rank takes all of them down."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import zmq

from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from server.continuous_batching.endings import RANK_LOST_EXIT
from server.continuous_batching.llm import GenerationError
from server.continuous_batching.ranks import leader, messages
from server.continuous_batching.ranks.beats import LOST_SECONDS, TICK_SECONDS, Silence
from server.continuous_batching.ranks.leader import RankLostError
from server.continuous_batching.ranks.process import Follower
from server.sampling.sampling_state import SamplingState
from server.scheduling.step import SampleInput, SlotStart, StepInput
from tests.continuous_batching.driver import Driver
from tests.continuous_batching.ranks.threads import split_llm
from utils.process import wait_until

POISON = 666
"""A seed that the faults below do not bear."""
PROMPT = [5, 17, 250, 99, 3]
SIZES: dict[str, Any] = {"cache_config": {"num_blocks": 64, "num_blocks_cpu": 0}}


def refuse_poison(state: SamplingState, start: SlotStart) -> None:
    if start.params.options["seed"] == POISON:
        raise RuntimeError("injected")
    assign(state, start)


assign = SamplingState.assign


def test_a_request_that_fails_everywhere_fails_alone(tiny_model: Path) -> None:
    llm = split_llm(tiny_model, 2, **SIZES)
    with mock.patch.object(SamplingState, "assign", refuse_poison):
        driver = Driver(llm)
        driver.add("before", PROMPT, {"max_new_tokens": 12})
        driver.step()
        driver.add("poison", PROMPT, {"max_new_tokens": 12, "seed": POISON})
        driver.add("beside", PROMPT, {"max_new_tokens": 12})
        driver.finish()
    assert list(driver.failures) == ["poison"]
    (expected,) = llm.generate([PROMPT], GenerationConfig(max_new_tokens=12))
    for name in ("before", "beside"):
        assert driver.answers(name) == [expected.answers[0].token_ids]


def test_ranks_that_are_out_of_step_are_given_up(tiny_model: Path) -> None:
    """One failed, and the other waits for it within a pass."""
    llm = split_llm(tiny_model, 2, **SIZES)
    state = llm.engine.worker.decoder.state
    with (
        mock.patch.object(state, "assign", lambda start: refuse_poison(state, start)),
        mock.patch.object(leader, "_ANSWER_SECONDS", 0.5),
    ):
        driver = Driver(llm)
        driver.add("poison", PROMPT, {"max_new_tokens": 12, "seed": POISON})
        with pytest.raises(RankLostError, match="rank 1 is out of step: it does not answer"):
            driver.finish()


def test_an_interrupted_step_ends_the_ranks(tiny_model: Path) -> None:
    llm = split_llm(tiny_model, 2, **SIZES)
    with (
        mock.patch.object(llm.engine.worker.decoder, "choose", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        llm.generate([PROMPT], GenerationConfig(max_new_tokens=3))
    with pytest.raises((GenerationError, RankLostError), match="rank 0 was interrupted within a step"):
        llm.generate([PROMPT], GenerationConfig(max_new_tokens=3))


def follower(worker: Any) -> tuple[zmq.Socket[bytes], Future[int]]:
    """(rank 0's socket, the exit status) of a rank with that worker."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    sockets = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    sockets[0].bind(address := f"inproc://{id(worker)}")
    sockets[1].connect(address)
    ended: Future[int] = Future()
    run = Follower(worker, sockets[1], lambda: None).run
    threading.Thread(target=lambda: ended.set_result(run()), daemon=True).start()
    return sockets[0], ended


def test_a_rank_says_that_it_failed_when_it_is_asked() -> None:
    worker = mock.Mock()
    worker.launch.side_effect = [RuntimeError("injected"), None]
    socket, ended = follower(worker)
    for failed in (True, False):
        socket.send(messages.encode_call("launch", StepInput()))
        socket.send(messages.encode(messages.Ask()))
        assert messages.decode_from_rank(socket.recv()) == messages.State(failed)
    socket.send(messages.encode(messages.End()))
    assert ended.result(5) == 0


def test_a_rank_that_failed_and_is_not_asked_ends() -> None:
    """It did not fail on rank 0."""
    worker = mock.Mock()
    worker.sample.side_effect = RuntimeError("injected")
    socket, ended = follower(worker)
    socket.send(messages.encode_sample(SampleInput()))
    socket.send(messages.encode_call("launch", StepInput()))
    assert ended.result(5) == RANK_LOST_EXIT and not worker.launch.called


def test_silence_is_counted_while_others_are_heard() -> None:
    silence = Silence({1: None, 2: None})
    ticks = round(LOST_SECONDS / TICK_SECONDS)
    found = [silence.tick(TICK_SECONDS, {1}) for _ in range(ticks + 1)]
    assert found[: ticks - 1] == [None] * (ticks - 1)
    assert found[-1] is not None and found[-1].startswith("rank 2 has given no sign of life for 1.")


def test_a_machine_that_was_suspended_has_lost_nobody() -> None:
    silence = Silence({1: None})
    assert all(silence.tick(3600.0, set()) is None for _ in range(3))
    assert silence.tick(TICK_SECONDS, {1}) is None and silence.tick(3600.0, set()) is None


def listening(pid: int) -> set[str]:
    """Addresses of the TCP sockets on which a process takes connections, as the kernel writes them."""
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    own = {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
    tables = [Path(f"/proc/{pid}/net/{name}") for name in ("tcp", "tcp6")]
    rows = [row.split() for table in tables if table.exists() for row in table.read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in own}


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_processes_that_are_killed_or_stopped(tiny_model: Path, how: signal.Signals) -> None:
    """The other ranks end with it; what comes next is refused, in one line."""
    loading = {"torch_dtype": "float32", "device": "cpu"}
    parallel = {"tensor_parallel_size": 2}
    options = GenerationConfig(max_new_tokens=12)
    (expected,) = LLM(tiny_model, model_loading_config=loading, **SIZES).generate([PROMPT], options)
    llm = LLM(tiny_model, model_loading_config=loading, parallel_config=parallel, **SIZES)
    assert llm.generate([PROMPT], options)[0].answers == expected.answers
    own, other = llm.capabilities["ranks"]["pids"]
    assert own == os.getpid() and listening(own) | listening(other) == {"0100007F"}  # 127.0.0.1
    os.kill(other, how)
    assert wait_until(lambda: not Path(f"/proc/{other}").exists(), 30)
    with pytest.raises((GenerationError, RankLostError), match="rank 1"):
        llm.generate([PROMPT], options)


def test_a_rank_that_is_gone_takes_no_message(tmp_path: Path) -> None:
    """Before its end is noticed, too: rank 0 does not wait for it."""
    others = mock.Mock(problem=None)
    ranks = object.__new__(leader.Ranks)
    ranks._others, ranks._steps = others, {1: leader.bind(zmq.Context(), tmp_path / "steps-1")}
    threading.Timer(0.3, lambda: setattr(others, "problem", "rank 1 ended by signal 9")).start()
    with pytest.raises(RankLostError, match="rank 1 ended by signal 9"):
        ranks.send(messages.encode(messages.Ask()))
