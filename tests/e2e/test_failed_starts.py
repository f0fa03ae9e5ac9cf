"""What keeps a service from starting is one clear line and a non-zero exit status."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stack import MODEL_DIRECTORY, Stack, damaged_model
from utils.config import read_file
from utils.options import CONFIGS

KINDS = {
    "cb": ("cb_server_config.json", "model_loading_config"),
    "sb": ("sb_server_config.json", "worker_config"),
}


def config_for(kind: str, tmp_path: Path, **changes: Any) -> Path:
    """The shipped configuration of a server with some keys of its model section changed."""
    name, section = KINDS[kind]
    config = read_file(CONFIGS / name)
    config[section] |= {"model_name_or_path": str(MODEL_DIRECTORY)} | changes
    path = tmp_path / name
    path.write_text(json.dumps(config, indent=2))
    return path


def start(stack: Stack, kind: str, config: Path) -> str:
    """Start one server, which must fail; returns what `start_app.py` said."""
    done = stack.start_app(f"--start_{kind}_server_app", f"--{kind}_server_config_file_path", str(config))
    assert done.code == 1
    assert "Traceback" not in done.errors
    assert stack.start_app("--status").code == 3, "something was left running"
    return done.errors


@pytest.mark.parametrize("kind", ["cb", "sb"])
def test_a_misspelt_key(empty_stack: Stack, tmp_path: Path, kind: str) -> None:
    config = config_for(kind, tmp_path, torch_dtyp="float32")
    said = start(empty_stack, kind, config)
    assert said.startswith(f"error: {config}:")
    assert "unknown key" in said
    assert "did you mean 'torch_dtype'?" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("kind", ["cb", "sb"])
def test_a_missing_model_directory(empty_stack: Stack, tmp_path: Path, kind: str) -> None:
    said = start(empty_stack, kind, config_for(kind, tmp_path, model_name_or_path="./no_model_here"))
    assert "model_name_or_path" in said
    assert f"{tmp_path}/no_model_here does not exist" in said
    assert len(said.splitlines()) == 1


def test_the_placeholder_of_a_template_is_not_a_model(empty_stack: Stack, tmp_path: Path) -> None:
    said = start(empty_stack, "cb", config_for("cb", tmp_path, model_name_or_path="PATH_TO_MODEL_DIR"))
    assert f"{tmp_path}/PATH_TO_MODEL_DIR does not exist" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("kind", ["cb", "sb"])
def test_a_corrupt_safetensors_file(empty_stack: Stack, tmp_path: Path, kind: str) -> None:
    model = damaged_model(tmp_path)
    said = start(empty_stack, kind, config_for(kind, tmp_path, model_name_or_path=str(model)))
    assert any("safetensors" in line and "ERROR" in line for line in said.splitlines()), said


@pytest.mark.parametrize("kind", ["cb", "sb"])
def test_an_index_that_names_a_missing_file(empty_stack: Stack, tmp_path: Path, kind: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(MODEL_DIRECTORY, model)
    (model / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "gone.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    said = start(empty_stack, kind, config_for(kind, tmp_path, model_name_or_path=str(model)))
    assert "places 'lm_head.weight' in 'gone.safetensors', and there is no such file" in said


def test_a_missing_configuration_file(empty_stack: Stack) -> None:
    done = empty_stack.start_app("--start_client_app", "--client_config_file_path", "nothing.json")
    assert (done.code, done.errors) == (
        1,
        f"error: {empty_stack.directory}/nothing.json: cannot be read: No such file or directory\n",
    )


def test_a_port_in_use(empty_stack: Stack) -> None:
    with socket.create_server(("127.0.0.1", empty_stack.ports[0])):
        done = empty_stack.start_app("--start_client_app")
    assert done.code == 1
    assert f"port {empty_stack.ports[0]} of 127.0.0.1 is in use" in done.errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to do"),
        (["--start_client_app", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
        (["--no_such_option"], "unrecognized arguments: --no_such_option"),
        (["--all", "--client_url"], "--client_url: expected one argument"),
    ],
)
def test_a_wrong_command_line(empty_stack: Stack, arguments: list[str], said: str) -> None:
    done = empty_stack.start_app(*arguments)
    assert done.code in (1, 2)
    assert said in done.errors.splitlines()[-1]
