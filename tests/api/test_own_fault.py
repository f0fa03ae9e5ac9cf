"""What one request causes is that request's error: never the server's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from server.api.app import create_app
from server.text.tokenizer import Tokenizer
from tests.api.fake import FakeService
from tests.serving import serving

USER = [{"role": "user", "content": "Hi"}]

TEMPLATES = {
    "undefined to JSON": "{{ messages[0].tools | tojson }}",
    "division": "{{ 1 / 0 }}",
    "types": "{{ messages[0].content + 1 }}",
    "index": "{{ messages[9].content }}{{ messages[9].content.strip() }}",
    "call of nothing": "{{ nothing() }}",
    "range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "recursion": "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}",
    "huge number": "{{ 10 ** 10000 }}",
    "unpacking": "{% for a, b in [1] %}{% endfor %}",
    "raised": "{{ raise_exception('no such role') }}",
    "unsafe": "{{ messages.__class__.__base__.__subclasses__() }}",
    "half a surrogate pair": "{{ '\\ud800' }}",
    "syntax": "{% for %}",
    "nothing": "",
}


async def refused(url: str, route: str, body: dict[str, Any], status: int) -> dict[str, Any]:
    """The error of `body`, whole and as a stream."""
    errors = []
    async with aiohttp.ClientSession(url) as http:
        for stream in (False, True):
            async with http.post(route, json={"model": "fake", "stream": stream, **body}) as response:
                assert response.status == status, await response.text()
                errors.append((await response.json())["error"])
        async with http.get("/health") as response:
            assert response.status == 200
    assert errors[0] == errors[1] and "\n" not in errors[0]["message"]
    error: dict[str, Any] = errors[0]
    assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.parametrize("name", TEMPLATES)
async def test_a_template_that_fails(
    url: str, service: FakeService, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(service.tokenizer.hf, "chat_template", TEMPLATES[name])
    error = await refused(url, "/v1/chat/completions", {"messages": USER}, 400)
    assert error["param"] == "messages" and error["message"].startswith("messages: ")
    assert ("this model's chat template cannot be read (line 1)" in error["message"]) == (name == "syntax")


async def test_a_template_without_end_is_ended(
    url: str, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = "{% for i in range(100000) %}" * 4 + "{% endfor %}" * 4
    monkeypatch.setattr(service.tokenizer.hf, "chat_template", loop)
    monkeypatch.setattr("server.api.chat.ask.TEMPLATE_SECONDS", 0.5)
    error = await refused(url, "/v1/chat/completions", {"messages": USER}, 400)
    assert "longer than 0.5 s" in error["message"]
    monkeypatch.setattr(service.tokenizer.hf, "chat_template", "{{ messages[0].content }}")
    async with (
        aiohttp.ClientSession(url) as http,
        http.post("/v1/chat/completions", json={"model": "fake", "messages": USER}) as response,
    ):
        assert response.status == 200  # the thread that was ended is of use again


@pytest.fixture
def strict_url(tmp_path: Path) -> Iterator[str]:
    """A server whose tokenizer knows two words and has no token for others."""
    from tokenizers import Tokenizer as Rust
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    rust = Rust(models.WordLevel({"a": 0, "b": 1}, unk_token="none"))
    rust.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=rust)
    fast.chat_template = "{{ messages[0].content }}"
    fast.save_pretrained(tmp_path)
    with serving(create_app(FakeService(Tokenizer(tmp_path), reply=[0]))) as url:
        yield url


@pytest.mark.parametrize(
    ("route", "body", "status", "param"),
    [
        ("/completion/v2", {"prompt": "a x"}, 422, "prompt"),
        ("/v1/completions", {"prompt": ["a", "x"]}, 400, "prompt"),
        ("/v1/chat/completions", {"messages": USER}, 400, "messages"),
    ],
)
async def test_a_text_that_the_tokenizer_cannot_take(
    strict_url: str, route: str, body: dict[str, Any], status: int, param: str
) -> None:
    error = await refused(strict_url, route, body, status)
    assert error["param"] == param and error["message"].startswith(f"{param}: the text cannot be tokenised")


@pytest.mark.parametrize(("route", "status"), [("/completion/v2", 422), ("/v1/completions", 400)])
@pytest.mark.parametrize(
    "odd",
    ['"\\ud800"', '"Hi", "x": 1e999', "[" * 5000, '"Hi", "seed": 1' + "0" * 5000, "[1e400]", '{"a": 1}'],
)
async def test_odd_json(url: str, route: str, status: int, odd: str) -> None:
    data = f'{{"model": "fake", "prompt": {odd}}}'.encode()
    async with aiohttp.ClientSession(url) as http, http.post(route, data=data) as response:
        assert response.status in (400, status)
        assert json.loads(await response.text())["error"]["type"] == "invalid_request_error"


async def test_a_padded_id_can_be_echoed(url: str, service: FakeService) -> None:
    """The output layer has more rows than the tokenizer has tokens."""
    service.vocab_size = len(service.tokenizer.vocabulary) + 8
    body = {"model": "fake", "prompt": [5, service.vocab_size - 1], "echo": True, "max_tokens": 3}
    async with aiohttp.ClientSession(url) as http, http.post("/v1/completions", json=body) as response:
        assert response.status == 200
        assert (await response.json())["choices"][0]["text"].startswith(service.tokenizer.decode([5]))
