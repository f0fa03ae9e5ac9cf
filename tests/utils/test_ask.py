"""The question that ``make serve`` ends with, against a small HTTP server."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from utils import ask


class Gateway(BaseHTTPRequestHandler):
    """Echoes the question as the answer."""

    models: list[dict[str, Any]]

    def do_GET(self) -> None:
        self._send(200, {"data": self.models} if isinstance(self.models, list) else {"error": self.models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/v1/completions":
            self._send(200, {"choices": [{"text": f"{body['prompt']} and on"}]})
        elif body["messages"][0]["content"] == "plain":
            message = "this model has no chat template: use the completion routes"
            self._send(400, {"error": {"message": message}})
        elif body["messages"][0]["content"] == "fail":
            self._send(503, {"error": {"message": "no replica"}})
        else:
            content = f"{body['model']}: {body['messages'][0]['content']}"
            self._send(200, {"choices": [{"message": {"content": content}}]})

    def _send(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None: ...


@pytest.fixture
def gateway() -> Iterator[str]:
    Gateway.models = [{"id": "demo"}]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(params=["curl", "no curl"])
def curl(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "no curl":
        monkeypatch.setattr(shutil, "which", lambda name: None)
    elif not shutil.which("curl"):
        pytest.skip("curl is not installed")


@pytest.mark.usefixtures("curl")
def test_it_shows_the_command_and_the_answer(gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask.main([gateway, "What's", "up?"]) == 0
    shown = capsys.readouterr().out
    expected = f"curl -sS {gateway}/v1/chat/completions" if shutil.which("curl") else "-m utils.ask"
    assert expected in shown
    assert (
        json.loads(shown.strip().splitlines()[-1])["choices"][0]["message"]["content"] == "demo: What's up?"
    )


@pytest.mark.usefixtures("curl")
def test_a_model_without_a_chat_template_goes_on_with_a_text(
    gateway: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask.main([gateway, "plain"]) == 0
    shown = capsys.readouterr().out
    assert json.loads(shown.strip().splitlines()[-1])["choices"][0]["text"] == "plain and on"
    assert (f"curl -sS {gateway}/v1/completions" in shown) == bool(shutil.which("curl"))


@pytest.mark.usefixtures("curl")
def test_an_error_answer_is_shown_and_fails(gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask.main([gateway, "fail"]) == 1
    assert "no replica" in capsys.readouterr().out


def test_no_model_and_no_gateway_are_one_line(gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    Gateway.models = []
    assert ask.main([gateway]) == 1
    assert capsys.readouterr().err == f"error: {gateway} serves no model\n"
    assert ask.main(["http://127.0.0.1:1"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


PLAIN = {"PATH": "/usr/bin:/bin"}
"""The environment of a plain shell: no virtual environment is active."""


@pytest.mark.usefixtures("curl")
@pytest.mark.parametrize("model", ["demo", 'it\'s "a" $HOME `id` \\ !!', "org/模型 🦊", "-d @/etc/passwd"])
def test_the_command_works_as_printed(gateway: str, capsys: pytest.CaptureFixture[str], model: str) -> None:
    Gateway.models = [{"id": model}]
    assert ask.main([gateway, "Who's there, 谁?"]) == 0
    command = next(line for line in capsys.readouterr().out.splitlines() if gateway in line)
    assert command.isascii() or "utils.ask" in command
    done = subprocess.run(command, shell=True, env=PLAIN, capture_output=True, text=True, timeout=60)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["choices"][0]["message"]["content"] == f"{model}: Who's there, 谁?"


@pytest.mark.usefixtures("curl")
@pytest.mark.parametrize("models", [None, "not a list of models"])
def test_what_is_no_list_of_models_is_one_line(
    gateway: str, capsys: pytest.CaptureFixture[str], models: Any
) -> None:
    Gateway.models = models
    assert ask.main([gateway]) == 1
    assert capsys.readouterr().err.startswith(f"error: {gateway}")
