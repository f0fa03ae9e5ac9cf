"""What the command line of `start_app.py` means, before anything is started."""

from __future__ import annotations

import json
import shlex
import stat
import sys
from pathlib import Path

import pytest

import start_app
from utils.command_line import SELECTING
from utils.commands import ROOT
from utils.config import ConfigError
from utils.flags import parse
from utils.launch import config_listing, with_these_servers
from utils.options import CbServerAppOptions, ClientAppOptions, SbServerAppOptions
from utils.running import Directories, ServiceError
from utils.services import Service

FIRST_VERSION = """
--start_client_app --client_config_file_path --client_config_hot_update_interval_minutes
--client_debug --client_port --start_cb_server_app --cb_server_model_id
--cb_server_config_file_path --cb_server_debug --cb_server_port --start_sb_server_app
--sb_server_model_id --sb_server_config_file_path --sb_server_debug --sb_server_port
--client_url --gunicorn_config_file_path
"""
CLIENT_CONFIG = """{
  # both servers of this machine
  "continuous_batching_server_urls": ["http://127.0.0.1:8001"],
  "static_batching_server_urls": ["http://127.0.0.1:8002"],
  "openai_jumper_configs": [{"api_key": "sk-1"}],
}"""
SERVER_CONFIGS = {
    "cb_server_config.json": {"model_loading_config": {"model_name_or_path": "."}},
    "sb_server_config.json": {"worker_config": {"model_name_or_path": "."}},
}


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with configuration files."""
    (tmp_path / "client_config.json").write_text(CLIENT_CONFIG)
    (tmp_path / "config.json").write_text("{}")  # of the model
    for name, config in SERVER_CONFIGS.items():
        (tmp_path / name).write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def chosen(directory: Path, *arguments: str) -> dict[str, Service]:
    """The services that a command line asks for, by kind."""
    argv = list(arguments)
    for kind in ("client", "cb_server", "sb_server"):
        argv += [f"--{kind}_config_file_path", f"{kind}_config.json"]
    args = parse(start_app.build_parser(), argv).args
    services = start_app.chosen_services(args)
    if args.all:
        services = with_these_servers(services, Directories(directory / "run", directory / "logs"))
    return {service.kind: service for service in services}


def test_every_option_of_the_first_version_is_there() -> None:
    known = start_app.build_parser().format_help()
    assert all(option in known for option in FIRST_VERSION.split())


def test_all_starts_the_gateway_first_on_the_known_ports(configs: Path) -> None:
    services = chosen(configs, "--all")
    assert list(services) == ["client_app", "cb_server_app", "sb_server_app"]
    assert [service.url for service in services.values()] == [
        f"http://127.0.0.1:{8000 + i}" for i in range(3)
    ]


def test_options_reach_their_service(configs: Path) -> None:
    services = chosen(
        configs,
        *("--start_client_app", "--client_debug", "--client_config_hot_update_interval_minutes", "2.5"),
        *("--start_cb_server_app", "--cb_server_model_id", "a", "--cb_server_port", "9001"),
        *("--start_sb_server_app", "--sb_server_model_id", "b", "--sb_server_debug", "--host", "0.0.0.0"),
    )
    assert services["client_app"].options == ClientAppOptions(
        host="0.0.0.0",
        debug=True,
        client_config_file_path=configs / "client_config.json",
        client_config_hot_update_interval_minutes=2.5,
    )
    assert services["cb_server_app"].options == CbServerAppOptions(
        host="0.0.0.0",
        port=9001,
        model_id="a",
        server_config_file_path=configs / "cb_server_config.json",
        client_url="http://127.0.0.1:8000",
    )
    assert services["sb_server_app"].options == SbServerAppOptions(
        host="0.0.0.0",
        debug=True,
        model_id="b",
        server_config_file_path=configs / "sb_server_config.json",
        client_url="http://127.0.0.1:8000",
    )


def test_a_server_alone_reports_where_it_is_told_to(configs: Path) -> None:
    def client_url(*arguments: str) -> str | None:
        options = chosen(configs, "--start_cb_server_app", *arguments)["cb_server_app"].options
        assert isinstance(options, CbServerAppOptions)
        return options.client_url

    assert client_url() is None
    assert client_url("--client_url", "http://gateway:8080") == "http://gateway:8080"
    assert client_url("--start_client_app", "--client_url", "http://gateway:8080") == "http://gateway:8080"


def test_all_on_the_configured_ports_uses_the_file_itself(configs: Path) -> None:
    options = chosen(configs, "--all")["client_app"].options
    assert isinstance(options, ClientAppOptions)
    assert options.client_config_file_path == configs / "client_config.json"
    assert not (configs / "run").exists()


def test_all_on_other_ports_gives_the_gateway_a_copy_with_these_servers(configs: Path) -> None:
    services = chosen(configs, "--all", "--cb_server_port", "9001", "--client_port", "9000")
    options = services["client_app"].options
    assert isinstance(options, ClientAppOptions)
    path = options.client_config_file_path
    assert path == configs / "run" / "client_app-9000.json"
    assert json.loads(path.read_text()) == {
        "continuous_batching_server_urls": ["http://127.0.0.1:9001"],
        "static_batching_server_urls": ["http://127.0.0.1:8002"],
        "openai_jumper_configs": [{"api_key": "sk-1"}],
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (configs / "client_config.json").read_text() == CLIENT_CONFIG


def test_a_copy_that_cannot_be_written_is_one_line(configs: Path) -> None:
    (configs / "run").write_text("not a directory")
    with pytest.raises(ServiceError, match=f"^cannot write {configs / 'run'}: "):
        chosen(configs, "--all", "--cb_server_port", "9001")


def test_without_all_the_gateway_keeps_its_servers(configs: Path) -> None:
    services = chosen(configs, "--start_client_app", "--start_cb_server_app", "--cb_server_port", "9001")
    options = services["client_app"].options
    assert isinstance(options, ClientAppOptions)
    assert options.client_config_file_path == configs / "client_config.json"


def test_a_copy_lists_several_servers_of_a_kind(configs: Path) -> None:
    servers = [
        Service("cb_server_app", "module", CbServerAppOptions(port=port)) for port in (9001, 9002, 9003)
    ]
    path = config_listing(servers, configs / "client_config.json", configs / "run" / "copy.json")
    written = json.loads(path.read_text())
    assert written["continuous_batching_server_urls"] == [server.url for server in servers]
    assert written["static_batching_server_urls"] == []


def test_a_configuration_that_a_service_would_refuse_is_refused_before_any_starts(configs: Path) -> None:
    (configs / "sb_server_config.json").write_text('{"worker_confg": {}}')
    with pytest.raises(ConfigError, match="did you mean 'worker_config'"):
        chosen(configs, "--all")


@pytest.mark.parametrize("text", ["0", "65536", "-1", "http"])
def test_a_port_is_a_port(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        start_app.main(["--start_client_app", f"--client_port={text}"])
    assert left.value.code == 2
    assert f"{text!r} is not a port (1 to 65535)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--client_config_hot_update_interval_minutes=-1", "greater than or equal to 0"),
        ("--client_url=nope", "error: client_url: 'nope' is not a URL such as http://127.0.0.1:8001"),
        ("--cb_server_model_id=", "model_id: String should have at least 1 character"),
    ],
)
def test_a_value_that_a_service_would_refuse_is_one_line(
    argument: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        start_app.main(["--all", argument])
    assert left.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


SAMPLES = {"client_url": "http://127.0.0.1:1", "host": "127.0.0.1", "start_timeout_seconds": "5"}
FOR_STARTING = {
    action.dest: action
    for action in start_app.build_parser()._actions
    if action.dest not in {*SELECTING, "status", "stop", "fleet", "help"}
}


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is said where a command line is refused, and nothing started."""
    with pytest.raises(SystemExit) as left:
        start_app.main(arguments)
    assert left.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("mode", ["--status", "--stop"])
