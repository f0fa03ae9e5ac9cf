"""lm-eval's own client of completions: loglikelihood, rolling and generating tasks, over tasks made here."""

from __future__ import annotations

import json
import math
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import KEY, MODEL, PYTHON, ROOT

pytestmark = pytest.mark.clients

DOCUMENTS = [
    {"question": "The sum", "choices": [" is 42.", " is 7.", " of all parts is the whole"], "answer": 0},
    {"question": "The sum is", "choices": [" 42.", " unknown: 你好"], "answer": 0},
    {"question": "Once upon a time there was a", "choices": [" little girl", " crème brûlée"], "answer": 1},
]
STOP = "me add"
"""In the middle of what the model says after most texts."""
TASKS = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}{{choices[0]}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
    "generating": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": [STOP], "max_gen_toks": 12},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a description of each task, and its documents."""
    directory = tmp_path_factory.mktemp("tasks")
    documents = directory / "documents.jsonl"
    documents.write_text("\n".join(map(json.dumps, DOCUMENTS)))
    for name, task in TASKS.items():
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(documents)}}}
        described = {"task": name, "test_split": "test", **source, **task}
        (directory / f"{name}.yaml").write_text(json.dumps(described))  # JSON is YAML
    return directory


def evaluate(url: str, checkpoint: str, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """(lm-eval's client, what it found)."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    client = LocalCompletionsAPI(
        model=MODEL,
        base_url=f"{url}/v1/completions",
        tokenizer_backend="huggingface",
        tokenizer=checkpoint,
        num_concurrent=4,
        max_retries=1,
    )
    results = lm_eval.simple_evaluate(
        model=client,
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    return client, results


def complete(url: str, prompt: Any) -> str:
    """The text that comes behind `prompt`, asked for without a client."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 12, "temperature": 0, "stop": STOP}
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(json.load(answer)["choices"][0]["text"])


def scores(checkpoint: str, pairs: list[Any]) -> list[tuple[float, bool]]:
    """As `tests.clients.score` gives them."""
    command = [PYTHON, "-m", "tests.clients.score", checkpoint]
    done = subprocess.run(
        command, cwd=ROOT, input=json.dumps(pairs), capture_output=True, text=True, check=True
    )
    return [(logprob, greedy) for logprob, greedy in json.loads(done.stdout)]


@pytest.mark.parametrize("service", ["gateway", "continuous", "static"])
def test_lm_eval(stack: dict[str, str], service: str, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = stack["checkpoint"]
    client, results = evaluate(stack[service], checkpoint, tasks, monkeypatch)
    samples = results["samples"]
    requests = [(one, answer) for sample in samples["choices"] for one, answer in _answers(sample)]
    expected = scores(checkpoint, [client._encode_pair(*one) for one, _ in requests])
    assert len(requests) == 7
    for (_, (logprob, greedy)), (wanted, is_greedy) in zip(requests, expected, strict=True):
        assert float(logprob) == pytest.approx(wanted, abs=1e-3) and str(greedy) == str(is_greedy)
    assert {is_greedy for _, is_greedy in expected} == {True, False}

    texts = [sample["arguments"][0][0] for sample in samples["rolling"]]
    pairs = [([client.prefix_token_id], client.tok_encode(text)) for text in texts]
    wanted = [logprob for logprob, _ in scores(checkpoint, pairs)]
    words = sum(len(text.split()) for text in texts)
    found = results["results"]["rolling"]["word_perplexity,none"]
    assert found == pytest.approx(math.exp(-sum(wanted) / words), rel=1e-3)

    generated = [sample["resps"][0][0] for sample in samples["generating"]]
    assert generated == [complete(stack[service], document["question"]) for document in DOCUMENTS]
    assert any(generated) and not any(STOP in text for text in generated)


def _answers(sample: Any) -> list[tuple[tuple[str, str], Any]]:
    """((context, continuation), what the model said of it) of each choice."""
    return list(zip(sample["arguments"], (answer[0] for answer in sample["resps"]), strict=True))
