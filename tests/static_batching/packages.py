"""A service whose packages can be watched, held and failed."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from protocol.generation import GenerationConfig
from server.api.service import Delta, Job
from server.static_batching.config import BatcherConfig, ServerConfig, WorkerConfig
from server.static_batching.generate import Batch, generate
from server.static_batching.model import LoadedModel
from server.static_batching.prompts import Prompt
from server.static_batching.service import StaticBatchingService


class Packages:
    """Sees every call of `generate`, and can hold or fail it."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.may_run = threading.Event()
        self.may_run.set()
        self.failure: Callable[[Sequence[Prompt]], Exception | None] = lambda _: None

    def __call__(self, model: LoadedModel, prompts: Sequence[Prompt]) -> Batch:
        self.sizes.append(len(prompts))
        assert self.may_run.wait(20)
        failure = self.failure(prompts)
        if failure is not None:
            raise failure
        return generate(model, prompts)


@asynccontextmanager
async def running_service(
    llama: Path, batch_size: int = -1, **batcher: Any
) -> AsyncIterator[StaticBatchingService]:
    config = ServerConfig(
        worker_config=WorkerConfig(model_name_or_path=str(llama), device="cpu", batch_size=batch_size),
        batcher_config=BatcherConfig.model_validate({"packaging_interval_seconds": 0.05} | batcher),
    )
    service = StaticBatchingService(config, "tiny")
    await service.start()
    try:
        yield service
    finally:
        await service.close()


def job(name: str, *, prompt: int = 4, **options: Any) -> Job:
    return Job(name, list(range(5, 5 + prompt)), GenerationConfig(**({"max_new_tokens": 4} | options)))


async def answer(service: StaticBatchingService, wanted: Job) -> list[Delta]:
    return [delta async for delta in service.submit(wanted)]


def all_given_back(service: StaticBatchingService) -> bool:
    load = service.status().load
    return (load.running, load.waiting, load.pending_tokens) == (0, 0, 0)