@pytest.mark.parametrize("option", FOR_STARTING)
def test_an_option_for_starting_is_refused_elsewhere(
    mode: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    value = [] if FOR_STARTING[option].nargs == 0 else [SAMPLES.get(option, "1")]
    said = refusal(capsys, mode, f"--{option}", *value)
    assert said == f"start_app.py: error: --{option} has no effect with {mode}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--cb_server_port 9001", "nothing to do: give --all, --start_client_app"),
        ("--host 127.0.0.1", "nothing to do"),
        ("--stop --status", "--stop has no effect with --status"),
        ("--stop --all --cb_server_port 9001", "--cb_server_port has no effect with --stop --all"),
        ("--all --start_cb_server_app", "--start_cb_server_app has no effect with --all"),
        ("--start_client_app --client_url http://127.0.0.1:1", "--client_url has no effect without a server"),
        ("--start_client_app --sb_server_debug", "--sb_server_debug has no effect without --start_sb_server"),
        ("--start_cb_server_app --sb_server_port 1", "--sb_server_port has no effect without --start_sb_ser"),
        (
            "--start_cb_server_app --client_port 1",
            "--client_port has no effect without --start_client_app",
        ),
        ("--start_sb_server_app --cb_server_model_id a", "--cb_server_model_id has no effect without"),
        ("--all --cb_server_port 9001 --cb_server_port 9002", "--cb_server_port: given twice"),
        ("--stop --cb_server_port 9001 --cb_server_port 9002", "--cb_server_port: given twice"),
        ("--all --start_timeout_seconds nan", "'nan' is not a number above 0"),
        ("--all --start_timeout_seconds 0", "'0' is not a number above 0"),
        ("--restart", "--restart has no effect without --fleet"),
        ("--all --only a", "--only has no effect without --fleet"),
        ("--fleet a.json --all", "--all has no effect with --fleet"),
        ("--fleet a.json --host 0.0.0.0", "--host has no effect with --fleet"),
        ("--fleet a.json --restart", "--restart needs --only"),
        ("--fleet a.json --status --log_dir logs", "--log_dir has no effect with --fleet --status"),
        ("--fleet a.json --stop --restart --only a", "--restart has no effect with --fleet --stop"),
        ("--start_vllm_app --model smollm2", "--model has no effect without a server of ours"),
        ("--start_vllm_app --client_url http://127.0.0.1:1", "--client_url has no effect without a server"),
        ("--all --vllm_port 9003", "--vllm_port has no effect without --start_vllm_app"),
    ],
)
def test_options_that_have_no_effect_together_are_refused(
    arguments: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refusal(capsys, *arguments.split())


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("", []),
        ("--all", []),
        ("--cb_server_port 8011", ["cb_server_app-8011"]),
        ("--start_cb_server_app", ["cb_server_app-8001"]),
        ("--start_cb_server_app --cb_server_port 8011", ["cb_server_app-8011"]),
        ("--client_port 1 --sb_server_port 3", ["client_app-1", "sb_server_app-3"]),
        ("--start_vllm_app", ["vllm_app-8003"]),
    ],
)
def test_ports_choose_what_is_stopped(arguments: str, names: list[str]) -> None:
    flags = parse(start_app.build_parser(), ["--stop", *arguments.split()])
    start_app.check_combination(flags)
    assert start_app.chosen_names(flags) == names


def test_the_commands_of_the_help_name_this_interpreter(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        start_app.main(["--help"])
    shown = capsys.readouterr().out
    assert f"{shlex.quote(sys.executable)} start_app.py --status" in shown or (
        f"{Path(sys.executable).relative_to(ROOT)} start_app.py --status" in shown
    )


def test_nothing_to_do_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        start_app.main([])
    assert left.value.code == 2
    assert "nothing to do" in capsys.readouterr().err
