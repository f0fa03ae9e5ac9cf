"""Bodies made up from the OpenAPI documents, sent to a gateway and to servers of both kinds.

Whatever comes, the answer is one that the document describes and none is a server's fault; no log has a
traceback, and the engine's process is the same as before.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from tests.checkpoints import tiny_llama
from tests.clients.conftest import running

CASES = int(os.environ.get("FUZZ_BODIES", "8000"))
"""For the three services together; `test_checkpoints` has as many as make 10,000."""
SEED = int(os.environ.get("FUZZ_SEED", "0"))
ROUND = 25
"""Cases of an operation in a row."""
MODEL = "tiny"
AIMED = 0.9
"""Share of the bodies that name the model that is served: others are refused for it."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@dataclass
class Stack:
    """The services, by name, and where they log."""

    urls: dict[str, str]
    directory: Path

    def logs(self) -> dict[str, str]:
        return {path.stem: path.read_text() for path in sorted(self.directory.glob("*.log"))}

    def engine(self) -> tuple[int, int]:
        """Process of the engine, and how many came before it."""
        details = requests.get(f"{self.urls['continuous']}/status", timeout=30).json()["details"]
        return details["engine_pid"], details["engine_restarts"]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A gateway and both servers on a model so small that the longest answer is short."""
    directory = tmp_path_factory.mktemp("fuzz")
    model = tiny_llama(directory / "model", hidden=16, layers=1)
    loading = {"model_name_or_path": str(model), "torch_dtype": "float32", "model_max_length": 128}
    continuous, static = {"model_loading_config": loading}, {"worker_config": loading}
    name = ("--model_id", MODEL)
    with (
        running("continuous_batching_server_app", continuous, directory, *name) as cb_url,
        running("static_batching_server_app", static, directory, *name) as sb_url,
    ):
        gateway = {
            "continuous_batching_server_urls": [cb_url],
            "static_batching_server_urls": [sb_url],
            "openai_jumper_configs": [{"api_key": "x", "base_url": f"{cb_url}/v1"}],
            "event_token": "shared",
        }
        with running("client_app", gateway, directory) as url:
            yield Stack({"gateway": url, "continuous": cb_url, "static": sb_url}, directory)


class Campaign:
    """Sends cases and gathers what is wrong with their answers.

    Args:
        dice: where bodies are aimed.
    """

    def __init__(self, dice: random.Random) -> None:
        self.cases = 0
        self.problems: dict[str, str] = {}
        """By kind, the first example of each."""
        self._dice = dice

    def send(self, service: str, case: schemathesis.Case) -> None:
        if isinstance(case.body, dict) and "model" in case.body and self._dice.random() < AIMED:
            case.body["model"] = MODEL
        self.cases += 1
        response = case.call(timeout=120)
        problem = problem_of(case, response)
        if problem is not None:
            kind = f"{service} {case.method} {case.path}: {problem[:300]}"
            self.problems.setdefault(kind, case.as_curl_command()[:1500])

    def round(self, service: str, operation: Any, mode: GenerationMode, number: int) -> bool:
        """`ROUND` cases of an operation; False where there are none of this kind."""
        everything = list(HealthCheck)
        plain = settings(
            max_examples=ROUND,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=everything,
        )

        @seed(number)
        @plain
        @given(case=operation.as_strategy(mode))
        def send(case: schemathesis.Case) -> None:
            self.send(service, case)

        try:
            send()
        except Unsatisfiable:
            return False
        return True


def problem_of(case: schemathesis.Case, response: Any) -> str | None:
    """What is wrong with an answer."""
    if response.status_code >= 500:
        return f"{response.status_code}: {response.text}"
    if response.headers.get("content-type", [""])[0].startswith("text/event-stream"):
        return problem_of_stream(response.content)
    try:
        checks = [status_code_conformance, response_schema_conformance]
        case.validate_response(response, checks=checks)
    except BaseExceptionGroup as group:
        return "; ".join(str(error) for error in group.exceptions)
    return None


def problem_of_stream(data: bytes) -> str | None:
    for line in data.splitlines():
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            if event.get("error") and event["error"].get("code") == "internal_error":
                return f"an error event: {line.decode()}"
    return None


def test_no_body_is_a_servers_fault(stack: Stack) -> None:
    campaign = Campaign(random.Random(SEED))
    engine = stack.engine()
    work = [
        (service, operation.ok(), mode)
        for service, url in stack.urls.items()
        for operation in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations()
        for mode in GenerationMode
    ]
    for number in count(1000 * SEED):
        work = [item for item in work if campaign.cases >= CASES or campaign.round(*item, number)]
        if campaign.cases >= CASES:
            break
    found = "\n".join(f"{kind}\n    {example}" for kind, example in campaign.problems.items())
    assert not campaign.problems, f"{len(campaign.problems)} kinds in {campaign.cases} cases:\n{found}"
    for name, log in stack.logs().items():
        assert "Traceback" not in log, f"{name}:\n{log[log.index('Traceback') - 500 :][:5000]}"
    assert stack.engine() == engine
