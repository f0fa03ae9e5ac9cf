"""The web page in real headless Chromium."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from protocol.errors import queue_timeout
from protocol.sse import DONE, event
from protocol.status import ServerState
from tests.client.calls import text_of, tokens_of
from tests.client.conftest import GatewayClient, MakeGateway
from tests.client.engines.fakes import FakeEngine
from tests.client.engines.fakes import text_of as text_of_engine
from tests.client.engines.formats import FORMATS
from tests.client.http.browser import Browser, Keys, needs_chromium
from tests.client.stub import Stub, stubs
from tests.serving import eventually

pytestmark = needs_chromium


async def traffic(client: GatewayClient, seconds: float) -> None:
    """Some answers for the charts."""
    end = asyncio.get_running_loop().time() + seconds
    n = 0
    while asyncio.get_running_loop().time() < end:
        n += 1
        await asyncio.gather(client.complete(f"x{n}", n % 9 + 1), client.stream(f"y{n}", n % 7 + 1))
        await client.post(model="unknown")
        await asyncio.sleep(0.1)


async def test_the_page_shows_a_conversation_and_the_board(
    make_gateway: MakeGateway, browser: Browser
) -> None:
    a, b, loading = Stub(), Stub(others=5), Stub(model="large", state=ServerState.LOADING)
    static = Stub(model="s", kind="static_batching")
    async with stubs(a, b, loading, static), make_gateway([a, b, static]) as client:
        client.gateway.registry.join(loading.kind, loading.url, "event")
        client.gateway.registry.join("continuous_batching", "http://127.0.0.1:1", "event")
        await traffic(client, 5)
        await browser.resize(1280, 1500, "light")
        await browser.open(client.url)
        table = await browser.until("#servers", lambda text: text.count("ready") == 3)
        for shown in (a.url[7:], b.url[7:], "static batching", "loading", "down", "cannot connect"):
            assert shown in table
        totals = await browser.text("#totals")
        assert "client errors" in totals and "server faults\n0" in totals
        drawn = "return [...document.querySelectorAll('#charts path')].map(p => p.getAttribute('d') !== '')"
        assert await browser.script(drawn) == [True] * 8
        prompt = "return document.getElementById('prompt').getBoundingClientRect().top"
        servers = "return document.getElementById('servers').getBoundingClientRect().top"
        assert await browser.script(prompt) < await browser.script(servers)

        # two turns by keyboard alone: the link that skips, the text, Enter
        a.seconds_per_token = b.seconds_per_token = 0.02
        await browser.press(Keys.TAB, Keys.ENTER)
        await browser.press("tell me", Keys.ENTER)
        whole = text_of(tokens_of("tell me", 256)).strip()
        begun = await browser.answer(lambda text: len(text) > 20)
        assert whole.startswith(begun.strip(" ▍")) and len(begun) < len(whole)  # it streams
        assert await browser.answer(lambda text: text.strip() == whole)
        foot = await browser.until("#turns > li:last-child .foot", bool)
        assert "cut at the token limit · 256 tokens" in foot and "tokens/s" in foot
        a.seconds_per_token = b.seconds_per_token = 0.0
        await browser.ask("and then")
        await browser.answer(lambda text: text.strip() == text_of(tokens_of("and then", 256)).strip())
        asked = max((*a.calls, *b.calls), key=lambda call: len(call.body.get("messages", ())))
        assert [turn["role"] for turn in asked.body["messages"]] == ["user", "assistant", "user"]
        assert asked.body["messages"][1]["content"].strip() == whole
        await browser.keep("conversation")

        # a chart tells the values of a moment
        await browser.script("document.querySelector('svg.chart').focus()")
        await browser.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
        label = await browser.script("return document.querySelector('svg.chart').getAttribute('aria-label')")
        assert "seconds ago: all" in label

        for width, scheme in ((400, "dark"), (1280, "dark"), (400, "light"), (1280, "light")):
            await browser.resize(width, 1600, scheme)
            over = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert await browser.script(over) <= 0, f"scrolls sideways at {width}"
            await browser.keep(f"{width}-{scheme}")
        assert browser.hosts() == {client.url[7:]}
        assert browser.errors() == []


async def test_an_answer_is_stopped_and_a_conversation_begun_anew(
    make_gateway: MakeGateway, browser: Browser
) -> None:
    server = Stub(seconds_per_token=0.05)
    async with stubs(server), make_gateway([server]) as client:
        await browser.open(client.url)
        await browser.until("#model", lambda text: "m" in text)
        await browser.script("document.getElementById('more').open = true")
        await browser.script("document.getElementById('system').value = 'Be brief.'")
        await browser.ask("hello")
        await browser.answer(bool)
        await browser.press(Keys.ESCAPE)
        await browser.until("#turns > li:last-child .foot", lambda text: text == "stopped")
        await eventually(lambda: server.live == 0)
        assert server.calls[0].body["messages"][0] == {"role": "system", "content": "Be brief."}
        for kind, said in (("curl", "curl http://127.0.0.1"), ("python", "client.chat.completions.create(")):
            await browser.script(f"document.getElementById('as-{kind}').click()")
            await browser.until("#snippet", lambda text, said=said: said in text and "Be brief." in text)
        await browser.script("document.getElementById('new').click()")
        await browser.ask("again")
        await browser.answer(bool)
        assert [turn["content"] for turn in server.calls[1].body["messages"]] == ["Be brief.", "again"]
        await browser.script("document.getElementById('stop').click()")
        await browser.until("#turns > li:last-child .foot", lambda text: text == "stopped")


async def test_failures_are_told(make_gateway: MakeGateway, browser: Browser) -> None:
    server = Stub(stream_error=queue_timeout("waited too long"))
    async with stubs(server), make_gateway([server]) as client:
        await browser.resize(1000, 1200, "light")
        await browser.open(client.url)
        await browser.until("#model", lambda text: "m" in text)
        await browser.ask("hello")
        await browser.until(".turn.failed .error", lambda text: "waited too long" in text)
        await browser.keep("failed")


async def test_a_static_batching_model_answers_whole(make_gateway: MakeGateway, browser: Browser) -> None:
    server = Stub(kind="static_batching")
    async with stubs(server), make_gateway([server]) as client:
        await browser.open(client.url)
        await browser.until("#model", lambda text: "m" in text)
        await browser.ask("hello")
        whole = text_of(tokens_of("hello", 256)).strip()
        await browser.answer(lambda text: text.strip() == whole)
        assert "stream" not in server.calls[0].body


async def test_reasoning_and_tool_calls_are_shown(make_gateway: MakeGateway, browser: Browser) -> None:
    server = Stub()
    pieces: list[dict[str, Any]] = [
        {"reasoning_content": "Let me see."},
        {"content": "I ask."},
        {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "weather", "arguments": '{"city": '}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Rome"}'}}]},
    ]
    chunks = [{"choices": [{"index": 0, "delta": piece, "finish_reason": None}]} for piece in pieces]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    body = b"".join(event(json.dumps(chunk).encode()) for chunk in chunks) + DONE
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n"
    server.raw = head % len(body) + body
    async with stubs(server), make_gateway([server]) as client:
        await browser.open(client.url)
        await browser.until("#model", lambda text: "m" in text)
        await browser.ask("What is the weather?")
        await browser.until(".call", lambda text: 'calls weather\n{"city": "Rome"}' in text)
        assert (
            await browser.script("return document.querySelector('.reasoning p').textContent") == "Let me see."
        )
        await browser.until("#turns > li:last-child .foot", lambda text: text.startswith("calls a tool"))


async def test_the_page_asks_for_a_key_and_stores_none(make_gateway: MakeGateway, browser: Browser) -> None:
    server = Stub()
    async with stubs(server), make_gateway([server], api_keys=["secret"]) as client:
        await browser.open(client.url)
        await browser.until("#alert", lambda text: "key" in text)
        await browser.script("document.getElementById('key').focus()")
        await browser.press("secret", Keys.ENTER)
        await browser.until("#servers", lambda text: "ready" in text)
        await browser.until("#alert", lambda text: text == "")
        stored = "return JSON.stringify([localStorage, sessionStorage, document.cookie])"
        assert "secret" not in await browser.script(stored)
        assert await browser.script("return document.getElementById('key').value") == ""


async def test_the_documentation_needs_nothing_from_elsewhere(
    make_gateway: MakeGateway, browser: Browser
) -> None:
    async with make_gateway(api_keys=["key"]) as client:
        await browser.open(client.url + "/docs")
        shown = await browser.until("main", lambda text: "/v1/chat/completions" in text)
        assert "GET /openapi.json" not in shown and "DELETE" in shown and "/requests/{request_id}" in shown
        opened = "document.querySelectorAll('details').forEach(box => { box.open = true; })"
        for _ in range(4):  # schemas within schemas
            await browser.script(opened)
            await asyncio.sleep(0.1)
        text = await browser.text("main")
        for said in ("frequency_penalty", "≥ -2", "ChatMessage", "required", "default"):
            assert said in text
        assert browser.hosts() == {client.url.removeprefix("http://")} and not browser.errors()
        await browser.keep("docs")


async def test_the_board_shows_other_engines_as_what_they_are(
    make_gateway: MakeGateway, browser: Browser
) -> None:
    servers = [FakeEngine(format=format, model=format.owner, waiting=2) for format in FORMATS]
    async with stubs(*servers), make_gateway(servers) as client:
        await browser.open(client.url)
        table = await browser.until("#servers", lambda text: text.count("ready") == 3)
        for shown in ("vLLM 0.32.0", "SGLang 0.5.23", "llama.cpp b11434-abc"):
            assert shown in table
        await browser.script("document.getElementById('model').value = 'vllm'")
        await browser.ask("what is it")
        whole = text_of_engine("what is it", 256).strip()
        assert await browser.answer(lambda text: text.strip() == whole)
