"""How threads of torch wait for each other."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_TOLD = """
import os, sys
import server.static_batching
assert "torch" not in sys.modules
print(os.environ["GOMP_SPINCOUNT"])
"""


@pytest.mark.parametrize(("given", "used"), [(None, "1000"), ("7", "7")])
def test_they_sleep_soon_unless_the_environment_says_otherwise(given: str | None, used: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    if given is not None:
        environment["GOMP_SPINCOUNT"] = given
    told = subprocess.run(
        [sys.executable, "-c", _TOLD], env=environment, check=True, capture_output=True, text=True
    )
    assert told.stdout.strip() == used
