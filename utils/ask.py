"""Ask a gateway one question: ``.venv/bin/python -m utils.ask http://127.0.0.1:8000 [QUESTION]``.

Shows the curl command, runs it and prints the answer; where curl is missing, it shows how to call itself
and makes the same request. It is what ``make serve`` ends with.
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
from utils.addresses import redacted
from utils.commands import command

QUESTION = "What is 17 plus 25?"
_TIMEOUT_SECONDS = 120
_NO_TEMPLATE = "this model has no chat template"


class NoAnswer(Exception):
    """The gateway could not be asked, or it answered with an error."""


def served_model(url: str) -> str:
    """The first model that the gateway at `url` lists.

    Raises:
        NoAnswer: there is none.
    """
    answer = _request(url + routes.OPENAI_MODELS, None)
    try:
        data = json.loads(answer)["data"]
    except (ValueError, KeyError, TypeError):  # an error, or not a gateway
        raise NoAnswer(f"{url} does not list its models: {answer[:500].strip()}") from None
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
        raise NoAnswer(f"{redacted(url)}: {error}") from error


def _run(curl: list[str]) -> str:
    done = subprocess.run([*curl, "--max-time", str(_TIMEOUT_SECONDS)], capture_output=True, text=True)
    if done.returncode:
        raise NoAnswer(done.stderr.strip())
    return done.stdout


def main(argv: Sequence[str]) -> int:
    """Ask and print; the exit status is 0 where a model answered."""
    if not argv:
        print(f"usage: {command('-m', 'utils.ask')} http://127.0.0.1:8000 [QUESTION]", file=sys.stderr)
        return 2
    url, question = argv[0].rstrip("/"), " ".join(argv[1:]) or QUESTION
    try:
        body = {"model": served_model(url), "temperature": 0}
        messages = [{"role": "user", "content": question}]
        answer = _ask(url, routes.OPENAI_CHAT_COMPLETIONS, body | {"messages": messages}, question)
        if _NO_TEMPLATE in answer:  # a model that was trained on texts alone
            answer = _ask(url, routes.OPENAI_COMPLETIONS, body | {"prompt": question}, question)
    except NoAnswer as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(answer)
    return 0 if _is_completion(answer) else 1


def _ask(url: str, route: str, body: dict[str, object], question: str) -> str:
    """Show how `body` is posted to `route`, and do so; returns the answer's body."""
    # in ASCII, which every terminal shows as it has to be typed
    text, address = json.dumps(body), url + route
    curl = ["curl", "-sS", address, "-H", "Content-Type: application/json", "-d", text]
    if shutil.which("curl"):
        print("\n" + shlex.join(curl) + "\n")
        return _run(curl)
    print("\n" + command("-m", "utils.ask", url, question) + "\n")
    return _request(address, text)


def _is_completion(answer: str) -> bool:
    try:
        return "choices" in json.loads(answer)
    except ValueError:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
