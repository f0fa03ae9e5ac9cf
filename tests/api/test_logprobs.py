"""Log probabilities by text, where several tokens have one text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from protocol.status import ServiceKind
from server.api.app import create_app
from server.api.service import TokenLogprob
from server.text.tokenizer import Tokenizer
from tests.api.fake import FakeService
from tests.serving import serving

VOCABULARY = ["<s>", "</s>", "A", "<0x41>", "▁b", "<0xE4>", "<0xBD>", "<0xA0>", "\ufffd", "c"]
ROWS = 12
"""Of the output layer: the last two stand for nothing."""


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer in which two ids are "A", and one is a replacement character itself."""
    from tokenizers import Tokenizer as Rust
    from tokenizers import decoders, models
    from transformers import PreTrainedTokenizerFast

    rust = Rust(models.BPE({token: i for i, token in enumerate(VOCABULARY)}, [], byte_fallback=True))
    rust.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    path: Path = tmp_path_factory.mktemp("twins")
    PreTrainedTokenizerFast(tokenizer_object=rust, bos_token="<s>", eos_token="</s>").save_pretrained(path)
    return Tokenizer(path)


@pytest.fixture(params=["continuous_batching", "static_batching"])
def kind(request: pytest.FixtureRequest) -> ServiceKind:
    kind: ServiceKind = request.param
    return kind


@pytest.fixture
def service(twins: Tokenizer, kind: ServiceKind) -> FakeService:
    service = FakeService(twins, kind)
    service.vocab_size = ROWS
    return service


@pytest.fixture
def url(service: FakeService) -> Iterator[str]:
    with serving(create_app(service)) as url:
        yield url


def report(token: int, logprob: float, *top: tuple[int, float]) -> TokenLogprob:
    return TokenLogprob(token, logprob, list(top))


CASES = [
    # chosen is the likelier of two with one text, or the other, or neither, or is not reported beside
    (report(2, -1.0, (2, -1.0), (3, -2.0)), "A", {"A": -1.0, "token_id:3": -2.0}),
    (report(3, -2.0, (2, -1.0), (3, -2.0)), "A", {"token_id:2": -1.0, "A": -2.0}),
    (report(9, -0.5, (2, -1.0), (3, -2.0)), "c", {"A": -1.0, "token_id:3": -2.0, "c": -0.5}),
    (report(3, -9.0, (2, -1.0), (9, -2.0)), "A", {"token_id:2": -1.0, "c": -2.0, "A": -9.0}),
    # a token that is a replacement character, and one that is a part of a character
    (report(8, -1.0, (8, -1.0), (5, -2.0)), "\ufffd", {"\ufffd": -1.0, "bytes:\\xe4": -2.0}),
    # special tokens and ids past the tokenizer's show no text
    (report(1, -1.0, (1, -1.0), (0, -2.0)), "</s>", {"</s>": -1.0, "<s>": -2.0}),
    (report(10, -1.0, (10, -1.0), (11, -2.0)), "", {"": -1.0, "token_id:11": -2.0}),
    (report(2, -1.0, (2, -1.0), (3, -math.inf)), "A", {"A": -1.0, "token_id:3": -9999.0}),
]


@pytest.mark.parametrize(("entry", "token", "top"), CASES)
async def test_no_value_is_another_tokens(
    url: str,
    service: FakeService,
    kind: ServiceKind,
    monkeypatch: pytest.MonkeyPatch,
    entry: TokenLogprob,
    token: str,
    top: dict[str, float],
) -> None:
    monkeypatch.setattr("tests.api.fake.FakeStream._logprobs", lambda self, _: [entry])
    service.reply = [entry.token_id]
    native = "/completion/v1" if kind == "static_batching" else "/completion/v2"
    answers: dict[str, Any] = {}
    async with aiohttp.ClientSession(url) as http:
        for route, fields in (
            (native, {"generation_config": {"logprobs": 2}}),
            ("/v1/completions", {"logprobs": 2}),
        ):
            async with http.post(route, json={"model": "fake", "prompt": [2, 4], **fields}) as response:
                assert response.status == 200, await response.text()
                answers[route] = (await response.json())["choices"][0]["logprobs"]
    for logprobs in answers.values():
        assert logprobs["tokens"] == [token] and logprobs["token_logprobs"] == [entry.logprob]
        assert logprobs["top_logprobs"] == [top]
        assert logprobs["top_logprobs"][0][token] == entry.logprob


async def test_a_list_of_chat_keeps_both(
    url: str, service: FakeService, twins: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.api.fake.FakeStream._logprobs", lambda self, _: [CASES[1][0]])
    monkeypatch.setattr(twins.hf, "chat_template", "A")
    service.reply = [3]
    body = {
        "model": "fake",
        "messages": [{"role": "user", "content": "c"}],
        "logprobs": True,
        "top_logprobs": 2,
    }
    async with aiohttp.ClientSession(url) as http, http.post("/v1/chat/completions", json=body) as response:
        (entry,) = (await response.json())["choices"][0]["logprobs"]["content"]
    assert (entry["token"], entry["logprob"], entry["bytes"]) == ("A", -2.0, [65])
    assert [(top["token"], top["logprob"]) for top in entry["top_logprobs"]] == [("A", -1.0), ("A", -2.0)]


async def test_offsets_count_the_characters_that_are_shown(
    url: str, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = [2, 5, 6, 7, 1, 4]  # A, the three bytes of 你, </s>, " b"
    service.reply = reply
    body = {"model": "fake", "prompt": [2], "logprobs": 0}
    async with aiohttp.ClientSession(url) as http, http.post("/v1/completions", json=body) as response:
        choice = (await response.json())["choices"][0]
    assert choice["text"] == "A你 b"
    assert choice["logprobs"]["text_offset"] == [0, 1, 1, 1, 2, 2]
