"""Options of the apps: flags, environment, and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from utils.config import ConfigError
from utils.options import (
    AppOptions,
    CbServerAppOptions,
    ClientAppOptions,
    SbServerAppOptions,
    from_environment,
    parse_arguments,
    to_environment,
)

KINDS: list[type[AppOptions]] = [ClientAppOptions, CbServerAppOptions, SbServerAppOptions]


@pytest.mark.parametrize(
    "options",
    [
        ClientAppOptions(),
        ClientAppOptions(
            host="0.0.0.0",
            port=9000,
            debug=True,
            client_config_file_path=Path("/a b/c.json"),
            client_config_hot_update_interval_minutes=0.5,
        ),
        CbServerAppOptions(model_id="a model", client_url="http://127.0.0.1:1"),
        SbServerAppOptions(server_url="https://example.org", server_config_file_path=Path("/x")),
    ],
)
def test_options_survive_the_environment(options: AppOptions) -> None:
    assert from_environment(type(options), to_environment(options)) == options


@pytest.mark.parametrize("kind", KINDS)
def test_flags_are_the_fields(kind: type[AppOptions]) -> None:
    assert parse_arguments(kind, description=None, argv=[]) == kind()
    argv = ["--host", "::1", "--port", "9", "--debug"]
    options = parse_arguments(kind, description=None, argv=argv)
    assert (options.host, options.port, options.debug) == ("::1", 9, True)


@pytest.mark.parametrize("kind", KINDS)
def test_help_names_every_flag(kind: type[AppOptions], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse_arguments(kind, description="what it is", argv=["--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{name}" in text for name in kind.model_fields)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--port", "many"], "--port: Input should be a valid integer"),
        (["--port", "70000"], "--port: Input should be less than or equal to 65535"),
        (["--client_config_hot_update_interval_minutes", "inf"], "Input should be a finite number"),
        (["--no_such_flag"], "unrecognized arguments: --no_such_flag"),
    ],
)
def test_a_wrong_flag_is_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse_arguments(ClientAppOptions, description=None, argv=argv)
    assert left.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_wrong_variable_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^INFERENCE_STACK_PORT: Input should be a valid integer"):
        from_environment(ClientAppOptions, {"INFERENCE_STACK_PORT": "many"})


@pytest.mark.parametrize("name", ["client_url", "server_url"])
def test_the_url_of_a_service_is_checked(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(CbServerAppOptions, description=None, argv=[f"--{name}", "nope"])
    assert f"error: --{name}: 'nope' is not a URL such as" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=rf"^INFERENCE_STACK_{name.upper()}: 'nope' is not a URL"):
        from_environment(CbServerAppOptions, {f"INFERENCE_STACK_{name.upper()}": "nope"})


def test_a_server_announces_where_it_listens_unless_told_otherwise() -> None:
    assert CbServerAppOptions(port=5).url == "http://127.0.0.1:5"
    assert CbServerAppOptions(server_url="http://gpu-1:8080").url == "http://gpu-1:8080"
