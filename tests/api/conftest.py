from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from server.api.app import create_app
from server.api.config import HttpConfig
from server.text.tokenizer import Tokenizer
from tests.api.fake import FakeService
from tests.checkpoints import tiny_tokenizer
from tests.serving import serving


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path: Path = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(path)
    return Tokenizer(path)


@pytest.fixture
def service(tokenizer: Tokenizer) -> FakeService:
    return FakeService(tokenizer)


@pytest.fixture
def url(service: FakeService) -> Iterator[str]:
    """A real server around `service`."""
    with serving(create_app(service, http=HttpConfig(max_body_bytes=100_000))) as url:
        yield url


@pytest.fixture
async def http(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(url) as session:
        yield session
