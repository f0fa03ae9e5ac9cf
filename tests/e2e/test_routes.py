"""Every route of every service answers as it should."""

from __future__ import annotations

import json
import shutil
import subprocess

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.stack import MODEL, Stack, call

PROMPT = "17 + 25 ="
SERVICES = ("gateway", "cb_server", "sb_server")


def completion(**options: object) -> dict[str, object]:
    return {"model": MODEL, "prompt": PROMPT, "generation_config": {"max_new_tokens": 8} | options}


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("route", ["/health", "/ready", "/status", "/metrics", "/openapi.json"])
def test_what_every_service_tells_of_itself(stack: Stack, service: str, route: str) -> None:
    answer = call(getattr(stack, service), route)
    assert answer.status == 200
    if route == "/metrics":
        assert list(text_string_to_metric_families(answer.text))
    else:
        assert isinstance(answer.json, dict)


@pytest.mark.parametrize(
    ("service", "route"),
    [
        ("gateway", "/completion/v1"),
        ("gateway", "/completion/v2"),
        ("cb_server", "/completion/v2"),
        ("sb_server", "/completion/v1"),
    ],
)
def test_completion(stack: Stack, service: str, route: str) -> None:
    answer = call(getattr(stack, service), route, completion())
    assert answer.status == 200, answer.text
    (choice,) = answer.json["choices"]
    assert (choice["index"], choice["finish_reason"]) == (0, "stop")
    assert choice["text"].strip().startswith("42")
    usage = answer.json["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize("service", ["gateway", "cb_server"])
def test_openai_routes(stack: Stack, service: str) -> None:
    url = getattr(stack, service)
    assert [card["id"] for card in call(url, "/v1/models").json["data"]] == [MODEL]
    text = {"model": MODEL, "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
    assert call(url, "/v1/completions", text).json["choices"][0]["text"].strip().startswith("42")
    chat = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "What is 17 plus 25?"}],
        "temperature": 0,
    }
    assert "42" in call(url, "/v1/chat/completions", chat).json["choices"][0]["message"]["content"]


@pytest.mark.parametrize("service", ["gateway", "cb_server"])
def test_a_stream_adds_up_to_the_whole(stack: Stack, service: str) -> None:
    url = getattr(stack, service)
    body = {"model": MODEL, "prompt": "Once upon a time", "generation_config": {"max_new_tokens": 40}}
    whole = call(url, "/completion/v2", body).json["choices"][0]["text"]
    stream = call(url, "/completion/v2", body | {"stream": True})
    assert stream.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in stream.text.splitlines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert len(chunks) > 5
    assert "".join(c["text"] for chunk in chunks for c in chunk["choices"]) == whole
    assert chunks[-1]["usage"]["completion_tokens"] == 40


def test_the_openai_sdk_works_unmodified(stack: Stack) -> None:
    with openai.OpenAI(base_url=f"{stack.gateway}/v1", api_key="none") as client:
        question = [{"role": "user", "content": "What is 17 plus 25?"}]
        answer = client.chat.completions.create(model=MODEL, messages=question, temperature=0)  # type: ignore[call-overload]
        assert "42" in answer.choices[0].message.content
        with client.completions.create(model=MODEL, prompt=PROMPT, stream=True, temperature=0) as stream:
            assert (
                "".join(chunk.choices[0].text for chunk in stream if chunk.choices).strip().startswith("42")
            )


@pytest.mark.parametrize("service", ["cb_server", "sb_server"])
def test_model_id_is_a_json_string(stack: Stack, service: str) -> None:
    assert call(getattr(stack, service), "/model_id").json == MODEL


@pytest.mark.parametrize("route", ["/cb_server/available_models", "/sb_server/available_models"])
def test_the_gateway_lists_live_models(stack: Stack, route: str) -> None:
    assert call(stack.gateway, route).json == [MODEL]


def test_without_an_account_there_is_no_jumper(stack: Stack) -> None:
    assert call(stack.gateway, "/openai_jumper/is_available").json == "0"
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}]}
    answer = call(stack.gateway, "/chat_completion/v1", body)
    assert (answer.status, answer.json["error"]["code"]) == (503, "no_account")


def test_the_gateway_has_a_page(stack: Stack) -> None:
    answer = call(stack.gateway, "/")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_with_curl(stack: Stack) -> None:
    command = ["curl", "-sS", "--fail", f"{stack.gateway}/completion/v2", "-d", json.dumps(completion())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["choices"][0]["text"].strip().startswith("42")
