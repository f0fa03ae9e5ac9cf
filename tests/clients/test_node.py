"""Clients that run on node: OpenAI's SDK, and the AI SDK."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import KEY, MODEL

SCRIPTS = Path(__file__).parent / "node"

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(shutil.which("node") is None, reason="there is no node"),
    pytest.mark.skipif(
        not (SCRIPTS / "node_modules").is_dir(), reason="npm install was not run in tests/clients/node"
    ),
]


def run(script: str, case: str, url: str) -> None:
    environment = {**os.environ, "BASE_URL": url, "KEY": KEY, "MODEL": MODEL}
    done = subprocess.run(
        ["node", SCRIPTS / script, case], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("case", ["chat", "tools", "stream", "responses", "completions"])
def test_openai(url: str, case: str) -> None:
    run("openai.mjs", case, url)


@pytest.mark.parametrize("case", ["text", "tools", "stream", "responses"])
def test_ai_sdk(url: str, case: str) -> None:
    run("ai_sdk.mjs", case, url)


@pytest.mark.parametrize(("script", "case"), [("openai.mjs", "parse"), ("ai_sdk.mjs", "object")])
def test_structured(url: str, script: str, case: str) -> None:
    run(script, case, url)
