from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.api.app import create_app
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
    """Answers with up to 37 tokens of a fixed text."""
    service = FakeService(tokenizer)
    service.model_max_length = 4096
    return service


@pytest.fixture
def url(service: FakeService) -> Iterator[str]:
    with serving(create_app(service)) as url:
        yield url
