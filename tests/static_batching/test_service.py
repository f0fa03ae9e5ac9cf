"""The service: packaging in time, bounds, cancellation, failure, draining."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from protocol.errors import ApiError
from protocol.generation import GenerationConfig
from protocol.status import ServerState
from server.api.service import Job
from server.checkpoints.errors import ModelError
from server.static_batching.pipeline import StaticPipeline
from server.static_batching.prompts import Prompt
from tests.serving import eventually
from tests.static_batching.packages import Packages, all_given_back, answer, job, running_service

FOREVER = 3600.0


async def test_one_delta_for_each_answer(llama: Path) -> None:
    async with running_service(llama) as service:
        assert service.state == ServerState.READY
        deltas = await answer(service, job("a", do_sample=True, n=3))
    assert [delta.index for delta in deltas] == [0, 1, 2]
    assert all(delta.finish_reason == "length" and len(delta.token_ids) == 4 for delta in deltas)


async def test_what_arrives_together_runs_together(llama: Path, packages: Packages) -> None:
    async with running_service(llama) as service:
        jobs = [job(str(i), max_new_tokens=i + 1, seed=i, stop=["never"]) for i in range(6)]
        answers = await asyncio.gather(*(answer(service, one) for one in jobs))
        assert [len(deltas[0].token_ids) for deltas in answers] == [1, 2, 3, 4, 5, 6]
        assert all_given_back(service)
    assert packages.sizes == [6]


async def test_other_options_run_apart(llama: Path, packages: Packages) -> None:
    async with running_service(llama) as service:
        options: list[dict[str, Any]] = [{}, {"repetition_penalty": 1.5}, {"num_beams": 2}, {}]
        await asyncio.gather(*(answer(service, job(str(i), **o)) for i, o in enumerate(options)))
    assert sorted(packages.sizes) == [1, 1, 2]


async def test_a_full_package_starts_at_once_and_no_more_fits(llama: Path, packages: Packages) -> None:
    async with running_service(llama, package_max_workload=4, packaging_interval_seconds=FOREVER) as service:
        jobs = [job(str(i), num_beams=2) for i in range(5)]
        tasks = [asyncio.create_task(answer(service, one)) for one in jobs]
        await asyncio.gather(*tasks[:4])
        assert packages.sizes == [2, 2]
        assert service.status().load.waiting == 1
        await service.drain()  # no request will come any more: the last does not wait either
        assert len(await tasks[4]) == 1


async def test_batch_size_splits_a_package(llama: Path, packages: Packages) -> None:
    async with running_service(llama, batch_size=2) as service:
        await asyncio.gather(*(answer(service, job(str(i))) for i in range(5)))
    assert packages.sizes == [2, 2, 1]


async def test_a_model_that_cannot_be_batched_runs_one_by_one(llama: Path, packages: Packages) -> None:
    async with running_service(llama) as service:
        assert service._model is not None
        service._model.can_batch = False
        service.refusals = service._model.refusals
        await asyncio.gather(*(answer(service, job(str(i))) for i in range(3)))
        for several in (job("a", num_beams=2), job("b", n=2, do_sample=True)):
            with pytest.raises(ApiError) as caught:
                service.submit(several)
            assert caught.value.status == 422
    assert packages.sizes == [1, 1, 1]


async def test_queue_bound_and_timeout(llama: Path, packages: Packages) -> None:
    packages.may_run.clear()
    async with running_service(
        llama, packaging_interval_seconds=0, package_max_workload=1, max_waiting=2, queue_timeout_seconds=0.2
    ) as service:
        first = asyncio.create_task(answer(service, job("a")))
        await eventually(lambda: packages.sizes == [1])
        late = [asyncio.create_task(answer(service, job(name))) for name in "bc"]
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as refused:
            service.submit(job("d"))
        assert refused.value.status == 429 and refused.value.retry_after
        for task in late:
            with pytest.raises(ApiError) as expired:
                await task
            assert expired.value.status == 408
        packages.may_run.set()
        assert len(await first) == 1  # it runs: the queue timeout does not count any more
        assert all_given_back(service)


async def test_cancelled_while_waiting(llama: Path, packages: Packages) -> None:
    async with running_service(llama, packaging_interval_seconds=FOREVER) as service:
        closed, by_id = service.submit(job("a")), service.submit(job("b"))
        await closed.aclose()
        assert service.cancel("b")
        assert not service.cancel("b") and not service.cancel("a")
        with pytest.raises(ApiError) as caught:
            await anext(by_id)
        assert caught.value.status == 409
        assert all_given_back(service)
        await service.drain()
    assert packages.sizes == []


async def test_cancelled_while_running_frees_the_worker(llama: Path, packages: Packages) -> None:
    packages.may_run.clear()
    async with running_service(llama) as service:
        stream = service.submit(job("a", max_new_tokens=250))
        await eventually(lambda: packages.sizes == [1])
        await stream.aclose()
        assert all_given_back(service)
        packages.may_run.set()
        assert len(await answer(service, job("b"))) == 1


async def test_a_cancelled_task_gives_its_job_back(llama: Path) -> None:
    async with running_service(llama, packaging_interval_seconds=FOREVER) as service:
        stream = service.submit(job("a"))
        task = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await stream.aclose()
        assert all_given_back(service)


async def test_a_failing_package_fails_its_requests_alone(llama: Path, packages: Packages) -> None:
    def fail(prompts: Sequence[Prompt]) -> Exception | None:
        return RuntimeError("boom") if prompts[0].config.repetition_penalty == 2.0 else None

    packages.failure = fail
    async with running_service(llama) as service:
        bad = [answer(service, job(f"bad{i}", repetition_penalty=2.0)) for i in range(2)]
        good = [answer(service, job(f"good{i}")) for i in range(2)]
        outcomes = await asyncio.gather(*bad, *good, return_exceptions=True)
        for outcome in outcomes[:2]:
            assert isinstance(outcome, ApiError) and outcome.status == 422
            assert "boom" not in str(outcome)
        assert all(isinstance(outcome, list) and len(outcome) == 1 for outcome in outcomes[2:])
        assert all_given_back(service)


@pytest.mark.parametrize(
    ("failure", "status", "said"),
    [
        (torch.OutOfMemoryError("no memory"), 422, "more memory than is free"),
        (RuntimeError("[enforce fail] can't allocate memory"), 422, "more memory than is free"),
        (FloatingPointError("nan"), 422, "not finite"),
        (OverflowError("boom"), 422, "this request failed"),
        (RuntimeError("CUDA error: an illegal memory access"), 500, "this request failed"),
        (torch.AcceleratorError("boom"), 500, "this request failed"),
    ],
)
async def test_whose_fault_it_was(
    llama: Path, packages: Packages, failure: Exception, status: int, said: str
) -> None:
    packages.failure = lambda prompts: failure if prompts[0].config.repetition_penalty == 2.0 else None
    async with running_service(llama) as service:
        with pytest.raises(ApiError, match=said) as caught:
            await answer(service, job("bad", repetition_penalty=2.0))
        assert caught.value.status == status and "boom" not in str(caught.value)
        assert len(await answer(service, job("good"))) == 1


async def test_a_package_too_large_for_the_memory_runs_prompt_by_prompt(
    llama: Path, packages: Packages
) -> None:
    packages.failure = lambda prompts: torch.OutOfMemoryError("no memory") if len(prompts) > 1 else None
    async with running_service(llama) as service:
        answers = await asyncio.gather(*(answer(service, job(str(i))) for i in range(3)))
    assert all(len(deltas) == 1 for deltas in answers)
    assert packages.sizes == [3, 1, 1, 1, 1]  # the first of one prompt shows that the model still runs


async def test_draining(llama: Path, packages: Packages) -> None:
    packages.may_run.clear()
    async with running_service(llama) as service:
        running = asyncio.create_task(answer(service, job("a")))
        await eventually(lambda: packages.sizes == [1])
        draining = asyncio.create_task(service.drain())
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as caught:
            service.submit(job("b"))
        assert caught.value.status == 503
        assert not draining.done()
        packages.may_run.set()
        await draining
        assert running.done() or len(await running) == 1


async def test_closing_fails_what_is_left(llama: Path, packages: Packages) -> None:
    async with running_service(llama, packaging_interval_seconds=FOREVER) as service:
        stream = service.submit(job("a"))
        await service.close()
        with pytest.raises(ApiError) as caught:
            await anext(stream)
        assert caught.value.status == 503


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        (job("a", logprobs=1, num_beams=2), "logprobs"),
        (job("a", prompt=200, max_new_tokens=100), "max_new_tokens"),
        *(
            (job("a", prompt_lookup_num_tokens=4, **other), "prompt_lookup_num_tokens")
            for other in ({"logprobs": 1}, {"do_sample": True})
        ),
    ],
)
async def test_refusals(llama: Path, wanted: Job, param: str | None) -> None:
    async with running_service(llama) as service:
        with pytest.raises(ApiError) as caught:
            service.submit(wanted)
    assert caught.value.status == 422 and caught.value.body.param == param


async def test_metrics_and_status(llama: Path) -> None:
    async with running_service(llama) as service:
        await asyncio.gather(
            *(answer(service, job(str(i), prompt=2 + i, max_new_tokens=2 + i)) for i in (0, 3))
        )
        samples = {s.name: s.value for family in service.collect() for s in family.samples}
        status = service.status()
    assert samples["static_batching:row_steps_total"] == 10
    assert samples["static_batching:wasted_row_steps_total"] == 3
    assert samples["static_batching:padding_tokens_total"] == 3
    assert samples["vllm:request_queue_time_seconds_count"] == 2
    assert samples["vllm:num_requests_running"] == samples["vllm:num_requests_waiting"] == 0
    assert status.load.tokens_per_second > 0
    assert status.details["row_steps"] == 10
    assert status.capacity is not None and status.capacity.model_max_length == 256
    assert {"device", "dtype", "weights", "attention", "padding"} <= set(status.capabilities)


def test_offline_pipeline_gives_the_same_answers(llama: Path) -> None:
    pipeline = StaticPipeline(llama, batcher_config={"package_max_workload": 3})
    prompts: list[str | list[int]] = ["Hello", [5, 6, 7], "The old owl", "x"]
    configs = [GenerationConfig(max_new_tokens=5 + i) for i in range(4)]
    generations = pipeline.generate(prompts, configs)
    for prompt, config, generation in zip(prompts, configs, generations, strict=True):
        (alone,) = pipeline.generate([prompt], config)
        assert generation.answers[0].token_ids == alone.answers[0].token_ids
        assert len(alone.answers[0].token_ids) == config.max_new_tokens
        assert generation.text == alone.text
    with pytest.raises(ValueError, match="2 prompts but 1"):
        pipeline.generate(["a", "b"], [GenerationConfig()])
    with pytest.raises(ModelError, match="worker_confg"):
        StaticPipeline(llama, worker_confg={})
