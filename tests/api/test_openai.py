"""The OpenAI routes, through the unmodified SDK."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from protocol.errors import cancelled
from server.text.conversation import Conversation, Message
from tests.api.fake import REPLY, FakeService

USER = {"role": "user", "content": "Hi"}


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def chat_prompt(service: FakeService) -> list[int]:
    """The tokens of a conversation that consists of `USER`."""
    return service.tokenizer.encode(
        service.tokenizer.render_chat(Conversation([Message("user", ["Hi"])])), special=False
    )


def test_chat(client: openai.OpenAI, service: FakeService) -> None:
    answer = client.chat.completions.create(model="fake", messages=[USER])
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content == REPLY
    assert choice.finish_reason == "stop"
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion"
    assert answer.usage is not None and answer.usage.completion_tokens == len(service.reply)
    assert service.jobs[0].prompt_token_ids == chat_prompt(service)
    assert service.jobs[0].config.do_sample


def test_chat_may_fill_the_context(client: openai.OpenAI, service: FakeService) -> None:
    client.chat.completions.create(model="fake", messages=[USER])
    job = service.jobs[0]
    assert job.config.max_new_tokens == service.model_max_length - len(job.prompt_token_ids)


def test_chat_takes_text_parts_and_a_name(client: openai.OpenAI, service: FakeService) -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    client.chat.completions.create(
        model="fake", messages=[{"role": "user", "content": parts, "name": "Ann"}], max_completion_tokens=3
    )
    assert service.jobs[0].prompt_token_ids == chat_prompt(service)
    assert service.jobs[0].config.max_new_tokens == 3


def test_chat_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.create(model="fake", messages=[USER], stream=True) as stream:
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == REPLY
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len({chunk.id for chunk in chunks}) == 1


def test_stream_helper_of_the_sdk(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="fake", messages=[USER]) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == REPLY


def test_chat_logprobs(client: openai.OpenAI, service: FakeService) -> None:
    answer = client.chat.completions.create(
        model="fake", messages=[USER], logprobs=True, top_logprobs=2, max_tokens=9
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert [entry.token for entry in logprobs.content[:3]] == ["H", "e", "ll"]
    assert all(len(entry.top_logprobs) == 2 for entry in logprobs.content)
    half = logprobs.content[6]  # the first bytes of 世
    assert half.token.startswith("bytes:\\xe4") and half.bytes is not None
    joined = b"".join(bytes(entry.bytes or ()) for entry in logprobs.content)
    assert joined.decode() == answer.choices[0].message.content


def test_text_completion_of_several_prompts(client: openai.OpenAI, service: FakeService) -> None:
    answer = client.completions.create(
        model="fake", prompt=["one", "two two"], n=2, max_tokens=4, echo=True, seed=3
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == [
        "oneHello",
        "oneello,",
        "two twoHello",
        "two twoello,",
    ]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(len(job.prompt_token_ids) for job in service.jobs)
    assert answer.usage.completion_tokens == 16


def test_text_stream_of_several_prompts(client: openai.OpenAI, service: FakeService) -> None:
    prompts = [service.tokenizer.encode(text, special=False) for text in ("one", "two two")]
    with client.completions.create(
        model="fake", prompt=prompts, n=2, max_tokens=100, stream=True, echo=True, seed=3
    ) as stream:
        texts = ["", "", "", ""]
        for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["one" + REPLY, "one" + REPLY[1:], "two two" + REPLY, "two two" + REPLY[1:]]


def test_default_of_max_tokens_is_16(client: openai.OpenAI, service: FakeService) -> None:
    answer = client.completions.create(model="fake", prompt="Hi")
    assert answer.usage is not None and answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"


def test_options_reach_the_service(client: openai.OpenAI, service: FakeService) -> None:
    client.completions.create(
        model="fake",
        prompt="Hi",
        temperature=0.7,
        top_p=0.9,
        seed=5,
        stop="end",
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias={"5": 2},
        logprobs=0,
        extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.5, "min_tokens": 2, "priority": 3},
    )
    job = service.jobs[0]
    expected = {
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 5,
        "stop": ["end"],
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "logit_bias": {5: 2.0},
        "logprobs": 0,
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.5,
        "min_new_tokens": 2,
    }
    assert {name: getattr(job.config, name) for name in expected} == expected
    assert job.priority == 3


def test_temperature_zero_is_greedy(client: openai.OpenAI, service: FakeService) -> None:
    client.completions.create(model="fake", prompt="Hi", temperature=0)
    assert not service.jobs[0].config.do_sample


def test_errors_are_those_of_the_sdk(client: openai.OpenAI, service: FakeService) -> None:
    with pytest.raises(openai.NotFoundError, match="model 'other' is not served here"):
        client.chat.completions.create(model="other", messages=[USER])
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="fake", prompt="a b " * 300)
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "prompt"
    with pytest.raises(openai.BadRequestError, match="unknown role"):
        client.chat.completions.create(model="fake", messages=[{"role": "pirate", "content": "Arr"}])  # type: ignore[list-item]
    image = {"type": "image_url", "image_url": {"url": "x"}}
    with pytest.raises(openai.BadRequestError, match="image_url"):
        client.chat.completions.create(model="fake", messages=[{"role": "user", "content": [image]}])  # type: ignore[list-item]
    service.fail_after = 2
    with pytest.raises(openai.APIError, match="engine was lost"):  # noqa: SIM117
        with client.chat.completions.create(model="fake", messages=[USER], stream=True) as stream:
            list(stream)


def test_models(client: openai.OpenAI, service: FakeService) -> None:
    service.model_id = "name/of it"
    (model,) = client.models.list().data
    assert model.id == "name/of it" and model.object == "model"
    assert client.models.retrieve(model.id) == model
    with pytest.raises(openai.NotFoundError, match="served: name/of it") as caught:
        client.models.retrieve("name")
    assert caught.value.code == "model_not_found"


async def test_async_client(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(
            model="fake", messages=[USER], stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        whole = await client.completions.create(model="fake", prompt="Hi", max_tokens=100)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == REPLY == whole.choices[0].text
    assert chunks[-1].usage is not None


def test_a_cancelled_request_is_not_sent_again(client: openai.OpenAI, service: FakeService) -> None:
    service.fail_after, service.failure = 0, cancelled()
    with pytest.raises(openai.ConflictError):
        client.with_options(max_retries=2).completions.create(model="fake", prompt="Hi")
    assert len(service.jobs) == 1
