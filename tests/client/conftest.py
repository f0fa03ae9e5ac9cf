"""Stub servers and a gateway in front of them, on real sockets in the test's own event loop."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import uvicorn

from client.app import create_app
from client.config import GatewayConfig
from client.gateway import Gateway
from client.http.asgi import CompletionFront
from client.routing.router import RANKS
from server.api.app import create_app as create_server
from tests.api.fake import FakeService
from tests.client.stub import Stub
from tests.serving import HTTP, Server, eventually, serving

if TYPE_CHECKING:
    from server.text.tokenizer import Tokenizer

FAST: dict[str, Any] = {
    "heart_beat_timeout_seconds": 0.5,
    "busy_heart_beat_interval_seconds": 0.3,
    "replica_wait_seconds": 2,
    "stream_wait_seconds": 5,
    "heart_beat_interval_seconds": 60,
}
"""Patience of the order of a test's."""


class GatewayClient:
    """A running gateway, its insides, and a client of it."""

    def __init__(self, front: CompletionFront, session: aiohttp.ClientSession, url: str) -> None:
        self.front = front
        self.session = session
        self.url = url

    @property
    def gateway(self) -> Gateway:
        return self.front.gateway

    async def ready(self, count: int = 1) -> None:
        """Until `count` replicas are ready."""
        await eventually(lambda: sum(r.state == "ready" for r in self.gateway.registry) >= count)

    async def complete(self, prompt: str = "p", tokens: int = 8, **fields: Any) -> dict[str, Any]:
        """The answer to a native request."""
        status, _, body = await self.post(prompt, tokens, **fields)
        assert status == 200, body
        assert isinstance(body, dict)
        return body

    async def post(
        self, prompt: str = "p", tokens: int = 8, route: str = "/completion/v2", **fields: Any
    ) -> tuple[int, Any, Any]:
        """Status, headers and body of a native request."""
        body = {"model": "m", "prompt": prompt, "generation_config": {"max_new_tokens": tokens}} | fields
        async with self.session.post(route, json=body) as response:
            return response.status, response.headers, await response.json()

    async def stream(self, prompt: str = "p", tokens: int = 8, **fields: Any) -> bytes:
        """All bytes of a streamed answer."""
        body = {"model": "m", "prompt": prompt, "generation_config": {"max_new_tokens": tokens}} | fields
        async with self.session.post("/completion/v2", json=body | {"stream": True}) as response:
            assert response.status == 200, await response.text()
            return await response.read()

    def leaks(self) -> list[str]:
        """What is still held although nothing is in flight."""
        gateway = self.gateway
        found = [f"deadline {deadline}" for deadline in gateway.deadlines.in_flight]
        for replica in gateway.registry:
            found += [f"lease at {replica.url}" for _ in replica.load.leases]
            if replica.load.tokens or replica.load.rows:
                found.append(f"{replica.load.tokens} tokens at {replica.url}")
        return found + (["a waiting request"] if gateway.router.waiting else [])


MakeGateway = Callable[..., AbstractAsyncContextManager[GatewayClient]]


@asynccontextmanager
async def running_gateway(servers: Iterable[Stub] = (), **config: Any) -> AsyncIterator[GatewayClient]:
    """A gateway in front of `servers`; `config` overrides the fast defaults.

    At its end nothing may be held that belonged to a request.
    """
    config = FAST | config
    for kind in itertools.chain(*RANKS):
        config.setdefault(f"{kind}_server_urls", [server.url for server in servers if server.kind == kind])
    front = create_app(GatewayConfig.model_validate(config))
    async with serving_here(front) as url:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(60)
        async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as session:
            client = GatewayClient(front, session, url)
            if servers:
                await client.ready(len(list(servers)))
            yield client
        await eventually(lambda: not client.leaks())


@asynccontextmanager
async def serving_here(app: Any) -> AsyncIterator[str]:
    """Serve `app` in the running loop, on a free port."""
    config = uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=2, **HTTP)
    server = Server(config)
    # not `serve`, which would take the signals of the test runner
    task = asyncio.create_task(server._serve())
    await eventually(lambda: server.started or task.done())
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task


@pytest.fixture
def make_gateway() -> MakeGateway:
    return running_gateway


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    from server.text.tokenizer import Tokenizer  # most tests of the gateway do without what it imports
    from tests.checkpoints import tiny_tokenizer

    path = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(path)
    return Tokenizer(path)


@pytest.fixture
def cb(tokenizer: Tokenizer) -> FakeService:
    return FakeService(tokenizer)


@pytest.fixture
def cb_url(cb: FakeService) -> Iterator[str]:
    with serving(create_server(cb)) as url:
        yield url


@pytest.fixture
def sb_url(tokenizer: Tokenizer) -> Iterator[str]:
    service = FakeService(tokenizer, "static_batching")
    service.model_id = "static"
    with serving(create_server(service)) as url:
        yield url
