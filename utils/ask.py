"""Ask a gateway one question: ``python -m utils.ask http://127.0.0.1:8000 [QUESTION]``.

Shows the curl command, runs it (or makes the same request, where curl is missing) and prints the
answer. It is what ``make serve`` ends with.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence

from protocol import routes

QUESTION = "What is 17 plus 25?"
_TIMEOUT_SECONDS = 120


class NoAnswer(Exception):
    """The gateway could not be asked, or it answered with an error."""


def served_model(url: str) -> str:
    """The first model that the gateway at `url` lists.

    Raises:
        NoAnswer: there is none.
    """
    data = json.loads(_request(url + routes.OPENAI_MODELS, None))["data"]
    if not data:
        raise NoAnswer(f"{url} serves no model")
    return str(data[0]["id"])


def _request(url: str, body: str | None) -> str:
    """The body of the answer to a GET, or with `body` to a POST."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, None if body is None else body.encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return str(error.read().decode())
    except OSError as error:
        raise NoAnswer(f"{url}: {error}") from error


def _run(command: list[str]) -> str:
    done = subprocess.run([*command, "--max-time", str(_TIMEOUT_SECONDS)], capture_output=True, text=True)
    if done.returncode:
        raise NoAnswer(done.stderr.strip())
    return done.stdout


def main(argv: Sequence[str]) -> int:
    """Ask and print; the exit status is 0 where a model answered."""
    url, question = argv[0].rstrip("/"), " ".join(argv[1:]) or QUESTION
    try:
        body = {
            "model": served_model(url),
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
        }
        text, address = json.dumps(body, ensure_ascii=False), url + routes.OPENAI_CHAT_COMPLETIONS
        command = ["curl", "-sS", address, "-H", "Content-Type: application/json", "-d", text]
        print("\n" + shlex.join(command) + "\n")
        answer = _run(command) if shutil.which("curl") else _request(address, text)
    except NoAnswer as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(answer)
    return 0 if "choices" in json.loads(answer) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
