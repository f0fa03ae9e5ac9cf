"""The log format."""

from __future__ import annotations

import logging
import re
import subprocess
import sys

import pytest

CODE = """
import logging
from utils.logs import configure_logging
configure_logging({debug})
logging.getLogger("engine").debug("step")
logging.getLogger("engine").info("loaded %s", "x")
logging.getLogger("httpx").info("chatter")
"""


@pytest.mark.parametrize(
    ("debug", "expected"), [(False, ["loaded x"]), (True, ["step", "loaded x", "chatter"])]
)
def test_one_line_per_event_on_stderr(debug: bool, expected: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(debug=debug)], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    line = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (DEBUG|INFO) [a-z]+: (.*)$")
    matches = [line.match(text) for text in done.stderr.splitlines()]
    assert [match and match.group(2) for match in matches] == expected


def test_importing_configures_nothing() -> None:
    before = list(logging.getLogger().handlers)
    import utils.logs  # noqa: F401

    assert logging.getLogger().handlers == before
