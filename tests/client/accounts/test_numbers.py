"""Numbers and dates from an account that are out of all bounds."""

from __future__ import annotations

import pytest

from tests.client.conftest import MakeGateway
from tests.client.openai_calls import account, chat
from tests.client.stub import Stub, stubs


@pytest.mark.parametrize(
    ("said", "rest"),
    [
        ("nan", 1),
        ("inf", 1),
        ("-inf", 1),
        ("1e12", 1),
        ("-5", 1),
        ("", 1),
        ("soon", 1),
        ("1000000000000", 3600),
        ("9" * 4000, 3600),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600),
        ("Sun, 06 Nov 99999 08:49:37 GMT", 1),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0),
        ("12", 12),
    ],
)
async def test_no_retry_after_ends_an_account(make_gateway: MakeGateway, said: str, rest: float) -> None:
    raw = f"HTTP/1.1 429 X\r\nRetry-After: {said}\r\nContent-Length: 2\r\n\r\n{{}}".encode()
    async with (
        stubs(endpoint := Stub(model="fake", raw=raw)),
        make_gateway(openai_jumper_configs=[account(endpoint.url)]) as client,
    ):
        status, headers, _ = await chat(client)
        assert (status, rest - 2 < int(headers["retry-after"]) <= max(rest, 1)) == (503, True)
        (resting,) = client.gateway.jumpers
        left = resting.rests_until - client.gateway.clock()
        assert rest - 5 < left <= rest
        async with client.session.get("/status") as response:
            shown = (await response.json())["openai_jumpers"][0]
            assert 0 <= shown["resting_seconds"] <= rest


@pytest.mark.parametrize("tokens", [b"-5", b"1e400", b"NaN", b"true", b'"7"', b"null", b"9" * 400, b"[]"])
async def test_no_usage_of_an_account_breaks_the_choice(make_gateway: MakeGateway, tokens: bytes) -> None:
    body = b'{"choices": [], "usage": {"total_tokens": %s}}' % tokens
    head = b"HTTP/1.1 200 X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    first, second = Stub(model="fake", raw=head + body), Stub(model="fake")
    async with stubs(first, second):
        config = [account(first.url), account(second.url, "other")]
        async with make_gateway(openai_jumper_configs=config) as client:
            for _ in range(4):
                assert (await chat(client))[0] == 200
            assert second.calls and all(0 <= a.tokens_used < 10**6 for a in client.gateway.jumpers)
            async with client.session.get("/metrics") as response:
                assert response.status == 200
