"""What an engine asks of the scheduler while a step is under way: beams by turns, and what waits."""

from __future__ import annotations

from server.scheduling.beam_search import BeamSearch
from tests.scheduling.simulation import Simulation, names


def test_beams_take_turns_and_none_is_left_out() -> None:
    """Those whose tokens are under way wait for them; more than were asked for come rather than fewer."""
    simulation = Simulation()
    requests = [simulation.add(name, prompt=5, params={"num_beams": 2}) for name in "abc"]
    while len(requests[2].sequences) < 2:
        simulation.step()
    for request in requests:
        request.beams = BeamSearch(request.params)
    schedule, under_way = simulation.scheduler.schedule, ""
    for most, expected in (
        (3, "aabb"),
        (3, "cc"),
        (3, "aabb"),
        (2, "cc"),
        (2, "aa"),
        (2, "bb"),
        (99, "aacc"),
    ):
        plan = schedule(simulation.now, most_beams=most)
        assert "".join(names(plan)[0]) == expected
        for request in requests:
            for sequence in request.sequences:
                if request.id in under_way:  # its tokens are read once the next step is launched
                    sequence.pending = 0
                sequence.pending += request.id in expected
        under_way = expected


def test_prompts_that_wait_are_counted() -> None:
    simulation = Simulation()
    queues = simulation.scheduler.queues
    for name, length in (("a", 5), ("b", 7), ("c", 9)):
        simulation.add(name, prompt=length)
    assert queues.waiting_tokens(100) == 21 and queues.waiting_tokens(11) == 11
    queues.waiting[1].held = True
    assert queues.waiting_tokens(100) == 14, "a grammar is compiled for one"
