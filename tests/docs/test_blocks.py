"""What the reference and chapter 14 show is what programs say, and what they show to type works."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from benchmarks import compare
from benchmarks.loadgen.traces import read_trace
from protocol.routes import COMPLETION_V2
from server.api.app import create_app
from server.continuous_batching.config import ServerConfig
from server.text.tokenizer import Tokenizer
from tests.api.fake import FakeService
from tests.checkpoints import tiny_tokenizer
from tests.serving import serving
from utils.config import ConfigError, load_config

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference" / "en"
CHAPTER = ROOT / "docs" / "tutorial" / "en" / "14-comparing-strategies.md"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


COMMANDS = [
    line
    for page in sorted(REFERENCE.glob("*.md"))
    for block in blocks(page, "shell")
    for line in block.splitlines()
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_reference_work(command: str) -> None:
    python, *words = shlex.split(command)
    assert python == ".venv/bin/python"
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_a_mistake_in_a_configuration_is_reported_as_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shown,) = blocks(REFERENCE / "configuration.md", "")
    (tmp_path / "configs").mkdir()
    text = (ROOT / "configs" / "cb_server_config.json").read_text(encoding="utf-8")
    mistaken = text.replace('"torch_dtype"', '"torch_dtyp"')
    (tmp_path / "configs" / "cb_server_config.json").write_text(mistaken, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_config("configs/cb_server_config.json", ServerConfig)
    assert f"error: {caught.value}".startswith(re.sub(r":\d+:", f":{line_of(text)}:", shown.split("…")[0]))


def line_of(text: str) -> int:
    (line,) = [n for n, line in enumerate(text.splitlines(), 1) if '"torch_dtype"' in line]
    return line


def test_an_option_that_is_not_known_is_refused_as_shown(tmp_path: Path) -> None:
    (shown,) = blocks(REFERENCE / "options.md", "json")
    tiny_tokenizer(tmp_path)
    body = {"model": "fake", "prompt": "a", "generation_config": {"top_kk": 3}}
    with serving(create_app(FakeService(Tokenizer(tmp_path)))) as url:
        request = urllib.request.Request(f"{url}{COMPLETION_V2}", json.dumps(body).encode())
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        assert json.loads(caught.value.read()) == json.loads(shown)


def test_the_comparison_of_chapter_14_takes_its_options() -> None:
    (command,) = [block for block in blocks(CHAPTER, "shell") if "benchmarks.compare" in block]
    arguments = compare.build_parser().parse_args(shlex.split(command)[3:])
    settings = compare.settings_of(arguments)
    text = CHAPTER.read_text(encoding="utf-8")
    numbers = {5: "five"}
    assert f"{settings.requests} requests with each of {numbers[settings.seeds]} seeds" in " ".join(
        text.split()
    )


def test_each_line_of_the_trace_of_chapter_14_is_read(tmp_path: Path) -> None:
    (block,) = blocks(CHAPTER, "json")
    for number, line in enumerate(block.splitlines()):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(line)
        trace = read_trace(path)
        assert trace.left_out == 0 and len(trace.requests) == 1
