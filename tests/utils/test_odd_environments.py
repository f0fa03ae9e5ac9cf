"""A service starts, or says in one line why not, in whatever environment an operator has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from utils.commands import ROOT

MISTAKE = {"no_such_key": 1}
READS_IT = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from client.config import GatewayConfig
from utils.config import ConfigError, load_config
try:
    load_config(sys.argv[1], GatewayConfig)
except ConfigError as error:
    print(error)
    raise SystemExit(3)
"""
"""What an app does first of all, without the seconds that the rest of it takes."""

ENVIRONMENTS: dict[str, dict[str, str]] = {
    "a locale without Unicode": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"},
    "a temporary directory that is gone": {"TMPDIR": "/nowhere"},
    "no home": {"HOME": "", "USER": "", "LOGNAME": ""},
    "a home that is a file": {"HOME": "/etc/hostname"},
    "a time zone that there is not": {"TZ": "Nowhere/Land"},
}


def read(path: Path, environment: dict[str, str], **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", READS_IT, str(path)]
    environment = dict(os.environ) | environment
    return subprocess.run(command, capture_output=True, text=True, env=environment, **options)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_configurations_are_read_alike(tmp_path: Path, name: str) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text('{\n# \u7f51\u5173\n"access_log": "all",}', encoding="utf-8")
    bad.write_text(json.dumps(MISTAKE))
    assert read(good, ENVIRONMENTS[name]).returncode == 0
    refused = read(bad, ENVIRONMENTS[name])
    assert refused.returncode == 3 and "bad.json:1: unknown key 'no_such_key'" in refused.stdout
    assert not refused.stderr


def test_from_a_directory_that_is_gone(tmp_path: Path) -> None:
    """Where a shell still stands in a release that was replaced."""
    config, here = tmp_path / "good.json", tmp_path / "gone"
    config.write_text("{}")
    here.mkdir()
    leave = ["sh", "-c", f'rmdir "{here}" && exec "$@"', "sh"]
    done = subprocess.run(
        [*leave, sys.executable, "-c", READS_IT, str(config)], cwd=here, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
