"""`vllm_config.json`: the command line that follows from it, and mistakes that are one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from utils.config import ConfigError, load_config
from utils.options import VllmAppOptions
from utils.vllm import VllmConfig

Load = Callable[..., VllmConfig]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """A configuration with these keys, beside an environment and a model."""
    program = tmp_path / "venv" / "bin" / "vllm"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")

    def load(**keys: Any) -> VllmConfig:
        path = tmp_path / "vllm_config.json"
        path.write_text(json.dumps({"environment_path": "venv", "model": "model"} | keys))
        return load_config(path, VllmConfig)

    return load


def after_backend(config: VllmConfig) -> list[str]:
    """The arguments that the configuration adds."""
    command = config.command(VllmAppOptions())
    return command[command.index("--shutdown-timeout") + 2 :]


def test_values_become_arguments_as_vllm_reads_them(load: Load) -> None:
    config = load(
        arguments={
            "max_model_len": 4096,
            "gpu-memory-utilization": 0.9,
            "enforce-eager": True,
            "enable-prefix-caching": False,
            "lora-modules": ["a=1", "b=2"],
            "speculative-config": {"method": "ngram", "num_speculative_tokens": 4},
            "revision": None,
        }
    )
    assert after_backend(config) == [
        *("--max-model-len", "4096", "--gpu-memory-utilization", "0.9", "--enforce-eager"),
        *("--no-enable-prefix-caching", "--lora-modules", "a=1", "b=2"),
        *("--speculative-config", '{"method": "ngram", "num_speculative_tokens": 4}'),
    ]


def test_a_ray_cluster_is_named_in_the_environment(load: Load, tmp_path: Path) -> None:
    config = load(
        tensor_parallel_size=8,
        pipeline_parallel_size=2,
        distributed_executor_backend="ray",
        ray_address="10.0.0.1:6379",
        environment={"VLLM_HOST_IP": "10.0.0.1"},
    )
    command = config.command(VllmAppOptions())
    assert command[command.index("--tensor-parallel-size") :][:6] == [
        *("--tensor-parallel-size", "8", "--pipeline-parallel-size", "2"),
        *("--distributed-executor-backend", "ray"),
    ]
    assert config.world_size == 16
    variables = config.variables(
        VllmAppOptions(debug=True), {"PATH": "/bin", "PYTHONPATH": "/here", "HOME": "/"}
    )
    assert variables == {
        "HOME": "/",
        "PATH": f"{tmp_path}/venv/bin:/bin",
        "VIRTUAL_ENV": f"{tmp_path}/venv",
        "RAY_ADDRESS": "10.0.0.1:6379",
        "VLLM_HOST_IP": "10.0.0.1",
        "VLLM_LOGGING_LEVEL": "DEBUG",
    }


@pytest.mark.parametrize(
    ("keys", "options", "name"),
    [
        ({}, {}, "model"),
        ({"model_id": "configured"}, {}, "configured"),
        ({"model_id": "configured"}, {"model_id": "given"}, "given"),
        ({"model": "owner/name"}, {}, "owner/name"),
    ],
)
def test_the_name_of_the_model(load: Load, keys: dict[str, Any], options: dict[str, Any], name: str) -> None:
    command = load(**keys).command(VllmAppOptions(**options))
    assert command[command.index("--served-model-name") + 1] == name


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"environment_path": "."},
            "has no program bin/vllm: give an environment in which vLLM is",
        ),
        ({"model": "./nothing"}, "a model directory"),
        ({"distributed_executor_backend": "ray"}, "give the 'ray_address' of its cluster"),
        ({"ray_address": "auto"}, "ray_address has no effect unless distributed_executor_backend is 'ray'"),
        ({"distributed_executor_backend": "ray", "ray_address": "http://a:1"}, "ray_address: found"),
        ({"distributed_executor_backend": "uni"}, "accepted: 'mp' or 'ray'"),
        ({"arguments": {"tensor-parallel-size": 2}}, "use the key 'tensor_parallel_size' of this file"),
        ({"arguments": {"port": 1}}, "'port' is an option of start_app.py or of the fleet"),
        ({"arguments": {"config": "a.yaml"}}, "'config' cannot be used: write its options under 'arguments'"),
        ({"arguments": {"--x": 1}}, "'--x' is not the name of an option, such as max-model-len"),
        ({"arguments": {"max-num-seqs": 1, "max_num_seqs": 2}}, "option given twice: max-num-seqs"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size: found 0"),
        ({"tensor_parallel": 2}, "did you mean 'tensor_parallel_size'?"),
    ],
)
def test_a_mistake_is_one_line(load: Load, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(**keys)
    assert said in str(caught.value) and "\n" not in str(caught.value)
