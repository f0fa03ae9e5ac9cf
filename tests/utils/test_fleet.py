"""The file of a fleet: what it means, and that a mistake in it is one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from utils.config import ConfigError
from utils.fleet import Fleet
from utils.gpus import gpus
from utils.options import CONFIGS, CbServerAppOptions, VllmAppOptions
from utils.running import ServiceError
from utils.services import Keeping

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a fleet of these servers, whose configurations are empty files."""
    for name in ("client_config.json", "cb.json"):
        (tmp_path / name).write_text("{}")

    def write(*servers: dict[str, Any], **others: Any) -> Path:
        entries = [{"name": "a", "config": "cb.json", "port": 8001} | server for server in servers]
        path = tmp_path / "fleet.json"
        path.write_text(
            json.dumps({"gateway": {"config": "client_config.json"}, "servers": entries} | others)
        )
        return path

    return write


def test_replicas_have_ports_and_gpus_of_their_own(write: Write, tmp_path: Path) -> None:
    fleet = Fleet.load(
        write(
            {"replicas": 2, "gpus": [0, 1, "GPU-1a2b", 3], "model_id": "m", "environment": {"X": "1"}},
            {"name": "v", "kind": "vllm", "port": 8010},
        )
    )
    assert list(fleet.services) == ["gateway", "a-1", "a-2", "v"]
    second, foreign = fleet.services["a-2"], fleet.services["v"]
    assert second.name == "cb_server_app-8002"
    assert second.options == CbServerAppOptions(
        port=8002,
        model_id="m",
        server_config_file_path=tmp_path / "cb.json",
        client_url="http://127.0.0.1:8000",
    )
    assert second.environment == {
        "CUDA_VISIBLE_DEVICES": "GPU-1a2b,3",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "X": "1",
    }
    assert isinstance(foreign, Keeping) and foreign.environment == {}
    assert foreign.options == VllmAppOptions(port=8010, vllm_config_file_path=tmp_path / "cb.json")


def test_a_server_without_gpus_sees_none(write: Write) -> None:
    fleet = Fleet.load(write({"gpus": []}, {"name": "b", "port": 8002}))
    assert fleet.services["a"].environment["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in fleet.services["b"].environment


def test_the_shipped_fleets_load() -> None:
    assert list(Fleet.load(CONFIGS / "fleet.json").services) == ["gateway", "demo-1", "demo-2", "static"]
    for path in CONFIGS.glob("examples/*/fleet.json"):
        assert Fleet.load(path).services


@pytest.mark.parametrize(
    ("servers", "others", "said"),
    [
        ([{}, {"port": 8002}], {}, "the name 'a' is given twice"),
        ([{"replicas": 2}, {"name": "a-2", "port": 9000}], {}, "the name 'a-2' is given twice"),
        ([{"name": "gateway"}], {}, "the name 'gateway' is given twice"),
        ([{"replicas": 3}, {"name": "b", "port": 8003}], {}, "a-3 and b cannot both have port 8003"),
        ([{"port": 8000}], {}, "gateway and a cannot both have port 8000"),
        ([{"port": 65535, "replicas": 2}], {}, "2 replicas from port 65535 on go beyond port 65535"),
        ([{"gpus": [0, 1, 2], "replicas": 2}], {}, "3 GPUs cannot be shared out evenly: replicas is 2"),
        ([{"gpus": [0]}, {"name": "b", "port": 8002, "gpus": [0]}], {}, "a and b have the same GPU 0"),
        ([{"gpus": ["first"]}], {}, 'servers[0].gpus[0]: found "first", accepted: the number of a GPU'),
        ([{"gpus": [True]}], {}, "accepted: the number of a GPU"),
        ([{"gpus": [0], "environment": {"CUDA_VISIBLE_DEVICES": "1"}}], {}, "both say which GPUs are used"),
        ([{"kind": "dynamic"}], {}, "accepted: one of continuous_batching, static_batching, vllm"),
        ([{"config": "none.json"}], {}, "there is no file"),
        ([{"replica": 2}], {}, "unknown key 'servers[0].replica'; did you mean 'replicas'?"),
        ([{"name": "A b"}], {}, "servers[0].name"),
        ([], {}, "servers"),
        ([{}], {"client_url": "http://127.0.0.1:1"}, "client_url has no effect beside a gateway"),
    ],
)
def test_a_mistake_is_one_line(
    write: Write, servers: list[dict[str, Any]], others: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Fleet.load(write(*servers, **others))
    message = str(caught.value)
    assert said in message and "fleet.json:" in message and "\n" not in message


def test_servers_may_share_a_gpu_where_both_say_so(write: Write) -> None:
    shared = {"gpus": [0], "share_gpus": True}
    fleet = Fleet.load(write(shared, {"name": "b", "port": 8002, **shared}))
    assert fleet.services["b"].environment["CUDA_VISIBLE_DEVICES"] == "0"


def test_names_choose_servers_and_entries_all_replicas(write: Write) -> None:
    fleet = Fleet.load(write({"replicas": 2}, {"name": "b", "port": 8010}))
    assert fleet.select(None) == ["gateway", "a-1", "a-2", "b"]
    assert fleet.select("b, a") == ["b", "a-1", "a-2"]
    assert fleet.select("a-2,a") == ["a-2", "a-1"]
    with pytest.raises(ServiceError, match="has no 'c'; its names: gateway, a-1, a-2, b"):
        fleet.select("a,c")
    with pytest.raises(ServiceError, match="--only names nothing"):
        fleet.select(",")


def test_a_fleet_without_a_gateway_joins_one_elsewhere(write: Write) -> None:
    fleet = Fleet.load(write({}, gateway=None, client_url="http://10.0.0.1:8000"))
    options = fleet.services["a"].options
    assert isinstance(options, CbServerAppOptions)
    assert list(fleet.services) == ["a"] and options.client_url == "http://10.0.0.1:8000"


def test_gpus_that_are_missing_idle_or_short_are_refused(write: Write) -> None:
    fleet = Fleet.load(write({"replicas": 2, "gpus": [0, 1, 2, 3]}))
    names, here = ["a-1", "a-2"], {"0", "1", "2", "3"}
    fleet.check_gpus(names, lambda member: 2, here)
    fleet.check_gpus(names, lambda member: None, here)
    with pytest.raises(ConfigError, match=r"a-1: GPUs by the fleet: 2, by its configuration: 1$"):
        fleet.check_gpus(names, lambda member: 1, here)
    with pytest.raises(ConfigError, match=r"a-2: this machine has no GPU 3; it has 0, 1, 2$"):
        fleet.check_gpus(names, lambda member: 2, here - {"3"})
    fleet.check_gpus(["a-1"], lambda member: 2, here - {"3"})
    with pytest.raises(ConfigError, match=r"a-1: this machine has no GPU 0; nvidia-smi finds none$"):
        fleet.check_gpus(names, lambda member: 2, set())


def test_gpus_are_those_that_nvidia_smi_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        'echo "GPU 0: NVIDIA H200 (UUID: GPU-11)"\n'
        'echo "GPU 1: NVIDIA H200 (UUID: GPU-22)"\n'
        'echo "  MIG 1g.18gb     Device  0: (UUID: MIG-33)"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert gpus() == {"0", "1", "GPU-11", "GPU-22", "MIG-33"}
    program.write_text("#!/bin/sh\nexit 9\n")
    assert gpus() == set()
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert gpus() == set()
