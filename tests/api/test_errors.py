"""Whatever is wrong with a request, the answer is one error in one shape."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from protocol.errors import ErrorResponse, queue_full
from tests.api.fake import FakeService

BODY = {"model": "fake", "prompt": "Hi"}
INVALID = "invalid_value"


async def error(http: aiohttp.ClientSession, method: str, path: str, **request: Any) -> tuple[int, Any]:
    async with http.request(method, path, **request) as response:
        assert response.headers["content-type"] == "application/json"
        return response.status, ErrorResponse.model_validate_json(await response.read()).error


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        (b"", 400, None, "invalid_json"),
        (b'{"model":', 400, None, "invalid_json"),
        (b"\xff\xfe", 400, None, "invalid_json"),
        (b"[]", 400, None, "invalid_value"),
        (b'{"prompt": "Hi"}', 400, "model", "missing_field"),
        (b'{"model": "fake"}', 400, "prompt", "missing_field"),
        (b'{"model": "fake", "prompt": []}', 400, "prompt", "invalid_value"),
        (b'{"model": "fake", "prompt": ["a", []]}', 400, "prompt.1", "invalid_value"),
        (b'{"model": "fake", "prompt": "Hi", "promt": 1}', 400, "promt", "unknown_option"),
        (b'{"model": "other", "prompt": "Hi"}', 404, "model", "model_not_found"),
        (b'{"model": "fake", "prompt": [5, 100000]}', 400, "prompt", INVALID),
        (b'{"model": "fake", "prompt": "Hi", "max_tokens": -1}', 400, "max_tokens", "invalid_value"),
        (b'{"model": "fake", "prompt": "Hi", "stop_token_ids": [100000]}', 400, "stop_token_ids", INVALID),
        (b'{"model": "fake", "prompt": "Hi", "logit_bias": {"100000": 1}}', 400, "logit_bias", INVALID),
        (b'{"model": "fake", "prompt": "Hi", "logit_bias": {"5": 101}}', 400, "logit_bias", "invalid_value"),
        (b'{"model": "fake", "prompt": "Hi", "stream": "true"}', 400, "stream", "invalid_value"),
        (b'{"model": "fake", "prompt": "Hi", "n": "2"}', 400, "n", "invalid_value"),
        (b'{"model": "fake", "prompt": "Hi", "max_tokens": 2.5}', 400, "max_tokens", "invalid_value"),
        (b'{"model": "fake", "prompt": [5, true]}', 400, "prompt.1", "invalid_value"),
        (b'{"model": "fake", "prompt": "Hi", "suffix": "x"}', 400, "suffix", "invalid_value"),
        (
            b'{"model": "fake", "prompt": "Hi", "resume": {"created": 1, "choices": []}}',
            400,
            "resume",
            INVALID,
        ),
    ],
)
async def test_bad_bodies(
    http: aiohttp.ClientSession, body: bytes, status: int, param: str | None, code: str | None
) -> None:
    got, answer = await error(http, "POST", "/v1/completions", data=body)
    assert (got, answer.param, answer.code) == (status, param, code), answer
    assert "\n" not in answer.message


async def test_router_errors(http: aiohttp.ClientSession) -> None:
    status, answer = await error(http, "GET", "/nowhere")
    assert status == 404 and "/nowhere" in answer.message
    status, answer = await error(http, "GET", "/v1/completions")
    assert status == 405 and answer.code == "method_not_allowed"
    status, answer = await error(http, "DELETE", "/requests/unknown")
    assert status == 404


@pytest.mark.parametrize("chunked", [True, False])
async def test_body_limit(http: aiohttp.ClientSession, chunked: bool) -> None:
    async def pieces() -> Any:
        for _ in range(20):
            yield b" " * 10_000

    data = pieces() if chunked else b" " * 200_000
    status, answer = await error(http, "POST", "/v1/completions", data=data)
    assert status == 413 and "100000" in answer.message


async def test_refusal_of_the_service(http: aiohttp.ClientSession, service: FakeService) -> None:
    service.refusal = queue_full("the queue is full", retry_after=3)
    async with http.post("/v1/completions", json=BODY) as response:
        assert response.status == 429
        assert response.headers["retry-after"] == "3"
        assert response.headers["x-server-load"] == "17"


async def test_refusal_of_one_prompt_cancels_the_others(
    http: aiohttp.ClientSession, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept, taken = service.submit, []

    def submit(job: Any) -> Any:
        if taken:
            raise queue_full("the queue is full")
        taken.append(job)
        return accept(job)

    monkeypatch.setattr(service, "submit", submit)
    status, _ = await error(http, "POST", "/v1/completions", json=BODY | {"prompt": ["a", "b", "c"]})
    assert status == 429 and len(taken) == 1 and not service.live


async def test_more_prompts_than_the_queue_holds_are_not_to_be_tried_again(
    http: aiohttp.ClientSession, service: FakeService
) -> None:
    service.max_waiting = 3
    status, answer = await error(http, "POST", "/v1/completions", json=BODY | {"prompt": ["a"] * 4})
    assert (status, answer.param) == (400, "prompt") and not service.jobs
    async with http.post("/v1/completions", json=BODY | {"prompt": ["a"] * 3}) as response:
        assert response.status == 200


CHAT = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    ("route", "body", "fields"),
    [
        ("/completion/v2", BODY, ["prompt", "generation_config.n", "generation_config.max_new_tokens"]),
        ("/v1/completions", BODY, ["prompt", "n", "max_tokens"]),
        ("/v1/chat/completions", CHAT, ["messages", "n", "max_tokens"]),
        (
            "/v1/chat/completions",
            CHAT | {"max_completion_tokens": 4},
            ["messages", "n", "max_completion_tokens"],
        ),
    ],
)
async def test_a_service_names_fields_as_the_request_does(
    http: aiohttp.ClientSession, service: FakeService, route: str, body: dict[str, Any], fields: list[str]
) -> None:
    await http.post(route, json=body)
    assert [service.jobs[0].field_of(name) for name in ("prompt", "n", "max_new_tokens")] == fields


async def test_a_token_that_does_not_exist_is_named_as_in_the_request(http: aiohttp.ClientSession) -> None:
    body = BODY | {"generation_config": {"logit_bias": {"100000": 1}}}
    status, answer = await error(http, "POST", "/completion/v2", json=body)
    assert (status, answer.param) == (422, "generation_config.logit_bias")


@pytest.mark.parametrize("request_id", ["", "a b", "é", "a" * 129])
async def test_request_id_is_visible_ascii(http: aiohttp.ClientSession, request_id: str) -> None:
    headers = {"x-request-id": request_id}
    status, answer = await error(http, "POST", "/v1/completions", json=BODY, headers=headers)
    assert status == 400 and "x-request-id" in answer.message


async def test_wrong_resume(http: aiohttp.ClientSession) -> None:
    for choices in ([], [{}] * 2, [{"token_ids": [100_000]}], [{"token_ids": [5] * 17}]):
        body = BODY | {"stream": True, "resume": {"created": 1, "choices": choices}}
        status, answer = await error(http, "POST", "/v1/completions", json=body)
        assert status == 400 and answer.param == "resume.choices"
