"""A model that stops to run takes its server out of service, with the reason, and gunicorn starts another;
what one request causes does not."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch

from protocol.errors import ApiError
from protocol.status import ServerState
from server.api.app import create_app
from server.api.lifecycle import Lifecycle
from server.checkpoints.errors import ModelError
from server.static_batching import tryout
from server.static_batching import worker as worker_module
from server.static_batching.config import ServerConfig, WorkerConfig
from server.static_batching.generate import Batch, generate
from server.static_batching.model import LoadedModel, load_model
from server.static_batching.prompts import Prompt
from server.static_batching.service import StaticBatchingService
from tests.serving import eventually, serving
from tests.static_batching.packages import Packages, all_given_back, answer, job, running_service

ROOT = Path(__file__).resolve().parents[2]
STICKY = "CUDA error: device-side assert triggered"


async def failed(service: StaticBatchingService, *names: str, **options: Any) -> list[ApiError]:
    answers = (answer(service, job(name, **options)) for name in names)
    outcomes = await asyncio.gather(*answers, return_exceptions=True)
    assert all(isinstance(outcome, ApiError) for outcome in outcomes), outcomes
    return [outcome for outcome in outcomes if isinstance(outcome, ApiError)]


def assert_out_of_service(service: StaticBatchingService, reason: str) -> None:
    assert service.state is ServerState.FAILED
    assert reason in (service.health() or "") and reason in (service.status().problem or "")
    assert all_given_back(service)
    with pytest.raises(ApiError) as refused:
        service.submit(job("late"))
    assert refused.value.status == 503 and reason in str(refused.value)


def out_of_memory(prompts: Sequence[Prompt]) -> Exception | None:
    return torch.OutOfMemoryError("no memory") if len(prompts[0].token_ids) > 1 else None


async def test_every_call_fails(llama: Path, packages: Packages) -> None:
    """As after a sticky error of CUDA: those that run and those that wait fail at once, to be retried."""
    async with running_service(llama, package_max_workload=1, queue_timeout_seconds=60) as service:
        ended: list[bool] = []
        service._on_failure = lambda: ended.append(True)
        assert len(await answer(service, job("before"))) == 1
        packages.failure = lambda _: RuntimeError(STICKY)
        errors = await failed(service, "runs", "waits")
        assert [error.status for error in errors] == [503, 503]
        assert [error.body.code for error in errors] == ["engine_lost", "failed"]
        assert ended == [True]
        assert_out_of_service(service, STICKY)
        await service.drain()  # nothing is left to be waited for


async def test_a_failure_while_memory_is_freed(
    llama: Path, packages: Packages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def empty_cache() -> None:
        raise RuntimeError(STICKY)

    async with running_service(llama) as service:
        packages.failure = out_of_memory
        monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
        assert [error.status for error in await failed(service, "a", "b")] == [503, 503]
        assert_out_of_service(service, STICKY)


async def test_what_one_request_causes_does_not_end_the_server(llama: Path, packages: Packages) -> None:
    async with running_service(llama) as service:
        for failure in (out_of_memory, lambda prompts: out_of_memory(prompts) and RuntimeError("boom")):
            packages.failure = failure
            assert [error.status for error in await failed(service, "a", "b")] == [422, 422]
        packages.failure = lambda _: torch.OutOfMemoryError("others took it all")
        assert [error.status for error in await failed(service, "c")] == [500]
        packages.failure = lambda _: None
        assert service.health() is None and len(await answer(service, job("d"))) == 1


async def test_answers_that_cannot_be_delivered(
    llama: Path, packages: Packages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(model: LoadedModel, prompts: Sequence[Prompt]) -> Batch:
        batch = generate(model, prompts)
        del batch.answers[1:]
        return batch

    async with running_service(llama) as service:
        monkeypatch.setattr(worker_module, "generate", half)
        outcomes = await asyncio.gather(
            answer(service, job("a")), answer(service, job("b")), return_exceptions=True
        )
        assert isinstance(outcomes[0], list)
        assert isinstance(outcomes[1], ApiError) and outcomes[1].status == 500
        assert all_given_back(service) and service.health() is None


async def test_the_dispatcher_cannot_go_on(
    llama: Path, packages: Packages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(now: float) -> None:
        raise MemoryError("can't start new thread")

    async with running_service(llama) as service:
        monkeypatch.setattr(service._batcher, "take", take)
        assert [error.status for error in await failed(service, "a")] == [503]
        assert_out_of_service(service, "can't start new thread")


async def test_health_depends_on_progress(llama: Path, packages: Packages) -> None:
    now = 1000.0
    config = ServerConfig.model_validate(
        {
            "worker_config": {"model_name_or_path": str(llama), "device": "cpu"},
            "batcher_config": {"packaging_interval_seconds": 0, "step_timeout_seconds": 30},
        }
    )
    service = StaticBatchingService(config, "tiny", clock=lambda: now)
    with serving(create_app(service, lifecycle=Lifecycle(service))) as url:
        async with aiohttp.ClientSession(url) as http:
            await eventually(lambda: service.state is ServerState.READY, 60)

            async def health() -> tuple[int, str]:
                async with http.get("/health") as response:
                    return response.status, await response.text()

            now += 100
            assert (await health())[0] == 200  # idle
            packages.may_run.clear()
            body = {"model": "tiny", "prompt": [5, 6], "generation_config": {"max_new_tokens": 4}}
            request = asyncio.create_task(http.post("/completion/v1", json=body))
            await eventually(lambda: packages.sizes == [1])
            now += 29
            assert (await health())[0] == 200
            now += 2
            status, text = await health()
            assert status == 503 and "no step for 31 s" in text
            async with http.get("/ready") as response:
                assert response.status == 503
            async with http.post("/completion/v1", json=body) as response:
                assert response.status == 503 and "no step for 31 s" in await response.text()
            packages.may_run.set()
            async with await request as response:
                assert response.status == 200
            assert (await health())[0] == 200


def test_a_device_that_breaks_while_the_model_is_tried_out(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not taken for a model that cannot be batched."""
    real, calls = tryout._logits, 0

    def fail(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise RuntimeError(STICKY)
        return real(*arguments)

    monkeypatch.setattr(tryout, "_logits", fail)
    with pytest.raises(ModelError, match="device-side assert"):
        load_model(WorkerConfig(model_name_or_path=str(llama), device="cpu"))


CUSTOM = f"""
import os
from transformers import LlamaConfig, LlamaForCausalLM

class Config(LlamaConfig):
    model_type = "own"

class Model(LlamaForCausalLM):
    config_class = Config

    def forward(self, *arguments, **options):
        if os.path.exists(self.config.broken) and open(self.config.broken).read() == str(os.getpid()):
            raise RuntimeError({STICKY!r})
        return super().forward(*arguments, **options)
"""


async def test_gunicorn_starts_another_process(llama: Path, tmp_path: Path, unused_tcp_port: int) -> None:
    model, broken = Path(shutil.copytree(llama, tmp_path / "model")), tmp_path / "broken"
    (model / "custom.py").write_text(CUSTOM)
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "own", "architectures": ["Model"], "broken": str(broken)}
    config["auto_map"] = {"AutoConfig": "custom.Config", "AutoModelForCausalLM": "custom.Model"}
    (model / "config.json").write_text(json.dumps(config))
    worker = {"model_name_or_path": str(model), "trust_remote_code": True, "device": "cpu"}
    (tmp_path / "server.json").write_text(json.dumps({"worker_config": worker}))
    environment = {
        "INFERENCE_STACK_PORT": str(unused_tcp_port),
        "INFERENCE_STACK_MODEL_ID": "tiny",
        "INFERENCE_STACK_SERVER_CONFIG_FILE_PATH": str(tmp_path / "server.json"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
    }
    command = [
        *(sys.executable, "-m", "gunicorn", "static_batching_server_app:create_app()", "--no-control-socket"),
        *("--config", "configs/gunicorn_config.py", "--bind", f"127.0.0.1:{unused_tcp_port}"),
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220
            command, cwd=ROOT, env=os.environ | environment, stdout=log, stderr=log
        )
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{unused_tcp_port}") as http:
            first = await ready(http, process)
            broken.write_text(str(first))
            body = {"model": "tiny", "prompt": [5, 6], "max_tokens": 4}
            async with http.post("/v1/completions", json=body) as response:
                assert response.status == 503, await response.text()
                assert STICKY in (await response.json())["error"]["message"]
            assert await ready(http, process, other_than=first) != first
            async with http.post("/v1/completions", json=body) as response:
                assert response.status == 200
        assert STICKY in (tmp_path / "log").read_text()
    finally:
        process.terminate()
        assert process.wait(60) == 0


async def ready(
    http: aiohttp.ClientSession, process: subprocess.Popen[bytes], other_than: int | None = None
) -> int:
    """The process that is ready, once one is."""
    async with asyncio.timeout(120):
        while process.poll() is None:
            try:
                async with http.get("/status") as response:
                    status = await response.json()
                if status["state"] == "ready" and status["details"]["pid"] != other_than:
                    return int(status["details"]["pid"])
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
    raise AssertionError("the server ended")
