"""Metrics, and the OpenAPI document."""

from __future__ import annotations

import aiohttp
import pytest
import schemathesis
from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy
from prometheus_client.parser import text_string_to_metric_families
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from protocol.accepts import TRUE, Refusal
from protocol.status import ServiceKind
from server.api.app import create_app
from server.text.tokenizer import Tokenizer
from tests.api.fake import FakeService
from tests.serving import serving

BODY = {"model": "fake", "prompt": "Hi"}


async def scrape(http: aiohttp.ClientSession) -> dict[tuple[str, str], float]:
    """Sample values by (name, distinguishing label)."""
    async with http.get("/metrics") as response:
        families = text_string_to_metric_families(await response.text())
        return {
            (
                sample.name,
                sample.labels.get("finished_reason") or sample.labels.get("handler") or "",
            ): sample.value
            for family in families
            for sample in family.samples
            if not sample.name.endswith("_bucket")
        }


async def test_metrics_count_tokens_and_answers(http: aiohttp.ClientSession, service: FakeService) -> None:
    for stream in (False, True):
        async with http.post("/v1/completions", json=BODY | {"stream": stream}) as response:
            await response.read()
    service.fail_after = 3
    async with http.post("/v1/completions", json=BODY | {"n": 2, "seed": 1}) as response:
        assert response.status == 503
    values = await scrape(http)
    prompt = len(service.tokenizer.encode("Hi"))
    assert values["vllm:prompt_tokens_total", ""] == 3 * prompt
    assert values["vllm:generation_tokens_total", ""] == 16 + 16 + 3
    assert values["vllm:request_success_total", "length"] == 2
    assert values["vllm:request_success_total", "error"] == 2
    assert values["vllm:e2e_request_latency_seconds_count", ""] == 2
    assert values["vllm:time_to_first_token_seconds_count", ""] == 1
    assert values["vllm:inter_token_latency_seconds_count", ""] == 15
    assert values["vllm:request_prompt_tokens_sum", ""] == 2 * prompt  # of requests that were answered
    assert values["vllm:request_generation_tokens_sum", ""] == 16 + 16
    assert values["vllm:request_max_num_generation_tokens_sum", ""] == 16 + 16
    assert values["vllm:request_decode_time_seconds_count", ""] == 1
    assert values["vllm:request_params_max_tokens_sum", ""] == 16 + 16
    assert values["vllm:request_params_n_sum", ""] == 2
    assert values["vllm:num_requests_running", ""] == 0  # the service's own
    assert values["http_requests_total", "/v1/completions"] >= 1


async def test_unknown_paths_make_no_series(http: aiohttp.ClientSession) -> None:
    for path in ("/a", "/b"):
        async with http.get(path) as response:
            assert response.status == 404
    handlers = {label for name, label in await scrape(http) if name == "http_requests_total"}
    assert "none" in handlers and not handlers & {"/a", "/b"}


@pytest.mark.parametrize("kind", ["continuous_batching", "static_batching"])
def test_openapi_document_holds_for_generated_requests(tokenizer: Tokenizer, kind: ServiceKind) -> None:
    service = FakeService(tokenizer, kind)
    # a stream's body is not JSON
    service.refusals = (Refusal(option="stream", reason="answers whole", when={"stream": TRUE}),)
    with serving(create_app(service)) as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        operations = [operation.ok() for operation in schema.get_all_operations()]
        assert len(operations) == 16
        for operation in operations:
            check_operation(operation.as_strategy())


def check_operation(cases: SearchStrategy[schemathesis.Case]) -> None:
    checks = [not_a_server_error, status_code_conformance, response_schema_conformance]

    @settings(max_examples=15, deadline=None, derandomize=True, database=None)
    @given(case=cases)
    def check(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=checks)

    check()
