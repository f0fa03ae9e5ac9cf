"""Balancing policies: as pure functions, by name in the configuration, and through a running gateway."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from client.config import GatewayConfig
from client.health.replica import Replica, ReplicaState
from client.routing.balancer import pick
from client.routing.policies import POLICIES, register
from tests.client.conftest import GatewayClient, MakeGateway
from tests.client.stub import BUSY, Stub, stubs
from utils.config import ConfigError, load_config


def replicas(count: int) -> list[Replica]:
    made = [
        Replica("continuous_batching", f"http://{n}", "config", 0.0, ReplicaState.READY) for n in range(count)
    ]
    for number, replica in enumerate(made):
        replica.load.slots = 8
        replica.load.rows, replica.load.tokens = number, 1000 * (count - number)
    return made


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_policy_chooses_by_what_it_is_given_alone(name: str, count: int) -> None:
    candidates = replicas(count)
    chosen = [POLICIES[name](candidates, 0.0, turn) for turn in range(100)]
    assert set(chosen) <= set(candidates)
    assert chosen == [POLICIES[name](candidates, 0.0, turn) for turn in range(100)]


@pytest.mark.parametrize(("name", "best"), [("least_wait", 0), ("least_work", 4), ("least_connections", 2)])
def test_each_policy_has_a_best_server_of_its_own(name: str, best: int) -> None:
    candidates = replicas(5)
    for number in (0, 1, 3, 4):
        candidates[number].load.lease(0, 0, lambda: None).__enter__()
    assert POLICIES[name](candidates, 0.0, 0) is candidates[best]


def test_round_robin_goes_round_and_random_reaches_all() -> None:
    candidates = replicas(3)
    assert [POLICIES["round_robin"](candidates, 0.0, turn) for turn in range(6)] == candidates * 2
    chosen = [POLICIES["random"](candidates, 0.0, turn) for turn in range(300)]
    assert all(50 < chosen.count(candidate) < 150 for candidate in candidates)


def test_power_of_two_takes_the_better_of_each_pair() -> None:
    """With five servers the best of all wins 2 of 5 draws, the one before the last 1 of 10, the last none."""
    candidates = replicas(5)
    chosen = [POLICIES["power_of_two"](candidates, 0.0, turn) for turn in range(1000)]
    counts = [chosen.count(candidate) for candidate in candidates]
    assert counts[4] == 0 < counts[3] < counts[2] < counts[1] < counts[0]
    assert 350 < counts[0] < 450 and 60 < counts[3] < 140


@pytest.mark.parametrize("name", POLICIES)
def test_filter_and_affinity_hold_whatever_the_policy(name: str) -> None:
    down, known, other = replicas(3)
    down.state = ReplicaState.DOWN
    turns = itertools.count()
    for _ in range(20):
        chosen = pick(
            [down, known, other], (), 0.0, policy=POLICIES[name], turns=turns, affine=other, slack=0.25
        )
        assert chosen is other
        assert pick([down, known, other], {other}, 0.0, policy=POLICIES[name], turns=turns) is known
        assert pick([down, known], {known}, 0.0, policy=POLICIES[name], turns=turns) is None
    assert next(turns) == 20  # one for each question to the policy


def test_a_name_is_taken_once() -> None:
    def least_wait(candidates: list[Replica], now: float, turn: int) -> Replica:
        return candidates[0]

    with pytest.raises(ValueError, match="'least_wait' already"):
        register(least_wait)  # type: ignore[arg-type]


@pytest.mark.parametrize("found", ['"least_wiat"', '""', "7", "null", '["random"]', '"LEAST_WAIT"'])
def test_a_policy_that_does_not_exist_is_refused_with_those_that_do(found: str, tmp_path: Path) -> None:
    path = tmp_path / "client_config.json"
    path.write_text('{\n  "balancing_policy": ' + found + "\n}")
    with pytest.raises(ConfigError, match=r"client_config\.json:2: balancing_policy: found ") as refused:
        load_config(path, GatewayConfig)
    if found.startswith('"'):
        assert f"found {found}, accepted: one of {', '.join(POLICIES)}" in str(refused.value)


async def policy_shown(client: GatewayClient) -> object:
    async with client.session.get("/status") as response:
        return (await response.json())["balancing_policy"]


async def test_a_gateway_balances_by_the_configured_policy(make_gateway: MakeGateway) -> None:
    """The first server is busy with others' requests, which round-robin does not look at."""
    servers = [Stub(others=BUSY), Stub(), Stub()]
    async with stubs(*servers), make_gateway(servers) as client:
        assert await policy_shown(client) == "least_wait"
        for _ in range(6):
            await client.complete("x", 2)
        assert [len(server.calls) for server in servers] == [0, 3, 3]
        config = client.gateway.settings.config
        client.gateway.configure(config.model_copy(update={"balancing_policy": "round_robin"}))
        assert await policy_shown(client) == "round_robin"
        for _ in range(6):
            await client.complete("x", 2)
        assert [len(server.calls) for server in servers] == [2, 5, 5]


async def test_power_of_two_leaves_the_fullest_server_alone(make_gateway: MakeGateway) -> None:
    servers = [Stub(others=BUSY), Stub(), Stub()]
    async with stubs(*servers), make_gateway(servers, balancing_policy="power_of_two") as client:
        assert await policy_shown(client) == "power_of_two"
        for _ in range(30):
            await client.complete("x", 2)
        busy, *idle = [len(server.calls) for server in servers]
        assert busy == 0 and min(idle) > 0 and sum(idle) == 30


async def test_each_model_has_turns_of_its_own(make_gateway: MakeGateway) -> None:
    servers = [Stub(model=model) for model in ("m", "m", "n", "n")]
    async with stubs(*servers), make_gateway(servers, balancing_policy="round_robin") as client:
        for model in ("m", "n") * 4:
            await client.complete("x", 2, model=model)
        assert [len(server.calls) for server in servers] == [2, 2, 2, 2]
