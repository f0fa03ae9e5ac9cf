"""Two models on three servers of one machine: one is restarted under load, and no request fails."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.ports import neighbouring_ports
from benchmarks.processes import family
from tests.checkpoints import tiny_llama
from tests.e2e.stack import ROOT, Answer, Done, call
from utils.running import Directories, Running, find

MODELS = ("a", "b")
SERVERS = ("a-1", "a-2", "b")
CLIENTS = 2
"""Of each model, one with streams and one without."""
PATIENCE = {"replica_wait_seconds": 110, "stream_wait_seconds": 110, "max_wait_seconds": 110}
"""As docs/fleet.md advises where a start takes long, as it does on a loaded machine; clients wait longer."""
BODY = {"prompt": "Once upon a time", "generation_config": {"max_new_tokens": 24}}


@dataclass
class FleetOnDisk:
    """A fleet file, and `start_app.py` for it."""

    directory: Path
    port: int

    @property
    def gateway(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start_app(self, *arguments: str) -> Done:
        command = [sys.executable, str(ROOT / "start_app.py"), "--fleet", str(self.directory / "fleet.json")]
        command += [*arguments, "--run_dir", str(self.directory / "run")]
        if not {"--status", "--stop"} & {*arguments}:
            command += ["--log_dir", str(self.directory / "logs")]
        done = subprocess.run(command, cwd=self.directory, capture_output=True, text=True)
        return Done(done.returncode, done.stdout, done.stderr)

    def running(self) -> dict[str, Running]:
        found = find(Directories(self.directory / "run", self.directory / "logs"))
        return {running.name: running for running in found}

    def ask(self, model: str, stream: bool) -> str:
        """The text of an answer; fails where there is none."""
        answer = call(self.gateway, "/completion/v2", {"model": model, "stream": stream, **BODY})
        assert answer.status == 200, answer.text
        return streamed(answer) if stream else str(answer.json["choices"][0]["text"])


def streamed(answer: Answer) -> str:
    """The text of a stream that ended as it should."""
    assert answer.text.endswith("data: [DONE]\n\n"), answer.text
    events = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")]
    return "".join(choice["text"] for event in events for choice in event["choices"])


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetOnDisk]:
    """The fleet, ready."""
    directory = tmp_path_factory.mktemp("fleet")
    first = neighbouring_ports(1 + len(SERVERS))
    (directory / "client_config.json").write_text(json.dumps(PATIENCE))
    servers = []
    for seed, model in enumerate(MODELS):
        tiny_llama(directory / model, seed=seed)
        config = {
            "model_loading_config": {"model_name_or_path": model, "torch_dtype": "float32"},
            "cache_config": {"num_blocks": 256, "num_blocks_cpu": 64, "block_size": 16},
        }
        (directory / f"{model}.json").write_text(json.dumps(config))
        entry = {"name": model, "config": f"{model}.json", "port": first + 1 + 2 * seed}
        entry |= {"replicas": 2 if model == "a" else 1, "gpus": [], "environment": {"OMP_NUM_THREADS": "1"}}
        servers.append(entry)
    gateway = {"config": "client_config.json", "port": first}
    (directory / "fleet.json").write_text(json.dumps({"gateway": gateway, "servers": servers}))
    fleet = FleetOnDisk(directory, first)
    started = fleet.start_app()
    try:
        assert started.code == 0, started.errors
        yield fleet
    finally:
        stopped = fleet.start_app("--stop")
    assert stopped.code == 0, stopped.errors


class Load:
    """Clients that ask for all models, one request after the other, while the block lasts."""

    def __init__(self, fleet: FleetOnDisk) -> None:
        self._fleet = fleet
        self._ending = threading.Event()
        self.expected = {model: fleet.ask(model, stream=False) for model in MODELS}
        self.asked = 0
        self.slowest = 0.0

    def _client(self, model: str, stream: bool) -> None:
        while not self._ending.is_set():
            begin = time.monotonic()
            assert self._fleet.ask(model, stream) == self.expected[model]
            self.slowest = max(self.slowest, time.monotonic() - begin)
            self.asked += 1
            self._ending.wait(0.05)  # the cores are for the server that starts, too

    def __enter__(self) -> Load:
        self._pool = ThreadPoolExecutor(CLIENTS * len(MODELS))
        self._clients = [self._pool.submit(self._client, m, s) for m in MODELS for s in (True, False)]
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._pool.shutdown()
        for client in self._clients:
            client.result()


def test_every_model_is_served_by_its_servers(fleet: FleetOnDisk) -> None:
    assert len(fleet.running()) == 1 + len(SERVERS)
    texts = {fleet.ask(model, stream=False) for model in MODELS}
    assert len(texts) == len(MODELS)
    replicas = call(fleet.gateway, "/status").json["replicas"]
    assert sorted(replica["model_id"] for replica in replicas) == ["a", "a", "b"]
    shown = fleet.start_app("--status")
    assert shown.code == 0
    assert [line.split()[0] for line in shown.output.splitlines()] == ["gateway", *SERVERS]


@pytest.mark.parametrize("name", ["a-1", "b"])  # b is the only server of its model: its requests wait
def test_one_is_restarted_under_load_and_no_request_is_lost(fleet: FleetOnDisk, name: str) -> None:
    before = fleet.running()
    processes_before = {service: family(running.pid) for service, running in before.items()}
    assert all(len(found) >= 2 for found in processes_before.values())
    with Load(fleet) as load:
        time.sleep(1)
        asked = load.asked
        done = fleet.start_app("--restart", "--only", name)
        time.sleep(1)
    assert done.code == 0, done.errors
    assert load.asked > asked + 10
    after = fleet.running()
    changed = {service for service in before if before[service].pid != after[service].pid}
    assert len(changed) == 1
    assert changed == {f"cb_server_app-{fleet.port + 1 + SERVERS.index(name)}"}
    for service in before.keys() - changed:
        assert family(after[service].pid) == processes_before[service], service


def test_a_stopped_server_is_started_again_alone(fleet: FleetOnDisk) -> None:
    before = fleet.running()
    assert fleet.start_app("--stop", "--only", "a-2").code == 0
    shown = fleet.start_app("--status")
    assert shown.code == 1 and "a-2" not in [line.split()[0] for line in shown.output.splitlines()]
    assert "is not running" in shown.output
    again = fleet.start_app()
    assert again.code == 0, again.errors
    after = fleet.running()
    assert sum(before[service].pid != after[service].pid for service in before) == 1


def test_a_mistake_in_a_configuration_stops_nothing(fleet: FleetOnDisk) -> None:
    before = {name: running.pid for name, running in fleet.running().items()}
    config = fleet.directory / "a.json"
    text = config.read_text()
    config.write_text(text.replace("num_blocks_cpu", "num_block_cpu"))
    try:
        done = fleet.start_app("--restart", "--only", "a-1")
    finally:
        config.write_text(text)
    assert done.code == 1
    assert len(done.errors.splitlines()) == 1 and "unknown key 'cache_config.num_block_cpu'" in done.errors
    assert {name: running.pid for name, running in fleet.running().items()} == before
